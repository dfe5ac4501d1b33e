// The bytes of a shard's tensors, one after another: copied, said by the plan, or computed.

#include "export/tensor_reader.h"

#include <algorithm>
#include <cstring>

namespace moetrim::export_detail {

namespace {

std::size_t step_count(const OutputTensor& tensor) {
  if (!tensor.literal.empty()) return 1;
  return tensor.computation ? matrix_count(*tensor.computation) : tensor.pieces.size();
}

}  // namespace

TensorReader::TensorReader(const Checkpoint& source, const ExportRequest& request, const Shard& shard, Cached cached)
    : source_(source), shard_(shard), cached_(cached), pieces_(source), matrix_(source, *request.model) {}

std::size_t TensorReader::read(std::span<std::byte> out) {
  std::size_t filled = 0;
  while (filled < out.size()) {
    const auto left = out.subspan(filled);
    std::size_t size = 0;
    if (!ready_.empty()) {
      size = std::min(ready_.size(), left.size());
      std::memcpy(left.data(), ready_.data(), size);
      ready_ = ready_.subspan(size);
    } else if (reading_) {
      size = pieces_.read(left);
      reading_ = size == left.size();
    } else if (!advance()) {
      break;
    }
    filled += size;
  }
  return filled;
}

bool TensorReader::advance() {
  while (tensor_ < shard_.tensors.size()) {
    const OutputTensor& tensor = *shard_.tensors[tensor_];
    if (step_ < step_count(tensor)) {
      begin_step(tensor);
      return true;
    }
    drop_cache(tensor);
    ++tensor_;
    step_ = 0;
  }
  return false;
}

void TensorReader::begin_step(const OutputTensor& tensor) {
  const std::size_t step = step_++;
  if (!tensor.literal.empty()) {
    ready_ = std::as_bytes(std::span(tensor.literal));
  } else if (tensor.computation) {
    ready_ = matrix_.compute(*tensor.computation, step);
  } else {
    pieces_.open(tensor.pieces[step]);
    reading_ = true;
  }
}

void TensorReader::drop_cache(const OutputTensor& tensor) const {
  if (cached_ == Cached::keep || tensor.pieces.empty()) return;
  const Tensor* source = tensor.pieces.front().source;
  const bool next_needs_it = tensor_ + 1 < shard_.tensors.size() && !shard_.tensors[tensor_ + 1]->pieces.empty() &&
                             shard_.tensors[tensor_ + 1]->pieces.front().source == source;
  if (next_needs_it) return;
  source_.drop_cache(*source);
  if (!tensor.computation) return;
  for (const Tensor* part : tensor.computation->weight->parts) {
    if (part != nullptr) source_.drop_cache(*part);
  }
}

}  // namespace moetrim::export_detail
