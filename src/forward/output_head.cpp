// Both ends of the model: the embedding table and the output head.

#include "forward/output_head.h"

#include <algorithm>
#include <cstring>
#include <map>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "forward/linear.h"
#include "forward/load_weight.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

at::Tensor load_whole(const Model& model, Role role, at::ScalarType type, const Numerics& numerics, const at::Device& device) {
  const Weight& weight = model[role];
  if (!weight) return {};
  WeightGroup group;
  append_ranges(weight, -1, group);
  std::uint64_t size = 0;
  for (const auto& range : group) size += range.size;
  std::vector<std::byte> bytes(size);
  std::size_t at = 0;
  for (const auto& range : group) {
    model.checkpoint->read(*range.tensor, range.begin, {bytes.data() + at, static_cast<std::size_t>(range.size)});
    at += range.size;
  }
  const std::byte* start = bytes.data();
  const PartBytes parts = take_parts(weight, -1, start);
  return owned(load_weight(model, weight, parts, {.type = type, .numerics = numerics, .device = device, .matrix = true}), parts);
}

}  // namespace

Norm load_final_norm(const Model& model, const Numerics& numerics, const at::Device& device) {
  return make_norm(model, load_whole(model, Role::final_norm, numerics.wide(), numerics, device),
                   load_whole(model, Role::final_norm_bias, numerics.wide(), numerics, device));
}

HeadWeights load_head(const Model& model, const Numerics& numerics, const at::Device& device) {
  HeadWeights out;
  out.final_norm = load_final_norm(model, numerics, device);
  const bool tied = model.tied_embeddings || !model[Role::head];
  out.head = load_whole(model, tied ? Role::embedding : Role::head, numerics.tile(), numerics, device);
  out.bias = load_whole(model, Role::head_bias, numerics.tile(), numerics, device);
  return out;
}

at::Tensor project_to_vocabulary(const Model& model, const Numerics& numerics, const HeadWeights& head, const at::Tensor& hidden,
                                 ThreadPool& pool) {
  const auto rows = hidden.size(0);
  const auto tile = hidden.options().dtype(numerics.tile());
  at::Tensor normed = at::empty(hidden.sizes(), tile);
  kernels::norm_rows(numerics, hidden, head.final_norm, normed);
  at::Tensor out = at::empty({rows, model.vocabulary}, tile);
  const std::int64_t together = hidden.is_cpu() ? 1024 : model.vocabulary;
  pool.run((model.vocabulary + together - 1) / together, [&](std::int64_t part, int) {
    const auto begin = part * together;
    const auto count = std::min(together, model.vocabulary - begin);
    at::Tensor columns = out.narrow(1, begin, count);
    kernels::multiply(normed, head.head.narrow(0, begin, count), columns,
                      head.bias.defined() ? head.bias.narrow(0, begin, count) : head.bias);
  });
  const std::int64_t rows_together = hidden.is_cpu() ? 8 : std::max<std::int64_t>(rows, 1);
  pool.run((rows + rows_together - 1) / rows_together, [&](std::int64_t part, int) {
    const auto begin = part * rows_together;
    at::Tensor products = out.narrow(0, begin, std::min(rows_together, rows - begin));
    kernels::round_product(numerics, products);
    if (model.logit_scale == 1.0) return;
    products.mul_(model.logit_scale);
    kernels::round_product(numerics, products);
  });
  return out;
}

namespace {

/// Where each token that occurs stands: by id, so that rows are read in the order of the file.
std::map<std::int32_t, std::vector<std::int64_t>> places_of(const Model& model, const std::vector<std::int32_t>& ids) {
  std::map<std::int32_t, std::vector<std::int64_t>> places;
  for (std::size_t t = 0; t < ids.size(); ++t) {
    const std::int32_t id = ids[t];
    if (id < 0 || id >= model.vocabulary) {
      throw InvalidInput(fmt::format("token id {} at position {} is outside the vocabulary of {}", id, t, model.vocabulary));
    }
    places[id].push_back(static_cast<std::int64_t>(t));
  }
  return places;
}

}  // namespace

at::Tensor embed(const Model& model, const std::vector<std::int32_t>& ids, const Numerics& numerics, BlockReader& reader) {
  const Weight& weight = model[Role::embedding];
  const Tensor& table = *weight.values();
  const std::uint64_t row_bytes = table.size / static_cast<std::uint64_t>(table.shape[0]);
  const at::Device cpu(at::kCPU);
  at::Tensor out = at::empty({static_cast<std::int64_t>(ids.size()), model.hidden}, at::TensorOptions().dtype(numerics.stored()));
  TensorRule one_row = *weight.rule;
  one_row.axes = {Axis::H};
  Tensor view = table;
  view.shape = {model.hidden};
  const Weight row_weight{.rule = &one_row, .parts = {&view}};
  const auto places = places_of(model, ids);
  // Only the rows that occur are read: the table of a large vocabulary is bigger than a layer.
  std::vector<std::byte> row(row_bytes);
  auto asked = places.begin();
  for (const auto& [id, positions] : places) {
    for (std::size_t filled = 0; filled < row_bytes;) {
      for (; asked != places.end() && reader.hungry(); ++asked) {
        reader.add({&table, row_bytes * static_cast<std::uint64_t>(asked->first), row_bytes});
      }
      const auto bytes = reader.next();
      std::memcpy(row.data() + filled, bytes.data(), bytes.size());
      filled += bytes.size();
    }
    PartBytes parts{};
    parts[0] = row.data();
    at::Tensor values = load_weight(model, row_weight, parts, {numerics.stored(), numerics, cpu});
    if (model.embedding_scale != 1.0) values = values * model.embedding_scale;
    for (const std::int64_t at : positions) out[at].copy_(values);
  }
  return out;
}

}  // namespace moetrim
