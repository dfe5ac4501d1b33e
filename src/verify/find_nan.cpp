// Values that are no numbers: in most formats those whose exponent is all ones.

#include "verify/find_nan.h"

#include <algorithm>
#include <cstring>

namespace moetrim::verify_detail {

namespace {

/// Index of the first word in which all bits of `mask` are set: an exponent of ones is NaN or infinity.
template <class Word>
std::optional<std::size_t> first_with_bits(std::span<const std::byte> bytes, Word mask) {
  for (std::size_t i = 0; i + sizeof(Word) <= bytes.size(); i += sizeof(Word)) {
    Word word;
    std::memcpy(&word, bytes.data() + i, sizeof word);
    if ((word & mask) == mask) return i / sizeof(Word);
  }
  return std::nullopt;
}

std::optional<std::size_t> first_equal(std::span<const std::byte> bytes, std::byte value) {
  const auto found = std::find(bytes.begin(), bytes.end(), value);
  if (found == bytes.end()) return std::nullopt;
  return static_cast<std::size_t>(found - bytes.begin());
}

using Finder = std::optional<std::size_t> (*)(std::span<const std::byte>);

/// Null for types that have neither NaN nor infinity.
Finder finder_for(Dtype dtype) {
  using Bytes = std::span<const std::byte>;
  switch (dtype) {
    case Dtype::bf16: return [](Bytes b) { return first_with_bits<std::uint16_t>(b, 0x7F80); };
    case Dtype::f16: return [](Bytes b) { return first_with_bits<std::uint16_t>(b, 0x7C00); };
    case Dtype::f32:
    case Dtype::c64: return [](Bytes b) { return first_with_bits<std::uint32_t>(b, 0x7F800000U); };
    case Dtype::f64: return [](Bytes b) { return first_with_bits<std::uint64_t>(b, 0x7FF0000000000000U); };
    case Dtype::f8_e5m2: return [](Bytes b) { return first_with_bits<std::uint8_t>(b, 0x7C); };
    case Dtype::f8_e4m3: return [](Bytes b) { return first_with_bits<std::uint8_t>(b, 0x7F); };  // it has no infinity
    case Dtype::f8_e8m0: return [](Bytes b) { return first_equal(b, std::byte{0xFF}); };
    case Dtype::f8_e4m3fnuz:
    case Dtype::f8_e5m2fnuz: return [](Bytes b) { return first_equal(b, std::byte{0x80}); };
    default: return nullptr;
  }
}

}  // namespace

bool can_be_nan(Dtype dtype) { return finder_for(dtype) != nullptr; }

std::optional<std::uint64_t> find_nan(std::span<const std::byte> bytes, Dtype dtype) {
  const Finder finder = finder_for(dtype);
  const auto index = finder == nullptr ? std::nullopt : finder(bytes);
  if (!index) return std::nullopt;
  return dtype == Dtype::c64 ? *index / 2 : *index;  // of its words of 32 bits
}

}  // namespace moetrim::verify_detail
