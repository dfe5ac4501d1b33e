// What an export would take, without doing it.

#include <algorithm>
#include <functional>
#include <numeric>

#include "export/computed_matrix.h"
#include "export/computed_slab.h"
#include "export/disk_need.h"
#include "export/piece_reader.h"
#include "export/staging.h"
#include "moetrim/export.h"
#include "moetrim/statistics.h"

namespace moetrim {

namespace export_detail {

std::string json_text(const nlohmann::ordered_json& json) { return json.dump(2) + "\n"; }

std::uint64_t disk_need(std::span<const Shard> shards, std::span<const SideFile> side_files, const ExportRequest& request) {
  constexpr std::uint64_t kDiskBlock = 4096;
  constexpr std::uint64_t kIndexPerTensor = 64;
  std::uint64_t bytes = request.card.size() + request.modelling_code.size() + 8 * kDiskBlock;
  bytes += json_text(request.record).size() + json_text(request.config).size();
  for (const Shard& shard : shards) bytes += file_bytes(shard);
  for (const SideFile& file : side_files) bytes += file.bytes + kDiskBlock;
  if (request.tensors.size() > 1) {
    for (const OutputTensor& tensor : request.tensors) bytes += tensor.spec.name.size() + kIndexPerTensor;
  }
  return bytes;
}

}  // namespace export_detail

namespace {

std::uint64_t elements(const TensorSpec& spec) {
  return std::accumulate(spec.shape.begin(), spec.shape.end(), std::uint64_t{1},
                         [](std::uint64_t product, std::int64_t n) { return product * static_cast<std::uint64_t>(n); });
}

/// Sampled activations of a layer, as read and centred.
std::uint64_t sample_bytes(const ExportRequest& request) {
  const bool by_activations = std::any_of(request.tensors.begin(), request.tensors.end(), [](const OutputTensor& tensor) {
    return std::any_of(tensor.pieces.begin(), tensor.pieces.end(), [](const Piece& piece) {
      return piece.recipe && piece.recipe->group && piece.recipe->group->by == Alignment::activations;
    });
  });
  if (!by_activations) return 0;
  const auto facts = read_statistics_manifest(request.sources.statistics).vectors;
  const auto samples = facts ? static_cast<std::uint64_t>(facts->activation_samples) : 0;
  const Model& model = *request.model;
  return 2 * samples * static_cast<std::uint64_t>(model.experts * model.expert_width) * sizeof(float);
}

/// Buffers of the copy, one matrix where some are computed, and the lists of tensors and pieces.
std::uint64_t peak_memory(const Checkpoint& source, const ExportRequest& request, int writers) {
  constexpr std::uint64_t kPerTensor = 512;  // name, shape, spec, its place in a shard and in the index
  constexpr std::uint64_t kBlocks = 2;       // what is written, and the window that a cut reads through
  std::uint64_t bytes = kPerTensor * (source.tensors().size() + 2 * request.tensors.size());
  std::uint64_t matrix = 0, slab = 0;
  bool edits = false;
  for (const OutputTensor& tensor : request.tensors) {
    bytes += 2 * tensor.pieces.size() * sizeof(Piece);
    if (tensor.computation) matrix = std::max(matrix, export_detail::matrix_bytes(*request.model, *tensor.computation));
    for (const Piece& piece : tensor.pieces) {
      if (!piece.recipe) continue;
      edits = true;
      slab = std::max(slab, export_detail::slab_bytes(*request.model, piece));
    }
  }
  if (edits) bytes += export_detail::Alignments::kKeptBytes + sample_bytes(request);
  matrix += slab;
  if (request.low_rank) bytes += export_detail::low_rank_bytes(request, writers);
  return bytes + static_cast<std::uint64_t>(writers) * (kBlocks * export_detail::kBlockBytes + matrix);
}

}  // namespace

ExportEstimate describe_rewrite(const Checkpoint& source, const ExportRequest& request,
                                const std::filesystem::path& target, const ExportOptions& options) {
  const auto path = export_detail::resolve_target(target, source.folder(), options.overwrite);
  const auto shards = export_detail::assign_shards(request.tensors, options.shard_bytes);
  const auto side_files = export_detail::find_side_files(source.folder());
  ExportEstimate out;
  out.before_bytes = source.total_bytes();
  out.after_bytes = export_detail::tensor_bytes(shards);
  for (const Tensor& tensor : source.tensors()) out.before_parameters += elements(tensor);
  for (const OutputTensor& tensor : request.tensors) out.after_parameters += elements(tensor.spec);
  out.before_tensors = source.tensors().size();
  out.after_tensors = request.tensors.size();
  out.shards = shards.size();
  out.disk_bytes = export_detail::disk_need(shards, side_files, request);
  out.free_disk_bytes = export_detail::free_disk_bytes(path);
  out.peak_memory_bytes = peak_memory(source, request, options.writers);
  for (const auto& file : side_files) out.copied_files.push_back(file.name);
  return out;
}

ExportEstimate describe_twin(const Checkpoint& source, const TwinRequest& twin, const std::filesystem::path& target,
                             const ExportOptions& options) {
  const auto path = export_detail::resolve_target(target, source.folder(), options.overwrite);
  return describe_rewrite(source, twin, twin_target(path), options);
}

}  // namespace moetrim
