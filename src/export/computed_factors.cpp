// Matrices of experts that are stored as factors of low rank and rows that stay whole.

#include "export/computed_factors.h"

#include <cstring>
#include <map>
#include <string>

#include <fmt/format.h>

#include "export/low_rank.h"
#include "moetrim/error.h"

namespace moetrim::export_detail {

namespace {

using Kind = FactorPart::Kind;
using RowIds = std::vector<std::int32_t>;

std::shared_ptr<const RowIds> rows_from(const RowImportance& rows, float threshold) {
  auto out = std::make_shared<RowIds>();
  for (std::size_t row = 0; row < rows.of_row.size(); ++row) {
    if (rows.of_row[row] >= threshold) out->push_back(static_cast<std::int32_t>(row));
  }
  return out;
}

void set_rows(OutputTensor& tensor, std::shared_ptr<const RowIds> rows) {
  tensor.factor->rows = std::move(rows);
  const RowIds& ids = *tensor.factor->rows;
  if (tensor.factor->kind == Kind::rows || tensor.factor->kind == Kind::row_ids) {
    tensor.spec.shape[0] = static_cast<std::int64_t>(ids.size());
  }
  if (tensor.factor->kind != Kind::row_ids) return;
  tensor.literal.assign(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(std::int32_t));
  tensor.pieces.clear();
}

/// "low_rank" of "moetrim_slim": the numbers of rows of every expert's matrices, null where they are whole.
void list_rows(ExportRequest& request) {
  auto& slim = request.config.at("moetrim_slim");
  nlohmann::ordered_json rows = nlohmann::ordered_json::object();
  for (const auto& [layer, widths] : slim.at("widths").items()) {
    rows[layer] = std::vector<nlohmann::ordered_json>(widths.size());
  }
  for (const OutputTensor& tensor : request.tensors) {
    if (!tensor.factor || tensor.factor->kind != Kind::rows) continue;
    auto& counts = rows.at(std::to_string(tensor.factor->layer)).at(static_cast<std::size_t>(tensor.factor->slot));
    if (counts.is_null()) counts = {0, 0, 0};
    counts.at(static_cast<std::size_t>(tensor.factor->matrix)) = tensor.spec.shape[0];
  }
  slim["low_rank"] = {{"rank", request.low_rank->rank}, {"rows", std::move(rows)}};
}

}  // namespace

void choose_stored_rows(ExportRequest& request, const ExportOptions& options) {
  const auto pieces = factored_pieces(request);
  const auto importance = find_row_importance(*request.model->checkpoint, request, options);
  const float threshold = row_threshold(importance, request.sparse_rows);
  request.low_rank->threshold = threshold;
  std::map<const SlabRecipe*, std::size_t> index;  // recipes are made slab by slab
  for (std::size_t i = 0; i < pieces.size(); ++i) index[pieces[i]->recipe.get()] = i;
  for (OutputTensor& tensor : request.tensors) {
    if (!tensor.factor) continue;
    const auto& rows = importance[index.at(tensor.pieces.front().recipe.get())].at(tensor.factor->place);
    set_rows(tensor, rows_from(rows, threshold));
  }
  list_rows(request);
}

FactorBytes factor_bytes(std::span<const OutputTensor> tensors) {
  FactorBytes out;
  std::uint64_t stored = 0, outputs = 0, dense = 0;
  for (const OutputTensor& tensor : tensors) {
    if (!tensor.factor) continue;
    // The four follow one another, left to row ids.
    stored = tensor.factor->kind == Kind::left ? tensor.spec.bytes() : stored + tensor.spec.bytes();
    if (tensor.factor->kind == Kind::left) outputs = static_cast<std::uint64_t>(tensor.spec.shape[0]);
    if (tensor.factor->kind == Kind::right) {
      const auto inputs = static_cast<std::uint64_t>(tensor.spec.shape[1]);
      dense = outputs * inputs * static_cast<std::uint64_t>(dtype_bits(tensor.spec.dtype)) / 8;
    }
    if (tensor.factor->kind != Kind::row_ids) continue;
    out.factored += stored;
    out.dense += dense;
    ++out.matrices;
    out.larger += stored > dense;
  }
  return out;
}

std::span<const std::byte> ComputedFactors::compute(const OutputTensor& tensor) {
  const FactorPart& factor = *tensor.factor;
  if (factor.kind == Kind::rows) {
    take_matrix(tensor);
    take_rows(factor);
    store_values(rows_, tensor.spec.dtype, tensor.spec.name, stored_);
    return stored_;
  }
  const Piece& piece = tensor.pieces.front();
  if (recipe_ != piece.recipe || source_ != piece.source || place_ != factor.place) find_factors(tensor);
  store_values(factor.kind == Kind::left ? factors_.left : factors_.right, tensor.spec.dtype, tensor.spec.name, stored_);
  return stored_;
}

void ComputedFactors::take_matrix(const OutputTensor& tensor) {
  const Piece& piece = tensor.pieces.front();
  const TensorPlace& place = place_of(model_, *piece.source);
  const auto slab = slabs_.whole_values(piece);
  const MatrixView view = matrices_of(model_, weight_of(model_, place, place.expert)).at(tensor.factor->place);
  outputs_ = view.rows, inputs_ = view.columns;
  matrix_.clear();
  for (std::size_t row = 0; row < view.rows; ++row) {
    for (std::size_t column = 0; column < view.columns; ++column) {
      matrix_.push_back(slab[view.first + row * view.row_step + column * view.column_step]);
    }
  }
}

void ComputedFactors::find_factors(const OutputTensor& tensor) {
  const Piece& piece = tensor.pieces.front();
  recipe_.reset();  // should it fail
  take_matrix(tensor);
  try {
    factors_ = factors_of_rank(matrix_, outputs_, inputs_, static_cast<std::size_t>(piece.recipe->low_rank->rank));
  } catch (const InvalidInput& problem) {
    throw InvalidInput(fmt::format("tensor {}: {}", piece.source->name, problem.what()));
  }
  recipe_ = piece.recipe;
  source_ = piece.source;
  place_ = tensor.factor->place;
}

void ComputedFactors::take_rows(const FactorPart& factor) {
  rows_.clear();
  for (const std::int32_t id : *factor.rows) {
    const auto row = matrix_.begin() + static_cast<std::ptrdiff_t>(id) * static_cast<std::ptrdiff_t>(inputs_);
    rows_.insert(rows_.end(), row, row + static_cast<std::ptrdiff_t>(inputs_));
  }
}

}  // namespace moetrim::export_detail
