// Writes the folder, or the folder and its twin in step, and makes sure of disk and of what a stopped run leaves.

#include <algorithm>
#include <optional>
#include <vector>

#include <fmt/format.h>

#include "export/folder_export.h"
#include "export/low_rank.h"
#include "export/writers.h"
#include "moetrim/error.h"
#include "moetrim/export.h"

namespace moetrim {

namespace {

using namespace export_detail;
namespace fs = std::filesystem;

/// True when the run was killed between the renames: the twin has its name, and the folder beside it is being worked on.
bool is_published(const fs::path& twin, const TwinRequest& request, const fs::path& target) {
  std::error_code ignored;
  if (!fs::is_directory(staging_folder(target), ignored) || !fs::is_regular_file(twin / "moetrim.json", ignored)) return false;
  try {
    return read_json_file(twin / "moetrim.json") == request.record;
  } catch (const InvalidInput&) {
    return false;
  }
}

/// For every shard of the twin the last shard of the pruned checkpoint that shares a source with it.
std::vector<std::size_t> shards_awaited(const FolderExport& twin, const TwinRequest& request, const FolderExport& pruned,
                                        const ExportRequest& pruned_request) {
  std::vector<std::size_t> shard_of(pruned_request.tensors.size());
  for (std::size_t i = 0; i < pruned.shards().size(); ++i) {
    for (const OutputTensor* tensor : pruned.shards()[i].tensors) {
      shard_of[static_cast<std::size_t>(tensor - pruned_request.tensors.data())] = i;
    }
  }
  std::vector<std::size_t> out;
  for (const Shard& shard : twin.shards()) {
    std::size_t last = 0;
    for (const OutputTensor* tensor : shard.tensors) {
      last = std::max(last, shard_of[request.origins[static_cast<std::size_t>(tensor - request.tensors.data())]]);
    }
    out.push_back(last);
  }
  return out;
}

/// One run.
class Export {
 public:
  Export(const Checkpoint& source, const ExportRequest& request, const TwinRequest* twin, const fs::path& target,
         const ExportOptions& options, const ExportProgressFn& progress)
      : source_(source), request_(request), twin_request_(twin), options_(options), meter_{{}, progress},
        target_(resolve_target(target, source.folder(), options.overwrite)) {
    if (twin_request_ == nullptr) return;
    twin_target_ = twin_target(target_);
    twin_published_ = is_published(twin_target_, *twin_request_, target_);
    if (!twin_published_) twin_target_ = resolve_target(twin_target_, source.folder(), options.overwrite);
  }

  TwinResult run() {
    try {
      open();
      write();
    } catch (const OutOfResources& problem) {
      const std::string kept = leave_resumable();
      if (kept.empty()) throw;
      throw OutOfResources(fmt::format("{}; finished shards are kept in {} and the same command goes on after them",
                                       problem.what(), kept));
    } catch (...) {
      leave_resumable();
      throw;
    }
    TwinResult out{pruned_->result(), twin_ ? twin_->result() : published_result()};
    out.pruned.awaited_shards = awaited_shards_;
    return out;
  }

 private:
  void open() {
    const bool both = twin_request_ != nullptr && !twin_published_;
    const Cached cached = stays_cached(source_.total_bytes()) ? Cached::keep : Cached::drop;
    // The twin reads it again, and drops it then.
    pruned_.emplace(source_, request_, target_, options_, meter_, both ? Cached::keep : cached);
    if (both) twin_.emplace(source_, *twin_request_, twin_target_, options_, meter_, cached);
  }

  void write() {
    pruned_->find_finished();
    if (twin_) twin_->find_finished();
    check_disk();
    meter_.report();
    write_shards();
    if (options_.share && !may_complete()) return;
    pruned_->write_other_files();
    if (twin_) {
      twin_->write_other_files();
      twin_->publish();  // first: a run that is killed now finds it by the other's working folder
    }
    pruned_->publish();
  }

  void write_shards() {
    std::vector<std::size_t> awaited;
    if (twin_) awaited = shards_awaited(*twin_, *twin_request_, *pruned_, request_);
    std::vector<ShardOrder> orders;
    const auto add = [&](FolderExport& folder, std::size_t shard) {
      if (folder.wants(folder.shards()[shard])) orders.push_back({&folder, &folder.shards()[shard]});
    };
    std::size_t next = 0;
    for (std::size_t i = 0; i < pruned_->shards().size(); ++i) {
      add(*pruned_, i);
      for (; next < awaited.size() && awaited[next] <= i; ++next) add(*twin_, next);
    }
    const bool known = request_.low_rank && request_.low_rank->form == LowRankForm::factored;  // before shapes were
    if (request_.low_rank && !known && !orders.empty()) {
      request_.low_rank->threshold = row_threshold(find_row_importance(source_, request_, options_), request_.sparse_rows);
    }
    Alignments alignments(source_, *request_.model, request_.sources.statistics);
    Writers(source_, *request_.model, alignments, meter_).write(orders, options_.writers, options_.stop);
  }

  /// Of runs that share the folder, the one that finds all shards finished completes it. @return false when it is not this one
  bool may_complete() {
    awaited_shards_ = pruned_->awaited();
    if (awaited_shards_ > 0) return false;
    const bool mine = pruned_->wait_for_others([&] {
      if (options_.stop != nullptr && *options_.stop) throw Interrupted("stopped by a signal; repeat the command to go on");
    });
    if (mine || is_complete(target_, request_, pruned_->shards())) return mine;
    throw Error(fmt::format("{}: the working folder was taken away; start again", target_.string()));
  }

  void check_disk() const {
    const std::uint64_t need = pruned_->disk_left() + (twin_ ? twin_->disk_left() : 0);
    const std::uint64_t free = free_disk_bytes(target_);  // the twin is beside it
    if (need <= free) return;
    throw OutOfResources(fmt::format("{}: writing the checkpoint{} needs {} bytes of disk, {} are free; free some, or write "
                                     "elsewhere", target_.string(), twin_ ? " and its dequantised twin" : "", need, free));
  }

  /// The working folders that a later run can go on from.
  std::string leave_resumable() {
    std::string kept;
    for (auto* folder : {&pruned_, &twin_}) {
      if (!*folder || !(*folder)->leave_resumable()) continue;
      kept += (kept.empty() ? "" : " and ") + (*folder)->staging().folder().string();
    }
    return kept;
  }

  ExportResult published_result() const {
    ExportResult out;
    if (twin_request_ == nullptr) return out;
    const auto shards = assign_shards(twin_request_->tensors, options_.shard_bytes);
    out.folder = twin_target_;
    out.tensor_bytes = tensor_bytes(shards);
    out.shards = out.reused_shards = shards.size();
    return out;
  }

  const Checkpoint& source_;
  const ExportRequest& request_;
  const TwinRequest* twin_request_;
  const ExportOptions& options_;
  Meter meter_;
  fs::path target_, twin_target_;
  bool twin_published_ = false;
  std::size_t awaited_shards_ = 0;
  std::optional<FolderExport> pruned_, twin_;
};

/// What a request gave that another run completed; nothing when the target is not that.
std::optional<ExportResult> completed(const ExportRequest& request, const fs::path& target, const ExportOptions& options) {
  const auto shards = assign_shards(request.tensors, options.shard_bytes);
  if (!is_complete(target, request, shards)) return std::nullopt;
  ExportResult out;
  out.folder = target;
  out.tensor_bytes = tensor_bytes(shards);
  out.shards = shards.size();
  for (const Shard& shard : shards) {
    out.reused_shards += options.share->holds(static_cast<std::size_t>(&shard - shards.data()), shards.size());
  }
  return out;
}

TwinResult run_export(const Checkpoint& source, const ExportRequest& request, const TwinRequest* twin, const fs::path& target,
                      const ExportOptions& options, const ExportProgressFn& progress) {
  try {
    return Export(source, request, twin, target, options, progress).run();
  } catch (const fs::filesystem_error& problem) {
    throw Error(problem.what());
  }
}

}  // namespace

void check_target(const Checkpoint& source, const fs::path& target, const ExportOptions& options) {
  if (options.share && fs::exists(absolute_target(target))) return;  // another share may have completed it
  resolve_target(target, source.folder(), options.overwrite);
}

ExportResult export_checkpoint(const Checkpoint& source, const ExportRequest& request, const fs::path& target,
                               const ExportOptions& options, const ExportProgressFn& progress) {
  // A slice that is run again, when all have been.
  if (options.share) {
    if (const auto whole = completed(request, absolute_target(target), options)) return *whole;
  }
  return run_export(source, request, nullptr, target, options, progress).pruned;
}

TwinResult export_with_twin(const Checkpoint& source, const ExportRequest& request, const TwinRequest& twin,
                            const fs::path& target, const ExportOptions& options, const ExportProgressFn& progress) {
  return run_export(source, request, &twin, target, options, progress);
}

}  // namespace moetrim
