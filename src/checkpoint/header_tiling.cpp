// The rule that tensors cover the data of a safetensors file exactly.
#include <fmt/format.h>

#include "header.h"
#include "moetrim/error.h"
#include "quote.h"

namespace moetrim::checkpoint_detail {

void check_tiling(const std::filesystem::path& file, const std::vector<Tensor>& tensors, std::uint64_t data_bytes) {
  std::uint64_t covered = 0;
  const Tensor* before = nullptr;
  for (const Tensor& tensor : tensors) {
    if (tensor.offset < covered) {
      throw InvalidInput(fmt::format("{}: tensor {} begins at data byte {} and overlaps tensor {}, which ends at {}",
                                     file.string(), in_quotes(tensor.name), tensor.offset, in_quotes(before->name),
                                     covered));
    }
    if (tensor.offset > covered) {
      throw InvalidInput(fmt::format("{}: no tensor covers the data bytes {} to {}, in front of tensor {}",
                                     file.string(), covered, tensor.offset, in_quotes(tensor.name)));
    }
    covered += tensor.size;
    before = &tensor;
  }
  // More than data_bytes is refused tensor by tensor, when each is parsed.
  if (covered != data_bytes) {
    throw InvalidInput(fmt::format("{}: the tensors end at data byte {}{}{}, but the file goes on for {} more bytes",
                                   file.string(), covered, before == nullptr ? "" : ", the last being ",
                                   before == nullptr ? "" : in_quotes(before->name), data_bytes - covered));
  }
}

}  // namespace moetrim::checkpoint_detail
