// What an operation means for the rows, the shape and the values of a weight's matrix.

#include "gguf/export/operations.h"

namespace moetrim::gguf_detail {

namespace {

template <class Row>
RowList list(std::int64_t count, const Row& row) {
  auto rows = std::make_shared<std::vector<std::uint32_t>>(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) (*rows)[static_cast<std::size_t>(i)] = static_cast<std::uint32_t>(row(i));
  return rows;
}

/// Gate is the first part of a fused matrix, up the second.
RowList half(const Family& family, std::int64_t outputs, std::int64_t part) {
  const std::int64_t width = outputs / 2;
  if (family.fused_interleaved) return list(width, [&](std::int64_t i) { return 2 * i + part; });
  return list(width, [&](std::int64_t i) { return part * width + i; });
}

/// Values i and i + D / 2 of a head, which are rotated together, become neighbours.
RowList paired(std::int64_t outputs, std::int64_t head) {
  return list(outputs, [&](std::int64_t i) { return i / head * head + i % head / 2 + (i % 2) * (head / 2); });
}

}  // namespace

RowList rows_of(const GgufSource& source, const GgufTensorRule& rule, std::int64_t outputs) {
  switch (rule.operation) {
    case GgufOperation::gate_half: return half(*source.model->family, outputs, 0);
    case GgufOperation::up_half: return half(*source.model->family, outputs, 1);
    case GgufOperation::rotary_pairs: return paired(outputs, source.model->head_dim);
    default: return nullptr;
  }
}

GgufChange change_of(GgufOperation operation) {
  switch (operation) {
    case GgufOperation::plus_one: return GgufChange::plus_one;
    case GgufOperation::negated_exponential: return GgufChange::negated_exponential;
    default: return GgufChange::none;
  }
}

}  // namespace moetrim::gguf_detail
