// Matrices of experts as factors of low rank, and the rows that stay whole.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moetrim/export.h"

namespace moetrim::export_detail {

/// How a matrix [out, in] of an expert lies in a slab: gate and up are two in a fused one.
struct MatrixView {
  std::size_t first = 0;                   ///< element of output 0 and input 0
  std::size_t rows = 0, columns = 0;       ///< outputs, inputs
  std::size_t row_step = 0, column_step = 0;
};
std::vector<MatrixView> matrices_of(const Model& model, const Weight& weight);

/// Rows whose importance is known, of matrices with as many columns.
struct RowImportance {
  std::size_t columns = 0;
  std::vector<float> of_row;  ///< mean |matrix - factors| over the row, or what was measured
};

/// The factors' product in place of all rows whose importance is below the threshold.
/// @param importance  is given every row's where it is not null; then the values stay as they are
/// @param measured    the rows' importance, matrix by matrix; none: it is what the factors miss
void factor_slab(std::span<double> slab, std::span<const MatrixView> matrices, const LowRank& low_rank,
                 std::vector<RowImportance>* importance = nullptr, std::span<const RowImportance> measured = {});

/// Of the matrices of a piece, as `low_rank` has them.
std::vector<RowImportance> measured_rows(const Model& model, const LowRank& low_rank, const Piece& piece);
/// Whether the statistics can say which rows stay. Reads their manifest.
/// @throws InvalidInput when they are of another checkpoint or rank, UsageError for a plan that changes experts before.
void check_row_importance(const Model& model, const Plan& plan, const ExportRequest& request);
/// What moetrim.json says of them: the tasks.
nlohmann::ordered_json row_importance_record(const ExportRequest& request);

/// The importance from which on rows stay whole: that of the k-th smallest entry, counted from 1, where every row has as many
/// entries as columns and k is the number of entries times (1 - share), rounded down. Rows that tie with it stay, as published
/// (LoSparse). Below everything for k = 0.
float row_threshold(std::span<const RowImportance> rows, const Share& share);

/// Pieces that get factors, of all tensors; gate and up of one slab once.
std::vector<const Piece*> factored_pieces(const ExportRequest& request);
/// Of their matrices, piece by piece: looks at every matrix, by as many threads as there are writers; or reads their rows'
/// importance, where it was measured, into `measured`. @throws InvalidInput naming a damaged file, Interrupted when `stop` was set
std::vector<std::vector<RowImportance>> find_row_importance(const Checkpoint& source, const ExportRequest& request,
                                                            const ExportOptions& options);
float row_threshold(std::span<const std::vector<RowImportance>> pieces, const Share& share);

/// Memory of that, and of the factors of one matrix.
std::uint64_t low_rank_bytes(const ExportRequest& request, int writers);

}  // namespace moetrim::export_detail
