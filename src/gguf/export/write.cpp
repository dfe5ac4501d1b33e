// Writes the files: threads take one piece of a tensor after another.

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>

#include <fmt/format.h>

#include "export/jobs.h"
#include "export/staging.h"
#include "gguf/export/encode.h"
#include "gguf/export/value_reader.h"
#include "moetrim/error.h"
#include "moetrim/gguf_export.h"
#include "moetrim/gguf_rewrite.h"

namespace moetrim {

namespace {

namespace fs = std::filesystem;
using gguf_detail::GgufPiece;

/// Where a tensor is written.
struct Place {
  std::size_t file = 0, index = 0;
};

/// The tensors of every file, in their order.
std::vector<std::vector<std::size_t>> assign_files(const GgufExport& request, std::uint64_t shard_bytes) {
  std::vector<std::vector<std::size_t>> files(1);
  std::uint64_t filled = 0;
  for (std::size_t t = 0; t < request.tensors.size(); ++t) {
    const std::uint64_t bytes = request.tensors[t].spec.bytes();
    if (shard_bytes > 0 && filled > 0 && filled + bytes > shard_bytes) {
      files.emplace_back();
      filled = 0;
    }
    filled += bytes;
    files.back().push_back(t);
  }
  return files;
}

std::vector<fs::path> file_names(const GgufTarget& target, std::size_t count) {
  const fs::path file = export_detail::absolute_target(target.file);
  if (file.extension() != ".gguf" || file.stem().empty()) {
    throw UsageError(fmt::format("output {}: expected a file named .gguf", target.file.string()));
  }
  if (target.shard_bytes == 0) return {file};
  std::vector<fs::path> names;
  for (std::size_t i = 0; i < count; ++i) names.push_back(gguf_split_path(file.parent_path() / file.stem(), i, count));
  return names;
}

void check_free(const std::vector<fs::path>& names, bool overwrite) {
  for (const fs::path& name : names) {
    if (!fs::exists(fs::symlink_status(name))) continue;
    if (!overwrite) {
      throw UsageError(fmt::format("output {} exists; name another, or replace it with --overwrite", name.string()));
    }
    if (!is_gguf_file(name)) {
      throw UsageError(fmt::format("output {} exists and is no GGUF file, so it is not replaced", name.string()));
    }
  }
}

std::uint64_t header_bytes(const GgufExport& request) {
  constexpr std::uint64_t kPerEntry = 128;
  std::uint64_t bytes = 0;
  for (const auto& [key, value] : request.metadata.items()) {
    bytes += kPerEntry + key.size();
    if (const auto* array = std::get_if<GgufArray>(&value)) {
      bytes += array->numbers.size();
      for (const std::string& text : array->texts) bytes += 8 + text.size();
    } else if (const auto* text = std::get_if<std::string>(&value)) {
      bytes += text->size();
    }
  }
  return bytes + 2 * kPerEntry * request.tensors.size();
}

class GgufExportRun {
 public:
  GgufExportRun(const GgufExport& request, const GgufTarget& target, const GgufExportProgress& progress)
      : request_(request), target_(target), progress_(progress), pieces_(gguf_detail::pieces_of(request)),
        jobs_(pieces_.size(), target.stop, "stopped by a signal; nothing was written") {}

  void run(const std::vector<std::vector<std::size_t>>& files, const std::vector<fs::path>& names) {
    open(files, names);
    jobs_.run(target_.writers, [this] { work(); });
    // The first file is what readers open: it goes before others take the places of an older model's, and comes last.
    if (names.size() > 1) fs::remove(names.front());
    for (auto writer = writers_.rbegin(); writer != writers_.rend(); ++writer) (*writer)->finish();
  }

 private:
  void open(const std::vector<std::vector<std::size_t>>& files, const std::vector<fs::path>& names) {
    places_.resize(request_.tensors.size());
    for (std::size_t f = 0; f < files.size(); ++f) {
      GgufMetadata metadata = f == 0 ? request_.metadata : GgufMetadata();
      if (target_.shard_bytes > 0) {
        metadata.set("split.no", static_cast<std::uint16_t>(f));
        metadata.set("split.count", static_cast<std::uint16_t>(files.size()));
        metadata.set("split.tensors.count", static_cast<std::int32_t>(request_.tensors.size()));
      }
      std::vector<GgufTensorSpec> specs;
      for (const std::size_t t : files[f]) {
        places_[t] = {f, specs.size()};
        specs.push_back(request_.tensors[t].spec);
        total_ += specs.back().bytes();
      }
      writers_.push_back(std::make_unique<GgufWriter>(names[f], metadata, std::move(specs)));
    }
  }

  void work() {
    gguf_detail::ValueReader reader(*request_.model);
    std::vector<std::byte> bytes;
    while (const auto next = jobs_.take()) {
      const GgufPiece& piece = pieces_[*next];
      const GgufPlannedTensor& tensor = request_.tensors[piece.tensor];
      if (tensor.spec.type == GgmlType::mxfp4) {
        reader.read_blocks(tensor, piece, bytes);
      } else {
        gguf_detail::encode(reader.read(tensor, piece), tensor.spec.type, tensor.spec.name, bytes);
      }
      const Place place = places_[piece.tensor];
      writers_[place.file]->write_at(place.index, begin_of(tensor, piece), bytes);
      report(bytes.size());
    }
  }

  /// Byte of the tensor.
  static std::uint64_t begin_of(const GgufPlannedTensor& tensor, const GgufPiece& piece) {
    if (tensor.slabs.empty()) return 0;
    const auto rows = static_cast<std::uint64_t>(tensor.rows);
    return (piece.slab * rows + static_cast<std::uint64_t>(piece.begin)) * (tensor.spec.bytes() / (tensor.slabs.size() * rows));
  }

  void report(std::uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    done_ += bytes;
    if (progress_) progress_(done_, total_);
  }

  const GgufExport& request_;
  const GgufTarget& target_;
  const GgufExportProgress& progress_;
  std::vector<GgufPiece> pieces_;
  std::vector<Place> places_;
  std::vector<std::unique_ptr<GgufWriter>> writers_;
  export_detail::Jobs jobs_;
  std::mutex mutex_;  ///< over what follows, and progress_
  std::uint64_t done_ = 0, total_ = 0;
};

}  // namespace

GgufExportEstimate describe_gguf_export(const GgufExport& request, const GgufTarget& target) {
  GgufExportEstimate out;
  std::map<GgmlType, std::uint64_t> types;
  for (const GgufPlannedTensor& tensor : request.tensors) {
    const std::uint64_t bytes = tensor.spec.bytes();
    const auto& shape = tensor.spec.shape;
    types[tensor.spec.type] += bytes;
    out.tensor_bytes += bytes;
    out.parameters += std::accumulate(shape.begin(), shape.end(), std::uint64_t{1}, std::multiplies<>());
  }
  out.bytes_by_type.assign(types.begin(), types.end());
  out.files = file_names(target, assign_files(request, target.shard_bytes).size());
  check_free(out.files, target.overwrite);
  constexpr std::uint64_t kDiskBlock = 4096, kPerPiece = 64;
  out.disk_bytes = out.tensor_bytes + header_bytes(request) + out.files.size() * kDiskBlock;
  out.free_disk_bytes = export_detail::free_disk_bytes(out.files.front());
  const auto pieces = gguf_detail::pieces_of(request);
  out.peak_memory_bytes = 2 * header_bytes(request) + kPerPiece * pieces.size() +
                          static_cast<std::uint64_t>(target.writers) * gguf_detail::piece_memory(request, pieces);
  return out;
}

void write_gguf_export(const GgufExport& request, const GgufTarget& target, const GgufExportProgress& progress) {
  const GgufExportEstimate estimate = describe_gguf_export(request, target);
  if (estimate.disk_bytes > estimate.free_disk_bytes) {
    throw OutOfResources(fmt::format("{}: {} bytes are needed on disk, {} are free", estimate.files.front().string(),
                                     estimate.disk_bytes, estimate.free_disk_bytes));
  }
  GgufExportRun(request, target, progress).run(assign_files(request, target.shard_bytes), estimate.files);
}

}  // namespace moetrim
