// Writes one safetensors file front to back.
#include <atomic>
#include <utility>

#include <fmt/format.h>

#include "atomic_file.h"
#include "header.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {
// Large enough that a call per buffer costs nothing, small enough to have many writers.
constexpr std::size_t kBufferBytes = std::size_t{1} << 20;
}  // namespace

struct SafetensorsWriter::State {
  State(std::filesystem::path path, const std::string& tag) : file(std::move(path), tag) {}

  void append(std::span<const std::byte> data) {
    if (buffer.size() + data.size() > kBufferBytes) flush();
    if (data.size() >= kBufferBytes) {
      file.write(data);
    } else {
      buffer.insert(buffer.end(), data.begin(), data.end());
    }
  }

  void flush() {
    file.write(buffer);
    buffer.clear();
  }

  checkpoint_detail::AtomicFile file;
  std::vector<std::byte> buffer;
  std::uint64_t header_bytes = 0;
  std::uint64_t announced_bytes = 0;
  std::atomic<std::uint64_t> given_bytes = 0;
  bool finished = false;
};

SafetensorsWriter::SafetensorsWriter(std::filesystem::path file, std::vector<TensorSpec> tensors,
                                     std::map<std::string, std::string> metadata, const std::string& tag) {
  const std::string header = checkpoint_detail::build_header(file, tensors, std::move(metadata));
  state_ = std::make_unique<State>(std::move(file), tag);
  state_->header_bytes = header.size();
  for (const TensorSpec& tensor : tensors) state_->announced_bytes += tensor.bytes();
  state_->append(std::as_bytes(std::span(header)));
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::count(std::uint64_t begin, std::uint64_t size) {
  if (state_->finished) {
    throw Error(fmt::format("{}: {} bytes were given after it was finished", state_->file.path().string(), size));
  }
  if (begin > state_->announced_bytes || size > state_->announced_bytes - begin) {
    throw Error(fmt::format("{}: the header announces {} bytes of data, but {} were given", state_->file.path().string(),
                            state_->announced_bytes, begin + size));
  }
  state_->given_bytes += size;
}

void SafetensorsWriter::write(std::span<const std::byte> data) {
  count(state_->given_bytes, data.size());
  state_->append(data);
}

void SafetensorsWriter::write_at(std::uint64_t begin, std::span<const std::byte> data) {
  count(begin, data.size());
  state_->file.write_at(state_->header_bytes + begin, data);
}

void SafetensorsWriter::copy_at(std::uint64_t begin, const SafetensorsFile& from, std::uint64_t offset, std::uint64_t size) {
  count(begin, size);
  state_->file.copy_at(state_->header_bytes + begin, from.descriptor(), from.path(), offset, size);
}

void SafetensorsWriter::finish() {
  if (state_->finished) return;
  if (state_->given_bytes != state_->announced_bytes) {
    throw Error(fmt::format("{}: the header announces {} bytes of data, but only {} were given",
                            state_->file.path().string(), state_->announced_bytes, state_->given_bytes.load()));
  }
  state_->flush();
  state_->file.commit();
  state_->finished = true;
}

}  // namespace moetrim
