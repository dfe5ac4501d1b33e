// Files for the tests of the checkpoint stage: made byte by byte in a folder of their own, gone with the test.
#pragma once

#include <stdlib.h>

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
