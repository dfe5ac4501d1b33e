// Reads the header of a GGUF file front to back: see gguf_cursor.h.
#include "gguf_cursor.h"

#include <algorithm>

#include <fmt/format.h>

#include "gguf_header.h"
#include "moetrim/error.h"
#include "posix_file.h"

namespace moetrim::checkpoint_detail {

namespace {
constexpr std::uint64_t kBufferBytes = 256ULL << 10;
}

GgufCursor::GgufCursor(const std::filesystem::path& file, int descriptor, std::uint64_t file_bytes)
    : file_(file), descriptor_(descriptor), file_bytes_(file_bytes), end_(std::min(file_bytes, kMaxGgufHeaderBytes)) {}

void GgufCursor::expect(std::uint64_t count, std::uint64_t bytes_each, std::string_view what) const {
  const std::uint64_t left = end_ - at_;
  if (count <= left / bytes_each) return;
  const std::string asked = bytes_each == 1 ? fmt::format("{} bytes", count)
                                            : fmt::format("{} times at least {} bytes", count, bytes_each);
  const std::string why = end_ < file_bytes_ ? fmt::format("of the {} that a header may have are left", kMaxGgufHeaderBytes)
                                             : "are left; the file is damaged or cut short";
  throw InvalidInput(fmt::format("{}{} at byte {} takes {}, but only {} {}", where(), what, at_, asked, left, why));
}

void GgufCursor::fill() {
  buffer_.resize(static_cast<std::size_t>(std::min(kBufferBytes, end_ - at_)));
  read_at(descriptor_, file_, at_, buffer_);
  next_ = 0;
}

void GgufCursor::take(std::span<std::byte> out, std::string_view what) {
  expect(out.size(), 1, what);
  while (!out.empty()) {
    if (next_ == buffer_.size()) fill();
    const std::size_t part = std::min(out.size(), buffer_.size() - next_);
    std::memcpy(out.data(), buffer_.data() + next_, part);
    out = out.subspan(part);
    next_ += part;
    at_ += part;
  }
}

std::string GgufCursor::text(std::string_view what) {
  const auto length = number<std::uint64_t>(what);
  expect(length, 1, what);
  std::string text(static_cast<std::size_t>(length), '\0');
  take(std::as_writable_bytes(std::span(text)), what);
  return text;
}

}  // namespace moetrim::checkpoint_detail
