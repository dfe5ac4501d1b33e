// Writes one GGUF file: the header at once, then bytes of tensors in any order.
#include <array>
#include <atomic>
#include <utility>

#include <fmt/format.h>

#include "atomic_file.h"
#include "gguf_header.h"
#include "moetrim/error.h"
#include "moetrim/gguf_file.h"
#include "quote.h"

namespace moetrim {

using namespace checkpoint_detail;

struct GgufWriter::State {
  State(std::filesystem::path path, const std::string& tag, BuiltGgufHeader built)
      : file(std::move(path), tag), header(std::move(built)) {}

  /// The place in the file of byte `begin` of a tensor, of which `size` are given.
  std::uint64_t place(std::size_t index, std::uint64_t begin, std::uint64_t size);

  AtomicFile file;
  BuiltGgufHeader header;
  std::vector<std::string> names;
  std::vector<std::uint64_t> sizes;
  std::uint64_t announced_bytes = 0;
  std::atomic<std::uint64_t> given_bytes = 0;
  bool finished = false;
};

std::uint64_t GgufWriter::State::place(std::size_t index, std::uint64_t begin, std::uint64_t size) {
  if (index >= sizes.size()) {
    throw Error(fmt::format("{}: bytes were given for tensor {} of {}", file.path().string(), index, sizes.size()));
  }
  if (finished || begin > sizes[index] || size > sizes[index] - begin) {
    throw Error(fmt::format("{}: tensor {} has {} bytes, but {} were given from byte {} on{}", file.path().string(),
                            in_quotes(names[index]), sizes[index], size, begin,
                            finished ? ", after the file was finished" : ""));
  }
  given_bytes += size;
  return header.offsets[index] + begin;
}

GgufWriter::GgufWriter(std::filesystem::path file, const GgufMetadata& metadata, std::vector<GgufTensorSpec> tensors,
                       const std::string& tag) {
  BuiltGgufHeader built = build_gguf_header(file, metadata, tensors);
  state_ = std::make_unique<State>(std::move(file), tag, std::move(built));
  for (GgufTensorSpec& tensor : tensors) {
    state_->sizes.push_back(tensor.bytes());
    state_->announced_bytes += state_->sizes.back();
    state_->names.push_back(std::move(tensor.name));
  }
  state_->file.reserve(state_->header.file_bytes);
  state_->file.write(std::as_bytes(std::span(state_->header.bytes)));
  // Padding inside is holes of the file, which read as zeros; the end has to be written for the file to reach it.
  const std::uint64_t end = state_->header.file_bytes;
  const std::uint64_t filled =
      tensors.empty() ? state_->header.bytes.size() : state_->header.offsets.back() + state_->sizes.back();
  if (filled < end) state_->file.write_at(end - 1, std::array{std::byte{0}});
  std::string().swap(state_->header.bytes);
}

GgufWriter::~GgufWriter() = default;

std::uint64_t GgufWriter::file_bytes() const { return state_->header.file_bytes; }

void GgufWriter::write_at(std::size_t index, std::uint64_t begin, std::span<const std::byte> data) {
  state_->file.write_at(state_->place(index, begin, data.size()), data);
}

void GgufWriter::copy_at(std::size_t index, std::uint64_t begin, const GgufFile& from, std::uint64_t offset,
                         std::uint64_t size) {
  state_->file.copy_at(state_->place(index, begin, size), from.descriptor(), from.path(), offset, size);
}

void GgufWriter::finish() {
  if (state_->finished) return;
  if (state_->given_bytes != state_->announced_bytes) {
    throw Error(fmt::format("{}: its tensors have {} bytes, but {} were given", state_->file.path().string(),
                            state_->announced_bytes, state_->given_bytes.load()));
  }
  state_->file.commit();
  state_->finished = true;
}

}  // namespace moetrim
