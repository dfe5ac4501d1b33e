// Llama 4, the language model. llama.cpp has the numbers of its attention as constants.

#include <algorithm>

#include <fmt/format.h>

#include "gguf/architectures/architectures.h"
#include "gguf/architectures/rope_tensors.h"
#include "gguf/architectures/tensor_names.h"

namespace moetrim::gguf_list {

namespace {

constexpr std::int64_t kChunk = 8192;
constexpr std::int64_t kRopeStep = 4;  ///< every fourth layer has no rope and sees everything

void check_attention(const GgufSource& source) {
  const Model& model = *source.model;
  for (std::size_t i = 0; i < model.layer.size(); ++i) {
    const bool rotates = (static_cast<std::int64_t>(i) + 1) % kRopeStep != 0;
    if (model.layer[i].rotates == rotates && model.layer[i].chunk == (rotates ? kChunk : 0)) continue;
    const LayerTensors& layer = model.layer[i];
    source.refuse(fmt::format("layer {} {} and sees {}; llama.cpp's llama4 has chunks of {} (attention_chunk_size) in layers "
                              "that rotate, and rotates in all layers but every fourth (no_rope_layers)",
                              i, layer.rotates ? "rotates" : "does not rotate",
                              layer.chunk == 0 ? "everything" : fmt::format("chunks of {}", layer.chunk), kChunk));
  }
  if (!model.temperature_tuning || model.temperature_floor != kChunk || model.temperature_scale != 0.1) {
    source.refuse(fmt::format("temperature tuning is {}, with floor_scale {} and attn_scale {}; llama.cpp's llama4 has it "
                              "on, with {} and 0.1", model.temperature_tuning ? "on" : "off", model.temperature_floor,
                              model.temperature_scale, kChunk));
  }
  // By this number it tells Maverick, which has no such norm, from Scout, which has.
  constexpr std::int64_t kMaverick = 128;
  const bool normed = model.query_key_norm != QueryKeyNorm::none;
  if (normed != (source.experts != kMaverick)) {
    source.refuse(fmt::format("use_qk_norm is {}; llama.cpp's llama4 normalises queries and keys unless there are {} "
                              "experts, and here are {}", normed, kMaverick, source.experts));
  }
}

/// @return the number of layers of which the last one has experts
std::int64_t moe_step(const GgufSource& source) {
  const auto& layers = source.model->layer;
  const auto step = std::ranges::find(layers, true, &LayerTensors::sparse) - layers.begin() + 1;
  for (std::ptrdiff_t i = 0; i < std::ssize(layers); ++i) {
    const bool sparse = layers[static_cast<std::size_t>(i)].sparse;
    if (sparse == ((i + 1) % step == 0)) continue;
    source.refuse(fmt::format("layer {} has {} (moe_layers); in llama.cpp's llama4 every n-th layer has some, here n = {}", i,
                              sparse ? "experts" : "no experts", step));
  }
  return step;
}

void more(const GgufSource& source, GgufKeys& keys) {
  const Model& model = *source.model;
  check_attention(source);
  keys.whole("rope.dimension_count", model.rope.dimensions);
  keys.whole("interleave_moe_layer_step", moe_step(source));
  keys.whole("expert_feed_forward_length", model.expert_width);
  add_llama3_factors(source, keys);
}

}  // namespace

const GgufMapping llama4{
    .architecture = "llama4",
    .tensors = join({skeleton(), attention(), dense_mlp(), experts(), shared_experts()}),
    .keys = {{"feed_forward_length", {"intermediate_size_mlp"}}},
    .normalises_gates = false,
    .dense_layers = true,
    .ropes = {RopeKind::standard, RopeKind::llama3},
    .more = more,
};

}  // namespace moetrim::gguf_list
