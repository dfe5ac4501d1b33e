// From router logits to routed experts and gate weights.

#include "forward/router.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>

#include "forward/kernels.h"
#include "forward/linear.h"

namespace moetrim {

namespace {

/// Fills probabilities over the allowed experts. NaN logits give NaN probabilities, which the caller reports.
void softmax(const RouterRule& rule, const float* logits, const std::vector<bool>* kept, float* probabilities) {
  float largest = -std::numeric_limits<float>::infinity();
  const auto allowed = [&](int e) { return kept == nullptr || (*kept)[static_cast<std::size_t>(e)]; };
  for (int e = 0; e < rule.experts; ++e) {
    if (allowed(e)) largest = std::max(largest, logits[e]);
  }
  float sum = 0;
  for (int e = 0; e < rule.experts; ++e) {
    probabilities[e] = allowed(e) ? std::exp(logits[e] - largest) : 0.0F;
    sum += probabilities[e];
  }
  for (int e = 0; e < rule.experts; ++e) probabilities[e] /= sum;
}

}  // namespace

void route_token(const RouterRule& rule, const float* logits, const std::vector<bool>* kept, float* probabilities,
                 std::int32_t* ids, float* gates) {
  softmax(rule, logits, kept, probabilities);
  // Insertion into a short sorted list: a later expert moves ahead only when it is strictly more probable.
  int found = 0;
  for (int e = 0; e < rule.experts; ++e) {
    if (kept != nullptr && !(*kept)[static_cast<std::size_t>(e)]) continue;
    int at = found;
    while (at > 0 && probabilities[e] > gates[at - 1]) --at;
    if (at == rule.experts_per_token) continue;
    const int last = std::min(found, rule.experts_per_token - 1);
    for (int i = last; i > at; --i) {
      gates[i] = gates[i - 1];
      ids[i] = ids[i - 1];
    }
    gates[at] = probabilities[e];
    ids[at] = e;
    found = last + 1;
  }
  float sum = 0;
  for (int i = 0; i < rule.experts_per_token; ++i) sum += gates[i];
  for (int i = 0; i < rule.experts_per_token; ++i) {
    if (rule.normalise) gates[i] /= sum;
    if (rule.round_gates) gates[i] = static_cast<float>(c10::BFloat16(gates[i]));
  }
}

void prepare_record(const Model& model, int layer, std::int64_t tokens, RoutedLayer& routed) {
  routed.layer = layer;
  routed.tokens = tokens;
  routed.experts = static_cast<int>(model.experts);
  routed.experts_per_token = static_cast<int>(model.experts_per_token);
  const auto scores = static_cast<std::size_t>(tokens * model.experts);
  const auto slots = static_cast<std::size_t>(tokens * model.experts_per_token);
  routed.logits.resize(scores);
  routed.probabilities.resize(scores);
  routed.ids.resize(slots);
  routed.gates.resize(slots);
  routed.norms.resize(slots);
  routed.max_abs.resize(slots);
  routed.turns.resize(static_cast<std::size_t>(tokens));
}

void route_tile(const TileContext& context, const at::Tensor& router, const at::Tensor& normed, std::int64_t first,
                const KeptExperts& kept, RoutedLayer& routed, TileScratch& scratch) {
  at::Tensor product = linear(normed, router, {}, scratch.router_logits);
  kernels::round_product(context.numerics, product);
  const at::Tensor logits = product.to(at::kFloat).cpu();
  const bool bf16 = context.numerics.precision == Precision::bf16;
  const RouterRule rule{.experts = routed.experts,
                        .experts_per_token = routed.experts_per_token,
                        .normalise = context.model.normalise_gates,
                        .round_gates = bf16 && context.model.family->gates_in_activation_dtype};
  const float* from = logits.const_data_ptr<float>();
  std::copy(from, from + logits.numel(), routed.logits.begin() + first * rule.experts);
  for (std::int64_t t = first; t < first + normed.size(0); ++t) {
    route_token(rule, routed.logits.data() + t * rule.experts, kept(t), routed.probabilities.data() + t * rule.experts,
                routed.ids.data() + t * rule.experts_per_token, routed.gates.data() + t * rule.experts_per_token);
  }
}

}  // namespace moetrim
