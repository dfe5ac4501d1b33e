// moetrim contrast: which experts a behaviour uses.

#include <algorithm>

#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/contrast.h"
#include "moetrim/error.h"

namespace moetrim::cli {

namespace {

struct Flags {
  std::string statistics, marker, output;
  std::vector<std::string> tasks, against;
  int top = 0;
  double least_count = 1;
};

void check(const Flags& flags) {
  const bool marker = !flags.marker.empty();
  if (marker && !flags.against.empty()) {
    throw UsageError("--marker holds its tokens against all others; leave out --against, or --marker");
  }
  if (!marker && (flags.tasks.empty() || flags.against.empty())) {
    throw UsageError("say what to compare: --task A --against B, or --marker TEXT");
  }
}

Contrast make(const Statistics& statistics, const Flags& flags) {
  if (flags.marker.empty()) return contrast_tasks(statistics, flags.tasks, flags.against, flags.least_count);
  const auto counts = read_marker_counts(statistics, flags.statistics, flags.marker, flags.tasks);
  Contrast contrast = contrast_marker(statistics.manifest, counts, flags.least_count);
  contrast.source["marker"] = flags.marker;
  if (!flags.tasks.empty()) contrast.source["tasks"] = flags.tasks;
  return contrast;
}

std::string describe(const RankedExpert& entry) {
  std::string line = fmt::format("layer {:3} expert {:3}  {:+.4f}", entry.layer, entry.expert, entry.score);
  if (entry.standard_error) line += fmt::format(" ± {:.4f}", *entry.standard_error);
  if (entry.agreement) line += fmt::format("  sign in {:3.0f}% of slices", 100 * *entry.agreement);
  if (entry.pmi) line += fmt::format("  PMI {:+.3f} bits", *entry.pmi);
  return line + fmt::format("  {:.0f} tokens, {:.0f}\n", entry.count, entry.against_count);
}

std::string describe(const Contrast& contrast, std::size_t all) {
  constexpr std::size_t kShown = 20;
  std::string text =
      contrast.measure == ContrastMeasure::ftri
          ? "difference of relative activation frequencies; tokens routed there, and of those they are held against\n"
          : "normalised PMI; tokens of the marker routed there, and all tokens routed there\n";
  for (std::size_t i = 0; i < std::min(kShown, contrast.ranked.size()); ++i) text += describe(contrast.ranked[i]);
  if (contrast.ranked.size() > kShown) text += fmt::format("… {} more\n", contrast.ranked.size() - kShown);
  return text + fmt::format("{} experts ranked\n", all);
}

void run_contrast(const Session& session, const Flags& flags) {
  check(flags);
  const Statistics statistics = Statistics::read(flags.statistics);
  session.note_part(statistics.manifest);
  Contrast contrast = make(statistics, flags);
  const std::size_t all = contrast.ranked.size();
  if (flags.top > 0 && static_cast<std::size_t>(flags.top) < all) {
    contrast.ranked.resize(static_cast<std::size_t>(flags.top));
    contrast.source["top"] = flags.top;
  }
  if (!flags.output.empty()) write_contrast(flags.output, contrast);
  session.print(contrast_to_json(contrast),
                describe(contrast, all) + (flags.output.empty() ? "" : "ranking in " + flags.output + "\n"));
}

}  // namespace

void add_contrast(CLI::App& app, Session& session) {
  CLI::App* command =
      add_command(app, session, "contrast", "Rank experts by how much more one set of demonstrations uses them than another",
                  "moetrim contrast math.stats --task math/steps --against math/answers -o ranked.json");
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->statistics, "Folder that calibrate wrote")->required();
  command->add_option("--task", flags->tasks,
                      "Tasks whose experts are sought; repeat to pool them. With --marker: count in these alone");
  command->add_option("--against", flags->against, "Tasks that they are held against");
  command->add_option("--marker", flags->marker,
                      "Text whose tokens are held against all others; calibrate --marker counted it");
  command->add_option("--top", flags->top, "Rank the first N alone; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--least-count", flags->least_count, "Leave out experts that fewer counted tokens reached")
      ->check(CLI::NonNegativeNumber)->capture_default_str();
  command->add_option("-o,--output", flags->output, "File for the ranking");
  command->callback([&session, flags] { session.run = [&session, flags] { run_contrast(session, *flags); }; });
}

}  // namespace moetrim::cli
