// The reverse sweep, one layer at a time.

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include "forward/expert_gradients.h"
#include "forward/kernels_aten.h"
#include "forward/linear.h"
#include "forward/output_head.h"
#include "forward/router.h"
#include "forward/row_importance.h"
#include "forward/taped_tile.h"
#include "forward/workplace.h"
#include "moetrim/error.h"
#include "moetrim/forward.h"
#include "moetrim/machine.h"

namespace moetrim {

namespace {

/// Rows whose logits are held at a time, by each thread.
constexpr std::int64_t kLossRows = 64;

Numerics tape_numerics(Precision precision) {
  return {.precision = precision == Precision::fp64 ? Precision::fp64 : Precision::fp32};
}

}  // namespace

struct Backward::State : Workplace {
  State(const Model& m, const ForwardOptions& o)
      : Workplace(m, o), tape(tape_numerics(o.precision)), taped{model, tape, device, rotary}, lowest(m.moe_layers().front()) {}

  void start(TokenBatch tokens, int top, at::Tensor gradient_after);
  /// Loss of some predictions; writes the gradient of their rows.
  double take_loss(const HeadWeights& head, const at::Tensor& hidden, std::span<const Prediction> predictions);
  void want_all_experts();
  void route_again(const LayerTensors& tensors, const LayerWeights& weights, const at::Tensor& hidden);
  void reverse_moe(const LayerTensors& tensors, ReversedLayer& reversed);
  /// Through everything but the routed experts.
  void pass_gradient_on(const LayerTensors& tensors, const LayerWeights& weights, const at::Tensor& hidden);
  void reverse_tile(const LayerTensors& tensors, const LayerWeights& weights, const at::Tensor& hidden, const Tile& tile);
  void check_finite() const;

  const Numerics tape;
  const TileContext taped;
  const int lowest;   // the first MoE layer
  TokenBatch batch;
  std::vector<Tile> tiles;
  std::vector<int> tasks;  // [T]
  int layer = -1;
  at::Tensor gradient;     // [T, H] wide
  at::Tensor moe_input;    // [T, H] stored
  RoutedLayer routed;
  ExpertGradients of_experts;
  std::unique_ptr<WeightStream> stream;
};

Backward::Backward(const Model& model, const ForwardOptions& options) : state_(std::make_unique<State>(model, options)) {}
Backward::~Backward() = default;

int Backward::next_layer() const { return state_->layer; }
bool Backward::done() const { return state_->layer < state_->lowest; }
const at::Tensor& Backward::gradient() const { return state_->gradient; }

void Backward::State::start(TokenBatch tokens, int top, at::Tensor gradient_after) {
  batch = std::move(tokens);
  tiles = cut_tiles(batch.sequences);
  tasks.clear();
  for (const Sequence& sequence : batch.sequences) {
    rotary.prepare(sequence.length);
    tasks.insert(tasks.end(), static_cast<std::size_t>(sequence.length), sequence.task);
  }
  layer = top;
  gradient = std::move(gradient_after);
  moe_input = at::empty(gradient.sizes(), gradient.options().dtype(numerics.stored()));
  std::vector<int> layers;
  for (int l = top; l >= lowest; --l) layers.push_back(l);
  stream = open_weights(layers);
}

void Backward::resume(TokenBatch batch, int layer, const at::Tensor& gradient) {
  const c10::NoGradGuard no_tape;
  State& s = *state_;
  s.start(std::move(batch), layer, gradient.to(s.device, s.tape.wide()).clone());
}

std::vector<double> Backward::begin(TokenBatch batch, const at::Tensor& hidden, std::span<const Prediction> predictions) {
  const c10::NoGradGuard no_tape;
  State& s = *state_;
  const int tasks = batch.sequences.empty() ? 0 : batch.sequences.back().task + 1;
  const at::Tensor on_device = hidden.to(s.device);
  s.start(std::move(batch), static_cast<int>(s.model.layers) - 1, at::zeros(hidden.sizes(), on_device.options().dtype(s.tape.wide())));
  const HeadWeights head = load_head(s.model, s.numerics, s.device);
  // A block's predictions are of one task.
  std::vector<std::span<const Prediction>> blocks;
  for (std::size_t begin = 0, end = 0; begin < predictions.size(); begin = end) {
    const auto task_of = [&](std::size_t i) { return s.tasks[static_cast<std::size_t>(predictions[i].row)]; };
    while (end < predictions.size() && end - begin < static_cast<std::size_t>(kLossRows) && task_of(end) == task_of(begin)) ++end;
    blocks.push_back(predictions.subspan(begin, end - begin));
  }
  std::vector<double> losses(blocks.size());
  s.pool.run(static_cast<std::int64_t>(blocks.size()), [&](std::int64_t index, int) {
    const auto block = static_cast<std::size_t>(index);
    losses[block] = s.take_loss(head, on_device, blocks[block]);
  });
  std::vector<double> out(static_cast<std::size_t>(tasks), 0.0);
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    out[static_cast<std::size_t>(s.tasks[static_cast<std::size_t>(blocks[i].front().row)])] += losses[i];
  }
  s.check_finite();
  return out;
}

double Backward::State::take_loss(const HeadWeights& head, const at::Tensor& hidden, std::span<const Prediction> predictions) {
  std::vector<std::int64_t> rows, next;
  for (const Prediction& prediction : predictions) {
    rows.push_back(prediction.row);
    next.push_back(prediction.target);
  }
  const at::Tensor index = at::tensor(rows, at::kLong).to(device);
  const at::Tensor target = at::tensor(next, at::kLong).to(device).unsqueeze(1);
  const c10::AutoGradMode recording(true);
  const at::Tensor x = hidden.index_select(0, index).to(tape.wide()).detach().requires_grad_(true);
  const at::Tensor normed = kernels::aten::normalised(tape, x, head.final_norm);
  at::Tensor of_normed;
  double loss = 0;
  {
    const c10::NoGradGuard no_tape;
    at::Tensor logits = product(normed, head.head);
    if (head.bias.defined()) logits.add_(head.bias.to(tape.wide()));
    const at::Tensor logs = at::log_softmax(logits.mul_(model.logit_scale), 1);
    loss = -logs.gather(1, target).sum(at::kDouble).item<double>();
    at::Tensor of_logits = logs.exp();
    of_logits.scatter_add_(1, target, at::full(target.sizes(), -1.0, of_logits.options()));
    of_normed = product(of_logits.mul_(model.logit_scale), head.head.t());
  }
  const auto of_rows = torch::autograd::grad({normed}, {x}, {of_normed});
  const c10::NoGradGuard no_tape;
  gradient.index_copy_(0, index, of_rows[0]);
  return loss;
}

void Backward::run_layer(const at::Tensor& hidden, ReversedLayer& reversed) {
  const c10::NoGradGuard no_tape;
  State& s = *state_;
  const LayerTensors& tensors = s.model.layer[static_cast<std::size_t>(s.layer)];
  const LayerWeights weights = load_layer(s.model, tensors, s.stream->next_layer(), s.numerics, s.device);
  const at::Tensor before = hidden.to(s.device, s.numerics.stored());
  if (tensors.sparse) {
    if (reversed.sums.down_squares.empty()) s.want_all_experts();  // their weights are measured, whoever chose them
    s.route_again(tensors, weights, before);
    s.reverse_moe(tensors, reversed);
  }
  if (s.layer > s.lowest) s.pass_gradient_on(tensors, weights, before);
  --s.layer;
}

void Backward::State::want_all_experts() {
  std::vector<std::int32_t> all(static_cast<std::size_t>(model.experts));
  std::iota(all.begin(), all.end(), 0);
  stream->want_experts(all);
}

/// The first half of the layer by the same code as in the forward sweep, so that no near tie routes a token elsewhere.
void Backward::State::route_again(const LayerTensors& tensors, const LayerWeights& weights, const at::Tensor& hidden) {
  prepare_record(model, layer, hidden.size(0), routed);
  pool.run(static_cast<std::int64_t>(tiles.size()), [&](std::int64_t index, int worker) {
    const c10::NoGradGuard no_tape;
    const Tile& tile = tiles[static_cast<std::size_t>(index)];
    TileScratch& own = scratch[static_cast<std::size_t>(worker)];
    at::Tensor rows = hidden.narrow(0, tile.begin, tile.tokens).clone();
    const at::Tensor normed = attend_and_norm(context, tensors, weights, tile.parts, rows, own);
    moe_input.narrow(0, tile.begin, tile.tokens).copy_(normed);
    route_tile(context, weights, normed, tile.begin, [](std::int64_t) { return nullptr; }, routed, own);
    stream->want_experts(routed.ids_of(tile.begin, tile.tokens));
  });
}

void Backward::State::reverse_moe(const LayerTensors& tensors, ReversedLayer& reversed) {
  reversed.layer = layer;
  reversed.tokens = routed.tokens;
  reversed.experts = routed.experts;
  reversed.experts_per_token = routed.experts_per_token;
  reversed.ids = routed.ids;
  of_experts.of_input = layer > lowest ? at::zeros_like(gradient) : at::Tensor();
  std::vector<bool> chosen(static_cast<std::size_t>(model.experts));
  for (const std::int32_t expert : routed.ids) chosen[static_cast<std::size_t>(expert)] = true;
  const FetchExpert fetch = [&](int expert) -> ExpertLoader {
    const std::int64_t rank = chosen[static_cast<std::size_t>(expert)] ? reversed.rows.rank : 0;
    return [this, &tensors, expert, rank, bytes = stream->take_expert(expert)] {
      const c10::NoGradGuard no_tape;
      ExpertWeights weights = load_expert(model, tensors, expert, bytes, numerics, device);
      if (rank > 0) add_rests(weights, rank, numerics.wide(), fmt::format("layer {}, expert {}", layer, expert));
      return weights;
    };
  };
  const at::Tensor of_output = model.residual_scale == 1.0 ? gradient : gradient * model.residual_scale;
  reverse_experts(context, fetch, {moe_input, of_output, routed, tasks}, reversed, of_experts, pool, scratch);
}

void Backward::State::pass_gradient_on(const LayerTensors& tensors, const LayerWeights& weights, const at::Tensor& hidden) {
  pool.run(static_cast<std::int64_t>(tiles.size()), [&](std::int64_t index, int) {
    reverse_tile(tensors, weights, hidden, tiles[static_cast<std::size_t>(index)]);
  });
  of_experts.of_input.reset();
  check_finite();
}

void Backward::State::reverse_tile(const LayerTensors& tensors, const LayerWeights& weights, const at::Tensor& hidden,
                                   const Tile& tile) {
  const auto rows_of = [&](const at::Tensor& x) { return x.narrow(0, tile.begin, tile.tokens); };
  const auto slots = model.experts_per_token;
  const auto offset = tile.begin * slots;
  at::Tensor ids;
  if (tensors.sparse) {
    ids = at::from_blob(routed.ids.data() + offset, {tile.tokens, slots}, at::kInt).to(device, at::kLong);
  }
  const c10::AutoGradMode recording(true);
  const TapedTile on_tape = tape_tile(taped, tensors, weights, tile.parts, rows_of(hidden), ids);
  const at::Tensor of_output = rows_of(gradient);
  std::vector<at::Tensor> outputs{on_tape.residual};
  std::vector<at::Tensor> gradients{of_output};
  if (tensors.sparse) {
    outputs.push_back(on_tape.normed);
    gradients.push_back(rows_of(of_experts.of_input));
    outputs.push_back(on_tape.gates);
    gradients.push_back(at::from_blob(of_experts.of_gates.data() + offset, {tile.tokens, slots}, at::kDouble).to(device, tape.wide()));
  }
  if (on_tape.mlp.defined()) {
    outputs.push_back(on_tape.mlp);
    gradients.push_back(of_output * model.residual_scale);
  }
  const auto of_hidden = torch::autograd::grad(outputs, {on_tape.hidden}, gradients);
  const c10::NoGradGuard no_tape;
  rows_of(gradient).copy_(of_hidden[0]);
}

void Backward::State::check_finite() const {
  if (std::isfinite(gradient.sum(at::kDouble).item<double>())) return;
  throw InvalidInput(fmt::format("{}: the gradient of layer {} holds NaN or infinity; run `moetrim verify --deep` on the "
                                 "checkpoint, or try --dtype fp32", model.checkpoint->folder().string(), layer));
}

std::uint64_t Backward::bytes_per_token(const Model& model, Precision precision) {
  const std::uint64_t wide = precision == Precision::fp64 ? 8 : 4;
  const std::uint64_t stored = precision == Precision::bf16 ? 2 : wide;
  const auto hidden = static_cast<std::uint64_t>(model.hidden);
  // Hidden states before the layer, the block's input, and the gradients of its output and input.
  const std::uint64_t scaled = model.residual_scale == 1.0 ? 0 : wide;
  return hidden * (2 * stored + 2 * wide + scaled) + static_cast<std::uint64_t>(model.experts) * 8 +
         static_cast<std::uint64_t>(model.experts_per_token) * (20 + 16 + 16) + 4;
}

std::uint64_t Backward::tape_bytes(const Model& model, Precision precision, std::int64_t longest) {
  const std::uint64_t wide = precision == Precision::fp64 ? 8 : 4;
  // Values of a token that some operator keeps, or that pass through: residual and norms, a few forms of queries, keys and
  // values with their gradients, and the MLP's.
  const auto heads = model.heads + model.key_value_heads;
  const auto attention = std::max(heads * model.head_dim, model.delta.value_heads * model.delta.value_dim * 4);
  const auto mlp = std::max(model.shared_width, model.dense_width);
  const auto per_token = 14 * model.hidden + 10 * attention + 10 * mlp;
  return static_cast<std::uint64_t>(std::max<std::int64_t>(longest, kTileTokens) * per_token) * wide;
}

}  // namespace moetrim
