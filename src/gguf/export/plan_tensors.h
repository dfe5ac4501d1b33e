// Which tensors a file gets, and where their values come from.
#pragma once

#include <vector>

#include "gguf/export/mapping.h"
#include "moetrim/gguf_export.h"

namespace moetrim::gguf_detail {

/// @throws InvalidInput for a tensor of the checkpoint that the architecture has none for.
std::vector<GgufPlannedTensor> plan_gguf_tensors(const GgufSource& source, const GgufMapping& mapping, GgmlType type);

/// How the matrix of a weight (of one expert, where it is fused) lies: [N, K] outputs first, unless it is `input_first`.
struct MatrixShape {
  std::int64_t outputs = 0, inputs = 0;
  bool input_first = false;
};
MatrixShape matrix_shape(const Model& model, const Weight& weight);

/// What a tensor of that name and shape is stored as, where matrices are stored as `type`.
GgmlType stored_type(std::string_view name, const std::vector<std::uint64_t>& shape, GgmlType type);

}  // namespace moetrim::gguf_detail
