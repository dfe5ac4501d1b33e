// Lines of a text file, read with a bound on each line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

namespace moetrim::text {

inline constexpr std::int64_t kMaxLineBytes = std::int64_t{64} << 20;

/// One line without its newline.
struct Line {
  std::string bytes;
  std::int64_t number = 0;  ///< 1-based
};

/// Reads the lines of one file in order, blank ones left out.
class LineFile {
 public:
  /// @throws InvalidInput  when the file cannot be read.
  explicit LineFile(const std::filesystem::path& file);

  /// The next line that is not blank, or nothing at the end.
  /// @throws InvalidInput  when a line is longer than kMaxLineBytes or reading fails.
  std::optional<Line> next();

  /// Where each line that is not blank lies. Leaves the reader at the end.
  struct Place {
    std::int64_t offset;
    std::int64_t number;
  };
  std::vector<Place> places();

  /// The line at `place`, which places() gave.
  Line at(const Place& place);

 private:
  bool read_line(Line& line);
  bool fill();

  std::filesystem::path file_;
  std::ifstream stream_;
  std::vector<char> buffer_;
  std::size_t buffer_at_ = 0;
  std::size_t buffer_end_ = 0;
  std::int64_t offset_ = 0;  // of the next unread byte
  std::int64_t number_ = 0;  // of the line read last
};

}  // namespace moetrim::text
