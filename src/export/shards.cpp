// Which tensor goes into which file.

#include "export/shards.h"

#include <algorithm>
#include <bit>
#include <map>

#include <fmt/format.h>

namespace moetrim::export_detail {

namespace {

/// Types of 6 bits count as 4: what matters is which power of two their start must be a multiple of.
unsigned alignment_bits(const OutputTensor* tensor) {
  return std::bit_floor(static_cast<unsigned>(dtype_bits(tensor->spec.dtype)));
}

/// Wide types first, as the reference writer does: then every tensor starts at a multiple of its element.
void sort_by_alignment(Shard& shard) {
  std::stable_sort(shard.tensors.begin(), shard.tensors.end(), [](const OutputTensor* a, const OutputTensor* b) {
    return alignment_bits(a) > alignment_bits(b);
  });
}

}  // namespace

std::vector<TensorSpec> Shard::specs() const {
  std::vector<TensorSpec> out;
  out.reserve(tensors.size());
  for (const OutputTensor* tensor : tensors) out.push_back(tensor->spec);
  return out;
}

std::vector<Shard> assign_shards(std::span<const OutputTensor> tensors, std::uint64_t shard_bytes) {
  std::vector<Shard> shards(1);
  for (const OutputTensor& tensor : tensors) {
    const std::uint64_t bytes = tensor.spec.bytes();
    const bool fits = shards.back().tensor_bytes <= shard_bytes && bytes <= shard_bytes - shards.back().tensor_bytes;
    if (!fits && !shards.back().tensors.empty()) shards.emplace_back();
    shards.back().tensors.push_back(&tensor);
    shards.back().tensor_bytes += bytes;
  }
  std::size_t number = 0;
  for (Shard& shard : shards) {
    sort_by_alignment(shard);
    shard.file = shards.size() == 1 ? std::string("model.safetensors")
                                    : fmt::format("model-{:05}-of-{:05}.safetensors", ++number, shards.size());
  }
  return shards;
}

nlohmann::ordered_json index_json(std::span<const Shard> shards) {
  std::map<std::string, std::string> file_of;
  for (const Shard& shard : shards) {
    for (const OutputTensor* tensor : shard.tensors) file_of.emplace(tensor->spec.name, shard.file);
  }
  nlohmann::ordered_json index;
  index["metadata"]["total_size"] = tensor_bytes(shards);
  auto& map = index["weight_map"] = nlohmann::ordered_json::object();
  // Inserting by key would search all keys before it, and there are tens of thousands.
  auto& entries = map.get_ref<nlohmann::ordered_json::object_t&>();
  entries.reserve(file_of.size());
  for (const auto& [name, file] : file_of) entries.emplace_back(name, file);
  return index;
}

std::uint64_t tensor_bytes(std::span<const Shard> shards) {
  std::uint64_t total = 0;
  for (const Shard& shard : shards) total += shard.tensor_bytes;
  return total;
}

std::uint64_t file_bytes(const Shard& shard) {
  constexpr std::uint64_t kHeaderFixed = 4096;  // length, metadata, padding, and the file's last disk block
  constexpr std::uint64_t kHeaderPerTensor = 192;
  std::uint64_t bytes = kHeaderFixed + shard.tensor_bytes;
  for (const OutputTensor* tensor : shard.tensors) bytes += kHeaderPerTensor + tensor->spec.name.size();
  return bytes;
}

}  // namespace moetrim::export_detail
