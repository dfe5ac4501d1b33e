// Softmax attention of one sequence.
#pragma once

#include <cstdint>

#include <ATen/core/Tensor.h>

namespace moetrim {

/// What a query may see, and how its products are weighed.
struct AttentionRule {
  double scale = 1.0;        ///< of query-key products
  std::int64_t window = 0;   ///< keys up to itself; 0: all before it
  std::int64_t chunk = 0;    ///< only keys of its own chunk of that many positions; 0: no chunks
  at::Tensor sinks = {};     ///< [heads] f32 on the CPU: a logit per head that takes part in the softmax's sum alone; or undefined
};

/// softmax(scale q kT) v, causal.
/// @param queries  [L, heads, D], @param keys  [S, kv heads, D], @param values  [S, kv heads, D_v], S >= L; query i is at
///                 position S - L + i.
/// @return [L, heads * D_v]
at::Tensor attention_of(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, const AttentionRule& rule);

}  // namespace moetrim
