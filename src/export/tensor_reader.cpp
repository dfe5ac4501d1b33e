// The bytes of a tensor's steps: pieces that are copied or cut, what the plan says, or matrices that are computed.

#include "export/tensor_reader.h"

#include <algorithm>
#include <cstring>

namespace moetrim::export_detail {

std::size_t step_count(const OutputTensor& tensor) {
  if (!tensor.literal.empty()) return 1;
  return tensor.computation ? matrix_count(*tensor.computation) : tensor.pieces.size();
}

void TensorReader::open(const OutputTensor& tensor, std::size_t step) {
  in_memory_ = true;
  if (!tensor.literal.empty()) {
    ready_ = std::as_bytes(std::span(tensor.literal));
  } else if (tensor.computation) {
    ready_ = matrix_.compute(tensor, step);
  } else if (tensor.factor) {
    ready_ = factors_.compute(tensor);
  } else if (tensor.pieces[step].recipe) {
    ready_ = slab_.bytes(tensor.pieces[step]);
  } else {
    in_memory_ = false;
    pieces_.open(tensor.pieces[step]);
  }
}

std::size_t TensorReader::read(std::span<std::byte> out) {
  if (!in_memory_) return pieces_.read(out);
  const std::size_t size = std::min(ready_.size(), out.size());
  std::memcpy(out.data(), ready_.data(), size);
  ready_ = ready_.subspan(size);
  return size;
}

}  // namespace moetrim::export_detail
