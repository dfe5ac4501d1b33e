// The tensors of the dequantised twin, and how each one's values lie.
#pragma once

#include <cstdint>
#include <span>

#include "moetrim/export.h"

namespace moetrim::export_detail {

/// True when the values that dequantise_bf16 gives must be transposed to lie as the family's plain tensor does: codes of
/// fused experts are stored output first also where plain experts are input first (gpt-oss).
bool is_flipped(const Weight& weight, const StoredMatrix& matrix);

/// Memory for one matrix of a weight: what is read and what is computed.
std::uint64_t matrix_bytes(const Model& model, const Weight& weight);

/// Fills `tensors` and `sources`, in the order of the pruned checkpoint's tensors.
/// @throws InvalidInput when a weight's values cannot be computed, or a quantised tensor has no place in the model.
void add_twin_tensors(TwinRequest& twin, std::span<const OutputTensor> pruned, const Plan& plan, Mtp mtp);

}  // namespace moetrim::export_detail
