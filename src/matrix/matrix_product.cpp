// Chooses the loops of the matrix product by what the machine has.

#include "matrix/matrix_product.h"

#include <memory>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/matrix.h"

namespace moetrim {

namespace matrix {

InstructionSet instruction_set() {
#ifdef __x86_64__
  static const InstructionSet best = [] {
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512) return InstructionSet::avx512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? InstructionSet::avx2 : InstructionSet::baseline;
  }();
  return best;
#else
  return InstructionSet::baseline;
#endif
}

namespace {

const ProductTable& loops() {
  static const ProductTable table = [] {
    switch (instruction_set()) {
#ifdef __x86_64__
      case InstructionSet::avx512: return product_avx512();
      case InstructionSet::avx2: return product_avx2();
#endif
      default: return product_baseline();
    }
  }();
  return table;
}

float* scratch() {
  static thread_local const std::unique_ptr<float[]> packed(new float[kProductScratch]);
  return packed.get();
}

}  // namespace

void product(const ProductArguments& arguments) { loops().product(arguments, scratch()); }
void product_bf16(const ProductArguments& arguments) { loops().product_bf16(arguments, scratch()); }

}  // namespace matrix

void add_product(std::span<const float> a, std::span<const float> b, std::span<float> c, const ProductSize& size) {
  if (a.size() != size.rows * size.depth || b.size() != size.columns * size.depth || c.size() != size.rows * size.columns) {
    throw Error(fmt::format("a product of [{0}, {2}] and [{1}, {2}] was given {3} and {4} values for {5} results", size.rows,
                            size.columns, size.depth, a.size(), b.size(), c.size()));
  }
  matrix::product({.x = a.data(),
                   .x_stride = static_cast<std::int64_t>(size.depth),
                   .weight = b.data(),
                   .weight_stride = static_cast<std::int64_t>(size.depth),
                   .out = c.data(),
                   .out_stride = static_cast<std::int64_t>(size.columns),
                   .add = true,
                   .rows = static_cast<std::int64_t>(size.rows),
                   .columns = static_cast<std::int64_t>(size.columns),
                   .depth = static_cast<std::int64_t>(size.depth)});
}

}  // namespace moetrim
