// Reads one safetensors file: length, header, then bytes by position.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <utility>

#include <fmt/format.h>

#include "header.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "posix_file.h"
#include "quote.h"

namespace moetrim {
namespace {

using namespace checkpoint_detail;

std::uint64_t read_header_length(const Descriptor& descriptor, const std::filesystem::path& file,
                                 std::uint64_t file_bytes) {
  if (file_bytes < kLengthBytes) {
    throw InvalidInput(fmt::format("{}: has {} bytes, fewer than the {} of the header's length; this is not a "
                                   "safetensors file",
                                   file.string(), file_bytes, kLengthBytes));
  }
  std::array<std::byte, kLengthBytes> bytes{};
  read_at(descriptor.get(), file, 0, bytes);
  std::uint64_t length = 0;
  for (std::size_t i = 0; i < kLengthBytes; ++i) length |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  if (length > kMaxHeaderBytes) {
    throw InvalidInput(fmt::format("{}: the header's length at byte 0 is {}, more than the {} that the format allows; "
                                   "this is not a safetensors file",
                                   file.string(), length, kMaxHeaderBytes));
  }
  if (length > file_bytes - kLengthBytes) {
    throw InvalidInput(fmt::format("{}: the header's length at byte 0 is {}, but only {} bytes follow; the file may be "
                                   "cut short",
                                   file.string(), length, file_bytes - kLengthBytes));
  }
  return length;
}

}  // namespace

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      file_bytes_(other.file_bytes_),
      tensors_(std::move(other.tensors_)),
      by_name_(std::move(other.by_name_)),
      metadata_(std::move(other.metadata_)) {}

SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&& other) noexcept {
  path_ = std::move(other.path_);
  std::swap(descriptor_, other.descriptor_);
  file_bytes_ = other.file_bytes_;
  tensors_ = std::move(other.tensors_);
  by_name_ = std::move(other.by_name_);
  metadata_ = std::move(other.metadata_);
  return *this;
}

SafetensorsFile::~SafetensorsFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& file) {
  Descriptor descriptor = open_for_reading(file);
  SafetensorsFile opened;
  opened.path_ = file;
  opened.file_bytes_ = size_of(descriptor, file);
  const std::uint64_t length = read_header_length(descriptor, file, opened.file_bytes_);
  std::string text(length, '\0');
  read_at(descriptor.get(), file, kLengthBytes, std::as_writable_bytes(std::span(text)));
  Header header = parse_header(file, text, opened.file_bytes_ - kLengthBytes - length);
  opened.tensors_ = std::move(header.tensors);
  opened.metadata_ = std::move(header.metadata);
  for (std::size_t i = 0; i < opened.tensors_.size(); ++i) opened.by_name_.emplace(opened.tensors_[i].name, i);
  opened.descriptor_ = descriptor.release();
  return opened;
}

const Tensor* SafetensorsFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

void SafetensorsFile::read(const Tensor& tensor, std::uint64_t begin, std::span<std::byte> out) const {
  if (begin > tensor.size || out.size() > tensor.size - begin) {
    throw Error(fmt::format("{}: tensor {} has {} bytes, but {} bytes from byte {} on were asked for", path_.string(),
                            in_quotes(tensor.name), tensor.size, out.size(), begin));
  }
  read_at(descriptor_, path_, tensor.offset + begin, out);
}

std::vector<std::byte> SafetensorsFile::read(const Tensor& tensor) const {
  std::vector<std::byte> bytes(tensor.size);
  read(tensor, 0, bytes);
  return bytes;
}

void SafetensorsFile::drop_cache(const Tensor& tensor) const { drop_cache(tensor.offset, tensor.size); }

void SafetensorsFile::drop_cache(std::uint64_t offset, std::uint64_t size) const {
  // A length of 0 would mean "to the end of the file". The advice may be refused; nothing depends on it.
  if (size == 0) return;
  ::posix_fadvise(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_DONTNEED);
}

void SafetensorsFile::read_soon(std::uint64_t offset, std::uint64_t size) const {
  if (size > 0) ::posix_fadvise(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_WILLNEED);
}

}  // namespace moetrim
