// Holds the shape and type of every placed tensor against the model's sizes.

#include "family/check_weights.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"

namespace moetrim {

namespace {

/// Norms, biases, convolutions: never quantised, exactly the shape of the rule.
void check_plain(const Model& model, const Weight& weight) {
  const std::vector<std::int64_t> expected = model.shape(*weight.rule, weight.layer);
  const Tensor& tensor = *weight.values();
  if (tensor.shape == expected) return;
  throw InvalidInput(fmt::format("{}: tensor {} has shape [{}], expected [{}] from config.json",
                                 model.checkpoint->folder().string(), tensor.name, fmt::join(tensor.shape, ", "),
                                 fmt::join(expected, ", ")));
}

void check(const Model& model, const Weight& weight) {
  if (!weight) {
    for (const Tensor* part : weight.parts) {
      if (part == nullptr) continue;
      throw InvalidInput(fmt::format("{}: tensor {} is part of a quantised weight whose values are missing",
                                     model.checkpoint->folder().string(), part->name));
    }
    return;
  }
  const std::size_t axes = weight.rule->axes.size();
  const bool matrix = axes == 2 || weight.fused();
  if (!matrix || !weight.packed()) return check_plain(model, weight);
  // What cannot be computed can still be moved: its expert axis is what counts then.
  if (model.quantisation.obstacle.empty()) stored_matrix(model, weight);
}

/// A fused part has an expert axis in front, or one value for all.
std::vector<std::int64_t> shape_of_one(const Model& model, const Tensor& tensor, std::int64_t experts) {
  if (tensor.shape.empty() || tensor.shape == std::vector<std::int64_t>{1}) return tensor.shape;
  if (tensor.shape[0] != experts) {
    throw InvalidInput(fmt::format("{}: tensor {} has shape [{}], expected {} experts in front",
                                   model.checkpoint->folder().string(), tensor.name, fmt::join(tensor.shape, ", "),
                                   experts));
  }
  return {tensor.shape.begin() + 1, tensor.shape.end()};
}

}  // namespace

StoredMatrix stored_matrix(const Model& model, const Weight& weight) {
  StoredMatrix out;
  for (std::size_t part = 0; part < kPartCount; ++part) {
    const Tensor* tensor = weight.parts[part];
    if (tensor == nullptr) continue;
    out.parts[static_cast<Part>(part)] =
        StoredPart{tensor->name, tensor->dtype, weight.fused() ? shape_of_one(model, *tensor, model.experts_in(weight.layer)) : tensor->shape, nullptr};
  }
  const auto& axes = weight.rule->axes;
  std::int64_t rows = model.length(axes[axes.size() - 2]);
  std::int64_t cols = model.length(axes[axes.size() - 1]);
  const bool input_first = weight.rule->input_first();
  // Blocks of codes are stored output first even where the family's plain tensors are input first (gpt-oss).
  const bool as_in_rule = out.parts[Part::values]->shape == std::vector<std::int64_t>{rows, cols};
  out.transposed = input_first && as_in_rule;
  if (input_first && !as_in_rule) std::swap(rows, cols);
  out.packing = packing_of(out.parts, model.quantisation, rows, cols);
  return out;
}

void check_weights(const Model& model) {
  for (const Weight& weight : model.global) check(model, weight);
  for (const LayerTensors& layer : model.layer) {
    for (const Weight& weight : layer.by_role) check(model, weight);
    for (const auto& expert : layer.experts) {
      for (const Weight& weight : expert) check(model, weight);
    }
  }
}

}  // namespace moetrim
