// Which rows of a layer's tokens go to which expert, in tiles that any worker can take.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include <ATen/core/Tensor.h>

#include "forward/layer_weights.h"
#include "moetrim/forward.h"

namespace moetrim {

/// Rows of a tile: every tile packs the weights anew inside the matrix product, and at 512 rows that no longer shows.
inline constexpr std::int64_t kExpertTileRows = 512;

/// The (token, slot) pairs of a layer grouped by expert; within an expert by token.
struct ExpertRows {
  std::vector<std::int64_t> start;   ///< [E + 1] into pairs
  std::vector<std::int64_t> pairs;   ///< token * K + slot

  static ExpertRows group(const RoutedLayer& routed);
};

/// Norms and largest magnitudes of the outputs of pairs from `begin` on, to where the record has them. norms, max_abs [n] f32.
void store_statistics(const ExpertRows& rows, std::int64_t begin, const at::Tensor& norms, const at::Tensor& max_abs,
                      RoutedLayer& routed);

/// Makes an expert's weights of bytes that are there: conversion and dequantisation, worth a thread of its own.
using ExpertLoader = std::function<ExpertWeights()>;

/// Fetches an expert's bytes; what it returns makes the weights of them.
using FetchExpert = std::function<ExpertLoader(int expert)>;

/// Weights that the first worker who needs them makes, while the others go on with other experts.
class LazyExpert {
 public:
  explicit LazyExpert(ExpertLoader load) : load_(std::move(load)) {}
  const ExpertWeights& weights();

 private:
  ExpertLoader load_;
  std::once_flag once_;
  ExpertWeights weights_;
};

/// A slice of one expert's rows, and its number in the order of sums.
struct TileTask {
  std::shared_ptr<LazyExpert> weights;
  int expert = 0;
  bool first = false;                 ///< the expert's first tile
  bool common = false;                ///< rows are those of the tokens that every expert runs on, not pairs
  std::int64_t begin = 0, end = 0;    ///< pairs of ExpertRows
  std::int64_t number = 0;
};

/// Which experts get a tile.
enum class Visit : std::uint8_t {
  routed,  ///< those with rows
  every,   ///< also those without: one empty tile
};

/// Hands out tiles expert by expert; the worker that crosses into a new expert fetches its weights.
class TileQueue {
 public:
  /// @param fetch  called for each expert that is visited, in ascending order, never concurrently; what it returns makes the
  ///               weights, once and on any worker.
  /// @param common_rows  tiles of so many further rows follow those of every expert that is visited
  TileQueue(const ExpertRows& rows, const FetchExpert& fetch, Visit visit, std::int64_t common_rows = 0)
      : rows_(rows), fetch_(fetch), visit_(visit), common_rows_(common_rows), next_common_(common_rows) {}

  std::optional<TileTask> take();

 private:
  const ExpertRows& rows_;
  const FetchExpert& fetch_;
  Visit visit_;
  std::int64_t common_rows_;
  std::mutex mutex_;
  std::shared_ptr<LazyExpert> lazy_;
  std::size_t expert_ = 0;  // the next one
  bool fresh_ = false;      // the current one has had no tile
  std::int64_t next_row_ = 0, expert_end_ = 0, next_common_ = 0, number_ = 0;
};

/// Token numbers and gates of a tile, on the device.
struct TileRows {
  at::Tensor tokens;       // [n] i32
  at::Tensor gates;        // [n] wide
  at::Tensor input_gates;  // [n] wide, undefined in most families

  TileRows(const RoutedLayer& routed, const ExpertRows& rows, const TileTask& task, const Numerics& numerics,
           const at::Device& device);
};

}  // namespace moetrim
