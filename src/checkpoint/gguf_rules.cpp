// What keys, names and the alignment of a GGUF file must be, for reading and for writing: see gguf_header.h.
#include <algorithm>
#include <bit>

#include <fmt/format.h>

#include "gguf_header.h"
#include "moetrim/error.h"
#include "quote.h"

namespace moetrim::checkpoint_detail {
namespace {

// ggml keeps a name in 64 bytes, the last of which is a NUL.
constexpr std::size_t kMaxNameBytes = 63;
constexpr std::size_t kMaxKeyBytes = 65'535;
constexpr std::uint32_t kDefaultAlignment = 32;
// The format's text asks for a multiple of 8: the widest elements are of 8 bytes.
constexpr std::uint32_t kMinAlignment = 8;

void check_text(std::string_view text, std::size_t limit, std::string_view what, std::string_view where) {
  if (text.empty()) throw InvalidInput(fmt::format("{}{} is empty", where, what));
  if (text.size() > limit) {
    throw InvalidInput(fmt::format("{}{} '{}' has {} bytes, more than the {} that the format allows", where, what,
                                   ascii_only(text), text.size(), limit));
  }
  if (!is_utf8(text)) throw InvalidInput(fmt::format("{}{} '{}' is not valid UTF-8", where, what, ascii_only(text)));
  if (has_control_character(text)) {
    throw InvalidInput(fmt::format("{}{} {} has a control character", where, what, in_quotes(text)));
  }
}

void check_distinct(std::vector<std::string_view> texts, std::string_view what, std::string_view where) {
  std::ranges::sort(texts);
  const auto twice = std::ranges::adjacent_find(texts);
  if (twice != texts.end()) throw InvalidInput(fmt::format("{}{} {} is there twice", where, what, in_quotes(*twice)));
}

}  // namespace

void check_gguf_key(std::string_view key, std::string_view where) { check_text(key, kMaxKeyBytes, "key", where); }
void check_gguf_name(std::string_view name, std::string_view where) {
  check_text(name, kMaxNameBytes, "tensor name", where);
}

void check_gguf_distinct(const GgufMetadata& metadata, std::string_view where) {
  std::vector<std::string_view> keys;
  keys.reserve(metadata.items().size());
  for (const auto& [key, value] : metadata.items()) keys.push_back(key);
  check_distinct(std::move(keys), "key", where);
}

void check_gguf_distinct(const std::vector<std::string_view>& tensor_names, std::string_view where) {
  check_distinct(tensor_names, "tensor", where);
}

std::uint64_t gguf_alignment(const GgufMetadata& metadata, std::string_view where) {
  const GgufValue* value = metadata.find(kAlignmentKey);
  if (value == nullptr) return kDefaultAlignment;
  const auto* alignment = std::get_if<std::uint32_t>(value);
  if (alignment == nullptr) {
    throw InvalidInput(fmt::format("{}key '{}' must be of type u32, got {}", where, kAlignmentKey,
                                   gguf_type_name(gguf_type_of(*value))));
  }
  if (*alignment < kMinAlignment || !std::has_single_bit(*alignment)) {
    throw InvalidInput(fmt::format("{}key '{}' must be a power of two of at least {}, got {}", where, kAlignmentKey,
                                   kMinAlignment, *alignment));
  }
  return *alignment;
}

}  // namespace moetrim::checkpoint_detail
