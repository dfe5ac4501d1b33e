// moetrim factorise: how much of the experts' matrices factors of low rank would leave out.

#include <algorithm>

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/progress.h"
#include "moetrim/error.h"
#include "moetrim/factorise.h"

namespace moetrim::cli {

namespace {

struct Flags {
  std::string checkpoint;
  std::vector<int> layers;
};

nlohmann::ordered_json to_json(const std::vector<RankResidual>& residuals, bool of_each) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const RankResidual& entry : residuals) {
    list.push_back({{"rank", entry.rank}, {"size", entry.size}, {"residual", entry.residual}});
    if (of_each) list.back()["largest"] = entry.largest;
  }
  return list;
}

nlohmann::ordered_json to_json(const ProjectionResiduals& projection) {
  return {{"joint", to_json(projection.joint, false)}, {"alone", to_json(projection.alone, true)}};
}

std::string columns(const std::vector<RankResidual>& residuals) {
  std::string text;
  for (const RankResidual& entry : residuals) text += fmt::format("{:8.1f}%", 100 * entry.residual);
  return text;
}

std::string heading(const ProjectionResiduals& first) {
  std::string text = "energy left by one factor for all experts, and by factors of each (mean), at ranks\n            ";
  for (const auto& entry : first.joint) text += fmt::format("{:>9}", entry.rank);
  text += "   ";
  for (const auto& entry : first.alone) text += fmt::format("{:>9}", entry.rank);
  text += "\nsize        ";
  for (const auto& entry : first.joint) text += fmt::format("{:8.1f}%", 100 * entry.size);
  text += "   ";
  for (const auto& entry : first.alone) text += fmt::format("{:8.1f}%", 100 * entry.size);
  return text + "\n";
}

void run_factorise(const Session& session, const Flags& flags) {
  const Checkpoint checkpoint = Checkpoint::open(flags.checkpoint);
  const Model model = describe(checkpoint);
  const auto layers = flags.layers.empty() ? model.moe_layers() : flags.layers;
  const auto known = model.moe_layers(/*with_mtp=*/true);
  for (const int layer : layers) {
    if (std::find(known.begin(), known.end(), layer) == known.end()) {
      throw UsageError(fmt::format("--layers {}: {} has no experts in that layer", layer, flags.checkpoint));
    }
  }
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  std::string text;
  Progress progress("factorise", "layers", session.quiet);
  for (const int id : layers) {
    stop_if_requested();
    const LayerResiduals layer = factorise_layer(model, id);
    if (text.empty()) text = heading(layer.gate);
    list.push_back({{"layer", id}, {"gate", to_json(layer.gate)}, {"up", to_json(layer.up)}, {"down", to_json(layer.down)}});
    for (const auto& [name, projection] : {std::pair{"gate", &layer.gate}, {"up", &layer.up}, {"down", &layer.down}}) {
      text += fmt::format("{:>5}  {:<5}{}   {}\n", id, name, columns(projection->joint), columns(projection->alone));
    }
    progress.update(static_cast<double>(list.size()), static_cast<double>(layers.size()));
  }
  session.print({{"checkpoint", flags.checkpoint}, {"layers", list}}, text);
}

}  // namespace

void add_factorise(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "factorise", "Say what low-rank factors would leave of experts' matrices",
                                  "moetrim factorise demo/model --layers 0,3");
  auto flags = std::make_shared<Flags>();
  command->add_option("checkpoint", flags->checkpoint, "Checkpoint folder")->required();
  command->add_option("--layers", flags->layers, "Absolute ids of MoE layers, separated by commas; default: all")
      ->delimiter(',');
  command->callback([&session, flags] { session.run = [&session, flags] { run_factorise(session, *flags); }; });
}

}  // namespace moetrim::cli
