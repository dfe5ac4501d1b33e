// Reads the header of a GGUF file front to back through a small buffer. Every length is held against the bytes that are left
// before anything is allocated for it.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moetrim::checkpoint_detail {

class GgufCursor {
 public:
  GgufCursor(const std::filesystem::path& file, int descriptor, std::uint64_t file_bytes);

  /// What is being read, for messages: "key 'x': ".
  void set_place(std::string place) { place_ = std::move(place); }
  /// "FILE: " and the place.
  std::string where() const { return file_.string() + ": " + place_; }

  std::uint64_t at() const { return at_; }
  /// @throws InvalidInput unless `count` pieces of at least `bytes_each` can follow; 1 <= bytes_each
  void expect(std::uint64_t count, std::uint64_t bytes_each, std::string_view what) const;
  void take(std::span<std::byte> out, std::string_view what);
  template <class T>
  T number(std::string_view what) {
    T value{};
    take(std::as_writable_bytes(std::span(&value, 1)), what);
    return value;
  }
  /// A length and as many bytes.
  std::string text(std::string_view what);

 private:
  void fill();

  const std::filesystem::path& file_;
  int descriptor_;
  std::uint64_t file_bytes_;
  std::uint64_t end_;     ///< of the file, or where a header must have ended
  std::uint64_t at_ = 0;  ///< first byte that was not taken yet
  std::vector<std::byte> buffer_;
  std::size_t next_ = 0;  ///< index into buffer_ of byte at_
  std::string place_;
};

}  // namespace moetrim::checkpoint_detail
