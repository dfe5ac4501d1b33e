// The plan file: JSON, read strictly and written one layer a line.
#include <algorithm>

#include <fmt/format.h>

#include "moetrim/checkpoint.h"
#include "moetrim/json_fields.h"
#include "moetrim/plan.h"

namespace moetrim {
namespace {

constexpr std::string_view kFormat = "moetrim-plan";
constexpr int kVersion = 1;

PlanLayer layer_from_json(JsonFields fields, const Plan& plan) {
  PlanLayer layer;
  layer.layer = fields.whole("layer", 0);
  layer.keep = fields.ascending("keep", 0, plan.experts - 1);
  const int count = static_cast<int>(layer.keep.size());
  if (count != plan.keep) {
    fields.fail("keep", fmt::format("expected {} experts as in the plan's keep, got {}", plan.keep, count));
  }
  layer.unseen = fields.whole("unseen", 0, plan.experts);
  layer.unseen_kept = fields.whole("unseen_kept", 0, std::min(layer.unseen, count));
  fields.finish();
  return layer;
}

void read_layers(JsonFields& fields, const std::filesystem::path& file, Plan& plan) {
  for (const auto& item : fields.array("layers")) {
    const std::string where = fmt::format("layers[{}]", plan.layers.size());
    PlanLayer layer = layer_from_json(JsonFields(item, file, where), plan);
    if (!plan.layers.empty() && layer.layer <= plan.layers.back().layer) {
      fields.fail(where + ".layer",
                  fmt::format("expected more than the {} before it, got {}; layers are ascending and not doubled",
                              plan.layers.back().layer, layer.layer));
    }
    plan.layers.push_back(std::move(layer));
  }
  if (plan.layers.empty()) fields.fail("layers", "expected at least one layer, got none");
}

/// A protected expert that the plan drops is a contradiction.
void check_protected(const JsonFields& fields, const Plan& plan, const ProtectedExpert& expert) {
  const auto layer = std::find_if(plan.layers.begin(), plan.layers.end(),
                                  [&](const PlanLayer& candidate) { return candidate.layer == expert.layer; });
  if (layer == plan.layers.end()) fields.fail("layer", fmt::format("layer {} is not in layers", expert.layer));
  if (!std::binary_search(layer->keep.begin(), layer->keep.end(), expert.expert)) {
    fields.fail("expert", fmt::format("expert {} of layer {} is protected but not kept", expert.expert, expert.layer));
  }
}

void read_protect(JsonFields& fields, const std::filesystem::path& file, Plan& plan) {
  for (const auto& item : fields.array("protect")) {
    JsonFields entry(item, file, fmt::format("protect[{}]", plan.protect.size()));
    ProtectedExpert expert;
    expert.layer = entry.whole("layer", 0);
    expert.expert = entry.whole("expert", 0, plan.experts - 1);
    expert.why = entry.choice("why", {"super", "requested"});
    entry.finish();
    check_protected(entry, plan, expert);
    plan.protect.push_back(std::move(expert));
  }
}

Plan plan_from_json(const nlohmann::ordered_json& json, const std::filesystem::path& file) {
  JsonFields fields(json, file);
  fields.choice("format", {kFormat});
  Plan plan;
  plan.version = fields.whole("version", kVersion, kVersion);
  plan.method = fields.text("method");
  plan.variant = fields.choice("variant", {"executed", "official"});
  plan.checkpoint_fingerprint = fields.text("checkpoint_fingerprint");
  plan.family = fields.text("family");
  plan.experts = fields.whole("experts", 1);
  plan.keep = fields.whole("keep", 1, plan.experts);
  plan.experts_per_token = fields.whole("experts_per_token", 1, plan.keep);
  read_layers(fields, file, plan);
  read_protect(fields, file, plan);
  plan.source = fields.object("source");
  fields.finish();
  return plan;
}

/// Arrays of objects one object a line: a kept set on one line can be read and compared, one id a line cannot.
std::string pretty(const nlohmann::ordered_json& json) {
  std::string text = "{";
  for (const auto& field : json.items()) {
    text += (text.size() > 1 ? ",\n  " : "\n  ") + nlohmann::ordered_json(field.key()).dump() + ": ";
    const auto& value = field.value();
    if (!value.is_array() || value.empty()) {
      text += value.dump();
      continue;
    }
    for (std::size_t i = 0; i < value.size(); ++i) text += (i == 0 ? "[\n    " : ",\n    ") + value[i].dump();
    text += "\n  ]";
  }
  return text + "\n}\n";
}

}  // namespace

nlohmann::ordered_json plan_to_json(const Plan& plan) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const auto& layer : plan.layers) {
    layers.push_back(
        {{"layer", layer.layer}, {"keep", layer.keep}, {"unseen", layer.unseen}, {"unseen_kept", layer.unseen_kept}});
  }
  nlohmann::ordered_json protect = nlohmann::ordered_json::array();
  for (const auto& expert : plan.protect) {
    protect.push_back({{"layer", expert.layer}, {"expert", expert.expert}, {"why", expert.why}});
  }
  return {{"format", kFormat},
          {"version", plan.version},
          {"method", plan.method},
          {"variant", plan.variant},
          {"checkpoint_fingerprint", plan.checkpoint_fingerprint},
          {"family", plan.family},
          {"experts", plan.experts},
          {"keep", plan.keep},
          {"experts_per_token", plan.experts_per_token},
          {"layers", std::move(layers)},
          {"protect", std::move(protect)},
          {"source", plan.source}};
}

Plan read_plan(const std::filesystem::path& file) { return plan_from_json(read_json_file(file), file); }

void write_plan(const std::filesystem::path& file, const Plan& plan) {
  const auto json = plan_to_json(plan);
  plan_from_json(json, file);
  write_file_atomically(file, pretty(json));
}

}  // namespace moetrim
