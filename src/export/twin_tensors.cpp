// The tensors of the dequantised twin, and how each one's values lie.

#include "export/twin_tensors.h"

#include <algorithm>
#include <array>
#include <numeric>

#include <fmt/format.h>

#include "family/place_tensors.h"
#include "moetrim/error.h"
#include "moetrim/quantised.h"
#include "rewrite/renumbering.h"

namespace moetrim::export_detail {

namespace {

bool is_float_of_few_bits(Dtype dtype) {
  constexpr std::array kTypes = {Dtype::f8_e4m3, Dtype::f8_e5m2, Dtype::f8_e8m0, Dtype::f8_e4m3fnuz,
                                 Dtype::f8_e5m2fnuz, Dtype::f4, Dtype::f6_e2m3, Dtype::f6_e3m2};
  return std::find(kTypes.begin(), kTypes.end(), dtype) != kTypes.end();
}

bool is_quantised(const Weight& weight) { return (weight.rule->axes.size() == 2 || weight.fused()) && weight.packed(); }

const TensorPlace& place_of(const Model& model, const Tensor& tensor) {
  return model.places.at(static_cast<std::size_t>(&tensor - model.checkpoint->tensors().data()));
}

const Weight& weight_at(const Model& model, const TensorPlace& place) {
  const auto role = static_cast<std::size_t>(place.rule->role);
  if (place.layer < 0) return model.global[role];
  const LayerTensors& layer = model.layer.at(static_cast<std::size_t>(place.layer));
  if (place.expert < 0) return layer.by_role[role];
  return layer.experts.at(static_cast<std::size_t>(place.expert))[role - static_cast<std::size_t>(Role::expert_gate)];
}

/// A tensor that the family does not know goes along, unless it belongs to what config.json no longer speaks of.
bool follows(const Model& model, const Tensor& tensor) {
  const auto part = split_part(tensor.name);
  if (part && part->part == Part::input_scale) return false;
  if (is_cache_scale(tensor.name) || tensor.name.ends_with(".output_scale")) return false;
  if ((!part || part->part == Part::values) && !is_float_of_few_bits(tensor.dtype)) return true;
  throw InvalidInput(fmt::format("{}: tensor {} ({}) is part of a quantised weight that family {} does not know, so it cannot be "
                                 "dequantised; write the pruned checkpoint alone", model.checkpoint->folder().string(),
                                 tensor.name, dtype_name(tensor.dtype), model.family->name));
}

/// The name that the weight has where it is not quantised.
std::string plain_name(const TensorRule& rule, const std::string& name) {
  const auto part = split_part(name);
  if (!part) return name;
  return std::string(part->module) + (rule.name.ends_with(".weight") ? ".weight" : "");
}

/// Ids of the experts of a fused weight that are kept.
std::vector<int> kept_experts(const Model& model, const Renumbering& numbers, int layer) {
  if (numbers.covers(layer)) return numbers.keep(layer);
  std::vector<int> all(static_cast<std::size_t>(model.experts));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

TensorSpec spec_of(const Model& model, const Weight& weight, std::size_t experts, const std::string& name) {
  const Packing packing = stored_matrix(model, weight).packing;
  TensorSpec spec{plain_name(*weight.rule, name), Dtype::bf16, {packing.rows, packing.cols}};
  if (!weight.fused()) return spec;
  const auto& axes = weight.rule->axes;
  spec.shape = {static_cast<std::int64_t>(experts), model.length(axes[1]), model.length(axes[2])};
  return spec;
}

}  // namespace

bool is_flipped(const Weight& weight, const StoredMatrix& matrix) {
  return weight.rule->input_first() && !matrix.transposed;
}

std::uint64_t matrix_bytes(const Model& model, const Weight& weight) {
  const StoredMatrix matrix = stored_matrix(model, weight);
  const auto values = static_cast<std::uint64_t>(matrix.packing.rows) * static_cast<std::uint64_t>(matrix.packing.cols);
  std::uint64_t bytes = values * sizeof(std::uint16_t) * (is_flipped(weight, matrix) ? 2 : 1);
  for (std::size_t part = 0; part < kPartCount; ++part) {
    const auto& stored = matrix.parts[static_cast<Part>(part)];
    if (stored) bytes += TensorSpec{stored->name, stored->dtype, stored->shape}.bytes();
  }
  return bytes;
}

void add_twin_tensors(TwinRequest& twin, std::span<const OutputTensor> pruned, const Plan& plan, Mtp mtp) {
  const Model& model = *twin.model;
  const Renumbering numbers(model, plan, mtp);
  const auto add = [&](OutputTensor tensor, std::size_t origin, const Weight* weight, std::vector<int> experts) {
    twin.tensors.push_back(std::move(tensor));
    twin.sources.push_back({origin, weight, std::move(experts)});
  };
  for (std::size_t i = 0; i < pruned.size(); ++i) {
    const OutputTensor& tensor = pruned[i];
    const Tensor* stored = tensor.pieces.empty() ? nullptr : tensor.pieces.front().source;
    const TensorPlace place = stored ? place_of(model, *stored) : TensorPlace{};
    const Weight* weight = place.rule ? &weight_at(model, place) : nullptr;
    if (weight == nullptr || !is_quantised(*weight)) {
      if (weight != nullptr || stored == nullptr || follows(model, *stored)) add(tensor, i, nullptr, {});
    } else if (place.part == Part::values) {
      std::vector<int> experts;
      if (weight->fused()) experts = kept_experts(model, numbers, place.layer);
      TensorSpec spec = spec_of(model, *weight, experts.size(), tensor.spec.name);
      add({std::move(spec), tensor.pieces}, i, weight, std::move(experts));
    }
  }
}

}  // namespace moetrim::export_detail
