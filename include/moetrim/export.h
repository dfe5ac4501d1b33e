// Export: a stream of tensors to a checkpoint folder in Hugging Face layout, which appears under its name only when whole.
//
// Work goes on in a hidden folder beside the target, `.TARGET.moetrim-partial`, which is renamed at the end. A run that
// is killed leaves finished shards there and a note of each; the same request again goes on after them and ends with the
// same bytes as an undisturbed run.
//
// Threads, and runs on several machines that each write a share of the shards, give the bytes of one thread. Bytes that are
// only moved are moved by the kernel (copy_file_range): on the server of a network file system, where it can, and without a
// way through this process elsewhere.
//
// A quantised checkpoint may have a twin, OUT-bf16, written in the same run: the same tensors with every quantised weight
// dequantised, for runtimes that cannot read the original's format.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/checkpoint.h"
#include "moetrim/family.h"
#include "moetrim/plan.h"
#include "moetrim/rewrite.h"

namespace moetrim {

/// "5GB", "5GiB", "500 MB", "1.5GB" or a number of bytes. KB, MB, GB, TB count in thousands; KiB, MiB, GiB, TiB in 1024s.
/// @throws UsageError for anything else, for 0 and for more than 64 bits.
std::uint64_t parse_bytes(std::string_view text);

/// One run's share of the shards, where several runs write one checkpoint.
///
/// They may run at the same time, on machines that share the file system and its locks, or one after another, in any order.
/// Whichever finds the shards of all finished completes the folder.
struct ShardShare {
  int number = 1;  ///< from 1 to count
  int count = 1;

  /// Neighbours belong to one share, so that each run reads its own part of the source.
  bool holds(std::size_t shard, std::size_t shards) const {
    const auto parts = static_cast<std::size_t>(count);
    const auto part = static_cast<std::size_t>(number);
    return shards * (part - 1) / parts <= shard && shard < shards * part / parts;
  }
};

struct ExportOptions {
  std::uint64_t shard_bytes = 5'000'000'000;  ///< tensor bytes per file; a larger tensor gets a file of its own
  bool overwrite = false;                     ///< replace the target, if it is a folder that moetrim wrote (moetrim.json)
  int writers = 1;                            ///< threads
  std::optional<ShardShare> share = {};       ///< of the shards; without it all of them
  /// Set by a signal handler: the run ends after the shards in work.
  const std::atomic<bool>* stop = nullptr;
};

/// What goes into the folder beside the source's tokenizer, template and licence files.
struct ExportRequest {
  const Model* model = nullptr;       ///< of the source
  std::vector<OutputTensor> tensors;  ///< their pieces point into the source
  nlohmann::ordered_json config;      ///< config.json
  nlohmann::ordered_json record;      ///< moetrim.json; without times or machine names, so that equal work has equal bytes
  std::string card;                   ///< README.md
  std::string modelling_code;         ///< kSlimFile; empty where transformers' own classes read the checkpoint
  std::string source_fingerprint;     ///< Checkpoint::fingerprint() of the source
  RewriteSources sources = {};        ///< what recipes of tensors need beside the source
  std::shared_ptr<LowRank> low_rank;  ///< that of the recipes, whose threshold is found before anything is written; null: none
  Share sparse_rows = {};             ///< with low_rank: of the entries, how many stay whole, at least
  std::filesystem::path row_importance = {};  ///< with low_rank: statistics that say which rows, or none
  std::vector<std::string> warnings;  ///< for the caller to print; not written
};

/// The twin of a pruned checkpoint. The pieces of a dequantised tensor are those of the codes.
struct TwinRequest : ExportRequest {
  std::vector<std::size_t> origins;  ///< of every tensor: index of the pruned checkpoint's copy, or of the weight's codes
};

/// Bytes of tensors done so far, those taken over from an interrupted run included.
struct ExportProgress {
  std::uint64_t done_bytes = 0;
  std::uint64_t total_bytes = 0;
  std::size_t done_shards = 0;
  std::size_t total_shards = 0;
};
/// Called after every block and every shard, by one thread at a time. What it throws stops the export at once, which can be
/// taken up again.
using ExportProgressFn = std::function<void(const ExportProgress&)>;

struct ExportResult {
  std::filesystem::path folder;
  std::uint64_t tensor_bytes = 0;
  std::size_t shards = 0;
  std::size_t written_shards = 0;
  std::size_t reused_shards = 0;            ///< finished by an earlier run that was interrupted
  std::size_t awaited_shards = 0;           ///< of other shares, not finished yet: the folder is not there yet
  std::vector<std::string> copied_files;    ///< taken over from the source as they are
};

/// What an export would take. Reads nothing but folder listings and writes nothing.
struct ExportEstimate {
  std::uint64_t before_bytes = 0, after_bytes = 0;            ///< of tensors
  std::uint64_t before_parameters = 0, after_parameters = 0;  ///< elements of tensors
  std::size_t before_tensors = 0, after_tensors = 0;
  std::size_t shards = 0;
  std::uint64_t disk_bytes = 0;            ///< of the finished folder, rounded up
  std::uint64_t free_disk_bytes = 0;       ///< where the target would be
  std::uint64_t peak_memory_bytes = 0;     ///< buffers and the list of tensors; not the program itself
  std::vector<std::string> copied_files;
};

struct PrepareOptions {
  bool allow_other_checkpoint = false;  ///< accept a plan whose fingerprint is not the source's
  Mtp mtp = Mtp::prune;                 ///< what becomes of multi-token-prediction blocks
  RewriteSources sources = {};          ///< what the plan needs beside the checkpoint; low_rank is set from what follows
  /// Rank of the factors that the plan's merged experts, or all where it merges none, are replaced by; 0: none.
  int low_rank = 0;
  LowRankForm low_rank_form = LowRankForm::dense;
  Share sparse_rows = {.part = 1, .whole = 10};  ///< with low_rank: share of the entries, in whole rows, that keep their values
  /// With low_rank: statistics of this checkpoint with RowStatistics of the same rank. Empty: rows stay by what the
  /// factors miss.
  std::filesystem::path row_importance = {};
  int threads = 1;                                    ///< that look at matrices of form `factored`
  const std::atomic<bool>* stop = nullptr;            ///< set by a signal handler: ends that
};

/// "dense" or "factored". @throws UsageError
LowRankForm parse_low_rank_form(std::string_view text);

/// Checks the plan and prepares everything that export_checkpoint needs. Where matrices are to be stored as factors, shapes
/// depend on the rows that stay: then it reads and factors all of them.
/// @param tool_version  goes into moetrim.json and the card.
/// @throws InvalidInput when the plan does not fit, see check_plan; Interrupted.
ExportRequest prepare_export(const Model& model, const Plan& plan, std::string_view tool_version,
                             const PrepareOptions& options = {});

/// The dtype of a twin: bf16. @throws UsageError for any other, listing those that there are.
Dtype parse_twin_dtype(std::string_view text);

/// Prepares the twin of a request that prepare_export made with the same model, plan and options.
/// @throws UsageError when no weight is quantised; InvalidInput when values cannot be computed.
TwinRequest prepare_twin(const Model& model, const Plan& plan, const ExportRequest& pruned, Dtype dtype,
                         std::string_view tool_version, const PrepareOptions& options = {});

/// TARGET-bf16, beside the target.
std::filesystem::path twin_target(const std::filesystem::path& target);

/// @throws UsageError for a target that exists and is not an empty folder, as export_checkpoint does.
ExportEstimate describe_rewrite(const Checkpoint& source, const ExportRequest& request,
                                const std::filesystem::path& target, const ExportOptions& options = {});

/// What the twin would take beside the folder at `target`.
ExportEstimate describe_twin(const Checkpoint& source, const TwinRequest& twin, const std::filesystem::path& target,
                             const ExportOptions& options = {});

/// Refuses a target that export_checkpoint would refuse, before anything expensive is done. @throws UsageError
void check_target(const Checkpoint& source, const std::filesystem::path& target, const ExportOptions& options);

/// Writes the folder, or a share of it. Memory: two fixed blocks a thread, however large a tensor is.
/// @throws Interrupted when `stop` was set and shards are left; InvalidInput when the working folder has shares of another
///         request; UsageError for a target that exists and is not an empty folder; OutOfResources, naming the bytes, before the
///         start when the disk is too small, and when it fills up meanwhile; Error when another run writes to the target.
ExportResult export_checkpoint(const Checkpoint& source, const ExportRequest& request,
                               const std::filesystem::path& target, const ExportOptions& options = {},
                               const ExportProgressFn& progress = {});

struct TwinResult {
  ExportResult pruned, twin;
};
/// Writes the folder and its twin side by side: what a shard was made from is still in the page cache when the twin's
/// tensors are computed from it. Neither folder has its name before both are whole. Memory: one matrix of a weight, twice.
/// @throws as export_checkpoint, for either folder and before anything is written; UsageError with a share.
TwinResult export_with_twin(const Checkpoint& source, const ExportRequest& request, const TwinRequest& twin,
                            const std::filesystem::path& target, const ExportOptions& options = {},
                            const ExportProgressFn& progress = {});

/// The model card (README.md): YAML front matter with base model and inherited licence, what was removed and why, how to
/// load the result, and its limits.
/// @param dequantised_to  dtype of a twin's weights; empty: not a twin
std::string model_card(const Model& model, const Plan& plan, std::span<const OutputTensor> tensors,
                       std::span<const std::string> warnings, std::string_view tool_version,
                       std::string_view dequantised_to = {}, Mtp mtp = Mtp::prune);

}  // namespace moetrim
