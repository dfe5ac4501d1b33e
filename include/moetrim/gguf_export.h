// Checkpoints in Hugging Face layout to GGUF, with the tensors, types and keys that llama.cpp's own converter would write, and
// on request pruned on the way.
//
// Every tensor is produced and written in pieces: a block of rows, or one matrix of one expert where that is stored quantised or
// input first. So memory does not depend on the model's size, and the bytes do not depend on the number of threads. A file
// appears under its name only when whole; of several the first appears last, and without it no reader opens the others.
//
// Source: llama.cpp release v0.5.0, conversion/ and gguf-py/. Where we differ is listed in docs/gguf.md.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "moetrim/family.h"
#include "moetrim/gguf_file.h"
#include "moetrim/plan.h"
#include "moetrim/rewrite.h"

namespace moetrim {

/// "f32", "f16", "bf16" or "q8_0". @throws UsageError for any other
GgmlType parse_gguf_dtype(std::string_view text);

struct GgufExportOptions {
  GgmlType type = GgmlType::bf16;  ///< of matrices; vectors, norms and routers are always f32
  const Plan* plan = nullptr;      ///< prunes on the way: whole experts, in any order of slots
  Mtp mtp = Mtp::prune;            ///< what becomes of multi-token-prediction blocks; without a plan prune is keep
  bool allow_other_checkpoint = false;
  bool tokenizer = true;           ///< false: a file that llama.cpp loads, but takes tokens only, no text
  std::string pretokenizer = {};   ///< see gguf_tokenizer
};

/// One matrix of a tensor: that of a weight, or of one expert of it.
struct GgufSlab {
  const Weight* weight = nullptr;
  int expert = -1;  ///< of a fused weight
  /// Rows of the weight's matrix [N, K] in their new order, N outputs; null: all.
  std::shared_ptr<const std::vector<std::uint32_t>> rows = {};
};

/// What is done to a value.
enum class GgufChange : std::uint8_t { none, plus_one, negated_exponential };

/// A tensor of the new file. It is its slabs [rows, cols], one behind the other, or `values`.
struct GgufPlannedTensor {
  GgufTensorSpec spec;
  std::vector<GgufSlab> slabs;
  std::int64_t rows = 0, cols = 0;  ///< as written
  std::int64_t transposed_rows = 0; ///< every run of that many rows of the slab is transposed by itself; 0: none
  /// Columns of the slab's matrix in their new order; null: as they are.
  std::shared_ptr<const std::vector<std::uint32_t>> columns = {};
  GgufChange change = GgufChange::none;
  std::vector<float> values = {};   ///< of a tensor without slabs
};

/// Everything that is to be written. Points into the model and its checkpoint, which must outlive it.
struct GgufExport {
  const Model* model = nullptr;
  GgufMetadata metadata;
  std::vector<GgufPlannedTensor> tensors;
  std::vector<std::string> notes;  ///< for the user, one sentence each
};

/// Checks that llama.cpp can compute what the model computes, and prepares the file.
/// @throws InvalidInput naming the config key, tensor or option of the plan that llama.cpp, or this way of pruning, has nothing
///         for; when the plan does not fit (check_plan); or the tokenizer cannot be written.
GgufExport prepare_gguf_export(const Model& model, const GgufExportOptions& options);

struct GgufTarget {
  std::filesystem::path file;     ///< OUT.gguf; of several files OUT-00001-of-0000N.gguf
  std::uint64_t shard_bytes = 0;  ///< tensor bytes of a file, where several are wanted; 0: one file
  bool overwrite = false;
  int writers = 1;                ///< threads
  const std::atomic<bool>* stop = nullptr;  ///< set by a signal handler: ends the run at once, without files
};

struct GgufExportEstimate {
  std::uint64_t tensor_bytes = 0, parameters = 0;
  std::vector<std::pair<GgmlType, std::uint64_t>> bytes_by_type;  ///< ascending types
  std::vector<std::filesystem::path> files;
  std::uint64_t disk_bytes = 0, free_disk_bytes = 0;
  std::uint64_t peak_memory_bytes = 0;  ///< buffers and the list of tensors; not the program itself
};
/// Reads and writes nothing. @throws UsageError for a target that is not named .gguf, or is there already
GgufExportEstimate describe_gguf_export(const GgufExport& request, const GgufTarget& target);

/// Called after every piece, by one thread at a time.
using GgufExportProgress = std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)>;

/// Writes the files.
/// @throws as describe_gguf_export; InvalidInput naming the tensor when a value is no number, or too large for its type;
///         OutOfResources, naming the bytes, before anything is written and when the disk fills up; Interrupted.
void write_gguf_export(const GgufExport& request, const GgufTarget& target, const GgufExportProgress& progress = {});

}  // namespace moetrim
