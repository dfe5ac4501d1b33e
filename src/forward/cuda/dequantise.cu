// FP8 and FP4 codes times their scales, as bf16: by the functions of the quantised stage, so that the bits are those of the CPU.

#include "forward/cuda/row.cuh"
#include "quantised/small_float.h"

namespace moetrim::cuda {

namespace {

using quantised_detail::small_float;

template <Code C>
__device__ float value_of(std::uint32_t code) {
  if constexpr (C == Code::e4m3) return small_float<4, 3, false>(code);
  if constexpr (C == Code::e5m2) return small_float<5, 2, true>(code);
  // E2M1: 0, 0.5, then (1 + m / 2) 2^(e - 1), with the sign above.
  const std::uint32_t exponent = code >> 1 & 3U;
  const std::uint32_t mantissa = code & 1U;
  const float magnitude = exponent == 0 ? 0.5F * static_cast<float>(mantissa)
                                        : __uint_as_float((exponent + 126U) << 23 | mantissa << 22);
  return (code & 8U) != 0 ? -magnitude : magnitude;
}

/// V codes at a time, which share a scale. A block has a row.
template <Code C, int V>
__global__ void decode(const std::uint8_t* codes, const float* scales, std::int64_t cols, std::int64_t scale_rows,
                       std::int64_t scale_cols, std::uint16_t* out) {
  constexpr int kPerByte = C == Code::e2m1 ? 2 : 1;
  const std::int64_t row = blockIdx.x;
  const std::uint8_t* from = codes + row * (cols / kPerByte);
  const float* of_row = scales + row / scale_rows * ((cols + scale_cols - 1) / scale_cols);
  for (std::int64_t column = static_cast<std::int64_t>(threadIdx.x) * V; column < cols;
       column += static_cast<std::int64_t>(blockDim.x) * V) {
    const float scale = of_row[column / scale_cols];
    const auto bytes = load<V / kPerByte>(from + column / kPerByte);
    Pack<std::uint16_t, V> values;
    for (int j = 0; j < V; ++j) {
      const std::uint32_t byte = bytes.at[j / kPerByte];
      const std::uint32_t code = kPerByte == 1 ? byte : byte >> (j % 2 * 4) & 15U;
      values.at[j] = quantised_detail::to_bf16(value_of<C>(code) * scale);
    }
    store<V>(out + row * cols + column, values);
  }
}

template <Code C>
void decode_rows(const void* codes, const float* scales, std::int64_t rows, std::int64_t cols, std::int64_t scale_rows,
                 std::int64_t scale_cols, void* out, Stream stream) {
  constexpr int kPerByte = C == Code::e2m1 ? 2 : 1;
  constexpr int V = 16;
  const bool packs = aligned16(codes, out) && cols % V == 0 && scale_cols % V == 0;
  const auto kernel = packs ? decode<C, V> : decode<C, kPerByte>;
  launch(kernel, rows, threads_for(cols / (packs ? V : kPerByte)), 0, stream,
         static_cast<const std::uint8_t*>(codes), scales, cols, scale_rows, scale_cols, static_cast<std::uint16_t*>(out));
}

}  // namespace

void dequantise(Code code, const void* codes, const float* scales, std::int64_t rows, std::int64_t cols, std::int64_t scale_rows,
                std::int64_t scale_cols, void* out, Stream stream) {
  if (rows == 0 || cols == 0) return;
  const auto kernel = code == Code::e4m3   ? decode_rows<Code::e4m3>
                      : code == Code::e5m2 ? decode_rows<Code::e5m2>
                                           : decode_rows<Code::e2m1>;
  kernel(codes, scales, rows, cols, scale_rows, scale_cols, out, stream);
}

}  // namespace moetrim::cuda
