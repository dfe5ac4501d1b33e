// How far apart the matrices of experts are, block by block of all experts.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/family.h"
#include "moetrim/merging.h"
#include "moetrim/quantised.h"

namespace moetrim {
namespace {

constexpr std::int64_t kBlock = std::int64_t{1} << 17;   // values of an expert that are read at once
constexpr std::int64_t kCached = std::int64_t{1} << 11;  // and compared while they are in the cache

/// Plain values of one expert's matrix: a tensor, or a slice of one.
struct Values {
  const Tensor* tensor = nullptr;
  std::int64_t first = 0, count = 0;   ///< in elements
};

Values values_of(const Weight& weight, std::int64_t experts, int expert) {
  const Tensor& tensor = *weight.values();
  if (weight.packed()) {
    throw InvalidInput(fmt::format("tensor {} is quantised ({}): weights are compared in plain checkpoints only; dequantise it "
                                   "with rewrite --also-dtype bf16, or compare outputs or logits", tensor.name,
                                   dtype_name(tensor.dtype)));
  }
  std::int64_t elements = 1;
  for (const std::int64_t length : tensor.shape) elements *= length;
  if (!weight.fused()) return {&tensor, 0, elements};
  return {&tensor, expert * (elements / experts), elements / experts};
}

/// The layer's matrices, each as one entry per expert.
std::vector<std::vector<Values>> matrices_of(const Model& model, int layer) {
  const LayerTensors& tensors = model.layer.at(static_cast<std::size_t>(layer));
  const std::int64_t experts = model.experts_in(layer);
  std::vector<std::vector<Values>> out;
  const auto add = [&](const auto& weight_of) {
    auto& matrix = out.emplace_back();
    for (int expert = 0; expert < experts; ++expert) matrix.push_back(values_of(weight_of(expert), experts, expert));
  };
  if (tensors.fused()) {
    for (const Role role : {Role::fused_gate_up, Role::fused_down}) add([&](int) -> const Weight& { return tensors[role]; });
    return out;
  }
  for (std::size_t matrix = 0; matrix < 3; ++matrix) {
    add([&](int expert) -> const Weight& { return tensors.experts.at(static_cast<std::size_t>(expert))[matrix]; });
  }
  return out;
}

void read_block(const Checkpoint& checkpoint, const Values& values, std::int64_t begin, std::span<float> out) {
  const Tensor& tensor = *values.tensor;
  const auto bytes = static_cast<std::uint64_t>(dtype_bits(tensor.dtype) / 8);
  std::vector<std::byte> raw(out.size() * bytes);
  checkpoint.read(tensor, static_cast<std::uint64_t>(values.first + begin) * bytes, raw);
  const auto length = static_cast<std::int64_t>(out.size());
  PackedWeight parts;
  parts[Part::values] = StoredPart{tensor.name, tensor.dtype, {1, length}, raw.data()};
  dequantise(parts, packing_of(parts, {}, 1, length), out);
  if (std::all_of(out.begin(), out.end(), [](float value) { return std::isfinite(value); })) return;
  throw InvalidInput(fmt::format("tensor {} holds NaN or infinity; run `moetrim verify --deep` on the checkpoint", tensor.name));
}

double square_distance(const float* a, const float* b, std::int64_t count) {
  double sum = 0;
  for (std::int64_t k = 0; k < count; ++k) {
    const double difference = static_cast<double>(a[k]) - b[k];
    sum += difference * difference;
  }
  return sum;
}

/// Adds the squares of a block of all experts, [experts, length], to pairs i < j.
void add_block(const std::vector<float>& block, std::int64_t experts, std::int64_t length, std::vector<double>& squares) {
  for (std::int64_t begin = 0; begin < length; begin += kCached) {
    const std::int64_t count = std::min(kCached, length - begin);
    for (std::int64_t i = 0; i < experts; ++i) {
      for (std::int64_t j = i + 1; j < experts; ++j) {
        squares[static_cast<std::size_t>(i * experts + j)] +=
            square_distance(block.data() + i * length + begin, block.data() + j * length + begin, count);
      }
    }
  }
}

}  // namespace

std::vector<double> weight_distances(const Model& model, int layer) {
  const std::int64_t experts = model.experts_in(layer);
  std::vector<double> distances(static_cast<std::size_t>(experts * experts));
  std::vector<float> block;
  for (const auto& matrix : matrices_of(model, layer)) {
    for (std::int64_t begin = 0; begin < matrix.front().count; begin += kBlock) {
      const std::int64_t length = std::min(kBlock, matrix.front().count - begin);
      block.resize(static_cast<std::size_t>(experts * length));
      for (std::int64_t e = 0; e < experts; ++e) {
        const auto room = std::span(block).subspan(static_cast<std::size_t>(e * length), static_cast<std::size_t>(length));
        read_block(*model.checkpoint, matrix[static_cast<std::size_t>(e)], begin, room);
      }
      add_block(block, experts, length, distances);
    }
  }
  for (std::int64_t i = 0; i < experts; ++i) {
    for (std::int64_t j = 0; j < i; ++j) {
      double& upper = distances[static_cast<std::size_t>(j * experts + i)];
      upper = std::sqrt(upper);
      distances[static_cast<std::size_t>(i * experts + j)] = upper;
    }
  }
  return distances;
}

}  // namespace moetrim
