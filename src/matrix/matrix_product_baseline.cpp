// The matrix product for one instruction set: baseline. Flags are set in cmake/instruction_sets.cmake.

#include "matrix/matrix_product.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace moetrim::matrix {

namespace baseline {
#include "matrix/matrix_product_loops.inc"
}  // namespace baseline

ProductTable product_baseline() { return {baseline::product<float>, baseline::product<std::uint16_t>}; }

}  // namespace moetrim::matrix
