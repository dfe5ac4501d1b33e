// Observers: what a layer did with its tokens to sums. All sums are fp64, in token order.

#include "calibrate/observe.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moetrim {

namespace {

/// One statistic's values for one task and slice.
struct Row {
  double* values;
  double& operator[](std::int32_t expert) const { return values[expert]; }
};

Row row_of(LayerStatistics& out, Stat stat, const MeasuredSequence& sequence) {
  const auto index = (sequence.task * kSlices + sequence.slice) * out.experts;
  return {out.values(stat).data() + index};
}

/// Measured tokens [begin, end).
struct TokenRange {
  std::int64_t begin, end;
  explicit TokenRange(const MeasuredSequence& sequence) : begin(sequence.count_begin), end(sequence.count_end) {}
};

void observe_routed(const RoutedLayer& routed, const MeasuredSequence& sequence, LayerStatistics& out) {
  const Row count = row_of(out, Stat::routed_count, sequence);
  const Row gate_sum = row_of(out, Stat::gate_sum, sequence);
  const Row gate_square = row_of(out, Stat::gate_square_sum, sequence);
  const Row norm_sum = row_of(out, Stat::norm_sum, sequence);
  const Row gated_norm = row_of(out, Stat::gated_norm_sum, sequence);
  const Row easy_ep = row_of(out, Stat::easy_ep_sum, sequence);
  const Row max_abs = row_of(out, Stat::max_abs, sequence);
  const int top_k = routed.experts_per_token;
  for (std::int64_t t = sequence.count_begin; t < sequence.count_end; ++t) {
    const double turn = routed.turns[static_cast<std::size_t>(t)];
    for (auto pair = static_cast<std::size_t>(t * top_k); pair < static_cast<std::size_t>((t + 1) * top_k); ++pair) {
      const std::int32_t expert = routed.ids[pair];
      const double gate = routed.gates[pair];
      const double norm = routed.norms[pair];
      count[expert] += 1;
      gate_sum[expert] += gate;
      gate_square[expert] += gate * gate;
      norm_sum[expert] += norm;
      gated_norm[expert] += gate * norm;
      easy_ep[expert] += turn * gate * norm;
      max_abs[expert] = std::max(max_abs[expert], static_cast<double>(routed.max_abs[pair]));
    }
  }
}

void observe_router_mass(const RoutedLayer& routed, TokenRange tokens, Row mass) {
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const float* p = routed.probabilities.data() + t * routed.experts;
    for (int e = 0; e < routed.experts; ++e) mass[e] += p[e];
  }
}

/// Softmax over a few logits, in place.
void local_softmax(std::vector<double>& values) {
  const double largest = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (double& v : values) sum += v = std::exp(v - largest);
  for (double& v : values) v /= sum;
}

/// PreMoe's marks as executed: the routed set's shares.
void observe_executed_marks(const RoutedLayer& routed, TokenRange tokens, const ObserveOptions& options, Row executed) {
  const int top_k = routed.experts_per_token;
  std::vector<double> shares(static_cast<std::size_t>(top_k));
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const float* logits = routed.logits.data() + t * routed.experts;
    const std::int32_t* ids = routed.ids.data() + t * top_k;
    for (int i = 0; i < top_k; ++i) shares[static_cast<std::size_t>(i)] = logits[ids[i]];
    local_softmax(shares);
    for (int i = 0; i < top_k; ++i) {
      const double share = shares[static_cast<std::size_t>(i)];
      if (share >= options.tcess_threshold) executed[ids[i]] += share;
    }
  }
}

/// PreMoe's marks as published: the k largest raw logits, whose raw value is summed.
void observe_published_marks(const RoutedLayer& routed, TokenRange tokens, const ObserveOptions& options, Row published) {
  std::vector<std::int32_t> best(static_cast<std::size_t>(options.tcess_top_k));
  std::vector<double> best_shares(best.size());
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const float* logits = routed.logits.data() + t * routed.experts;
    std::size_t found = 0;  // the k largest logits, ties to the lower id
    for (std::int32_t e = 0; e < routed.experts; ++e) {
      std::size_t at = found;
      while (at > 0 && logits[e] > logits[best[at - 1]]) --at;
      if (at == best.size()) continue;
      const std::size_t last = std::min(found, best.size() - 1);
      std::copy_backward(best.begin() + static_cast<std::ptrdiff_t>(at), best.begin() + static_cast<std::ptrdiff_t>(last),
                         best.begin() + static_cast<std::ptrdiff_t>(last) + 1);
      best[at] = e;
      found = last + 1;
    }
    for (std::size_t i = 0; i < best.size(); ++i) best_shares[i] = logits[best[i]];
    local_softmax(best_shares);
    for (std::size_t i = 0; i < best.size(); ++i) {
      if (best_shares[i] >= options.tcess_threshold) published[best[i]] += logits[best[i]];
    }
  }
}

/// The row that a per-sequence batch of an expert has first in transformers before fused experts: of the tokens that chose
/// it at its lowest slot, the earliest. Super Experts as published looked at that row alone.
void observe_first_row(const RoutedLayer& routed, const MeasuredSequence& sequence, LayerStatistics& out) {
  const Row largest = row_of(out, Stat::max_abs_first_row, sequence);
  const int top_k = routed.experts_per_token;
  std::vector<int> lowest_slot(static_cast<std::size_t>(routed.experts), top_k);
  std::vector<float> value(lowest_slot.size(), 0.0F);
  for (std::int64_t t = sequence.count_begin; t < sequence.count_end; ++t) {
    for (int slot = 0; slot < top_k; ++slot) {
      const auto pair = static_cast<std::size_t>(t * top_k + slot);
      const auto expert = static_cast<std::size_t>(routed.ids[pair]);
      if (slot >= lowest_slot[expert]) continue;
      lowest_slot[expert] = slot;
      value[expert] = routed.max_abs[pair];
    }
  }
  for (std::int32_t e = 0; e < routed.experts; ++e) {
    largest[e] = std::max(largest[e], static_cast<double>(value[static_cast<std::size_t>(e)]));
  }
}

double* task_matrix(std::vector<double>& matrices, const LayerStatistics& out, int task) {
  return matrices.data() + static_cast<std::int64_t>(task) * out.experts * out.experts;
}

void observe_coactivation(const RoutedLayer& routed, const MeasuredSequence& sequence, LayerStatistics& out) {
  double* matrix = task_matrix(out.coactivation, out, sequence.task);
  const int top_k = routed.experts_per_token;
  for (std::int64_t t = sequence.count_begin; t < sequence.count_end; ++t) {
    const std::int32_t* ids = routed.ids.data() + t * top_k;
    for (int i = 0; i < top_k; ++i) {
      for (int j = 0; j < top_k; ++j) matrix[static_cast<std::int64_t>(ids[i]) * out.experts + ids[j]] += 1;
    }
  }
}

}  // namespace

void observe_layer(const RoutedLayer& routed, const std::vector<MeasuredSequence>& sequences, const ObserveOptions& options,
                   LayerStatistics& out) {
  for (const MeasuredSequence& sequence : sequences) {
    out.token_count[static_cast<std::size_t>(sequence.task * kSlices + sequence.slice)] +=
        static_cast<double>(sequence.count_end - sequence.count_begin);
    observe_routed(routed, sequence, out);
    observe_router_mass(routed, TokenRange(sequence), row_of(out, Stat::router_mass, sequence));
    observe_executed_marks(routed, TokenRange(sequence), options, row_of(out, Stat::tcess_sum, sequence));
    observe_published_marks(routed, TokenRange(sequence), options, row_of(out, Stat::tcess_logit_sum, sequence));
    observe_first_row(routed, sequence, out);
    observe_coactivation(routed, sequence, out);
  }
}

void observe_prompts(const RoutedLayer& routed, const std::vector<MeasuredSequence>& sequences, LayerStatistics& out) {
  const auto slots = static_cast<std::int64_t>(routed.experts_per_token);
  std::vector<double> counts(static_cast<std::size_t>(routed.experts));
  for (const MeasuredSequence& sequence : sequences) {
    if (sequence.prompt_end == sequence.begin) continue;
    std::fill(counts.begin(), counts.end(), 0.0);
    for (auto pair = static_cast<std::size_t>(sequence.begin * slots); pair < static_cast<std::size_t>(sequence.prompt_end * slots); ++pair) {
      counts[static_cast<std::size_t>(routed.ids[pair])] += 1;
    }
    const auto kind = std::max_element(counts.begin(), counts.end()) - counts.begin();
    const double length = std::sqrt(std::inner_product(counts.begin(), counts.end(), counts.begin(), 0.0));
    double* sum = task_matrix(out.prompt_routing, out, sequence.task) + kind * out.experts;
    for (std::size_t e = 0; e < counts.size(); ++e) sum[e] += std::round(counts[e] / length * kPromptLength);
    out.prompt_count[static_cast<std::size_t>(sequence.task * out.experts + kind)] += 1;
  }
}

LayerRouting observe_query(const RoutedLayer& routed, const MeasuredSequence& sequence, const ObserveOptions& options) {
  const TokenRange tokens(sequence);
  const std::vector<double> zero(static_cast<std::size_t>(routed.experts), 0.0);
  LayerRouting out{.layer = routed.layer, .routed_count = zero, .gate_sum = zero, .router_mass = zero, .tcess_logit_sum = zero};
  const auto slots = static_cast<std::int64_t>(routed.experts_per_token);
  for (auto pair = static_cast<std::size_t>(tokens.begin * slots); pair < static_cast<std::size_t>(tokens.end * slots); ++pair) {
    const auto expert = static_cast<std::size_t>(routed.ids[pair]);
    out.routed_count[expert] += 1;
    out.gate_sum[expert] += routed.gates[pair];
  }
  observe_router_mass(routed, tokens, {out.router_mass.data()});
  observe_published_marks(routed, tokens, options, {out.tcess_logit_sum.data()});
  return out;
}

void observe_products(const ReversedLayer& reversed, const std::vector<MeasuredSequence>& sequences, AtomStatistics& out) {
  const int slots = reversed.experts_per_token;
  for (const MeasuredSequence& sequence : sequences) {
    const auto row = static_cast<std::size_t>((sequence.task * kSlices + sequence.slice) * out.experts);
    double* taylor = out.taylor.data() + row;
    double* fisher = out.fisher.data() + row;
    for (auto pair = static_cast<std::size_t>(sequence.begin * slots);
         pair < static_cast<std::size_t>((sequence.begin + sequence.length) * slots); ++pair) {
      const double product = reversed.products[pair];
      taylor[reversed.ids[pair]] += product;
      fisher[reversed.ids[pair]] += product * product;
    }
  }
}

void observe_transitions(const std::vector<std::int32_t>& from, const RoutedLayer& to,
                         const std::vector<MeasuredSequence>& sequences, LayerStatistics& out) {
  const int top_k = to.experts_per_token;
  for (const MeasuredSequence& sequence : sequences) {
    double* matrix = task_matrix(out.transitions, out, sequence.task);
    for (std::int64_t t = sequence.count_begin; t < sequence.count_end; ++t) {
      for (int i = 0; i < top_k; ++i) {
        double* row = matrix + static_cast<std::int64_t>(from[static_cast<std::size_t>(t * top_k + i)]) * out.experts;
        for (int j = 0; j < top_k; ++j) row[to.ids[static_cast<std::size_t>(t * top_k + j)]] += 1;
      }
    }
  }
}

}  // namespace moetrim
