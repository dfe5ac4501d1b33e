// Which rows of a layer's tokens go to which expert, in tiles that any worker can take.

#include "forward/expert_tiles.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace moetrim {

namespace {

at::Tensor gates_of(const std::vector<double>& gates, const ExpertRows& rows, const TileTask& task) {
  at::Tensor out = at::empty({task.end - task.begin}, at::kDouble);
  auto* gate = out.mutable_data_ptr<double>();
  for (std::int64_t i = task.begin; i < task.end; ++i) {
    *gate++ = gates[static_cast<std::size_t>(rows.pairs[static_cast<std::size_t>(i)])];
  }
  return out;
}

}  // namespace

ExpertRows ExpertRows::group(const RoutedLayer& routed) {
  ExpertRows rows;
  rows.start.assign(static_cast<std::size_t>(routed.experts) + 1, 0);
  for (const auto id : routed.ids) ++rows.start[static_cast<std::size_t>(id) + 1];
  for (std::size_t e = 1; e < rows.start.size(); ++e) rows.start[e] += rows.start[e - 1];
  rows.pairs.resize(routed.ids.size());
  auto place = rows.start;
  for (std::size_t pair = 0; pair < routed.ids.size(); ++pair) {
    rows.pairs[static_cast<std::size_t>(place[static_cast<std::size_t>(routed.ids[pair])]++)] = static_cast<std::int64_t>(pair);
  }
  return rows;
}

void store_statistics(const ExpertRows& rows, std::int64_t begin, const at::Tensor& norms, const at::Tensor& max_abs,
                      RoutedLayer& routed) {
  const at::Tensor n = norms.cpu();
  const at::Tensor m = max_abs.cpu();
  for (std::int64_t i = 0; i < n.size(0); ++i) {
    const auto pair = static_cast<std::size_t>(rows.pairs[static_cast<std::size_t>(begin + i)]);
    routed.norms[pair] = n.const_data_ptr<float>()[i];
    routed.max_abs[pair] = m.const_data_ptr<float>()[i];
  }
}

const ExpertWeights& LazyExpert::weights() {
  std::call_once(once_, [this] {
    weights_ = load_();
    load_ = nullptr;
  });
  return weights_;
}

std::optional<TileTask> TileQueue::take() {
  const std::lock_guard lock(mutex_);
  const auto experts = rows_.start.size() - 1;
  while (next_row_ == expert_end_ && next_common_ == common_rows_ && !fresh_) {
    if (expert_ == experts) return std::nullopt;
    next_row_ = rows_.start[expert_];
    expert_end_ = rows_.start[expert_ + 1];
    fresh_ = next_row_ < expert_end_ || visit_ == Visit::every;
    if (fresh_) {
      lazy_ = std::make_shared<LazyExpert>(fetch_(static_cast<int>(expert_)));
      next_common_ = 0;
    }
    ++expert_;
  }
  const bool common = next_row_ == expert_end_ && next_common_ < common_rows_;
  std::int64_t& next = common ? next_common_ : next_row_;
  TileTask task{.weights = lazy_,
                .expert = static_cast<int>(expert_) - 1,
                .first = fresh_,
                .common = common,
                .begin = next,
                .end = std::min(next + kExpertTileRows, common ? common_rows_ : expert_end_),
                .number = number_++};
  next = task.end;
  fresh_ = false;
  if (next_row_ == expert_end_ && next_common_ == common_rows_) lazy_.reset();
  return task;
}

TileRows::TileRows(const RoutedLayer& routed, const ExpertRows& rows, const TileTask& task, const Numerics& numerics,
                   const at::Device& device) {
  tokens = at::empty({task.end - task.begin}, at::kInt);
  auto* token = tokens.mutable_data_ptr<std::int32_t>();
  for (std::int64_t i = task.begin; i < task.end; ++i) {
    *token++ = static_cast<std::int32_t>(rows.pairs[static_cast<std::size_t>(i)] / routed.experts_per_token);
  }
  tokens = tokens.to(device);
  gates = gates_of(routed.gates, rows, task).to(device, numerics.wide());
  if (!routed.input_gates.empty()) input_gates = gates_of(routed.input_gates, rows, task).to(device, numerics.wide());
}

}  // namespace moetrim
