// The forward pass, layers outside and tokens inside.

#include "moetrim/forward.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "forward/attention.h"
#include "forward/expert_watch.h"
#include "forward/forward_state.h"
#include "forward/kernels.h"
#include "forward/linear.h"
#include "forward/router.h"
#include "moetrim/error.h"
#include "moetrim/machine.h"

namespace moetrim {

Forward::Forward(const Model& model, const ForwardOptions& options) : state_(std::make_unique<State>(model, options)) {}
Forward::~Forward() = default;

int Forward::next_layer() const { return state_->layer; }
bool Forward::done() const { return state_->layer >= state_->end; }
const at::Tensor& Forward::hidden() const { return state_->hidden; }

void Forward::begin(TokenBatch batch) {
  const c10::InferenceMode no_autograd;
  const at::Tensor hidden = state_->embedded(batch.ids);
  resume(std::move(batch), 0, hidden);
}

void Forward::begin_to_router(TokenBatch batch, int layer) {
  if (!state_->model.layer[static_cast<std::size_t>(layer)].sparse) throw Error("a run was to end at the router of a dense layer");
  const c10::InferenceMode no_autograd;
  const at::Tensor hidden = state_->embedded(batch.ids);
  state_->open(std::move(batch), 0, hidden, layer + 1, LayerPart::to_router);
}

void Forward::resume(TokenBatch batch, int layer, const at::Tensor& hidden, int end) {
  const c10::InferenceMode no_autograd;
  const State& s = *state_;
  const int all = static_cast<int>(s.model.layers + (s.options.mtp ? s.model.mtp_layers : 0));
  state_->open(std::move(batch), layer, hidden, end >= 0 ? end : all, LayerPart::whole);
}

at::Tensor Forward::State::embedded(const std::vector<std::int32_t>& ids) const {
  BlockReader reader(*model.checkpoint, options.drop_page_cache ? PageCache::bypass : PageCache::use);
  at::Tensor states = embed(model, ids, numerics, reader);
  if (options.reading != nullptr) options.reading->bytes += reader.bytes_read();
  return states;
}

void Forward::State::open(TokenBatch tokens, int first, const at::Tensor& states, int stop, LayerPart last_part) {
  batch = std::move(tokens);
  layer = first;
  end = stop;
  last = last_part;
  hidden = states.to(device, numerics.stored());
  lay_out_tokens();
  std::vector<int> layers;
  for (int l = layer; l < end; ++l) layers.push_back(l);
  stream = open_weights(layers, last);
}

/// What follows from the batch's sequences.
void Forward::State::lay_out_tokens() {
  tiles = cut_tiles(batch.sequences, device.is_cpu() ? kTileTokens : kDeviceTileTokens);
  token_masks.clear();
  for (const auto& sequence : batch.sequences) {
    rotary.prepare(sequence.length);
    if (!batch.masks.empty()) token_masks.insert(token_masks.end(), static_cast<std::size_t>(sequence.length), sequence.mask);
  }
  moe_input = at::empty_like(hidden);
  routed_sum = at::empty_like(hidden, numerics.wide());
}

void Forward::fork(std::span<const Branch> branches) {
  if (branches.empty()) return;
  State& s = *state_;
  const c10::InferenceMode no_autograd;
  s.moe_input.reset();  // makes room
  s.routed_sum.reset();
  std::vector<at::Tensor> rows{s.hidden};
  for (const Branch& branch : branches) {
    const Sequence from = s.batch.sequences[branch.from];
    auto& ids = s.batch.ids;
    const auto begin = ids.size();
    ids.resize(begin + static_cast<std::size_t>(from.length));
    std::copy_n(ids.begin() + from.begin, from.length, ids.begin() + static_cast<std::ptrdiff_t>(begin));
    s.batch.sequences.push_back({static_cast<std::int64_t>(begin), from.length, branch.mask, from.task});
    rows.push_back(s.hidden.narrow(0, from.begin, from.length));
  }
  s.hidden = at::cat(rows, 0);
  s.lay_out_tokens();
}

void Forward::run_layer(RoutedLayer& routed, VectorSums* sums, const ChooseExperts& choose) {
  State& s = *state_;
  s.sums = sums != nullptr && sums->tasks > 0 ? sums : nullptr;
  s.inputs = nullptr;
  if (sums != nullptr && sums->inputs != nullptr) {
    s.inputs = std::make_unique<InputWatch>(s.model, s.batch, s.layer, *sums->inputs);
  }
  const c10::InferenceMode no_autograd;
  const LayerTensors& tensors = s.model.layer[static_cast<std::size_t>(s.layer)];
  const LayerWeights weights = load_layer(s.model, tensors, s.stream->next_layer(), s.numerics, s.device, s.part());
  if (tensors.mtp) s.join_next_tokens(weights);
  prepare_record(s.model, s.layer, tensors.sparse ? s.hidden.size(0) : 0, routed);
  if (tensors.sparse && s.sums != nullptr && s.sums->visits_every_expert()) s.want_all_experts();
  s.run_attention(tensors, weights, routed);
  if (s.part() == LayerPart::to_router) {
    s.end_at_router(routed);
  } else if (tensors.sparse) {
    s.run_moe(tensors, weights, routed, choose);
  }
  if (tensors.mtp) {
    at::Tensor normed = at::empty(s.hidden.sizes(), s.hidden.options().dtype(s.numerics.tile()));
    kernels::norm_rows(s.numerics, s.hidden, weights.mtp.final_norm, normed);
    s.hidden.copy_(normed);
  }
  if (s.inputs != nullptr) {
    if (s.layer == s.model.layers - 1) s.watch_head();
    s.inputs->finish();
  }
  ++s.layer;
}

/// What a multi-token-prediction block reads: projection of [norm(embedding of a later token), norm(hidden)] (DeepSeek-V3,
/// arXiv 2412.19437 equation 21). The first block sees the hidden states after the model's final norm.
void Forward::State::join_next_tokens(const LayerWeights& weights) {
  const auto tile = at::TensorOptions().dtype(numerics.tile()).device(device);
  if (!head.head.defined()) head = load_head(model, numerics, device);
  if (layer == model.layers) {
    at::Tensor normed = at::empty(hidden.sizes(), tile);
    kernels::norm_rows(numerics, hidden, head.final_norm, normed);
    hidden.copy_(normed);
  }
  const std::int64_t ahead = layer - model.layers + 1;
  std::vector<std::int32_t> ids(batch.ids.size());
  for (const Sequence& sequence : batch.sequences) {
    for (std::int64_t t = 0; t < sequence.length; ++t) {
      const std::int64_t seen = std::min(t + ahead, sequence.length - 1);
      ids[static_cast<std::size_t>(sequence.begin + t)] = batch.ids[static_cast<std::size_t>(sequence.begin + seen)];
    }
  }
  const at::Tensor next = embedded(ids).to(device);
  if (inputs != nullptr) inputs->begin_pass();
  pool.run(static_cast<std::int64_t>(tiles.size()), [&](std::int64_t index, int worker) {
    const Tile& rows = tiles[static_cast<std::size_t>(index)];
    at::Tensor joined = at::empty({2, rows.tokens, model.hidden}, tile);
    at::Tensor tokens = joined[0];
    at::Tensor before = joined[1];
    kernels::norm_rows(numerics, next.narrow(0, rows.begin, rows.tokens), weights.mtp.embedding_norm, tokens);
    kernels::norm_rows(numerics, hidden.narrow(0, rows.begin, rows.tokens), weights.mtp.hidden_norm, before);
    const at::Tensor both = at::cat({tokens, before}, 1);
    WatchedInputs watched(inputs.get(), rows, index, scratch[static_cast<std::size_t>(worker)]);
    if (inputs != nullptr) scratch[static_cast<std::size_t>(worker)].inputs->take(LinearInput::joined, both);
    watched.pass();
    at::Tensor projected = product(both, weights.mtp.projection);
    kernels::round_product(numerics, projected);
    hidden.narrow(0, rows.begin, rows.tokens).copy_(projected);
  });
}

/// What the output head would read of every token.
void Forward::State::watch_head() {
  const Norm norm = load_final_norm(model, numerics, device);
  inputs->begin_pass();
  pool.run(static_cast<std::int64_t>(tiles.size()), [&](std::int64_t index, int worker) {
    const Tile& rows = tiles[static_cast<std::size_t>(index)];
    TileScratch& own = scratch[static_cast<std::size_t>(worker)];
    at::Tensor normed = grow(own.normed, rows.tokens, model.hidden, numerics.tile(), device).narrow(0, 0, rows.tokens);
    kernels::norm_rows(numerics, hidden.narrow(0, rows.begin, rows.tokens), norm, normed);
    WatchedInputs watched(inputs.get(), rows, index, own);
    own.inputs->take(LinearInput::head, normed);
    watched.pass();
  });
}

void Forward::State::run_attention(const LayerTensors& tensors, const LayerWeights& weights, RoutedLayer& routed) {
  if (inputs != nullptr) inputs->begin_pass();
  pool.run(static_cast<std::int64_t>(tiles.size()), [&](std::int64_t index, int worker) {
    const Tile& tile = tiles[static_cast<std::size_t>(index)];
    TileScratch& own = scratch[static_cast<std::size_t>(worker)];
    at::Tensor rows = hidden.narrow(0, tile.begin, tile.tokens);
    WatchedInputs watched(inputs.get(), tile, index, own);
    const at::Tensor normed = attend_and_norm(context, tensors, weights, tile.parts, rows, own);
    if (own.inputs != nullptr) own.inputs->take(LinearInput::mlp, normed);
    if (tensors.sparse) {
      moe_input.narrow(0, tile.begin, tile.tokens).copy_(normed);
      route(weights, tile, normed, routed, own);
      // Read while the other tiles are still being routed.
      if (part() == LayerPart::whole) stream->want_experts(routed.ids_of(tile.begin, tile.tokens));
    } else {
      kernels::add_rows(numerics, rows, gated_mlp(context, normed, weights.dense_gate_up, weights.dense_down, own),
                        model.residual_scale);
    }
    watched.pass();
  });
}

void Forward::State::route(const LayerWeights& weights, const Tile& tile, const at::Tensor& normed, RoutedLayer& routed,
                           TileScratch& own) const {
  const ForEach on_host = host_pool == nullptr ? ForEach(in_turn) : [this](std::int64_t count, const auto& body) {
    host_pool->run(count, [&](std::int64_t index, int) { body(index); });
  };
  route_tile(context, weights, normed, tile.begin, [this](std::int64_t token) { return mask_of_token(token); }, routed, own, on_host);
}

const LayerMask* Forward::State::mask_of_token(std::int64_t token) const {
  if (block_run == BlockRun::second) return &chosen;
  const int mask = token_masks.empty() ? -1 : token_masks[static_cast<std::size_t>(token)];
  if (mask < 0) return nullptr;
  const auto& of_layer = batch.masks[static_cast<std::size_t>(mask)][static_cast<std::size_t>(layer)];
  return of_layer.kept.empty() ? nullptr : &of_layer;
}

at::Tensor Forward::logits(const at::Tensor& hidden, std::span<const std::int64_t> rows) {
  State& s = *state_;
  const c10::InferenceMode no_autograd;
  if (!s.head.head.defined()) s.head = load_head(s.model, s.numerics, s.device);
  const at::Tensor index = at::tensor(at::IntArrayRef(rows.data(), rows.size()), at::kLong).to(s.device);
  return project_to_vocabulary(s.model, s.numerics, s.head, hidden.index_select(0, index), s.pool).to(s.numerics.wide());
}

std::uint64_t Forward::bytes_per_token(const Model& model, Precision precision) {
  const auto hidden = static_cast<std::uint64_t>(model.hidden);
  const auto experts = static_cast<std::uint64_t>(model.experts);
  const auto slots = static_cast<std::uint64_t>(model.experts_per_token);
  const std::uint64_t wide = precision == Precision::fp64 ? 8 : 4;
  const std::uint64_t stored = precision == Precision::bf16 ? 2 : wide;
  // hidden + moe_input + routed_sum; logits + probabilities; ids, gates, norms, max_abs, pairs and their sort; turns.
  return hidden * (2 * stored + wide) + experts * 8 + slots * (20 + 16) + 8;
}

std::uint64_t Forward::weight_bytes(const Model& model, const ForwardOptions& options) {
  const std::uint64_t held = matrix_element_bytes(options.precision);  // twice while matrices are joined or decoded
  std::uint64_t layers = 0;
  std::uint64_t expert = 0;
  for (const auto& layer : model.layer) {
    std::uint64_t bytes = 0;
    for (const auto& range : layer_group(layer)) bytes += 2 * range.size;  // and those of the next layer
    for (const Weight& weight : layer.by_role) {
      if (!weight || where_of(weight.rule->role) == Where::experts) continue;
      bytes += 2 * held * static_cast<std::uint64_t>(element_count(model, weight));
    }
    layers = std::max(layers, bytes);
    if (!layer.sparse) continue;
    std::uint64_t stored = 0;
    for (const auto& range : expert_group(layer, 0)) stored += range.size;
    expert = std::max(expert, stored);
  }
  expert += 2 * held * static_cast<std::uint64_t>(3 * model.expert_width * model.hidden);
  const auto threads = static_cast<std::uint64_t>(options.threads > 0 ? options.threads : usable_cores());
  // An expert a worker, and the next one.
  return layers + (threads + 1) * expert + options.read_ahead_bytes + BlockReader::kBlocks * BlockReader::kBlockBytes;
}

}  // namespace moetrim
