// The experts of an MoE layer on a device.

#include "forward/expert_groups.h"

#include <algorithm>
#include <array>
#include <functional>
#include <span>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "forward/kernels.h"
#include "forward/load_weight.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

/// at::_grouped_mm wants rows that begin at multiples of 16 bytes, and fewer groups than this.
constexpr std::int64_t kMostGroups = 1024;

/// Weights of a group of experts that have rows, one below the other.
struct ExpertGroup {
  at::Tensor gate_up, down;            // [G, 2 F, H], [G, H, F]
  at::Tensor gate_up_bias, down_bias;  // [G, 2 F], [G, H]; undefined where experts have none
  cuda::CopyStream::Mark used;         // the last product that reads them
};

at::Tensor gates_of(const std::vector<double>& gates, const ExpertRows& rows) {
  at::Tensor out = at::empty({static_cast<std::int64_t>(rows.pairs.size())}, at::kFloat);
  auto* to = out.mutable_data_ptr<float>();
  for (const auto pair : rows.pairs) *to++ = static_cast<float>(gates[static_cast<std::size_t>(pair)]);
  return out;
}

kernels::LayerPairs layer_pairs(const RoutedLayer& routed, const ExpertRows& rows, const at::Device& device) {
  const auto slots = static_cast<std::int64_t>(routed.experts_per_token);
  at::Tensor tokens = at::empty({static_cast<std::int64_t>(rows.pairs.size())}, at::kInt);
  at::Tensor places = at::empty({routed.tokens, slots}, at::kInt);
  auto* token_at = tokens.mutable_data_ptr<std::int32_t>();
  auto* place_at = places.mutable_data_ptr<std::int32_t>();
  std::vector<std::int64_t> found(static_cast<std::size_t>(routed.tokens), 0);
  for (std::size_t i = 0; i < rows.pairs.size(); ++i) {
    const auto token = rows.pairs[i] / slots;
    token_at[i] = static_cast<std::int32_t>(token);
    place_at[token * slots + found[static_cast<std::size_t>(token)]++] = static_cast<std::int32_t>(i);
  }
  return {.tokens = queue_to(device, tokens),
          .places = queue_to(device, places),
          .gates = queue_to(device, gates_of(routed.gates, rows))};
}

/// One layer's way through its groups.
class GroupedLayer {
 public:
  GroupedLayer(const TileContext& context, cuda::CopyStream* copies, const GroupLimits& limits, const at::Tensor& x,
               const RoutedLayer& routed, at::Tensor& sum)
      : context_(context), copies_(copies), limits_(limits), x_(x), sum_(sum), rows_(ExpertRows::group(routed)),
        pairs_(layer_pairs(routed, rows_, context.device)) {
    const auto count = static_cast<std::int64_t>(rows_.pairs.size());
    norms_ = at::empty({count}, sum.options());
    max_abs_ = at::empty({count}, sum.options());
    if (!routed.input_gates.empty()) input_gates_ = queue_to(context.device, gates_of(routed.input_gates, rows_));
    for (int e = 0; e < routed.experts; ++e) {
      if (rows_of(e) > 0) chosen_.push_back(e);
    }
  }

  void run(const FetchExpert& fetch);
  void store(RoutedLayer& routed) const;

 private:
  using Experts = std::span<const int>;

  std::int64_t begin_of(int expert) const { return rows_.start[static_cast<std::size_t>(expert)]; }
  std::int64_t rows_of(int expert) const { return begin_of(expert + 1) - begin_of(expert); }

  void reserve(const ExpertWeights& like);
  void bring_group(const FetchExpert& fetch, Experts experts, ExpertGroup& group);
  void compute(Experts experts, const ExpertGroup& group);
  void compute_rows(Experts experts, const ExpertGroup& group, std::int64_t first_expert, std::int64_t begin, std::int64_t end);
  at::Tensor multiply(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& biases,
                      const std::vector<std::int32_t>& ends, const at::Tensor& ends_there) const;

  const TileContext& context_;
  cuda::CopyStream* const copies_;
  const GroupLimits limits_;
  const at::Tensor& x_;
  at::Tensor& sum_;
  const ExpertRows rows_;
  const kernels::LayerPairs pairs_;
  at::Tensor input_gates_;       // [P], undefined in most families
  at::Tensor norms_, max_abs_;   // [P]
  std::vector<int> chosen_;      // experts with rows
  std::array<ExpertGroup, 2> groups_;
};

void GroupedLayer::run(const FetchExpert& fetch) {
  std::size_t turn = 0;
  for (std::size_t first = 0; first < chosen_.size(); turn = 1 - turn) {
    const auto count = std::min(chosen_.size() - first, static_cast<std::size_t>(limits_.experts));
    const Experts experts = Experts(chosen_).subspan(first, count);
    ExpertGroup& group = groups_[turn];
    bring_group(fetch, experts, group);
    compute(experts, group);
    if (copies_ != nullptr) group.used = copies_->mark_compute();
    first += count;
  }
}

/// Room for the groups, on the computing stream: what is let go of there may be given to it again at once.
void GroupedLayer::reserve(const ExpertWeights& like) {
  const auto experts = std::min(limits_.experts, static_cast<std::int64_t>(chosen_.size()));
  const auto stacked = [&](const at::Tensor& one) {
    if (!one.defined()) return at::Tensor();
    std::vector<std::int64_t> shape{experts};
    shape.insert(shape.end(), one.sizes().begin(), one.sizes().end());
    return at::empty(shape, one.options().dtype(context_.numerics.tile()).device(context_.device));
  };
  const bool second = experts < static_cast<std::int64_t>(chosen_.size());
  for (ExpertGroup& group : std::span(groups_).first(second ? 2 : 1)) {
    group.gate_up = stacked(like.gate_up);
    group.down = stacked(like.down);
    group.gate_up_bias = stacked(like.gate_up_bias);
    group.down_bias = stacked(like.down_bias);
    // The memory may be that of work still queued.
    if (copies_ != nullptr) group.used = copies_->mark_compute();
  }
}

void GroupedLayer::bring_group(const FetchExpert& fetch, Experts experts, ExpertGroup& group) {
  const auto put = [&](std::size_t i, const ExpertWeights& expert) {
    const auto at = static_cast<std::int64_t>(i);
    group.gate_up[at].copy_(expert.gate_up);
    group.down[at].copy_(expert.down);
    if (expert.gate_up_bias.defined()) group.gate_up_bias[at].copy_(expert.gate_up_bias);
    if (expert.down_bias.defined()) group.down_bias[at].copy_(expert.down_bias);
  };
  const auto beside = [this](const std::function<void()>& body) { copies_ == nullptr ? body() : copies_->run(body); };
  for (std::size_t i = 0; i < experts.size(); ++i) {
    const ExpertLoader load = fetch(experts[i]);
    ExpertWeights expert;
    beside([&] { expert = load(); });
    if (!group.gate_up.defined()) reserve(expert);
    if (i == 0 && copies_ != nullptr) copies_->wait_for(group.used);
    beside([&] { put(i, expert); });
    if (copies_ != nullptr) copies_->keep(expert.bytes);
    beside([&] { expert = {}; });  // its memory is the copy stream's
  }
  if (copies_ != nullptr) copies_->hold_compute();
}

void GroupedLayer::compute(Experts experts, const ExpertGroup& group) {
  const std::int64_t end = begin_of(experts.back() + 1);
  std::int64_t first_expert = 0;
  for (std::int64_t begin = begin_of(experts.front()); begin < end; begin += limits_.rows) {
    while (begin_of(experts[static_cast<std::size_t>(first_expert)] + 1) <= begin) ++first_expert;
    compute_rows(experts, group, first_expert, begin, std::min(begin + limits_.rows, end));
  }
}

/// Rows [begin, end) of the layer's pairs, which begin in experts[first_expert].
void GroupedLayer::compute_rows(Experts experts, const ExpertGroup& group, std::int64_t first_expert, std::int64_t begin,
                                std::int64_t end) {
  std::vector<std::int32_t> ends;  // of each expert's rows, within these
  for (auto e = static_cast<std::size_t>(first_expert); e < experts.size() && begin_of(experts[e]) < end; ++e) {
    ends.push_back(static_cast<std::int32_t>(std::min(begin_of(experts[e] + 1), end) - begin));
  }
  const auto count = end - begin;
  const auto here = [&](const at::Tensor& of_group) {
    return of_group.defined() ? of_group.narrow(0, first_expert, static_cast<std::int64_t>(ends.size())) : of_group;
  };
  const at::Tensor ends_there = queue_to(context_.device, at::tensor(ends, at::kInt));
  const auto tile = at::TensorOptions().dtype(context_.numerics.tile()).device(context_.device);
  at::Tensor gathered = at::empty({count, x_.size(1)}, tile);
  kernels::gather_rows(context_.numerics, x_, pairs_.tokens.narrow(0, begin, count), gathered);
  if (input_gates_.defined()) gathered.mul_(input_gates_.narrow(0, begin, count).unsqueeze(1).to(gathered.scalar_type()));
  const at::Tensor gate_up = multiply(gathered, here(group.gate_up), here(group.gate_up_bias), ends, ends_there);
  at::Tensor activated = at::empty({count, gate_up.size(1) / 2}, tile);
  if (context_.model.family->activation == Activation::silu) {
    kernels::gated_silu(context_.numerics, gate_up, activated);
  } else {
    kernels::clamped_swiglu(context_.numerics, gate_up, context_.model.swiglu_limit, context_.model.swiglu_alpha, activated);
  }
  const at::Tensor out = multiply(activated, here(group.down), here(group.down_bias), ends, ends_there);
  kernels::scatter_pairs(context_.numerics, out, pairs_, begin, sum_, norms_, max_abs_);
}

/// x [n, K] times the weights [G, N, K] of the experts whose rows end at `ends`, plus their biases [G, N] where there are any.
at::Tensor GroupedLayer::multiply(const at::Tensor& x, const at::Tensor& weights, const at::Tensor& biases,
                                  const std::vector<std::int32_t>& ends, const at::Tensor& ends_there) const {
  // at::_grouped_mm adds no bias, and adding it to a product that was rounded would round twice.
  const bool aligned = weights.size(1) % 8 == 0 && weights.size(2) % 8 == 0;
  if (limits_.one_product && aligned && !biases.defined() && x.scalar_type() == at::kBFloat16) {
    return at::_grouped_mm(x, weights.transpose(1, 2), ends_there);
  }
  at::Tensor out = at::empty({x.size(0), weights.size(1)}, x.options());
  std::int64_t begin = 0;
  for (std::size_t e = 0; e < ends.size(); begin = ends[e++]) {
    at::Tensor rows = out.narrow(0, begin, ends[e] - begin);
    const auto of_expert = [&](const at::Tensor& of_group) {
      return of_group.defined() ? of_group[static_cast<std::int64_t>(e)] : of_group;
    };
    kernels::multiply(x.narrow(0, begin, ends[e] - begin), of_expert(weights), rows, of_expert(biases));
  }
  return out;
}

void GroupedLayer::store(RoutedLayer& routed) const { store_statistics(rows_, 0, norms_, max_abs_, routed); }

}  // namespace

GroupLimits plan_groups(const Model& model, const Numerics& numerics, const cuda::Memory& memory, bool multiplies_groups) {
  const std::uint64_t element = matrix_element_bytes(numerics.precision);
  const auto hidden = static_cast<std::uint64_t>(model.hidden);
  const auto width = static_cast<std::uint64_t>(model.expert_width);
  const std::uint64_t expert_bytes = 3 * hidden * width * element;
  const std::uint64_t row_bytes = (2 * hidden + 3 * width) * element;
  // A tenth stays for LibTorch's workspaces, a quarter is for rows, and three experts are on their way: as bytes, as values, in
  // the order of the product.
  const std::uint64_t usable = memory.free_bytes / 10 * 9;
  constexpr std::uint64_t kMostRows = 1 << 17;  // enough for a product at full speed
  const std::uint64_t rows = std::min(usable / 4 / row_bytes, kMostRows);
  const std::uint64_t for_experts = usable - std::min(usable, rows * row_bytes + 3 * expert_bytes);
  const std::uint64_t experts = std::min<std::uint64_t>(for_experts / 2 / expert_bytes, kMostGroups - 1);
  if (experts == 0 || rows == 0) {
    throw OutOfResources(fmt::format("the device has {} MiB free, and five experts of {} MiB each must fit; use a larger device, or "
                                     "--device cpu", memory.free_bytes >> 20, expert_bytes >> 20));
  }
  return {.experts = std::min(static_cast<std::int64_t>(experts), model.experts),
          .rows = static_cast<std::int64_t>(rows),
          .one_product = multiplies_groups};
}

void run_expert_groups(const TileContext& context, const FetchExpert& fetch, cuda::CopyStream* copies, const GroupLimits& limits,
                       const at::Tensor& x, RoutedLayer& routed, at::Tensor& sum) {
  GroupedLayer layer(context, copies, limits, x, routed, sum);
  layer.run(fetch);
  layer.store(routed);
}

}  // namespace moetrim
