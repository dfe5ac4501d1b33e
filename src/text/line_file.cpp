// Reads lines in blocks, so that a file without newlines cannot fill the memory.

#include "text/line_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <system_error>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim::text {
namespace {

constexpr std::size_t kBlockBytes = std::size_t{1} << 20;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

}  // namespace

LineFile::LineFile(const std::filesystem::path& file) : file_(file), buffer_(kBlockBytes) {
  std::error_code failure;
  const auto status = std::filesystem::status(file, failure);
  if (!std::filesystem::exists(status)) {
    throw InvalidInput(fmt::format("{}: no such file; give the path of a JSONL task file", file.string()));
  }
  if (std::filesystem::is_directory(status)) {
    throw InvalidInput(fmt::format("{}: a folder; give the path of a JSONL task file", file.string()));
  }
  stream_.open(file, std::ios::binary);
  if (!stream_) throw InvalidInput(fmt::format("{}: cannot be opened: {}", file.string(), std::strerror(errno)));
}

bool LineFile::fill() {
  stream_.read(buffer_.data(), static_cast<std::streamsize>(buffer_.size()));
  if (stream_.bad()) throw InvalidInput(fmt::format("{}: reading failed at byte {}", file_.string(), offset_));
  buffer_at_ = 0;
  buffer_end_ = static_cast<std::size_t>(stream_.gcount());
  return buffer_end_ > 0;
}

bool LineFile::read_line(Line& line) {
  line.bytes.clear();
  line.number = ++number_;
  bool any = false;
  while (buffer_at_ < buffer_end_ || fill()) {
    any = true;
    const char* const begin = buffer_.data() + buffer_at_;
    const char* const end = buffer_.data() + buffer_end_;
    const char* const newline = std::find(begin, end, '\n');
    if (static_cast<std::int64_t>(line.bytes.size()) + (newline - begin) > kMaxLineBytes) {
      throw InvalidInput(fmt::format("{}, line {}: longer than {} MiB; a task file holds one JSON object a line",
                                     file_.string(), number_, kMaxLineBytes >> 20));
    }
    line.bytes.append(begin, newline);
    const std::int64_t used = newline - begin + (newline == end ? 0 : 1);
    buffer_at_ += static_cast<std::size_t>(used);
    offset_ += used;
    if (newline != end) break;
  }
  if (number_ == 1 && line.bytes.starts_with(kByteOrderMark)) line.bytes.erase(0, kByteOrderMark.size());
  return any;
}

std::optional<Line> LineFile::next() {
  Line line;
  while (read_line(line)) {
    if (!is_blank(line.bytes)) return line;
  }
  return std::nullopt;
}

std::vector<LineFile::Place> LineFile::places() {
  std::vector<Place> places;
  Line line;
  for (std::int64_t start = offset_; read_line(line); start = offset_) {
    if (!is_blank(line.bytes)) places.push_back({start, line.number});
  }
  return places;
}

Line LineFile::at(const Place& place) {
  stream_.clear();
  stream_.seekg(place.offset);
  if (!stream_) {
    throw InvalidInput(
        fmt::format("{}: cannot be read in another order; shuffling needs a regular file", file_.string()));
  }
  buffer_at_ = buffer_end_ = 0;
  offset_ = place.offset;
  number_ = place.number - 1;
  Line line;
  if (!read_line(line) || is_blank(line.bytes)) {
    throw InvalidInput(fmt::format("{}, line {}: the file changed while it was read", file_.string(), place.number));
  }
  return line;
}

}  // namespace moetrim::text
