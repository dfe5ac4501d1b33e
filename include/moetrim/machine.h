// What the machine, or the container around the process, has to offer.
#pragma once

#include <cstdint>
#include <string_view>

namespace moetrim {

/// Bytes of memory that the process may still take: the smaller of the machine's available memory and what the cgroup
/// (version 1 or 2) leaves.
std::uint64_t available_memory();

/// Cores that the process may run on.
int usable_cores();

}  // namespace moetrim
