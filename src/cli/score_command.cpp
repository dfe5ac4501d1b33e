// moetrim score: statistics to scores.

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/score.h"

namespace moetrim::cli {

namespace {

/// A line per layer: the best and the worst experts, or atomic experts as EXPERT.ATOM.
std::string describe_scores(const Scores& scores) {
  constexpr std::size_t kShown = 4;
  const auto name = [&](std::size_t i) {
    const auto width = static_cast<std::size_t>(scores.width);
    return scores.grain == Grain::atom ? fmt::format("{}.{}", i / width, i % width) : std::to_string(i);
  };
  std::string text = fmt::format("{} ({})\n", scores.method, scores.variant);
  for (std::size_t l = 0; l < scores.layers.size(); ++l) {
    const auto& values = scores.values[l];
    std::vector<std::size_t> order(values.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return values[a] > values[b]; });
    text += fmt::format("layer {:3}  best", scores.layers[l]);
    for (std::size_t i = 0; i < std::min(kShown, order.size()); ++i) {
      text += fmt::format("  {}: {:.4g}", name(order[i]), values[order[i]]);
    }
    text += fmt::format("   worst  {}: {:.4g}\n", name(order.back()), values[order.back()]);
  }
  return text;
}

}  // namespace

void add_score(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "score", "Score every expert, or atomic expert, from statistics",
                                  "moetrim score arithmetic.stats --method easy-ep --json");
  struct Flags : ScoreFlags {
    std::string statistics, output;
  };
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->statistics, "Folder that calibrate wrote")->required();
  flags->add(*command);
  command->add_option("-o,--output", flags->output, "Also write the scores to this safetensors file");
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      const MethodMix method = MethodMix::parse(flags->method);
      const Statistics statistics = Statistics::read(flags->statistics, method.second_order() != nullptr);
      session.note_part(statistics.manifest);
      const Scores scores = moetrim::score(statistics, method, flags->options(), flags->weights());
      if (!flags->output.empty()) write_scores(flags->output, scores);
      session.print(scores_to_json(scores), describe_scores(scores));
    };
  });
}

}  // namespace moetrim::cli
