// The matrix product for one instruction set: avx2. Flags are set in cmake/instruction_sets.cmake.

#include "matrix/matrix_product.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace moetrim::matrix {

namespace avx2 {
#include "matrix/matrix_product_loops.inc"
}  // namespace avx2

ProductTable product_avx2() { return {avx2::product<float>, avx2::product<std::uint16_t>}; }

}  // namespace moetrim::matrix
