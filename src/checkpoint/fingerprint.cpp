// The fingerprint of a checkpoint: changes with the model, not with how its tensors are spread over files.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "checkpoint/digest.h"
#include "moetrim/checkpoint.h"

namespace moetrim {
namespace {

// Head and tail: a fine-tuned copy differs everywhere, a half-written file at its end.
constexpr std::uint64_t kSampleSideBytes = 2048;
/// Samples that are being read while others are hashed: thousands of small reads, one after another, would take seconds.
constexpr std::size_t kSamplesAhead = 128;

void read_soon(const Checkpoint& checkpoint, const Tensor& tensor) {
  const SafetensorsFile& file = checkpoint.files()[tensor.file];
  const std::uint64_t side = std::min(tensor.size, kSampleSideBytes);
  file.read_soon(tensor.offset, side);
  file.read_soon(tensor.offset + tensor.size - side, side);
}

std::string sample_hash(const Checkpoint& checkpoint, const Tensor& tensor) {
  const std::uint64_t head = std::min(tensor.size, kSampleSideBytes);
  const std::uint64_t tail = std::min(tensor.size - head, kSampleSideBytes);
  std::vector<std::byte> sample(head + tail);
  checkpoint.read(tensor, 0, std::span(sample).first(head));
  checkpoint.read(tensor, tensor.size - tail, std::span(sample).last(tail));
  checkpoint_detail::Digest digest;
  digest.add(sample);
  return digest.hex();
}

}  // namespace

std::string Checkpoint::fingerprint() const {
  // Read in the order of the bytes, hashed in the order of the names.
  std::vector<std::string> samples;
  samples.reserve(tensors_.size());
  std::size_t soon = 0;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    for (; soon < std::min(tensors_.size(), i + kSamplesAhead); ++soon) read_soon(*this, tensors_[soon]);
    samples.push_back(sample_hash(*this, tensors_[i]));
  }

  // Text with lengths in front: no two models write the same, and byte order does not matter.
  std::string text = fmt::format("moetrim checkpoint 1\n{}:{}\n", config_text_.size(), config_text_);
  for (const auto& [name, index] : by_name_) {
    const Tensor& tensor = tensors_[index];
    text += fmt::format("{}:{} {} [{}] {}\n", name.size(), name, dtype_name(tensor.dtype),
                        fmt::join(tensor.shape, ","), samples[index]);
  }
  return checkpoint_detail::digest_of(text);
}

}  // namespace moetrim
