// Watches the experts of a layer run: sums their activations and outputs, runs them on tokens that did not choose them, and with
// quantised weights.
#pragma once

#include <array>
#include <vector>

#include "forward/attention.h"
#include "forward/expert_tiles.h"
#include "forward/thread_pool.h"
#include "moetrim/vector_sums.h"

namespace moetrim {

/// What a tile adds to the sums. Made by any worker, added in turn.
struct WatchedTile {
  at::Tensor input, activated, output;   ///< [n, H], [n, F], [n, H] f32 or f64 on the CPU; of common tokens `activated` alone
  std::vector<double> error_squares;     ///< [n, kQuantisedRuns] |f - f_q|^2
  at::Tensor weight_max;                 ///< [H] f64, of an expert's first tile
};

class ExpertWatch {
 public:
  ExpertWatch(const TileContext& context, const RoutedLayer& routed, const ExpertRows& rows, VectorSums& sums, int workers)
      : context_(context), routed_(routed), rows_(rows), sums_(sums), scratch_(static_cast<std::size_t>(workers)) {}

  Visit visit() const { return sums_.visits_every_expert() ? Visit::every : Visit::routed; }
  std::int64_t common_rows() const { return static_cast<std::int64_t>(sums_.common_tokens.size()); }

  /// @param output  rounded here to what is measured and scattered
  WatchedTile watch_routed(const TileTask& task, const at::Tensor& input, const at::Tensor& activated, at::Tensor& output, int worker);
  /// Runs the expert on common tokens. @param x  [T, H] stored
  WatchedTile run_common(const TileTask& task, const at::Tensor& x, int worker);
  /// A tile without rows.
  WatchedTile watch_weights(const TileTask& task) const;

  /// In the order of the tiles.
  void add(const TileTask& task, const WatchedTile& tile);
  /// After an expert's last tile was added; experts at once.
  void finish_expert(const TileTask& task) const;
  /// After the last expert. @throws InvalidInput when a sum is not finite.
  void finish();

 private:
  std::vector<double> quantised_errors(const TileTask& task, const at::Tensor& input, const at::Tensor& output, int worker);
  void add_routed(const TileTask& task, const WatchedTile& tile);
  void add_common(const TileTask& task, const WatchedTile& tile);
  void add_error(int expert, std::int32_t token, std::size_t pair, const double* squares);
  void end_demonstration();
  double* row_of(std::span<double> values, std::int32_t task, int expert) const;

  const TileContext& context_;
  const RoutedLayer& routed_;
  const ExpertRows& rows_;
  VectorSums& sums_;
  std::vector<TileScratch> scratch_;   ///< [workers] beside the scratch whose values are being watched
  /// The demonstration whose errors are being added up.
  struct {
    int expert = -1;
    std::int32_t demonstration = -1, task = -1;
    std::array<double, kQuantisedRuns> squares{};
  } open_;
};

/// The sums that need no expert: router logits, the block's input, and weights that read it beside the experts'.
/// @param x  [T, H] stored, the block's normalised input
void sum_router(const LayerWeights& weights, const RoutedLayer& routed, const at::Tensor& x, VectorSums& sums, ThreadPool& pool);

}  // namespace moetrim
