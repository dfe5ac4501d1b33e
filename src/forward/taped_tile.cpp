// A tile of tokens through everything in a layer but its routed experts, on tape.

#include "forward/taped_tile.h"

#include <limits>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "forward/kernels_aten.h"
#include "forward/linear.h"
#include "forward/router.h"

namespace moetrim {

namespace {

namespace aten = kernels::aten;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// The matrix product on tape: the gradient of x alone, since weights have none.
class TapedProduct : public torch::autograd::Function<TapedProduct> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight) {
    context->save_for_backward({weight});
    return moetrim::product(x, weight);
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    return {moetrim::product(gradients[0], context->get_saved_variables()[0].t()), at::Tensor()};
  }
};

at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {}) {
  const at::Tensor out = TapedProduct::apply(x, weight);
  return bias.defined() ? out + bias.to(out.scalar_type()) : out;
}

/// Calls body with every part and its rows of x [n, W]; joins what comes back, [length, W'] each.
template <class Body>
at::Tensor by_sequence(std::span<const SequencePart> parts, const at::Tensor& x, const Body& body) {
  std::vector<at::Tensor> out;
  std::int64_t begin = 0;
  for (const SequencePart& part : parts) {
    out.push_back(body(part, x.narrow(0, begin, part.length)));
    begin += part.length;
  }
  return at::cat(out, 0);
}

at::Tensor grouped_query(const TileContext& context, const LayerTensors& layer, const AttentionWeights& weights,
                         std::span<const SequencePart> parts, const at::Tensor& normed) {
  const Model& model = context.model;
  const auto queries = model.heads * model.head_dim;
  const auto keys = model.key_value_heads * model.head_dim;
  const kernels::HeadLayout layout = head_layout(model, layer, weights);
  const AttentionRule rule = attention_rule(model, layer, weights);
  const at::Tensor qkv = product(normed, weights.query_key_value, weights.query_key_value_bias);
  const at::Tensor attended = by_sequence(parts, qkv, [&](const SequencePart& part, const at::Tensor& rows) {
    const auto rotation = layer.rotates ? context.rotary.rows(0, part.length) : kernels::Rotation{};
    const at::Tensor turned = aten::rotated_rows(context.numerics, rows, layout, rotation);
    at::Tensor query = turned.narrow(1, 0, queries);
    if (!layer.rotates && model.temperature_tuning) query = query * query_temperature(context, part);
    const auto heads = [&](const at::Tensor& x) { return x.reshape({part.length, -1, model.head_dim}); };
    return taped_attention(heads(query), heads(turned.narrow(1, queries, keys)), heads(turned.narrow(1, queries + keys, keys)), rule);
  });
  if (!model.family->attention.output_gate) return attended;
  return attended * qkv.narrow(1, queries + 2 * keys, queries).sigmoid();
}

at::Tensor latent(const TileContext& context, const LatentWeights& weights, std::span<const SequencePart> parts,
                  const at::Tensor& normed) {
  const Model& model = context.model;
  const LatentSizes& sizes = model.latent;
  const at::Tensor down = product(normed, weights.down, weights.down_bias);
  const auto front = down.size(1) - sizes.rank - sizes.rotated;
  at::Tensor query = down.narrow(1, 0, front);
  if (weights.query_up.defined()) query = product(aten::normalised(context.numerics, query, weights.query_norm), weights.query_up);
  const at::Tensor key_value =
      product(aten::normalised(context.numerics, down.narrow(1, front, sizes.rank), weights.key_value_norm), weights.key_value_up);
  const at::Tensor shared_key = down.narrow(1, front + sizes.rank, sizes.rotated);
  const AttentionRule rule{.scale = model.attention_scale};
  const at::Tensor joined = at::cat({query, key_value, shared_key}, 1);
  return by_sequence(parts, joined, [&](const SequencePart& part, const at::Tensor& rows) {
    const auto rotation = context.rotary.rows(0, part.length);
    const auto turned = [&](const at::Tensor& x) { return aten::rotated(context.numerics, x, rotation); };
    const at::Tensor q = rows.narrow(1, 0, query.size(1)).reshape({part.length, model.heads, -1});
    const at::Tensor kv = rows.narrow(1, query.size(1), key_value.size(1)).reshape({part.length, model.heads, -1});
    const at::Tensor key = turned(rows.narrow(1, query.size(1) + key_value.size(1), sizes.rotated).unsqueeze(1));
    const at::Tensor queries = at::cat({q.narrow(2, 0, sizes.plain), turned(q.narrow(2, sizes.plain, sizes.rotated))}, 2);
    const at::Tensor keys = at::cat({kv.narrow(2, 0, sizes.plain), key.expand({-1, model.heads, -1})}, 2);
    return taped_attention(queries, keys, kv.narrow(2, sizes.plain, sizes.value), rule);
  });
}

at::Tensor delta(const TileContext& context, const DeltaWeights& weights, std::span<const SequencePart> parts,
                 const at::Tensor& normed) {
  return by_sequence(parts, product(normed, weights.input), [&](const SequencePart&, const at::Tensor& rows) {
    return delta_sequence(context, weights, rows, nullptr, aten::delta_rule_chunks);
  });
}

at::Tensor attention(const TileContext& context, const LayerTensors& layer, const LayerWeights& weights,
                     std::span<const SequencePart> parts, const at::Tensor& normed) {
  at::Tensor mixed;
  if (layer.delta_net) {
    mixed = delta(context, weights.delta, parts, normed);
  } else if (context.model.family->attention.latent) {
    mixed = latent(context, weights.latent, parts, normed);
  } else {
    mixed = grouped_query(context, layer, weights.attention, parts, normed);
  }
  return product(mixed, weights.output, weights.output_bias);
}

at::Tensor gated_mlp(const TileContext& context, const at::Tensor& x, const at::Tensor& gate_up, const at::Tensor& down) {
  const Model& model = context.model;
  const at::Tensor rows = product(x, gate_up);
  const bool plain = model.family->activation == Activation::silu;
  return product(plain ? aten::silu_times(context.numerics, rows)
                       : aten::swiglu(context.numerics, rows, model.swiglu_limit, model.swiglu_alpha), down);
}

at::Tensor shared_experts(const TileContext& context, const LayerWeights& weights, const at::Tensor& x) {
  const at::Tensor out = gated_mlp(context, x, weights.shared_gate_up, weights.shared_down);
  return weights.shared_router.defined() ? product(x, weights.shared_router).sigmoid() * out : out;
}

/// One of SparseMixer's two gates, see route_token: a softmax over the experts whose logit is near the largest.
at::Tensor sparsemixer_gate(const RouterRule& rule, const at::Tensor& logits, const at::Tensor& skipped, const at::Tensor& id) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  const at::Tensor open = skipped.defined() ? logits.scatter(1, skipped, kNever) : logits;
  const at::Tensor constant = open.detach();
  const at::Tensor largest = constant.amax(1, /*keepdim=*/true);
  const at::Tensor far = (largest - constant) / at::maximum(logits.detach().abs(), largest) > 2 * rule.jitter;
  return open.masked_fill(far, kNever).softmax(1).gather(1, id);
}

/// The gates of the routed experts as route_token computes them.
at::Tensor routed_gates(const TileContext& context, const LayerWeights& weights, const at::Tensor& normed, const at::Tensor& routed) {
  const RouterRule rule = router_rule(context, weights, /*regrouped=*/false);
  const at::Tensor bias = context.model.family->router.logits_in_fp32 ? at::Tensor() : weights.router_bias;
  const at::Tensor logits = product(normed, weights.router, bias);
  at::Tensor gates;
  if (rule.score == RouterScore::sparsemixer) {
    const at::Tensor best = routed.narrow(1, 0, 1);
    gates = at::cat({sparsemixer_gate(rule, logits, {}, best), sparsemixer_gate(rule, logits, best, routed.narrow(1, 1, 1))}, 1);
  } else {
    gates = (rule.score == RouterScore::sigmoid ? logits.sigmoid() : logits.softmax(1)).gather(1, routed);
    if (rule.normalise) gates = gates / gates.sum(1, /*keepdim=*/true).clamp_min(1e-20);
  }
  if (rule.scale != 1.0) gates = gates * rule.scale;
  if (!weights.router_scale.defined()) return gates;
  const at::Tensor factors = weights.router_scale.to(gates.device(), gates.scalar_type());
  return gates * factors.index_select(0, routed.flatten()).view(routed.sizes());
}

}  // namespace

TapedTile tape_tile(const TileContext& context, const LayerTensors& layer, const LayerWeights& weights,
                    std::span<const SequencePart> parts, const at::Tensor& hidden, const at::Tensor& routed) {
  const auto& numerics = context.numerics;
  TapedTile tile;
  tile.hidden = hidden.to(numerics.wide()).detach().requires_grad_(true);
  const at::Tensor normed = aten::normalised(numerics, tile.hidden, weights.input_norm);
  tile.residual = tile.hidden + context.model.residual_scale * attention(context, layer, weights, parts, normed);
  tile.normed = aten::normalised(numerics, tile.residual, weights.mlp_norm);
  if (!routed.defined()) {
    tile.mlp = gated_mlp(context, tile.normed, weights.dense_gate_up, weights.dense_down);
    return tile;
  }
  tile.gates = routed_gates(context, weights, tile.normed, routed);
  if (weights.shared_down.defined()) tile.mlp = shared_experts(context, weights, tile.normed);
  return tile;
}

}  // namespace moetrim
