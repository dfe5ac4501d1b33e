// A shard on its way to its file: jobs that threads do in any order.

#include "export/shard_file.h"

#include <algorithm>
#include <random>
#include <span>
#include <utility>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim::export_detail {

namespace {

constexpr std::size_t kJobsAhead = 6;  ///< that the kernel reads while one is being copied

/// Two processes may write one shard at a time, each the same bytes, where a shared file system keeps no locks.
std::string random_tag() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

std::uint64_t step_bytes(const OutputTensor& tensor, std::size_t step) {
  if (!tensor.literal.empty()) return tensor.literal.size();
  if (tensor.factor) return tensor.spec.bytes();
  return tensor.computation ? tensor.spec.bytes() / step_count(tensor) : tensor.pieces[step].bytes();
}

bool only_moves(const OutputTensor& tensor, std::size_t step) {
  return tensor.literal.empty() && !tensor.computation && !tensor.pieces[step].recipe && !tensor.pieces[step].cut.atoms;
}

const Tensor* source_of(const OutputTensor& tensor) { return tensor.pieces.empty() ? nullptr : tensor.pieces.front().source; }

/// The experts that a merged one was made of have no other tensor of their own in the new checkpoint.
void drop_parts(const Checkpoint& source, const Model& model, const Piece& piece) {
  if (!piece.recipe || !piece.recipe->group) return;
  const TensorPlace& place = place_of(model, *piece.source);
  for (const Contribution& part : piece.recipe->parts) {
    for (const Tensor* tensor : weight_of(model, place, part.expert).parts) {
      if (tensor != nullptr) source.drop_cache(*tensor);
    }
  }
}

void add_move(std::vector<Job>& jobs, const SafetensorsFile& source, std::uint64_t offset, std::uint64_t at, std::uint64_t size) {
  if (!jobs.empty() && jobs.back().source == &source && jobs.back().offset + jobs.back().size == offset) {
    const std::uint64_t more = std::min(size, kMoveBytes - jobs.back().size);
    jobs.back().size += more;
    offset += more, at += more, size -= more;
  }
  for (std::uint64_t part = 0; size > 0; offset += part, at += part, size -= part) {
    part = std::min(size, kMoveBytes);
    jobs.push_back({.at = at, .size = part, .source = &source, .offset = offset});
  }
}

}  // namespace

std::vector<Job> jobs_of(const Checkpoint& source, const Shard& shard) {
  std::vector<Job> jobs;
  std::uint64_t at = 0;
  for (std::size_t t = 0; t < shard.tensors.size(); ++t) {
    const OutputTensor& tensor = *shard.tensors[t];
    const bool shared = t + 1 < shard.tensors.size() && source_of(tensor) == source_of(*shard.tensors[t + 1]);
    const std::size_t steps = step_count(tensor);
    for (std::size_t step = 0; step < steps; ++step) {
      const std::uint64_t size = step_bytes(tensor, step);
      if (only_moves(tensor, step)) {
        const Piece& piece = tensor.pieces[step];
        add_move(jobs, source.files()[piece.source->file], piece.source->offset + piece.begin, at, size);
      } else {
        jobs.push_back({.at = at, .size = size, .tensor = &tensor, .step = step, .last_use = step + 1 == steps && !shared});
      }
      at += size;
    }
  }
  if (jobs.empty()) jobs.push_back({.source = &source.files().front()});  // a file without data has to be finished too
  return jobs;
}

ShardFile::ShardFile(const Checkpoint& source, const Shard& shard, std::filesystem::path file, Cached cached)
    : source_(source), cached_(cached), jobs_(jobs_of(source, shard)),
      writer_(std::move(file), shard.specs(), {}, random_tag()) {
  for (std::size_t job = 0; job < kJobsAhead; ++job) read_soon(job);
}

void ShardFile::read_soon(std::size_t index) const {
  if (index >= jobs_.size()) return;
  const Job& job = jobs_[index];
  if (job.source != nullptr) job.source->read_soon(job.offset, job.size);
}

void ShardFile::write(std::size_t index, Workbench& bench, const std::function<void(std::uint64_t)>& written) {
  const Job& job = jobs_[index];
  read_soon(index + kJobsAhead);
  if (job.source == nullptr) return write_step(job, bench, written);
  move(job);
  written(job.size);
}

void ShardFile::move(const Job& job) {
  writer_.copy_at(job.at, *job.source, job.offset, job.size);
  if (cached_ == Cached::drop) job.source->drop_cache(job.offset, job.size);
}

void ShardFile::write_step(const Job& job, Workbench& bench, const std::function<void(std::uint64_t)>& written) {
  bench.block.resize(kBlockBytes);
  bench.reader.open(*job.tensor, job.step);
  std::uint64_t done = 0;
  for (std::size_t filled = kBlockBytes; filled == kBlockBytes;) {
    filled = bench.reader.read(bench.block);
    const auto block = std::span<const std::byte>(bench.block).first(filled);
    if (done + filled > job.size) break;
    writer_.write_at(job.at + done, block);
    done += filled;
    written(filled);
  }
  if (done != job.size) throw Error(fmt::format("tensor {}: its part {} is not {} bytes long", job.tensor->spec.name, job.step, job.size));
  drop_cache(job, bench.model);
}

void ShardFile::drop_cache(const Job& job, const Model& model) const {
  const Tensor* source = source_of(*job.tensor);
  if (cached_ == Cached::keep || !job.last_use || source == nullptr) return;
  source_.drop_cache(*source);
  for (const Piece& piece : job.tensor->pieces) drop_parts(source_, model, piece);
  if (!job.tensor->computation) return;
  for (const Tensor* part : job.tensor->computation->weight->parts) {
    if (part != nullptr) source_.drop_cache(*part);
  }
}

}  // namespace moetrim::export_detail
