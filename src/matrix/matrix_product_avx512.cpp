// The matrix product for one instruction set: avx512. Flags are set in cmake/instruction_sets.cmake.

#include "matrix/matrix_product.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace moetrim::matrix {

namespace avx512 {
#include "matrix/matrix_product_loops.inc"
}  // namespace avx512

ProductTable product_avx512() { return {avx512::product<float>, avx512::product<std::uint16_t>}; }

}  // namespace moetrim::matrix
