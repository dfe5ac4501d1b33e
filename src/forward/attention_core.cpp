// Softmax attention of one sequence.

#include "forward/attention_core.h"

#include <algorithm>
#include <limits>
#include <vector>

#include <ATen/ATen.h>

#include "forward/kernels.h"
#include "forward/linear.h"

namespace moetrim {

namespace {

/// The first position that a query may see.
std::int64_t oldest_seen(std::int64_t position, const AttentionRule& rule) {
  std::int64_t oldest = rule.window > 0 ? std::max<std::int64_t>(0, position - rule.window + 1) : 0;
  if (rule.chunk > 0) oldest = std::max(oldest, position / rule.chunk * rule.chunk);
  return oldest;
}

/// True where query i of L may see key j of S.
at::Tensor visible(std::int64_t length, std::int64_t keys, const AttentionRule& rule, const at::Device& device) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor i = (at::arange(length, options) + (keys - length)).unsqueeze(1);
  const at::Tensor j = at::arange(keys, options).unsqueeze(0);
  at::Tensor seen = j <= i;
  if (rule.window > 0) seen = seen.logical_and(j > i - rule.window);
  if (rule.chunk > 0) seen = seen.logical_and(j >= i.div(rule.chunk, "floor") * rule.chunk);
  return seen;
}

/// Queries of a block: small enough to leave out most of the future, large enough for fast products.
constexpr std::int64_t kQueryBlock = 128;

/// Attention in fp32 on the CPU as matrix products over blocks of queries, all query heads of a key head at once. Twice as
/// fast as LibTorch's flash attention at a few hundred tokens, since a block multiplies only the keys that it may see.
at::Tensor blocked_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                             const AttentionRule& rule) {
  at::Tensor out = at::empty({queries.size(0), queries.size(1), values.size(2)}, queries.options());
  visit_blocks(queries, keys, rule, [&](const AttentionBlock& block) {
    at::Tensor rows = block.rows_of(out);
    rows.copy_(product(block.shares, block.seen_of(values).t()).view(rows.sizes()));
  });
  return out.view({queries.size(0), -1});
}

/// With sinks, where no fused operator knows them: the softmax gets a column more, which is then left out.
at::Tensor attention_with_sinks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& mask,
                                const AttentionRule& rule) {
  const auto shared = q.size(1) / k.size(1);
  const at::Tensor keys = k.repeat_interleave(shared, 1);
  const at::Tensor values = v.repeat_interleave(shared, 1);
  const at::ScalarType wide = at::promote_types(q.scalar_type(), at::kFloat);
  at::Tensor scores = at::matmul(q.to(wide), keys.to(wide).transpose(-1, -2)) * rule.scale;
  scores.masked_fill_(mask.logical_not(), -std::numeric_limits<float>::infinity());
  const at::Tensor sinks = rule.sinks.to(q.device()).view({1, -1, 1, 1}).expand({1, q.size(1), q.size(2), 1});
  const at::Tensor shares = at::cat({scores, sinks}, -1).softmax(-1).slice(-1, 0, -1);
  return at::matmul(shares.to(v.scalar_type()), values);
}

}  // namespace

void visit_blocks(const at::Tensor& queries, const at::Tensor& keys, const AttentionRule& rule,
                  const std::function<void(const AttentionBlock&)>& body) {
  const auto length = queries.size(0);
  const auto offset = keys.size(0) - length;
  const auto shared = queries.size(1) / keys.size(1);
  std::vector<std::int32_t> first, last;
  std::vector<float> sinks;
  for (std::int64_t begin = 0; begin < length; begin += kQueryBlock) {
    AttentionBlock block{.begin = begin, .count = std::min(kQueryBlock, length - begin), .shared = shared};
    block.seen_begin = oldest_seen(offset + begin, rule);
    block.seen_end = offset + begin + block.count;
    first.clear();
    last.clear();
    for (std::int64_t i = 0; i < block.count; ++i) {
      const auto position = offset + begin + i;
      const auto oldest = static_cast<std::int32_t>(oldest_seen(position, rule) - block.seen_begin);
      first.insert(first.end(), static_cast<std::size_t>(shared), oldest);
      last.insert(last.end(), static_cast<std::size_t>(shared), static_cast<std::int32_t>(position + 1 - block.seen_begin));
    }
    for (block.head = 0; block.head < keys.size(1); ++block.head) {
      if (rule.sinks.defined()) {
        const float* of_head = rule.sinks.const_data_ptr<float>() + block.head * shared;
        sinks.clear();
        for (std::int64_t i = 0; i < block.count; ++i) sinks.insert(sinks.end(), of_head, of_head + shared);
      }
      block.shares = product(block.flat_rows_of(queries), block.seen_of(keys));
      kernels::softmax_rows(block.shares, first, last, rule.scale, sinks);
      body(block);
    }
  }
}

at::Tensor AttentionBlock::rows_of(const at::Tensor& x) const {
  return x.narrow(0, begin, count).narrow(1, head * shared, shared);
}

at::Tensor AttentionBlock::flat_rows_of(const at::Tensor& x) const { return rows_of(x).reshape({count * shared, x.size(2)}); }

at::Tensor AttentionBlock::seen_of(const at::Tensor& x) const { return x.slice(0, seen_begin, seen_end).select(1, head); }

at::Tensor attention_of(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, const AttentionRule& rule) {
  const auto length = queries.size(0);
  const auto seen = keys.size(0);
  if (queries.is_cpu() && queries.scalar_type() == at::kFloat && (length > 1 || rule.sinks.defined())) {
    return blocked_attention(queries, keys, values, rule);
  }
  const at::Tensor q = queries.transpose(0, 1).unsqueeze(0);
  const at::Tensor k = keys.transpose(0, 1).unsqueeze(0);
  const at::Tensor v = values.transpose(0, 1).unsqueeze(0);
  const bool limited = (rule.window > 0 && seen > rule.window) || (rule.chunk > 0 && seen > rule.chunk);
  at::Tensor out;
  if (rule.sinks.defined()) {
    out = attention_with_sinks(q, k, v, visible(length, seen, rule, q.device()), rule);
  } else if (limited || (length > 1 && seen > length)) {
    out = at::scaled_dot_product_attention(q, k, v, visible(length, seen, rule, q.device()), 0.0, false, rule.scale, true);
  } else {
    out = at::scaled_dot_product_attention(q, k, v, {}, 0.0, length > 1, rule.scale, true);
  }
  return out.squeeze(0).transpose(0, 1).reshape({length, -1});
}

}  // namespace moetrim
