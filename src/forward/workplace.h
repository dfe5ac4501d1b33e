// What a forward or backward pass works with, and the tiles that its tokens are cut into.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "forward/attention.h"
#include "forward/thread_pool.h"
#include "forward/weight_stream.h"

namespace moetrim {

/// Device, numerics, tables and threads of one pass over a model's layers.
struct Workplace {
  /// @throws InvalidInput when the device cannot be used, or a layer has a tensor that the family does not know: it may be
  ///         moved, but leaving it out of the arithmetic would be a guess.
  Workplace(const Model& model, const ForwardOptions& options);
  Workplace(const Workplace&) = delete;
  Workplace& operator=(const Workplace&) = delete;

  /// Reads these layers' weights, in that order. @param last  how much of the last one
  std::unique_ptr<WeightStream> open_weights(const std::vector<int>& layers, LayerPart last = LayerPart::whole) const;

  const Model& model;
  const ForwardOptions options;
  const at::Device device;
  const Numerics numerics;
  RotaryTable rotary;
  ThreadPool pool;
  std::vector<TileScratch> scratch;  ///< [workers]
  const TileContext context;
};

/// Tokens of a tile of whole sequences: enough rows for a fast product, few enough to stay near the cache.
inline constexpr std::int64_t kTileTokens = 512;
/// The same on a device, which is slow at small products and waits for the routing of every tile.
inline constexpr std::int64_t kDeviceTileTokens = 8192;

/// Consecutive whole sequences that are worked on together.
struct Tile {
  std::int64_t begin = 0, tokens = 0;
  std::vector<SequencePart> parts;
};

std::vector<Tile> cut_tiles(const std::vector<Sequence>& sequences, std::int64_t most_tokens = kTileTokens);

}  // namespace moetrim
