// Which atomic expert of a merged expert belongs to which of the expert that it merges into.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "moetrim/family.h"
#include "moetrim/slab_recipe.h"

namespace moetrim::export_detail {

/// Per member of a group, and per atomic expert of `into`, the member's atomic expert that goes to its place; an empty one
/// leaves the member as it is.
using Permutations = std::vector<std::vector<std::int32_t>>;

/// Finds the permutations of a group when they are first asked for, and keeps those of the latest groups: the tensors of a
/// group's experts follow one another. For any number of threads.
///
/// Alignment::weights makes the sum over all tensors of the inner products of atomic experts that come together largest:
/// Gate_r Gate_t^T + Up_r Up_t^T + Down_r^T Down_t, and the products of their biases. M-SMoE (arXiv 2310.01334) has this
/// for two matrices without a gate; the sum of three is the obvious extension and ours. Alignment::activations does the same
/// for Pearson's correlations of the atomic experts' values on the sampled tokens; one that never varies correlates with
/// none. Members are aligned with the expert they merge into, not with expert 0 of the layer as published.
class Alignments {
 public:
  /// Source and model must outlive this. @param statistics  with sampled activations; may be empty where none are needed
  Alignments(const Checkpoint& source, const Model& model, std::filesystem::path statistics);
  ~Alignments();

  /// @throws InvalidInput naming the experts when their values are not finite, or the statistics do not fit the model.
  std::shared_ptr<const Permutations> of(const std::shared_ptr<const AlignedGroup>& group);

  /// Memory that a thread needs beside what is kept, which is kKeptBytes at most.
  static std::uint64_t work_bytes(const Model& model, const AlignedGroup& group);
  static constexpr std::uint64_t kKeptBytes = std::uint64_t{32} << 20;

 private:
  struct Entry;
  struct Samples;
  Permutations find(const AlignedGroup& group);
  std::vector<std::int32_t> by_weights(int layer, int reference, int member);
  std::vector<std::int32_t> by_activations(const Samples& samples, int reference, int member) const;
  std::shared_ptr<const Samples> samples_of(int layer);

  const Checkpoint& source_;
  const Model& model_;
  const std::filesystem::path statistics_;
  std::mutex mutex_;                                                ///< over what follows
  std::map<const AlignedGroup*, std::shared_ptr<Entry>> entries_;
  std::deque<const AlignedGroup*> order_;                           ///< of their arrival
  std::uint64_t kept_bytes_ = 0;
  std::mutex samples_mutex_;                                        ///< over what follows
  std::shared_ptr<const Samples> samples_;                          ///< of the latest layer
};

}  // namespace moetrim::export_detail
