// How the new checkpoint says how wide its experts are.

#include <algorithm>
#include <array>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/rewrite.h"
#include "moetrim/suggest.h"
#include "rewrite/renumbering.h"

namespace moetrim {

namespace {

/// Spellings of model_type that transformers has no class for without code from elsewhere.
constexpr std::array<std::string_view, 2> kNotInTransformers = {"PanguProMoE", "kimi_k2"};

/// The one width of all experts, if there is one.
std::optional<int> common_width(const std::vector<const PlanLayer*>& layers) {
  std::optional<int> width;
  for (const PlanLayer* layer : layers) {
    for (const AtomRanges& atoms : layer->atoms) {
      const int count = atom_count(atoms);
      if (width.value_or(count) != count) return std::nullopt;
      width = count;
    }
  }
  return width;
}

[[noreturn]] void refuse(const Model& model, const std::string& why, std::string_view what_to_do) {
  throw InvalidInput(fmt::format("the plan cannot be written for {}: {}; {}", model.checkpoint->folder().string(), why,
                                 what_to_do));
}

constexpr std::string_view kMakeEqual =
    "make the plan with --scope expert, which keeps as many atomic experts in every expert";
constexpr std::string_view kKeepWhole = "plan to drop whole experts instead";

/// Widths, or numbers of experts, that only a list can say.
struct Listed {
  const Model& model;
  const std::vector<const PlanLayer*>& layers;
  std::string why;
  std::string_view what_to_do;

  [[noreturn]] void no(const std::string& reason) const {
    refuse(model, fmt::format("{}, and {}", why, reason), what_to_do);
  }
  Slimming slimming() const;
  void check_class() const;
  void check_plain() const;
  bool input_first() const;
  std::string architecture() const;
};

/// Whether the matrices are [H, width]; all layers must lie the same way.
bool Listed::input_first() const {
  bool any = false, all = true;
  for (const PlanLayer* layer : layers) {
    const LayerTensors& tensors = model.layer.at(static_cast<std::size_t>(layer->layer));
    for (const Role role : {Role::fused_gate_up, Role::fused_down}) {
      const bool first = tensors.fused() && tensors[role].rule->input_first();
      any = any || first;
      all = all && first;
    }
  }
  if (any != all) no("their matrices are stored input first in some tensors and output first in others");
  return all;
}

void Listed::check_plain() const {
  const auto check = [&](const Weight& weight) {
    if (!weight || !weight.packed()) return;
    no(fmt::format("that is written from plain weights only; tensor {} is {}", weight.values()->name,
                   dtype_name(weight.values()->dtype)));
  };
  for (const PlanLayer* layer : layers) {
    const LayerTensors& tensors = model.layer.at(static_cast<std::size_t>(layer->layer));
    check(tensors[Role::fused_gate_up]);
    check(tensors[Role::fused_down]);
    for (const auto& expert : tensors.experts) std::for_each(expert.begin(), expert.end(), check);
  }
  const std::string& method = model.quantisation.method;
  if (!method.empty()) no(fmt::format("that is not written beside quantised weights ({})", method));
}

void Listed::check_class() const {
  const std::string type = model.checkpoint->config().value("model_type", "");
  if (std::find(kNotInTransformers.begin(), kNotInTransformers.end(), type) == kNotInTransformers.end()) return;
  no(fmt::format("transformers has no class for model_type {} that could be taught to read a list of widths",
                 in_quotes(type)));
}

/// The class of the source, by config.json or else by the family. Nothing else may get into a file of code.
std::string Listed::architecture() const {
  const auto& known = model.family->architectures;
  const auto& config = model.checkpoint->config();
  const auto named = config.find("architectures");
  const bool is_named = named != config.end() && named->is_array() && !named->empty() && (*named)[0].is_string();
  if (!is_named) return std::string(known.front());
  const std::string name = (*named)[0].get<std::string>();
  if (std::find(known.begin(), known.end(), name) == known.end()) {
    no(fmt::format("config.json names the architecture {}; expected {}", in_quotes(name), fmt::join(known, " or ")));
  }
  return name;
}

Slimming Listed::slimming() const {
  check_class();
  check_plain();
  Slimming out;
  out.form = WidthForm::listed;
  out.input_first = input_first();
  out.architecture = architecture();
  out.why = why;
  return out;
}

Slimming widths_of(const Model& model, const Plan& plan, Mtp mtp, const RewriteSources& sources,
                   const std::vector<const PlanLayer*>& layers) {
  Slimming out;
  if (merges(plan) && plan.router == MergedRouter::map) {
    return Listed{model, layers, "rows of the router share merged experts",
                  "make the plan with --router centroid or --router duplicate"}.slimming();
  }
  if (sources.low_rank && sources.low_rank->form == LowRankForm::factored) {
    return Listed{model, layers, "matrices of experts are stored as factors", "write them with --low-rank-form dense"}.slimming();
  }
  if (plan.width == 0) return out;
  const auto width = common_width(layers);
  if (!width) return Listed{model, layers, "experts have different widths", kMakeEqual}.slimming();
  if (*width == model.expert_width) return out;
  if (*width == 0) refuse(model, "no expert keeps any atomic expert", "keep some");
  const Family& family = *model.family;
  const bool tied = model.shared_width > 0 && family.shared_width_key == family.expert_width_key;
  if (tied && family.shared_count_key.empty()) {
    const std::string why = fmt::format("config.json has one number, {}, for the experts and for the shared expert, which "
                                        "keeps its width", family.expert_width_key);
    return Listed{model, layers, why, kKeepWhole}.slimming();
  }
  if (mtp == Mtp::keep && model.mtp_layers > 0) {
    refuse(model, fmt::format("config.json has one width for all experts, and the {} multi-token-prediction block(s) would "
                              "keep theirs, {}", model.mtp_layers, model.expert_width),
           "choose --mtp prune, with a plan that covers them, or --mtp drop");
  }
  out.form = WidthForm::config;
  out.width = *width;
  out.shared_width = tied ? (model.shared_width + *width - 1) / *width * *width : model.shared_width;
  return out;
}

}  // namespace

Slimming slimming_of(const Model& model, const Plan& plan, Mtp mtp, const RewriteSources& sources) {
  const auto layers = written_layers(model, plan, mtp);
  Slimming out = widths_of(model, plan, mtp, sources, layers);
  if (plan.counts == LayerCounts::equal) return out;
  const Listed counts{model, layers, "layers keep different numbers of experts",
                      "make a plan that keeps the same number in every layer"};
  counts.check_class();
  counts.check_plain();
  out.by_layer = true;
  out.architecture = counts.architecture();
  out.why = out.form == WidthForm::listed ? fmt::format("{}, and {}", out.why, counts.why) : counts.why;
  return out;
}

}  // namespace moetrim
