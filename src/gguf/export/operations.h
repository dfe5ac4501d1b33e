// What an operation means for the rows, the shape and the values of a weight's matrix.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "gguf/export/mapping.h"
#include "moetrim/gguf_export.h"

namespace moetrim::gguf_detail {

using RowList = std::shared_ptr<const std::vector<std::uint32_t>>;

/// The rows that stay, in their new order, of a matrix with `outputs` rows. Null: all.
RowList rows_of(const GgufSource& source, const GgufTensorRule& rule, std::int64_t outputs);
/// The columns in their new order, of a matrix with `inputs` columns. Null: as they are.
RowList columns_of(const GgufSource& source, const GgufTensorRule& rule, std::int64_t inputs);
/// Runs of that many rows are transposed, each by itself; 0: none.
std::int64_t transposed_rows(const GgufSource& source, const GgufTensorRule& rule);
GgufChange change_of(GgufOperation operation);
/// Whether dimensions of length 1 go.
bool squeezes(GgufOperation operation);

}  // namespace moetrim::gguf_detail
