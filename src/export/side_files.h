// The files that follow a checkpoint unchanged: tokenizer, chat template, generation settings, remote code, licence.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace moetrim::export_detail {

struct SideFile {
  std::string name;          ///< within the folder, at most one folder deep
  std::uint64_t bytes = 0;
};

/// Those the folder has, sorted. Weights, indexes and the old model card are never among them.
/// @throws InvalidInput on a name with a control character.
std::vector<SideFile> find_side_files(const std::filesystem::path& folder);

/// Copies one file's contents; links are followed, the copy is a plain file.
void copy_side_file(const std::filesystem::path& from, const std::filesystem::path& to, const SideFile& file);

}  // namespace moetrim::export_detail
