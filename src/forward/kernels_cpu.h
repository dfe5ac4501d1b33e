// CPU loops behind kernels.h, compiled once per instruction set (kernels_cpu_*.cpp). Plain pointers; strides in elements.
#pragma once

#include <cstdint>

#include "forward/norm_arguments.h"

namespace moetrim::kernels {

/// Table of the loops for one storage policy and one instruction set. `Tile` and `Stored` are float or bf16 bits.
struct CpuTable {
  void (*norm_rows)(const void* x, std::int64_t x_stride, NormArguments norm, std::int64_t rows, std::int64_t width, void* out);
  /// Normalises `width` values in place.
  void (*norm_tile)(void* x, NormArguments norm, std::int64_t width);
  void (*clamp)(void* x, float limit, std::int64_t width);
  void (*round)(void* x, std::int64_t count);
  /// Rotates one head: the first 2 * half values, in place.
  void (*rotate)(void* x, const float* cosine, const float* sine, std::int64_t half, bool neighbours, bool in_fp32);
  void (*add)(void* hidden, const void* delta, std::int64_t count, float scale);
  void (*gather)(const void* x, const std::int32_t* rows, std::int64_t count, std::int64_t width, void* out);
  void (*gated_silu)(const void* gate_up, std::int64_t rows, std::int64_t width, void* out);
  void (*clamped_swiglu)(const void* gate_up, std::int64_t rows, std::int64_t width, float limit, float alpha, void* out);
  void (*scatter)(const void* f, const std::int32_t* rows, const float* gates, std::int64_t count, std::int64_t width,
                  float* sum, float* norms, float* max_abs);
  void (*finish)(void* hidden, const float* routed, const void* shared, std::int64_t rows, std::int64_t width, double* turns,
                 float scale);
  void (*gate)(const void* gate, const void* x, std::int64_t rows, std::int64_t width, void* out);
  void (*softmax)(float* x, std::int64_t rows, std::int64_t width, const std::int32_t* first, const std::int32_t* last,
                  float scale, const float* sinks);
  /// One head over one sequence; strides in elements from token to token.
  void (*delta_rule)(const float* queries, const float* keys, std::int64_t key_stride, const float* values,
                     std::int64_t value_stride, const float* decay, const float* beta, std::int64_t gate_stride,
                     std::int64_t length, std::int64_t key_dim, std::int64_t value_dim, float* state, float* out);
  void (*reverse_atoms)(const float* activated, const float* of_activated, const float* gates, std::int64_t rows,
                        std::int64_t width, float limit, float alpha, float offset, float* gate_up, float* products,
                        double* sums);
};

/// Storage policies, in the order of the tables.
enum Policy { kFp32, kBf16InFp32, kBf16, kPolicies };

const CpuTable* tables_baseline();
const CpuTable* tables_avx2();
const CpuTable* tables_avx512();

}  // namespace moetrim::kernels
