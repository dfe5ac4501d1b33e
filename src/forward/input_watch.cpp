// Watches what linear layers read.

#include "forward/input_watch.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

namespace {

/// f32 or f64 on the CPU, rows close together.
at::Tensor on_host(const at::Tensor& x) {
  return x.to(at::kCPU, x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

template <class Value>
void add_squares(double* sum, const Value* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) sum[i] += static_cast<double>(values[i]) * static_cast<double>(values[i]);
}

/// Row `row` of x [n, width] f32 or f64 on the CPU.
void add_squares(double* sum, const at::Tensor& x, std::int64_t row) {
  const std::int64_t width = x.size(1);
  if (x.scalar_type() == at::kDouble) return add_squares(sum, x.const_data_ptr<double>() + row * width, width);
  add_squares(sum, x.const_data_ptr<float>() + row * width, width);
}

void grow_to(std::vector<double>& values, std::size_t count) {
  if (values.empty()) values.assign(count, 0.0);
  if (values.size() != count) throw Error("the inputs of a linear layer changed their width");
}

}  // namespace

TileInputs::TileInputs(std::span<const SequencePart> parts, std::int64_t unmeasured) {
  std::int64_t at = 0;
  for (const SequencePart& part : parts) {
    begins_.push_back(at);
    measured_.push_back(std::max<std::int64_t>(0, part.length - unmeasured));
    at += part.length;
  }
}

TileInputs::Sum& TileInputs::sum_of(LinearInput input, std::int64_t width) {
  const auto found = std::ranges::find(sums_, input, &Sum::input);
  if (found != sums_.end()) return *found;
  return sums_.emplace_back(Sum{input, width, std::vector<double>(parts() * static_cast<std::size_t>(width), 0.0)});
}

void TileInputs::take(LinearInput input, const at::Tensor& x) {
  const at::Tensor rows = on_host(x);
  Sum& sum = sum_of(input, x.size(1));
  for (std::size_t part = 0; part < parts(); ++part) {
    double* squares = sum.squares.data() + part * static_cast<std::size_t>(sum.width);
    for (std::int64_t row = begins_[part]; row < begins_[part] + measured_[part]; ++row) add_squares(squares, rows, row);
  }
}

void TileInputs::take_block(LinearInput input, std::size_t index, std::int64_t begin, const at::Tensor& x,
                            std::int64_t column, std::int64_t width) {
  const at::Tensor rows = on_host(x);
  Sum& sum = sum_of(input, width);
  double* squares = sum.squares.data() + static_cast<std::int64_t>(index) * width + column;
  const std::int64_t count = std::min(rows.size(0), measured_[index] - begin);
  for (std::int64_t row = 0; row < count; ++row) add_squares(squares, rows, row);
}

InputWatch::InputWatch(const Model& model, const TokenBatch& batch, int layer, LinearInputs& out)
    : model_(model),
      batch_(batch),
      unmeasured_(std::max<std::int64_t>(0, layer - model.layers + 1)),
      out_(out),
      task_(batch.ids.size(), -1) {
  for (const Sequence& sequence : batch.sequences) {
    const std::int64_t measured = std::max<std::int64_t>(0, sequence.length - unmeasured_);
    std::fill_n(task_.begin() + sequence.begin, measured, sequence.task);
    out_.tokens[static_cast<std::size_t>(sequence.task)] += static_cast<double>(measured);
  }
}

void InputWatch::begin_pass() {
  next_tile_ = 0;
  next_sequence_ = 0;
  waiting_.clear();
}

void InputWatch::pass(std::int64_t tile, TileInputs inputs) {
  const std::lock_guard lock(mutex_);
  waiting_.emplace(tile, std::move(inputs));
  for (auto first = waiting_.begin(); first != waiting_.end() && first->first == next_tile_; first = waiting_.erase(first)) {
    add(first->second);
    ++next_tile_;
  }
}

void InputWatch::add(const TileInputs& inputs) {
  for (std::size_t part = 0; part < inputs.parts(); ++part) {
    const int task = batch_.sequences[next_sequence_ + part].task;
    for (const TileInputs::Sum& sum : inputs.sums()) {
      const auto width = static_cast<std::size_t>(sum.width);
      std::vector<double>& out = out_.of(sum.input);
      grow_to(out, width * static_cast<std::size_t>(out_.tasks));
      for (std::size_t i = 0; i < width; ++i) {
        out[static_cast<std::size_t>(task) * width + i] += sum.squares[part * width + i];
      }
    }
  }
  next_sequence_ += inputs.parts();
}

ExpertInputs::ExpertInputs(const at::Tensor& before, const at::Tensor& between)
    : input(on_host(before)), activated(on_host(between)) {}

void InputWatch::add_expert(const TileTask& task, const ExpertRows& rows, int experts_per_token, const ExpertInputs& inputs) {
  const std::int64_t hidden = inputs.input.size(1);
  const std::int64_t width = inputs.activated.size(1);
  const std::int64_t pairs = static_cast<std::int64_t>(out_.tasks) * out_.experts;
  grow_to(out_.of(LinearInput::expert), static_cast<std::size_t>(pairs * hidden));
  grow_to(out_.of(LinearInput::expert_down), static_cast<std::size_t>(pairs * width));
  for (std::int64_t i = 0; i < task.end - task.begin; ++i) {
    const std::int64_t token = rows.pairs[static_cast<std::size_t>(task.begin + i)] / experts_per_token;
    const std::int32_t of_task = task_[static_cast<std::size_t>(token)];
    if (of_task < 0) continue;
    const std::int64_t pair = static_cast<std::int64_t>(of_task) * out_.experts + task.expert;
    out_.routed[static_cast<std::size_t>(pair)] += 1;
    add_squares(out_.of(LinearInput::expert).data() + pair * hidden, inputs.input, i);
    add_squares(out_.of(LinearInput::expert_down).data() + pair * width, inputs.activated, i);
  }
}

void InputWatch::finish() const {
  for (std::size_t i = 0; i < kLinearInputs; ++i) {
    const auto& sums = out_.squares[i];
    if (std::all_of(sums.begin(), sums.end(), [](double sum) { return std::isfinite(sum); })) continue;
    throw InvalidInput(
        fmt::format("{}: layer {} gives NaN or infinity in what its linear layers read ({}); run `moetrim verify "
                    "--deep` on the checkpoint, or try --dtype fp32",
                    model_.checkpoint->folder().string(), out_.layer, linear_input_name(static_cast<LinearInput>(i))));
  }
}

WatchedInputs::WatchedInputs(InputWatch* watch, const Tile& tile, std::int64_t number, TileScratch& scratch)
    : watch_(watch),
      number_(number),
      scratch_(scratch),
      inputs_(watch != nullptr ? std::span<const SequencePart>(tile.parts) : std::span<const SequencePart>(),
              watch != nullptr ? watch->unmeasured() : 0) {
  if (watch_ != nullptr) scratch_.inputs = &inputs_;
}

WatchedInputs::~WatchedInputs() { scratch_.inputs = nullptr; }

void WatchedInputs::pass() {
  if (watch_ == nullptr) return;
  scratch_.inputs = nullptr;
  watch_->pass(number_, std::move(inputs_));
}

}  // namespace moetrim
