// Names that both sides of the boundary use.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace moetrim::cuda {

using Stream = CUstream_st*;  ///< cudaStream_t, without its header

/// What tiles and stored rows hold.
enum class Element : std::uint8_t { fp32, bf16 };

/// Codes of one or half a byte.
enum class Code : std::uint8_t { e4m3, e5m2, e2m1 };

}  // namespace moetrim::cuda
