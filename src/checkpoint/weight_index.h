// Which files of a checkpoint folder hold the weights, and which tensor lies in which of them.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string>

namespace moetrim::checkpoint_detail {

inline constexpr const char* kSingleName = "model.safetensors";
inline constexpr const char* kIndexName = "model.safetensors.index.json";

struct WeightFiles {
  std::set<std::string> files;  ///< names within the folder, sorted
  bool has_index = false;
  std::map<std::string, std::string, std::less<>> file_of;  ///< from the index: tensor to file name
};

/// @throws InvalidInput when there are none, when a shard is missing, or when two readers could see two models.
WeightFiles find_weight_files(const std::filesystem::path& folder);

}  // namespace moetrim::checkpoint_detail
