// Plans applied to a GGUF file: experts go, move or are repeated as byte ranges of the stacked tensors, whatever their type.
// No value is converted, and a plan that would need one is refused.
//
// A GGUF model is written with as many files as its source has, each with the tensors of its counterpart, in a hidden folder
// beside the target, `.TARGET.moetrim-partial`, and moved from there when all files are whole: the first file of several last,
// without which no reader takes the others for a model. A run that is killed leaves that folder, and at most files without their
// first; the same command starts again and replaces both.
//
// Source of names and keys: llama.cpp, release v0.5.0 (src/llama-arch.cpp, src/llama-model.cpp, src/models).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moetrim/gguf_architecture.h"
#include "moetrim/gguf_file.h"
#include "moetrim/plan.h"
#include "moetrim/rewrite.h"

namespace moetrim {

/// Fingerprint of the checkpoint that a file was exported from. Goes when it is pruned.
inline constexpr std::string_view kGgufSourceKey = "moetrim.source_fingerprint";
/// Digest of the plan that a file was pruned with: 32 hex digits.
inline constexpr std::string_view kGgufPlanKey = "moetrim.plan";

/// True for a regular file that begins as a GGUF does.
bool is_gguf_file(const std::filesystem::path& path);

/// What a tensor's name says.
struct GgufPlace {
  int block = -1;          ///< of `blk.N.`; -1 for all others
  bool by_expert = false;  ///< its last extent counts experts: [in, out, E], [out, E], [H, E] or [E]
};

/// A GGUF model with experts, understood. Points into the file, which must outlive it.
struct GgufMoe {
  const GgufModel* file = nullptr;
  const GgufArchitecture* architecture = nullptr;
  int blocks = 0;                         ///< multi-token-prediction blocks included, which are the last ones
  int mtp_blocks = 0;
  int experts = 0, experts_per_token = 0;
  std::optional<RouterGroups> groups = {};  ///< where the file has a choice of groups; as llama.cpp scores them: rule top2
  std::vector<GgufPlace> places = {};      ///< parallel to file->tensors()
  std::vector<int> moe = {};               ///< ids of the blocks that have experts, ascending

  const std::filesystem::path& path() const { return file->files().front().path(); }
  /// "qwen3moe.KEY".
  std::string key(std::string_view name) const;
  int layers() const { return blocks - mtp_blocks; }
  /// MoE blocks; those for multi-token prediction only where they are asked for.
  std::vector<int> moe_layers(bool with_mtp) const;
};

/// @throws InvalidInput naming file and key or tensor: for LoRA adapters, importance matrices, projectors, architectures that
///         are none of our families; keys that are missing or contradict each other; an expert axis of another length than
///         expert_count, blocks without a router or without experts' matrices, and tensors of an MoE block that nobody knows
///         and that may have an expert axis.
GgufMoe describe_gguf(const GgufModel& file);

/// Something in a file that contradicts something else.
struct GgufProblem {
  std::string where;  ///< tensor or key
  std::string what;
};
/// All that describe_gguf would refuse of the tensors, and beyond it blocks and matrices that are missing.
/// @throws InvalidInput as describe_gguf, for what leaves nothing to compare with.
std::vector<GgufProblem> check_gguf(const GgufModel& file);

/// Bytes [offset, offset + size) of a tensor of the source.
struct GgufRange {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
};

/// A tensor of the new model: ranges of one of the source, joined.
struct GgufOutputTensor {
  GgufTensorSpec spec;
  const GgufTensor* source = nullptr;
  std::vector<GgufRange> ranges = {};
};

struct GgufOutputFile {
  GgufMetadata metadata;
  std::vector<GgufOutputTensor> tensors;  ///< in the order of the source
};

/// What a plan makes of a model.
struct GgufRewrite {
  const GgufModel* source = nullptr;
  std::vector<GgufOutputFile> files;  ///< one for each of the source
  std::vector<std::string> notes;     ///< what the user should know, one sentence each
};

/// @param other  accept a plan whose fingerprint is not the one the file names.
/// @throws InvalidInput when the plan does not belong to the model (family, experts, groups, experts per token, MoE layers,
///         fingerprint), keeps a number of experts that the router cannot use, or cannot be done on bytes: then it says what can.
///         UsageError for Mtp::keep, since llama.cpp has one expert count for all blocks.
GgufRewrite prepare_gguf_rewrite(const GgufMoe& model, const Plan& plan, Mtp mtp = Mtp::prune, bool other = false);

/// "128x1.8B": experts, and parameters of the model with one expert; or "30B-A3B" where the source had a label of that form.
/// Source: the rule of llama.cpp's converter (gguf-py).
/// @param before  the source's label
/// @param active  parameters that a token uses changed, so that a label that says them is made anew
std::string gguf_size_label(std::string_view before, const std::vector<GgufOutputFile>& files, int experts, int experts_per_token,
                            bool active_changed);

struct GgufWriteOptions {
  bool overwrite = false;                    ///< replace files of that name that moetrim wrote
  int writers = 1;                           ///< threads
  const std::atomic<bool>* stop = nullptr;   ///< set by a signal handler
  /// Whether the kernel moves the bytes (copy_file_range), or threads through a block each. Unset: the kernel where the source is on
  /// another machine, which spares the bytes their way here and back.
  std::optional<bool> in_kernel = {};
};

/// What a rewrite would take.
struct GgufEstimate {
  std::uint64_t before_bytes = 0, after_bytes = 0;            ///< of tensors
  std::uint64_t before_parameters = 0, after_parameters = 0;
  std::uint64_t disk_bytes = 0;         ///< of the finished files, rounded up
  std::uint64_t free_disk_bytes = 0;
  std::uint64_t peak_memory_bytes = 0;  ///< buffers and lists; not the program itself
  std::vector<std::filesystem::path> outputs = {};
};
/// @param target  OUT.gguf; of several files the name before `-00001-of-0000N.gguf`.
/// @throws UsageError for a target that is not named .gguf, is the source, or exists and may not be replaced.
GgufEstimate estimate_gguf(const GgufRewrite& rewrite, const std::filesystem::path& target, const GgufWriteOptions& options = {});

/// Called after every range, by one thread at a time.
using GgufProgressFn = std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)>;

/// Writes the files. Memory: the source's header, twice, and a block a thread.
/// @return the files, the first one first.
/// @throws as estimate_gguf; OutOfResources before anything is written when the disk is too small; Interrupted, with nothing left.
std::vector<std::filesystem::path> write_gguf(const GgufRewrite& rewrite, const std::filesystem::path& target,
                                              const GgufWriteOptions& options = {}, const GgufProgressFn& progress = {});

}  // namespace moetrim
