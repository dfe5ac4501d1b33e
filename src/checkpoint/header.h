// The JSON header of a safetensors file: parsed and checked whole, or built.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "moetrim/checkpoint.h"

namespace moetrim::checkpoint_detail {

/// The limit of the reference implementation, for reading and for writing.
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
/// Bytes of the length in front of the header.
inline constexpr std::uint64_t kLengthBytes = 8;
/// Where the data of written files starts is a multiple of this.
inline constexpr std::uint64_t kDataAlignment = 64;

struct Header {
  std::vector<Tensor> tensors;  ///< in the order of their bytes; offsets count from the start of the file
  std::map<std::string, std::string> metadata;
};

/// @param text        the header without its length; `data_bytes` is what the file has after it.
/// @param file        for messages.
/// @throws InvalidInput naming the file, and the tensor or byte that is wrong.
Header parse_header(const std::filesystem::path& file, const std::string& text, std::uint64_t data_bytes);

/// Length, JSON and padding: everything in front of the data.
/// @throws InvalidInput on a duplicate or malformed name, a wrong shape, or too long a header.
std::string build_header(const std::filesystem::path& file, const std::vector<TensorSpec>& tensors,
                         std::map<std::string, std::string> metadata);

/// @throws InvalidInput unless the tensors, in order, cover [0, data_bytes) without hole, overlap or tail.
void check_tiling(const std::filesystem::path& file, const std::vector<Tensor>& tensors, std::uint64_t data_bytes);

}  // namespace moetrim::checkpoint_detail
