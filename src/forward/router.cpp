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

template <class Real>
constexpr Real kNever = -std::numeric_limits<Real>::infinity();

bool allowed(const std::vector<bool>* kept, int expert) { return kept == nullptr || (*kept)[static_cast<std::size_t>(expert)]; }

/// Fills probabilities over the allowed experts. NaN logits give NaN probabilities, which the caller reports.
template <class Real>
void softmax(const RouterRule& rule, const Real* logits, const std::vector<bool>* kept, Real* probabilities) {
  Real largest = kNever<Real>;
  for (int e = 0; e < rule.experts; ++e) {
    if (allowed(kept, e)) largest = std::max(largest, logits[e]);
  }
  Real sum = 0;
  for (int e = 0; e < rule.experts; ++e) {
    probabilities[e] = allowed(kept, e) ? std::exp(logits[e] - largest) : Real{0};
    sum += probabilities[e];
  }
  for (int e = 0; e < rule.experts; ++e) probabilities[e] /= sum;
}

template <class Real>
void sigmoid(const RouterRule& rule, const Real* logits, const std::vector<bool>* kept, Real* probabilities) {
  for (int e = 0; e < rule.experts; ++e) probabilities[e] = allowed(kept, e) ? 1 / (1 + std::exp(-logits[e])) : Real{0};
}

/// A short list of the best, best first. A later entry moves ahead only when it is strictly better.
template <class Real>
class Best {
 public:
  Best(int size, std::int32_t* ids) : size_(size), ids_(ids), values_(static_cast<std::size_t>(size)) {}

  void offer(std::int32_t id, Real value) {
    int at = found_;
    while (at > 0 && value > values_[static_cast<std::size_t>(at - 1)]) --at;
    if (at == size_) return;
    const int last = std::min(found_, size_ - 1);
    for (int i = last; i > at; --i) {
      values_[static_cast<std::size_t>(i)] = values_[static_cast<std::size_t>(i - 1)];
      ids_[i] = ids_[i - 1];
    }
    values_[static_cast<std::size_t>(at)] = value;
    ids_[at] = id;
    found_ = last + 1;
  }

  Real value(int place) const { return values_[static_cast<std::size_t>(place)]; }
  int found() const { return found_; }

 private:
  int size_;
  std::int32_t* ids_;
  std::vector<Real> values_;
  int found_ = 0;
};

/// What experts compete with: probability plus selection bias, kNever for those that are not kept.
template <class Real>
std::vector<Real> competition(const RouterRule& rule, const std::vector<bool>* kept, const Real* probabilities) {
  std::vector<Real> out(static_cast<std::size_t>(rule.experts), kNever<Real>);
  for (int e = 0; e < rule.experts; ++e) {
    if (!allowed(kept, e)) continue;
    out[static_cast<std::size_t>(e)] = probabilities[e] + (rule.selection_bias == nullptr ? Real{0} : rule.selection_bias[e]);
  }
  return out;
}

/// Score of a group: its best expert, or the sum of its two best.
template <class Real>
Real group_score(const RouterRule& rule, const Real* first, int count) {
  Real best = kNever<Real>;
  Real second = kNever<Real>;
  for (int i = 0; i < count; ++i) {
    if (first[i] > best) {
      second = best;
      best = first[i];
    } else if (first[i] > second) {
      second = first[i];
    }
  }
  return rule.group_rule == GroupRule::max ? best : best + second;
}

/// Takes the experts of groups that are not chosen out of the competition.
template <class Real>
void keep_chosen_groups(const RouterRule& rule, std::vector<Real>& scores) {
  const int in_group = rule.experts / rule.groups;
  std::vector<std::int32_t> chosen(static_cast<std::size_t>(rule.groups_chosen));
  Best<Real> best(rule.groups_chosen, chosen.data());
  for (int g = 0; g < rule.groups; ++g) best.offer(g, group_score(rule, scores.data() + g * in_group, in_group));
  for (int g = 0; g < rule.groups; ++g) {
    if (std::find(chosen.begin(), chosen.end(), g) != chosen.end()) continue;
    std::fill_n(scores.begin() + g * in_group, in_group, kNever<Real>);
  }
}

template <class Real>
void choose(const RouterRule& rule, const std::vector<Real>& scores, std::int32_t* ids) {
  if (rule.group_rule != GroupRule::each) {
    Best<Real> best(rule.experts_per_token, ids);
    for (int e = 0; e < rule.experts; ++e) {
      if (scores[static_cast<std::size_t>(e)] != kNever<Real>) best.offer(e, scores[static_cast<std::size_t>(e)]);
    }
    return;
  }
  const int in_group = rule.experts / rule.groups;
  const int each = rule.experts_per_token / rule.groups;
  for (int g = 0; g < rule.groups; ++g) {
    Best<Real> best(each, ids + g * each);
    for (int e = g * in_group; e < (g + 1) * in_group; ++e) best.offer(e, scores[static_cast<std::size_t>(e)]);
  }
}

/// Gate of the best expert against those whose logit lies within the jitter of it (SparseMixer-v2, arXiv 2409.12136).
template <class Real>
Real sparsemixer_gate(const RouterRule& rule, const Real* logits, const std::vector<bool>* kept, int skipped, std::int32_t& id) {
  Real largest = kNever<Real>;
  for (int e = 0; e < rule.experts; ++e) {
    if (e == skipped || !allowed(kept, e) || !(logits[e] > largest)) continue;
    largest = logits[e];
    id = e;
  }
  Real sum = 0;
  for (int e = 0; e < rule.experts; ++e) {
    if (e == skipped || !allowed(kept, e)) continue;
    const Real factor = std::max(std::abs(logits[e]), largest);
    if ((largest - logits[e]) / factor > 2 * static_cast<Real>(rule.jitter)) continue;
    sum += std::exp(logits[e] - largest);
  }
  return 1 / sum;
}

}  // namespace

template <class Real>
void route_token(const RouterRule& rule, const Real* logits, const std::vector<bool>* kept, Real* probabilities,
                 std::int32_t* ids, Real* gates) {
  if (rule.score == RouterScore::sigmoid) {
    sigmoid(rule, logits, kept, probabilities);
  } else {
    softmax(rule, logits, kept, probabilities);
  }
  if (rule.score == RouterScore::sparsemixer) {
    gates[0] = sparsemixer_gate(rule, logits, kept, -1, ids[0]);
    gates[1] = sparsemixer_gate(rule, logits, kept, ids[0], ids[1]);
  } else {
    std::vector<Real> scores = competition(rule, kept, probabilities);
    if (rule.group_rule == GroupRule::max || rule.group_rule == GroupRule::top2) keep_chosen_groups(rule, scores);
    choose(rule, scores, ids);
    Real sum = 0;
    for (int i = 0; i < rule.experts_per_token; ++i) sum += gates[i] = probabilities[ids[i]];
    // Sigmoids may all be 0; published code guards the same division with a tiny number.
    if (rule.normalise) {
      for (int i = 0; i < rule.experts_per_token; ++i) gates[i] /= sum == 0 ? Real{1e-20F} : sum;
    }
  }
  for (int i = 0; i < rule.experts_per_token; ++i) {
    gates[i] *= static_cast<Real>(rule.scale);
    if (rule.output_scale != nullptr) gates[i] *= rule.output_scale[ids[i]];
    if (rule.round_gates) gates[i] = static_cast<float>(c10::BFloat16(static_cast<float>(gates[i])));
  }
}

template void route_token(const RouterRule&, const float*, const std::vector<bool>*, float*, std::int32_t*, float*);
template void route_token(const RouterRule&, const double*, const std::vector<bool>*, double*, std::int32_t*, double*);

RouterRule router_rule(const TileContext& context, const LayerWeights& weights, bool regrouped) {
  const Model& model = context.model;
  const RouterTraits& traits = model.family->router;
  const bool bf16 = context.numerics.precision == Precision::bf16;
  RouterRule rule{.experts = static_cast<int>(model.experts),
                  .experts_per_token = static_cast<int>(model.experts_per_token),
                  .score = traits.score,
                  .normalise = model.normalise_gates,
                  .round_gates = bf16 && traits.gates_in_activation_dtype,
                  .scale = model.routed_scale,
                  .jitter = model.jitter};
  if (!regrouped) {
    rule.group_rule = model.group_rule;
    rule.groups = static_cast<int>(model.groups);
    rule.groups_chosen = static_cast<int>(model.groups_chosen);
  }
  if (weights.selection_bias.defined()) rule.selection_bias = weights.selection_bias.const_data_ptr<float>();
  if (weights.router_scale.defined()) rule.output_scale = weights.router_scale.const_data_ptr<float>();
  return rule;
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
  routed.input_gates.resize(model.family->router.gate_on_input ? slots : 0);
  routed.norms.resize(slots);
  routed.max_abs.resize(slots);
  routed.turns.resize(static_cast<std::size_t>(tokens));
}

namespace {

/// Tokens that are routed together.
constexpr std::int64_t kRoutedTogether = 128;

/// Routes tokens [first, first + n) by their logits [n, E] of `Real`, on the CPU.
template <class Real>
void route_rows(const TileContext& context, const LayerWeights& weights, const at::Tensor& logits, std::int64_t first,
                const MaskOfToken& mask_of, RoutedLayer& routed) {
  const RouterRule grouped = router_rule(context, weights, false);
  const RouterRule regrouped = router_rule(context, weights, true);
  const auto experts = static_cast<std::size_t>(grouped.experts);
  const auto slots = static_cast<std::size_t>(grouped.experts_per_token);
  std::vector<Real> probabilities(experts), gates(slots);
  const Real* from = logits.const_data_ptr<Real>();
  std::copy(from, from + logits.numel(), routed.logits.begin() + first * grouped.experts);
  for (auto t = static_cast<std::size_t>(first); t < static_cast<std::size_t>(first + logits.size(0)); ++t, from += experts) {
    const LayerMask* mask = mask_of(static_cast<std::int64_t>(t));
    const bool restricted = mask != nullptr && !mask->kept.empty();
    route_token(mask != nullptr && mask->regroup ? regrouped : grouped, from, restricted ? &mask->kept : nullptr,
                probabilities.data(), routed.ids.data() + t * slots, gates.data());
    if (mask != nullptr) {
      for (Real& gate : gates) gate *= static_cast<Real>(mask->gate_scale);
    }
    std::copy(probabilities.begin(), probabilities.end(), routed.probabilities.begin() + static_cast<std::ptrdiff_t>(t * experts));
    const auto at = static_cast<std::ptrdiff_t>(t * slots);
    const bool on_input = context.model.family->router.gate_on_input;
    std::copy(gates.begin(), gates.end(), (on_input ? routed.input_gates : routed.gates).begin() + at);
    if (on_input) std::fill_n(routed.gates.begin() + at, slots, 1.0);
  }
}

}  // namespace

void route_tile(const TileContext& context, const LayerWeights& weights, const at::Tensor& normed, std::int64_t first,
                const MaskOfToken& mask, RoutedLayer& routed, TileScratch& scratch, const ForEach& for_each) {
  const at::ScalarType wide = context.numerics.wide();
  at::Tensor logits;
  if (context.model.family->router.logits_in_fp32) {
    logits = product(normed.to(wide), weights.router).cpu();
  } else {
    at::Tensor product = linear(normed, weights.router, weights.router_bias, scratch.router_logits);
    kernels::round_product(context.numerics, product);
    logits = product.to(wide).cpu();
  }
  const auto count = logits.size(0);
  for_each((count + kRoutedTogether - 1) / kRoutedTogether, [&](std::int64_t block) {
    const auto begin = block * kRoutedTogether;
    const at::Tensor part = logits.narrow(0, begin, std::min(kRoutedTogether, count - begin));
    (wide == at::kDouble ? route_rows<double> : route_rows<float>)(context, weights, part, first + begin, mask, routed);
  });
}

}  // namespace moetrim
