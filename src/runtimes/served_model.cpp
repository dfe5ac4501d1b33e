// What rules must know of a model: from a checkpoint, from a plan for one, or from what was measured on it.
#include <algorithm>

#include "moetrim/error.h"
#include "moetrim/family.h"
#include "moetrim/quantised.h"
#include "moetrim/runtimes.h"

namespace moetrim {

namespace {

/// Any expert matrix: all of them are stored alike.
const Weight* an_expert(const Model& model) {
  for (const LayerTensors& layer : model.layer) {
    if (!layer.sparse) continue;
    if (layer.fused()) return &layer[Role::fused_gate_up];
    if (!layer.experts.empty()) return &layer.experts.front().front();
  }
  return nullptr;
}

std::int64_t fp8_block(const Quantisation& quantisation) {
  std::int64_t block = std::max(quantisation.block_rows, quantisation.block_cols);
  for (const QuantisationGroup& group : quantisation.groups) block = std::max({block, group.block_rows, group.block_cols});
  return block;
}

ServedQuantisation stored_quantisation(const Model& model) {
  const Quantisation& said = model.quantisation;
  ServedQuantisation out{.name = "as stored", .scheme = QuantScheme::none, .block = 1};
  if (said.method.empty()) return out;
  out = {.name = "as stored: " + said.method, .scheme = QuantScheme::other, .block = 1};
  const Weight* weight = an_expert(model);
  if (weight == nullptr || !said.obstacle.empty()) return out;
  const Packing packing = stored_matrix(model, *weight).packing;
  const bool compressed = said.method == "compressed-tensors";
  switch (packing.kind) {
    case PackingKind::plain: out.scheme = QuantScheme::none; break;
    case PackingKind::fp8:
      out.block = std::max<std::int64_t>(1, fp8_block(said));
      out.scheme = out.block == 1 ? QuantScheme::fp8_tensor
                   : compressed   ? QuantScheme::fp8_compressed
                                  : QuantScheme::fp8_block;
      break;
    case PackingKind::mxfp4: out.scheme = QuantScheme::mxfp4; out.block = 32; break;
    case PackingKind::nvfp4: out.scheme = QuantScheme::nvfp4; out.block = 16; break;
    case PackingKind::gptq: out.scheme = QuantScheme::gptq; break;
    case PackingKind::awq: out.scheme = QuantScheme::awq; break;
    case PackingKind::packed_int:
    case PackingKind::int8: out.scheme = QuantScheme::int_group; break;
  }
  const bool in_groups =
      out.scheme == QuantScheme::gptq || out.scheme == QuantScheme::awq || out.scheme == QuantScheme::int_group;
  if (in_groups && packing.scale_cols > 0 && packing.scale_cols < packing.cols) out.block = packing.scale_cols;
  return out;
}

/// Whether the weights of a role are stored quantised; true where there are none.
bool quantised(const Model& model, Role role) {
  for (const LayerTensors& layer : model.layer) {
    if (layer[role]) return layer[role].packed();
  }
  return true;
}

std::string text_of(const nlohmann::ordered_json& config, const char* key) {
  const auto found = config.find(key);
  return found != config.end() && found->is_string() ? found->get<std::string>() : std::string();
}

std::string first_architecture(const nlohmann::ordered_json& config) {
  const auto found = config.find("architectures");
  if (found == config.end() || !found->is_array() || found->empty() || !found->front().is_string()) return {};
  return found->front().get<std::string>();
}

void apply(ServedModel& model, const Plan& plan) {
  model.router.experts = plan.keep;
  if (plan.experts_per_token_after > 0) model.router.experts_per_token = plan.experts_per_token_after;
  if (plan.regroup) model.router.groups = {.count = 1, .chosen = 1, .rule = model.router.groups.rule};
  model.experts_before = std::max(model.experts_before, plan.keep);  // slots may repeat experts
  model.listed_counts = plan.counts == LayerCounts::listed;
  for (const PlanLayer& layer : plan.layers) {  // a map keeps the rows of experts that are no more
    if (merges(plan) && plan.router == MergedRouter::map) {
      model.router.experts = std::max(model.router.experts, static_cast<int>(router_rows(plan, layer).size()));
    }
  }
  model.listed_widths = merges(plan) && plan.router == MergedRouter::map;
  if (!model.width) return;
  const auto uniform = uniform_width(plan, static_cast<int>(*model.width));
  if (uniform) {
    model = with_width(std::move(model), *uniform);
  } else {
    model.listed_widths = true;
  }
}

}  // namespace

ServedModel served_model(const Model& model) {
  const auto& config = model.checkpoint->config();
  const bool delta = model.family->attention.delta_net;
  return {.family = model.family,
          .model_type = text_of(config, "model_type"),
          .architecture = first_architecture(config),
          .router = router_limits(model),
          .experts_before = static_cast<int>(model.experts),
          .width = model.expert_width,
          .width_before = model.expert_width,
          .hidden = model.hidden,
          .heads = model.heads,
          .key_value_heads = model.key_value_heads,
          .shared_width = model.shared_width,
          .dense_width = model.dense_width,
          .delta_key_heads = delta ? model.delta.key_heads : 0,
          .delta_value_heads = delta ? model.delta.value_heads : 0,
          .shared_quantised = quantised(model, Role::shared_gate),
          .dense_quantised = quantised(model, Role::dense_gate),
          .shared_follows_width = !model.family->shared_count_key.empty() && model.shared_width > 0,
          .mtp_layers = model.mtp_layers,
          .mtp_experts = model.mtp_experts,
          .quant = stored_quantisation(model)};
}

ServedModel served_model(const Model& model, const Plan& plan, Mtp mtp) {
  check_plan(model, plan, {}, mtp);
  ServedModel out = served_model(model);
  apply(out, plan);
  const Slimming slimming = slimming_of(model, plan, mtp);
  out.listed_widths = slimming.form == WidthForm::listed;
  if (slimming.form == WidthForm::config) out.shared_width = slimming.shared_width;
  if (mtp == Mtp::drop) out.mtp_layers = out.mtp_experts = 0;
  out.mtp_follows = mtp == Mtp::prune;
  if (out.mtp_follows && out.mtp_layers > 0) out.mtp_experts = out.router.experts;
  return out;
}

ServedModel served_model(const StatisticsManifest& manifest) {
  ServedModel out;
  out.family = find_family(manifest.family);
  if (out.family == nullptr) {
    throw InvalidInput("the statistics are of the family " + manifest.family + ", which is not known");
  }
  out.router = router_limits(manifest);
  out.experts_before = manifest.experts;
  if (manifest.sizes.width > 0) {
    out.width = out.width_before = manifest.sizes.width;
    out.hidden = manifest.sizes.hidden;
  }
  if (out.family->shared_width_key.empty()) out.shared_width = 0;
  if (out.family->dense_width_key.empty()) out.dense_width = 0;
  out.shared_follows_width = !out.family->shared_count_key.empty();
  out.mtp_layers = manifest.mtp_layers;
  out.mtp_experts = manifest.mtp_layers > 0 ? manifest.experts : 0;
  out.mtp_follows = true;
  return out;
}

ServedModel served_model(const StatisticsManifest& manifest, const Plan& plan) {
  ServedModel out = served_model(manifest);
  apply(out, plan);
  if (out.mtp_layers > 0) out.mtp_experts = out.router.experts;
  return out;
}

ServedModel with_keep(ServedModel model, int keep) {
  model.router.experts = keep;
  if (model.mtp_follows && model.mtp_layers > 0) model.mtp_experts = keep;
  return model;
}

ServedModel with_width(ServedModel model, std::int64_t width) {
  if (model.shared_follows_width && model.shared_width && width > 0) {
    model.shared_width = (*model.shared_width + width - 1) / width * width;
  }
  model.width = width;
  return model;
}

}  // namespace moetrim
