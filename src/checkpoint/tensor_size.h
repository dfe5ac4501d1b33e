// The size of a tensor with checked arithmetic, and its shape for error messages.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "moetrim/checkpoint.h"

namespace moetrim::checkpoint_detail {

/// Bytes of the tensor.
/// @param where  put before the message, for example "FILE: ".
/// @throws InvalidInput on a negative extent, an overflow, or a sub-byte type that does not end on a byte.
std::uint64_t tensor_bytes(const TensorSpec& tensor, std::string_view where);

/// "2, 3, 5"; long shapes are cut.
std::string shown_shape(std::span<const std::int64_t> shape);

}  // namespace moetrim::checkpoint_detail
