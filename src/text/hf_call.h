// Takes results over from the C ABI of the Rust crate.
#pragma once

#include <memory>
#include <string>

#include "text/hf_text.h"

namespace moetrim::text {

/// Copies a result out and frees it, also when the copy throws.
inline std::string take(HfBytes bytes) {
  const auto release = [](HfBytes* held) { hf_bytes_free(*held); };
  const std::unique_ptr<HfBytes, decltype(release)> guard(&bytes, release);
  return bytes.len == 0 ? std::string() : std::string(reinterpret_cast<const char*>(bytes.data), bytes.len);
}

}  // namespace moetrim::text
