// Looks for NaN and infinity in the weights.

#include <algorithm>
#include <functional>

#include <fmt/format.h>

#include "verify/checks.h"
#include "verify/find_nan.h"

namespace moetrim::verify_detail {

namespace {

constexpr std::size_t kBlockBytes = std::size_t{8} << 20;
constexpr std::size_t kMostFindings = 20;

/// Position of the first such element of the tensor.
std::optional<std::uint64_t> find_in(const Checkpoint& checkpoint, const Tensor& tensor, std::span<std::byte> buffer,
                                     const std::function<void(std::uint64_t)>& advance) {
  std::optional<std::uint64_t> found;
  const auto width = static_cast<std::uint64_t>(dtype_bits(tensor.dtype)) / 8;
  for (std::uint64_t at = 0; at < tensor.size && !found;) {
    const auto part = buffer.first(static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), tensor.size - at)));
    checkpoint.read(tensor, at, part);
    if (const auto index = find_nan(part, tensor.dtype)) found = at / width + *index;
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
    if (can_be_nan(tensor.dtype)) {
      if (const auto element = find_in(checkpoint, tensor, buffer, advance)) {
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
