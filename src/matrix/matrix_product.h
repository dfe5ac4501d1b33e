// The matrix product on the CPU, compiled once per instruction set (matrix_product_*.cpp). Plain pointers; strides in elements.
#pragma once

#include <cstdint>

namespace moetrim::matrix {

/// out [rows, columns] = or += x [rows, depth] times weight [columns, depth] transposed; elements of a row lie side by side, but
/// where `transposed` the weight lies as [depth, columns].
struct ProductArguments {
  const float* x = nullptr;
  std::int64_t x_stride = 0;
  const void* weight = nullptr;  ///< float or bf16 bits
  std::int64_t weight_stride = 0;
  bool transposed = false;
  float* out = nullptr;
  std::int64_t out_stride = 0;
  bool add = false;
  std::int64_t rows = 0, columns = 0, depth = 0;
};

/// What the loops were compiled for, best last.
enum class InstructionSet : std::uint8_t { baseline, avx2, avx512 };
/// The best that this machine has.
InstructionSet instruction_set();

/// With the best loops; keeps its scratch memory, 1.1 MiB, with the thread. A weight is float or bf16 bits.
void product(const ProductArguments& arguments);
void product_bf16(const ProductArguments& arguments);

/// Blocks of the product: x 1 MiB, so that an expert's tile packs every weight once; a panel of 16 weight rows 32 KiB.
inline constexpr std::int64_t kBlockRows = 516, kBlockDepth = 512, kProductScratch = kBlockRows * kBlockDepth + 16 + 32 * kBlockDepth;

/// The loops of one instruction set; scratch holds kProductScratch floats.
struct ProductTable {
  void (*product)(const ProductArguments& arguments, float* scratch);
  void (*product_bf16)(const ProductArguments& arguments, float* scratch);
};
ProductTable product_baseline();
ProductTable product_avx2();
ProductTable product_avx512();

}  // namespace moetrim::matrix
