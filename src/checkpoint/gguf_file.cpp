// Reads one GGUF file: header, then bytes by position.
#include <fcntl.h>
#include <unistd.h>

#include <utility>

#include <fmt/format.h>

#include "gguf_header.h"
#include "moetrim/error.h"
#include "moetrim/gguf_file.h"
#include "posix_file.h"
#include "quote.h"

namespace moetrim {

using namespace checkpoint_detail;

GgufFile::GgufFile(GgufFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      file_bytes_(other.file_bytes_),
      alignment_(other.alignment_),
      metadata_(std::move(other.metadata_)),
      tensors_(std::move(other.tensors_)) {}

GgufFile& GgufFile::operator=(GgufFile&& other) noexcept {
  path_ = std::move(other.path_);
  std::swap(descriptor_, other.descriptor_);
  file_bytes_ = other.file_bytes_;
  alignment_ = other.alignment_;
  metadata_ = std::move(other.metadata_);
  tensors_ = std::move(other.tensors_);
  return *this;
}

GgufFile::~GgufFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

GgufFile GgufFile::open(const std::filesystem::path& file) {
  Descriptor descriptor = open_for_reading(file);
  GgufFile opened;
  opened.path_ = file;
  opened.file_bytes_ = size_of(descriptor, file);
  GgufHeader header = parse_gguf_header(file, descriptor.get(), opened.file_bytes_);
  opened.alignment_ = header.alignment;
  opened.metadata_ = std::move(header.metadata);
  opened.tensors_ = std::move(header.tensors);
  opened.descriptor_ = descriptor.release();
  return opened;
}

void GgufFile::read(const GgufTensor& tensor, std::uint64_t begin, std::span<std::byte> out) const {
  if (begin > tensor.size || out.size() > tensor.size - begin) {
    throw Error(fmt::format("{}: tensor {} has {} bytes, but {} bytes from byte {} on were asked for", path_.string(),
                            in_quotes(tensor.name), tensor.size, out.size(), begin));
  }
  read_at(descriptor_, path_, tensor.offset + begin, out);
}

std::vector<std::byte> GgufFile::read(const GgufTensor& tensor) const {
  std::vector<std::byte> bytes(tensor.size);
  read(tensor, 0, bytes);
  return bytes;
}

void GgufFile::drop_cache(std::uint64_t offset, std::uint64_t size) const {
  // A length of 0 would mean "to the end of the file". The advice may be refused; nothing depends on it.
  if (size == 0) return;
  ::posix_fadvise(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_DONTNEED);
}

}  // namespace moetrim
