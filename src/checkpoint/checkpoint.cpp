// The Hugging Face folder: config.json, and the tensors of all weight files as one list.
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "json_file.h"
#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "posix_file.h"
#include "quote.h"
#include "weight_index.h"

namespace moetrim {
namespace {

using namespace checkpoint_detail;
namespace fs = std::filesystem;

constexpr std::uint64_t kMaxConfigBytes = std::uint64_t{64} << 20;

void check_is_folder(const fs::path& folder) {
  std::error_code problem;
  const fs::file_status status = fs::status(folder, problem);
  if (fs::is_directory(status)) {
    if (fs::symlink_status(folder / "config.json", problem).type() != fs::file_type::not_found) return;
    throw InvalidInput(fmt::format("{}: has no config.json; expected a checkpoint folder in Hugging Face layout",
                                   folder.string()));
  }
  if (fs::exists(status)) {
    throw InvalidInput(fmt::format("{}: expected a checkpoint folder, got a file", folder.string()));
  }
  throw InvalidInput(fmt::format("{}: the checkpoint folder {}", folder.string(),
                                 status.type() == fs::file_type::not_found ? "does not exist"
                                                                          : "cannot be opened: " + problem.message()));
}

/// A copy that the index does not know is what one reader uses and another does not.
void check_assignment(const fs::path& folder, const WeightFiles& weights, const SafetensorsFile& file,
                      const Tensor& tensor) {
  if (!weights.has_index) return;
  const auto assigned = weights.file_of.find(tensor.name);
  if (assigned == weights.file_of.end()) {
    throw InvalidInput(fmt::format("{}: holds tensor {}, which '{}' does not name; some readers would load it and some "
                                   "would not",
                                   file.path().string(), in_quotes(tensor.name), kIndexName));
  }
  if (folder / assigned->second != file.path()) {
    throw InvalidInput(fmt::format("{}: holds tensor {}, which '{}' assigns to {}; some readers would take the one "
                                   "copy and some the other",
                                   file.path().string(), in_quotes(tensor.name), kIndexName,
                                   in_quotes(assigned->second)));
  }
}

/// To be called when every tensor that was found lies where the index says.
void check_all_found(const Checkpoint& checkpoint, const WeightFiles& weights) {
  for (const auto& [tensor, name] : weights.file_of) {
    if (checkpoint.find(tensor) != nullptr) continue;
    throw InvalidInput(fmt::format("{}: assigns tensor {} to {}, which does not hold it; the index and the file are "
                                   "not of one checkpoint",
                                   (checkpoint.folder() / kIndexName).string(), in_quotes(tensor), in_quotes(name)));
  }
}

}  // namespace

Checkpoint Checkpoint::open(const fs::path& folder) {
  check_is_folder(folder);
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  checkpoint.config_text_ = read_text(folder / "config.json", kMaxConfigBytes);
  checkpoint.config_ = parse_json(folder / "config.json", checkpoint.config_text_, /*comments=*/false);
  if (!checkpoint.config_.is_object()) {
    throw InvalidInput(fmt::format("{}: expected a JSON object, got a JSON {}", (folder / "config.json").string(),
                                   checkpoint.config_.type_name()));
  }
  const WeightFiles weights = find_weight_files(folder);
  for (const std::string& name : weights.files) checkpoint.add_file(SafetensorsFile::open(folder / name));
  for (const Tensor& tensor : checkpoint.tensors_) {
    check_assignment(folder, weights, checkpoint.files_[tensor.file], tensor);
  }
  for (std::size_t i = 0; i < checkpoint.tensors_.size(); ++i) {
    checkpoint.by_name_.emplace(checkpoint.tensors_[i].name, i);
  }
  check_all_found(checkpoint, weights);
  return checkpoint;
}

void Checkpoint::add_file(SafetensorsFile file) {
  for (Tensor tensor : file.tensors()) {
    tensor.file = static_cast<std::uint32_t>(files_.size());
    total_bytes_ += tensor.size;
    tensors_.push_back(std::move(tensor));
  }
  files_.push_back(std::move(file));
}

const Tensor* Checkpoint::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

const Tensor& Checkpoint::at(std::string_view name) const {
  if (const Tensor* tensor = find(name)) return *tensor;
  throw InvalidInput(fmt::format("{}: has no tensor {}", folder_.string(), in_quotes(name)));
}

void Checkpoint::read(const Tensor& tensor, std::uint64_t begin, std::span<std::byte> out) const {
  files_.at(tensor.file).read(tensor, begin, out);
}

std::vector<std::byte> Checkpoint::read(const Tensor& tensor) const { return files_.at(tensor.file).read(tensor); }

void Checkpoint::drop_cache(const Tensor& tensor) const { files_.at(tensor.file).drop_cache(tensor); }

}  // namespace moetrim
