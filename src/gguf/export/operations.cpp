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

/// Of kv_b_proj, in which a head has the rows of its keys, then those of its values.
RowList latent(const Model& model, bool values) {
  const LatentSizes& sizes = model.latent;
  const std::int64_t head = sizes.plain + sizes.value, part = values ? sizes.value : sizes.plain;
  const std::int64_t begin = values ? sizes.plain : 0;
  return list(model.heads * part, [&](std::int64_t i) { return i / part * head + begin + i % part; });
}

/// Of the grouped projection, in which a key head has its query, its key, its value heads, and as many z.
struct DeltaGroup {
  std::int64_t heads, key, values;  ///< numbers of rows, but for the first

  explicit DeltaGroup(const DeltaSizes& delta)
      : heads(delta.key_heads), key(delta.key_dim), values(delta.value_heads / delta.key_heads * delta.value_dim) {}
  /// Row i of all heads' parts of `part` rows, which begin at row `begin` of a group.
  std::int64_t row(std::int64_t i, std::int64_t begin, std::int64_t part) const {
    return i / part * (2 * key + 2 * values) + begin + i % part;
  }
};

RowList delta_qkv(const DeltaGroup& group) {
  const std::int64_t keys = group.heads * group.key;
  return list(2 * keys + group.heads * group.values, [&](std::int64_t i) {
    if (i < 2 * keys) return group.row(i % keys, i / keys * group.key, group.key);
    return group.row(i - 2 * keys, 2 * group.key, group.values);
  });
}

RowList delta_z(const DeltaGroup& group) {
  const std::int64_t begin = 2 * group.key + group.values;
  return list(group.heads * group.values, [&](std::int64_t i) { return group.row(i, begin, group.values); });
}

/// The first `before` of `count` stay; the others belong to value heads in equal parts.
RowList tiled(const DeltaSizes& delta, std::int64_t count, std::int64_t before = 0) {
  const std::int64_t part = (count - before) / delta.value_heads, shared = delta.value_heads / delta.key_heads;
  return list(count, [&](std::int64_t i) {
    if (i < before) return i;
    const std::int64_t head = (i - before) / part;
    return before + (head % delta.key_heads * shared + head / delta.key_heads) * part + (i - before) % part;
  });
}

}  // namespace

RowList rows_of(const GgufSource& source, const GgufTensorRule& rule, std::int64_t outputs) {
  const DeltaSizes& delta = source.model->delta;
  switch (rule.operation) {
    case GgufOperation::gate_half: return half(*source.model->family, outputs, 0);
    case GgufOperation::up_half: return half(*source.model->family, outputs, 1);
    case GgufOperation::rotary_pairs: return paired(outputs, source.model->head_dim);
    case GgufOperation::latent_key: return latent(*source.model, false);
    case GgufOperation::latent_value: return latent(*source.model, true);
    case GgufOperation::delta_qkv: return delta_qkv(DeltaGroup(delta));
    case GgufOperation::delta_z: return delta_z(DeltaGroup(delta));
    case GgufOperation::tiled_rows:
    case GgufOperation::tiled_decay: return tiled(delta, outputs);
    case GgufOperation::tiled_qkv: return tiled(delta, outputs, 2 * delta.key_heads * delta.key_dim);
    default: return nullptr;
  }
}

RowList columns_of(const GgufSource& source, const GgufTensorRule& rule, std::int64_t inputs) {
  return rule.operation == GgufOperation::tiled_columns ? tiled(source.model->delta, inputs) : nullptr;
}

std::int64_t transposed_rows(const GgufSource& source, const GgufTensorRule& rule) {
  return rule.operation == GgufOperation::latent_key ? source.model->latent.plain : 0;
}

GgufChange change_of(GgufOperation operation) {
  switch (operation) {
    case GgufOperation::plus_one: return GgufChange::plus_one;
    case GgufOperation::negated_exponential:
    case GgufOperation::tiled_decay: return GgufChange::negated_exponential;
    default: return GgufChange::none;
  }
}

bool squeezes(GgufOperation operation) {
  return operation == GgufOperation::squeezed || operation == GgufOperation::tiled_qkv;
}

}  // namespace moetrim::gguf_detail
