// Files for the tests of the checkpoint stage: made byte by byte in a folder of their own, gone with the test.
#pragma once

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "moetrim/error.h"

namespace moetrim::given {

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "moetrim-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder at " + name);
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

  std::filesystem::path file(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ / name, std::ios::binary) << bytes;
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

inline std::string little_endian(std::uint64_t value) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>((value >> (8 * i)) & 0xFF);
  return out;
}

/// A safetensors file with the header as given and `data_bytes` bytes 0, 1, 2, ... behind it.
inline std::string safetensors(const std::string& header, std::size_t data_bytes = 0) {
  std::string out = little_endian(header.size()) + header;
  for (std::size_t i = 0; i < data_bytes; ++i) out += static_cast<char>(i & 0xFF);
  return out;
}

/// One entry of a header: "name":{...}.
inline std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

inline std::string contents(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::vector<std::byte> counting_bytes(std::size_t count, unsigned first = 0) {
  std::vector<std::byte> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::byte>((first + i * 7) & 0xFF);
  return out;
}

/// How much of a file lies in the page cache.
inline std::uint64_t cached_bytes(const std::filesystem::path& file) {
  const auto size = static_cast<std::size_t>(std::filesystem::file_size(file));
  const int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  void* memory = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
  ::close(descriptor);
  if (memory == MAP_FAILED) throw std::runtime_error("cannot map " + file.string());
  std::vector<unsigned char> pages((size + 4095) / 4096);
  ::mincore(memory, size, pages.data());
  ::munmap(memory, size);
  std::uint64_t cached = 0;
  for (const unsigned char page : pages) cached += (page & 1U) * 4096U;
  return cached;
}

/// Flushes a file and takes it out of the page cache. @return whether that worked.
inline bool drop_cache(const std::filesystem::path& file) {
  const int descriptor = ::open(file.c_str(), O_RDWR | O_CLOEXEC);
  ::fsync(descriptor);
  ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
  ::close(descriptor);
  return cached_bytes(file) == 0;
}

/// The message with which `action` refuses its input, or "" when it does not throw InvalidInput.
template <class Action>
std::string refusal(Action action) {
  try {
    action();
  } catch (const InvalidInput& refused) {
    return refused.what();
  } catch (const std::exception&) {
  }
  return "";
}

inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace moetrim::given
