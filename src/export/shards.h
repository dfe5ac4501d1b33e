// Which tensor goes into which file.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/rewrite.h"

namespace moetrim::export_detail {

inline constexpr const char* kIndexName = "model.safetensors.index.json";

struct Shard {
  std::string file;                           ///< name within the folder
  std::vector<const OutputTensor*> tensors;   ///< in the order of their bytes
  std::uint64_t tensor_bytes = 0;

  std::vector<TensorSpec> specs() const;
};

/// Fills files in the order given, so that reading stays sequential and a layer lies in as few files as possible.
std::vector<Shard> assign_shards(std::span<const OutputTensor> tensors, std::uint64_t shard_bytes);

/// model.safetensors.index.json.
nlohmann::ordered_json index_json(std::span<const Shard> shards);

/// Sum of the tensors' bytes.
std::uint64_t tensor_bytes(std::span<const Shard> shards);

/// An upper bound of what the files take, headers included.
std::uint64_t file_bytes(const Shard& shard);

}  // namespace moetrim::export_detail
