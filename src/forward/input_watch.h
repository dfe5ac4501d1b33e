// Watches what linear layers read: sums of squares by input channel, see LinearInputs.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <vector>

#include "forward/attention.h"
#include "forward/expert_tiles.h"
#include "forward/workplace.h"
#include "moetrim/linear_inputs.h"

namespace moetrim {

/// The inputs of one tile of whole sequences: sums per sequence, made by any worker.
class TileInputs {
 public:
  /// @param unmeasured  tokens at the end of every sequence that do not count
  TileInputs(std::span<const SequencePart> parts, std::int64_t unmeasured);

  /// @param x  [n, width] rows of the tile
  void take(LinearInput input, const at::Tensor& x);
  /// Rows [begin, begin + x.size(0)) of part `index`, columns from `column` on of `width`.
  /// @param x  [rows, columns]
  void take_block(LinearInput input, std::size_t index, std::int64_t begin, const at::Tensor& x, std::int64_t column,
                  std::int64_t width);

  struct Sum {
    LinearInput input;
    std::int64_t width = 0;
    std::vector<double> squares;   ///< [parts, width]
  };
  const std::vector<Sum>& sums() const { return sums_; }
  /// Tokens of a part that count.
  std::int64_t measured(std::size_t part) const { return measured_[part]; }
  std::size_t parts() const { return measured_.size(); }

 private:
  Sum& sum_of(LinearInput input, std::int64_t width);

  std::vector<std::int64_t> begins_, measured_;   // [parts]
  std::vector<Sum> sums_;
};

/// What an expert's matrices read in a tile of routed tokens, f32 or f64 on the CPU.
struct ExpertInputs {
  at::Tensor input, activated;  ///< [n, H], [n, F]

  ExpertInputs() = default;
  ExpertInputs(const at::Tensor& before, const at::Tensor& between);
};

/// One layer's inputs. Tiles are added in the order of their tokens, in each pass over them.
class InputWatch {
 public:
  /// @param layer  the layer's tokens and, of an MoE layer, experts are counted here
  InputWatch(const Model& model, const TokenBatch& batch, int layer, LinearInputs& out);

  std::int64_t unmeasured() const { return unmeasured_; }
  /// Before the tiles are run (again).
  void begin_pass();
  void pass(std::int64_t tile, TileInputs inputs);
  /// In turn.
  void add_expert(const TileTask& task, const ExpertRows& rows, int experts_per_token, const ExpertInputs& inputs);
  /// @throws InvalidInput when a sum is not finite.
  void finish() const;

 private:
  void add(const TileInputs& inputs);

  const Model& model_;
  const TokenBatch& batch_;
  std::int64_t unmeasured_;
  LinearInputs& out_;
  std::vector<std::int32_t> task_;   // [T] -1: does not count
  std::mutex mutex_;
  std::map<std::int64_t, TileInputs> waiting_;
  std::int64_t next_tile_ = 0;
  std::size_t next_sequence_ = 0;
};

/// Lets a worker's scratch note what a tile's linear layers read; nothing where no watch is given.
class WatchedInputs {
 public:
  WatchedInputs(InputWatch* watch, const Tile& tile, std::int64_t number, TileScratch& scratch);
  ~WatchedInputs();
  WatchedInputs(const WatchedInputs&) = delete;
  WatchedInputs& operator=(const WatchedInputs&) = delete;

  /// After the tile's last layer.
  void pass();

 private:
  InputWatch* watch_;
  std::int64_t number_;
  TileScratch& scratch_;
  TileInputs inputs_;
};

}  // namespace moetrim
