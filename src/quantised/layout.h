// What a packing demands of the tensors of a weight: types and shapes, checked before a byte is read.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "moetrim/quantised.h"

namespace moetrim::quantised_detail {

using Shape = std::vector<std::int64_t>;

/// Checks the parts that there are against a packing: none is missing, none too many, types and shapes are right.
/// @throws InvalidInput naming the tensor, what was expected, and what it has.
void check_layout(const PackedWeight& weight, const Packing& packing);

/// @throws InvalidInput saying that `kind` needs the part.
const StoredPart& need(const PackedWeight& weight, Part part, PackingKind kind);
/// @throws InvalidInput naming the tensor, with its type and shape.
[[noreturn]] void fail(const StoredPart& part, const std::string& problem);
bool has_dtype(const StoredPart& part, std::initializer_list<Dtype> allowed);
bool is_e8m0(const StoredPart& part);  ///< F8_E8M0, or U8 that means the same

inline std::int64_t ceil_divide(std::int64_t value, std::int64_t by) { return value / by + (value % by != 0 ? 1 : 0); }
/// Words of 32 bits that `count` codes fill. packing_of() keeps counts so small that nothing overflows.
inline std::int64_t words_for(std::int64_t count, int bits) { return ceil_divide(count * bits, 32); }
inline std::int64_t grid_rows(const Packing& packing) { return ceil_divide(packing.rows, packing.scale_rows); }
/// Scales along K; G of the header.
inline std::int64_t grid_cols(const Packing& packing) { return ceil_divide(packing.cols, packing.scale_cols); }

}  // namespace moetrim::quantised_detail
