// Looks for NaN and infinity in the weights.

#include <algorithm>
#include <cstring>
#include <functional>

#include <fmt/format.h>

#include "verify/checks.h"

namespace moetrim::verify_detail {

namespace {

constexpr std::size_t kBlockBytes = std::size_t{8} << 20;
constexpr std::size_t kMostFindings = 20;

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

/// Position of the first such element of the tensor.
std::optional<std::uint64_t> find_in(const Checkpoint& checkpoint, const Tensor& tensor, Finder finder,
                                     std::span<std::byte> buffer, const std::function<void(std::uint64_t)>& advance) {
  std::optional<std::uint64_t> found;
  const auto width = static_cast<std::uint64_t>(dtype_bits(tensor.dtype)) / 8;
  for (std::uint64_t at = 0; at < tensor.size && !found;) {
    const auto part = buffer.first(static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), tensor.size - at)));
    checkpoint.read(tensor, at, part);
    if (const auto index = finder(part)) {
      const std::uint64_t word = tensor.dtype == Dtype::c64 ? 4 : width;
      found = (at + *index * word) / width;
    }
    at += part.size();
    advance(found ? tensor.size : at);
  }
  checkpoint.drop_cache(tensor);
  return found;
}

}  // namespace

void check_values(const Checkpoint& checkpoint, const VerifyOptions& options, Findings& findings) {
  std::vector<std::byte> buffer(kBlockBytes);
  std::uint64_t done = 0;
  std::size_t count = 0;
  for (const Tensor& tensor : checkpoint.tensors()) {
    const auto advance = [&](std::uint64_t bytes) {
      if (options.progress) options.progress(done + bytes, checkpoint.total_bytes());
    };
    if (const Finder finder = finder_for(tensor.dtype)) {
      if (const auto element = find_in(checkpoint, tensor, finder, buffer, advance)) {
        add_error(findings, tensor.name, fmt::format("element {} is NaN or infinite", *element));
        if (++count == kMostFindings) {
          add_error(findings, ".", fmt::format("{} tensors have NaN or infinity; the rest was not read", count));
          return;
        }
      }
    }
    done += tensor.size;
  }
}

}  // namespace moetrim::verify_detail
