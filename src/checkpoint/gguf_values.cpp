// Typed metadata of GGUF files.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include "gguf_header.h"
#include "moetrim/error.h"
#include "moetrim/gguf_file.h"
#include "quote.h"

namespace moetrim {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF data is little-endian");

using checkpoint_detail::in_quotes;

struct TypeRow {
  std::string_view name;
  std::size_t bytes;
};
// In the order of GgufType.
constexpr std::array<TypeRow, checkpoint_detail::kGgufTypes> kTypes{
    {{"u8", 1}, {"i8", 1}, {"u16", 2}, {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4}, {"boolean", 1}, {"string", 0},
     {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8}}};

/// Appends the numbers of `array` to `out`. @return false at the first that an int64 cannot hold
template <class T>
bool widen(const GgufArray& array, std::vector<std::int64_t>& out) {
  for (std::size_t at = 0; at < array.numbers.size(); at += sizeof(T)) {
    T value{};
    std::memcpy(&value, array.numbers.data() + at, sizeof(T));
    if (!std::in_range<std::int64_t>(value)) return false;
    out.push_back(static_cast<std::int64_t>(value));
  }
  return true;
}

bool widen(const GgufArray& array, std::vector<std::int64_t>& out) {
  switch (array.of) {
    case GgufType::u8: return widen<std::uint8_t>(array, out);
    case GgufType::i8: return widen<std::int8_t>(array, out);
    case GgufType::u16: return widen<std::uint16_t>(array, out);
    case GgufType::i16: return widen<std::int16_t>(array, out);
    case GgufType::u32: return widen<std::uint32_t>(array, out);
    case GgufType::i32: return widen<std::int32_t>(array, out);
    case GgufType::u64: return widen<std::uint64_t>(array, out);
    case GgufType::i64: return widen<std::int64_t>(array, out);
    default: return false;
  }
}

bool holds_whole_numbers(GgufType type) {
  return type != GgufType::f32 && type != GgufType::f64 && type != GgufType::boolean && type != GgufType::string &&
         type != GgufType::array;
}

template <class T>
GgufArray array_of(GgufType of, std::span<const T> values) {
  GgufArray array{.of = of};
  const auto bytes = std::as_bytes(values);
  array.numbers.assign(bytes.begin(), bytes.end());
  return array;
}

[[noreturn]] void wrong_type(std::string_view key, const std::filesystem::path& file, std::string_view expected,
                             const GgufValue& got) {
  throw InvalidInput(fmt::format("{}: key {}: expected {}, got a value of type {}", file.string(), in_quotes(key), expected,
                                 gguf_type_name(gguf_type_of(got))));
}

}  // namespace

std::string_view gguf_type_name(GgufType type) { return kTypes.at(static_cast<std::size_t>(type)).name; }
std::size_t gguf_type_bytes(GgufType type) { return kTypes.at(static_cast<std::size_t>(type)).bytes; }

std::size_t GgufArray::size() const {
  const std::size_t width = gguf_type_bytes(of);
  return width == 0 ? texts.size() : numbers.size() / width;
}

std::vector<std::int64_t> GgufArray::whole_numbers(std::string_view what) const {
  std::vector<std::int64_t> out;
  if (!holds_whole_numbers(of)) {
    throw InvalidInput(fmt::format("{}: expected an array of whole numbers, got one of type {}", what, gguf_type_name(of)));
  }
  out.reserve(size());
  if (!widen(*this, out)) {
    throw InvalidInput(fmt::format("{}: number {} of the array does not fit into 63 bits", what, out.size()));
  }
  return out;
}

GgufArray GgufArray::of_texts(std::vector<std::string> texts) {
  GgufArray array{.of = GgufType::string};
  array.texts = std::move(texts);
  return array;
}
GgufArray GgufArray::of_i32(std::span<const std::int32_t> values) { return array_of(GgufType::i32, values); }
GgufArray GgufArray::of_u32(std::span<const std::uint32_t> values) { return array_of(GgufType::u32, values); }
GgufArray GgufArray::of_f32(std::span<const float> values) { return array_of(GgufType::f32, values); }
GgufArray GgufArray::of_booleans(std::span<const bool> values) { return array_of(GgufType::boolean, values); }

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto found = std::ranges::find(items_, key, &std::pair<std::string, GgufValue>::first);
  return found == items_.end() ? nullptr : &found->second;
}

void GgufMetadata::set(std::string_view key, GgufValue value) {
  const auto found = std::ranges::find(items_, key, &std::pair<std::string, GgufValue>::first);
  if (found == items_.end()) {
    items_.emplace_back(key, std::move(value));
  } else {
    found->second = std::move(value);
  }
}

void GgufMetadata::erase(std::string_view key) {
  std::erase_if(items_, [&](const auto& item) { return item.first == key; });
}

std::optional<std::uint64_t> GgufMetadata::whole(std::string_view key, const std::filesystem::path& file) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  return std::visit(
      [&](const auto& held) -> std::optional<std::uint64_t> {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_integral_v<Held> && !std::is_same_v<Held, bool>) {
          if (std::in_range<std::uint64_t>(held)) return static_cast<std::uint64_t>(held);
          throw InvalidInput(fmt::format("{}: key {}: expected a whole number that is not negative, got {}", file.string(),
                                         in_quotes(key), held));
        } else {
          wrong_type(key, file, "a whole number", *value);
        }
      },
      *value);
}

std::optional<std::string> GgufMetadata::text(std::string_view key, const std::filesystem::path& file) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* text = std::get_if<std::string>(value)) return *text;
  wrong_type(key, file, "a string", *value);
}

std::optional<double> GgufMetadata::real(std::string_view key, const std::filesystem::path& file) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (const auto* narrow = std::get_if<float>(value)) return *narrow;
  if (const auto* wide = std::get_if<double>(value)) return *wide;
  wrong_type(key, file, "a float", *value);
}

}  // namespace moetrim
