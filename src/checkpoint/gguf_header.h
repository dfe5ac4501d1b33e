// The header of a GGUF file: read and checked whole, or built. Both keep the same rules.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "moetrim/gguf_file.h"

namespace moetrim::checkpoint_detail {

/// Far above any vocabulary's; it bounds what a sparse file of terabytes can ask for.
inline constexpr std::uint64_t kMaxGgufHeaderBytes = 256ULL << 20;
inline constexpr std::string_view kGgufMagic = "GGUF";
inline constexpr std::uint32_t kGgufVersion = 3;
inline constexpr std::uint32_t kGgufTypes = 13;
inline constexpr std::string_view kAlignmentKey = "general.alignment";

struct GgufHeader {
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors;  ///< offsets count from the start of the file
  std::uint64_t alignment = 0;
};

/// Reads no further than the header's end.
/// @throws InvalidInput naming the file, and the key, tensor or byte that is wrong.
GgufHeader parse_gguf_header(const std::filesystem::path& file, int descriptor, std::uint64_t file_bytes);

struct BuiltGgufHeader {
  std::string bytes;                   ///< without the padding behind it
  std::vector<std::uint64_t> offsets;  ///< of the tensors, counted from the start of the file
  std::uint64_t file_bytes = 0;        ///< of the whole file, padding at its end included
};

/// @throws InvalidInput on a duplicate or malformed key, name, value or shape, or too long a header.
BuiltGgufHeader build_gguf_header(const std::filesystem::path& file, const GgufMetadata& metadata,
                                  const std::vector<GgufTensorSpec>& tensors);

/// The rules. `where` is put before the message, for example "FILE: tensor 'w': ". All throw InvalidInput.
void check_gguf_key(std::string_view key, std::string_view where);
void check_gguf_name(std::string_view name, std::string_view where);
void check_gguf_distinct(const GgufMetadata& metadata, std::string_view where);
void check_gguf_distinct(const std::vector<std::string_view>& tensor_names, std::string_view where);
/// general.alignment, or 32.
std::uint64_t gguf_alignment(const GgufMetadata& metadata, std::string_view where);
/// Bytes of a tensor: never 0.
std::uint64_t gguf_bytes(const GgufTensorSpec& tensor, std::string_view where);

/// `bytes` rounded up; it must be below 2^63.
inline std::uint64_t padded(std::uint64_t bytes, std::uint64_t alignment) {
  return (bytes + alignment - 1) & ~(alignment - 1);
}

}  // namespace moetrim::checkpoint_detail
