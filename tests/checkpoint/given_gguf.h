// GGUF files for tests, put together byte by byte, so that they may be wrong anywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "given_files.h"

namespace moetrim::given {

inline std::string u16(std::uint64_t value) { return little_endian(value).substr(0, 2); }
inline std::string u32(std::uint64_t value) { return little_endian(value).substr(0, 4); }
inline std::string u64(std::uint64_t value) { return little_endian(value); }
inline std::string gguf_text(const std::string& text) { return u64(text.size()) + text; }

/// A key with the id of its type and the bytes of its value.
inline std::string gguf_key(const std::string& key, std::uint32_t type, const std::string& value) {
  return gguf_text(key) + u32(type) + value;
}

inline std::string gguf_tensor(const std::string& name, const std::vector<std::uint64_t>& shape, std::uint32_t type,
                               std::uint64_t offset) {
  std::string out = gguf_text(name) + u32(shape.size());
  for (const std::uint64_t extent : shape) out += u64(extent);
  return out + u32(type) + u64(offset);
}

/// A file, and what it says about itself: the counts unless given are those of the lists.
struct Gguf {
  std::vector<std::string> keys = {};
  std::vector<std::string> tensors = {};
  std::size_t data_bytes = 0;  ///< 0, 7, 14, ..., behind padding to 32
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::optional<std::uint64_t> tensor_count = {};
  std::optional<std::uint64_t> key_count = {};

  std::string bytes() const {
    std::string out = magic + u32(version) + u64(tensor_count.value_or(tensors.size()));
    out += u64(key_count.value_or(keys.size()));
    for (const std::string& key : keys) out += key;
    for (const std::string& tensor : tensors) out += tensor;
    if (data_bytes == 0) return out;
    out.resize((out.size() + 31) / 32 * 32);
    for (std::size_t i = 0; i < data_bytes; ++i) out += static_cast<char>((i * 7) & 0xFF);
    return out;
  }
};

/// With something of everything: keys of several types, two tensors, the first of which needs padding.
inline Gguf small_gguf() {
  return {.keys = {gguf_key("general.architecture", 8, gguf_text("test")), gguf_key("test.flag", 7, std::string(1, '\1')),
                   gguf_key("test.numbers", 9, u32(5) + u64(2) + u32(7) + u32(9)),
                   gguf_key("test.texts", 9, u32(8) + u64(2) + gguf_text("a") + gguf_text(""))},
          .tensors = {gguf_tensor("a", {5, 3}, 0, 0), gguf_tensor("b", {32, 2}, 8, 64)},
          .data_bytes = 64 + 96};
}

}  // namespace moetrim::given
