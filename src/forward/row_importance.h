// How much the rows of an expert's matrices matter that factors of low rank would lose: |rest . dLoss/dW|.
#pragma once

#include <cstdint>
#include <string>

#include "forward/layer_weights.h"
#include "moetrim/forward.h"

namespace moetrim {

/// Sets gate_up_rest and down_rest: gate, up and down each without its nearest matrix of that rank.
/// @param type  of the rests. @param where  names the expert in errors
/// @throws InvalidInput for weights that are not finite.
void add_rests(ExpertWeights& weights, std::int64_t rank, at::ScalarType type, const std::string& where);

/// What an expert's matrices are differentiated at, for n rows.
struct MatrixPoint {
  at::Tensor input;       ///< [n, H] of gate and up
  at::Tensor activated;   ///< [n, F] of down
  at::Tensor of_gate_up;  ///< [n, 2 F] gradient by what gate and up give
  at::Tensor of_output;   ///< [n, H] gradient by what down gives
};

/// Of every row the mean over its columns of |rest . gradient|, f64 on the CPU.
struct MatrixRows {
  at::Tensor gate, up;    // [F]
  at::Tensor down;        // [H]
};

/// @param weights  with rests, whose type the products have.
MatrixRows row_importance(const ExpertWeights& weights, const MatrixPoint& point);

/// Memory of a thread that does both.
std::uint64_t row_importance_bytes(const Model& model, Precision precision);
/// Multiply-adds times two of one expert's factors, about.
double factor_operations(const Model& model);

}  // namespace moetrim
