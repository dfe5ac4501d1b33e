// Attention that autograd can follow: shares are computed again, block by block, instead of being kept.

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "forward/attention_core.h"
#include "forward/kernels.h"
#include "forward/linear.h"

namespace moetrim {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// With P the shares, O = P V: dV = PT dO, dS = P (dO VT - rowsum(dO O)), dQ = scale dS K, dK = scale dST Q. A sink takes part
/// in P's sum alone, so that it changes none of these.
class BlockedAttention : public torch::autograd::Function<BlockedAttention> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values,
                            const AttentionRule& rule) {
    const at::Tensor out = attention_of(queries, keys, values, rule);
    context->save_for_backward({queries, keys, values, out});
    context->saved_data["scale"] = rule.scale;
    context->saved_data["window"] = rule.window;
    context->saved_data["chunk"] = rule.chunk;
    if (rule.sinks.defined()) context->saved_data["sinks"] = rule.sinks;
    return out;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &queries = saved[0], &keys = saved[1], &values = saved[2];
    auto& data = context->saved_data;
    const AttentionRule rule{.scale = data["scale"].toDouble(),
                             .window = data["window"].toInt(),
                             .chunk = data["chunk"].toInt(),
                             .sinks = data.find("sinks") != data.end() ? data["sinks"].toTensor() : at::Tensor()};
    const std::vector<std::int64_t> shape{queries.size(0), queries.size(1), values.size(2)};
    const at::Tensor of_out = gradients[0].reshape(shape);
    const at::Tensor products = (of_out * saved[3].view(shape)).sum(2, /*keepdim=*/true);
    at::Tensor of_queries = at::empty(queries.sizes(), queries.options());
    at::Tensor of_keys = at::zeros(keys.sizes(), keys.options());
    at::Tensor of_values = at::zeros(values.sizes(), values.options());
    visit_blocks(queries, keys, rule, [&](const AttentionBlock& block) {
      const at::Tensor out = block.flat_rows_of(of_out);
      at::Tensor seen_values = block.seen_of(of_values);
      kernels::multiply(block.shares.t(), out.t(), seen_values, seen_values);
      at::Tensor scores = at::empty_like(block.shares);
      kernels::multiply(out, block.seen_of(values), scores);
      scores.sub_(block.flat_rows_of(products)).mul_(block.shares).mul_(rule.scale);
      at::Tensor rows = block.rows_of(of_queries);
      rows.copy_(product(scores, block.seen_of(keys).t()).view(rows.sizes()));
      at::Tensor seen_keys = block.seen_of(of_keys);
      kernels::multiply(scores.t(), block.flat_rows_of(queries).t(), seen_keys, seen_keys);
    });
    return {of_queries, of_keys, of_values, at::Tensor()};
  }
};

}  // namespace

at::Tensor taped_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, const AttentionRule& rule) {
  const bool blocks = queries.is_cpu() && queries.scalar_type() == at::kFloat;
  return blocks ? BlockedAttention::apply(queries, keys, values, rule) : attention_of(queries, keys, values, rule);
}

}  // namespace moetrim
