// A shard on its way to its file: jobs that threads do in any order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "export/shards.h"
#include "export/tensor_reader.h"
#include "moetrim/export.h"

namespace moetrim::export_detail {

/// What becomes of the page cache of what was read.
enum class Cached : std::uint8_t { drop, keep };

/// Bytes that are only moved are jobs of at most this size: enough to read in one go, little enough to share out.
inline constexpr std::uint64_t kMoveBytes = std::uint64_t{8} << 20;

/// Bytes [at, at + size) of a shard's data: a run of bytes of the source, or a step of a tensor.
struct Job {
  std::uint64_t at = 0, size = 0;
  const SafetensorsFile* source = nullptr;  ///< bytes that are only moved, from `offset` on; null: the step
  std::uint64_t offset = 0;
  const OutputTensor* tensor = nullptr;
  std::size_t step = 0;
  bool last_use = false;                    ///< of the step's source, as far as the shard goes
};

/// At least one. Runs that touch in the source, as tensors that stay side by side do, are joined.
std::vector<Job> jobs_of(const Checkpoint& source, const Shard& shard);

/// What a thread keeps from one job to the next.
struct Workbench {
  Workbench(const Checkpoint& source, const Model& its_model, Alignments& alignments)
      : model(its_model), reader(source, its_model, alignments) {}

  const Model& model;
  TensorReader reader;
  std::vector<std::byte> block;  ///< kBlockBytes, once it is needed
};

class ShardFile {
 public:
  /// @param file  gets its name when all jobs are done and finish() is called; until then others may write it too
  ShardFile(const Checkpoint& source, const Shard& shard, std::filesystem::path file, Cached cached);

  std::size_t job_count() const { return jobs_.size(); }
  /// Does a job. Thread-safe. @param written  called after every block with its size
  void write(std::size_t job, Workbench& bench, const std::function<void(std::uint64_t)>& written);
  void finish() { writer_.finish(); }

 private:
  void read_soon(std::size_t job) const;
  void move(const Job& job);
  void write_step(const Job& job, Workbench& bench, const std::function<void(std::uint64_t)>& written);
  void drop_cache(const Job& job, const Model& model) const;

  const Checkpoint& source_;
  const Cached cached_;
  std::vector<Job> jobs_;
  SafetensorsWriter writer_;
};

/// Temporary names of shards end with this, after a tag of their own.
inline constexpr const char* kPartialEnd = ".partial";

}  // namespace moetrim::export_detail
