// Codes to values, for rows of a weight whose layout was checked. Compiled for speed: see src/CMakeLists.txt.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moetrim/quantised.h"
#include "scales.h"

// Compiles a function twice and picks one when the program starts. Neither set has fused multiply-add, so both give the
// same bits. Sanitizers run before the choice could be made; other compilers do without.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define MOETRIM_VECTOR_CODE __attribute__((target_clones("avx2", "default")))
#else
#define MOETRIM_VECTOR_CODE
#endif

namespace moetrim::quantised_detail {

inline constexpr std::int64_t kRowsAtOnce = 64;  ///< a cache line of words, and eight words of awq

/// Rows [first, first + count) of plain, fp8, int8, mxfp4 and nvfp4 values.
/// @param out  [count, K]
void decode_bytes(const PackedWeight& weight, const Packing& packing, const Scales& scales, std::int64_t first,
                  std::int64_t count, float* out);

/// Rows of gptq, awq and packed_int values.
/// @param first  a multiple of kRowsAtOnce
/// @param count  at most kRowsAtOnce
void decode_words(const PackedWeight& weight, const Packing& packing, const Scales& scales, std::int64_t first,
                  std::int64_t count, float* out);

void round_to_bf16(const float* from, std::size_t count, std::uint16_t* out);

}  // namespace moetrim::quantised_detail
