// Values that are no numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "moetrim/checkpoint.h"

namespace moetrim::verify_detail {

/// Whether values of the type can be NaN or infinite, and have whole bytes each.
bool can_be_nan(Dtype dtype);

/// Index of the first element that is NaN or infinite; a complex one by either part.
/// @param bytes  whole elements
std::optional<std::uint64_t> find_nan(std::span<const std::byte> bytes, Dtype dtype);

}  // namespace moetrim::verify_detail
