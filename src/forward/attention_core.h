// Softmax attention of one sequence.
#pragma once

#include <cstdint>
#include <functional>

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

/// The same as an operator that autograd can follow.
at::Tensor taped_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, const AttentionRule& rule);

/// Some queries of the query heads that share one key head, and the keys that they may see.
struct AttentionBlock {
  std::int64_t begin = 0, count = 0;           ///< queries
  std::int64_t shared = 1, head = 0;           ///< query heads per key head; the key head
  std::int64_t seen_begin = 0, seen_end = 0;   ///< keys
  at::Tensor shares = {};                      ///< [count * shared, seen] f32: softmax of the products

  /// The block's part [count, shared, D] of x [L, heads, D], and the same as a matrix [count * shared, D].
  at::Tensor rows_of(const at::Tensor& x) const;
  at::Tensor flat_rows_of(const at::Tensor& x) const;
  /// Its part [seen, D] of x [S, kv heads, D].
  at::Tensor seen_of(const at::Tensor& x) const;
};

/// Cuts attention in fp32 on the CPU into blocks, each with its shares. Tensors as for attention_of.
void visit_blocks(const at::Tensor& queries, const at::Tensor& keys, const AttentionRule& rule,
                  const std::function<void(const AttentionBlock&)>& body);

}  // namespace moetrim
