// Statistics on request of one MoE layer and one token group.
#pragma once

#include <cstdint>
#include <vector>

#include "calibrate/token_groups.h"
#include "moetrim/forward.h"
#include "moetrim/vector_sums.h"
#include "moetrim/vectors.h"

namespace moetrim {

/// What of a layer is measured, and the sums of the groups so far, to which it is added.
class VectorMeasure {
 public:
  /// @param sequences  what is measured in this layer
  /// @param earlier    the groups before this one, or zeros
  /// @param first      whether this is the first group: what is not measured but read off the weights is taken there
  VectorMeasure(const std::vector<Task>& tasks, const StatisticsManifest::Vectors& facts, const TokenGroup& group,
                std::vector<MeasuredSequence> sequences, ExpertVectors earlier, bool first);
  VectorMeasure(const VectorMeasure&) = delete;
  VectorMeasure& operator=(const VectorMeasure&) = delete;

  /// What the forward pass adds to. Valid as long as this is.
  VectorSums& sums() { return sums_; }
  /// Adds what the routing tells, and hands out the sums.
  ExpertVectors finish(const RoutedLayer& routed);

 private:
  void choose_common_tokens(const std::vector<Task>& tasks);
  void choose_samples(const std::vector<double>& keys);
  void bind(bool first);
  void count_markers(const RoutedLayer& routed);

  const StatisticsManifest::Vectors& facts_;
  const TokenGroup& group_;
  const std::vector<MeasuredSequence> sequences_;
  ExpertVectors vectors_;
  ExpertVectors samples_;   // of this group alone
  std::vector<std::int32_t> task_, demonstration_, common_tokens_, sample_rows_;
  VectorSums sums_;
};

/// Bytes of memory that a layer's sums take while a group is measured, and of disk.
std::uint64_t vector_memory(const Model& model, std::size_t tasks, const StatisticsManifest::Vectors& facts);
std::uint64_t vector_file_bytes(const Model& model, std::size_t tasks, const StatisticsManifest::Vectors& facts);
/// Of memory, for every token of a group.
inline constexpr std::uint64_t kVectorTokenBytes = 4 * sizeof(std::int32_t) + sizeof(double);

/// Where a text's tokens are: for every token of the group whether it is part of one of the spellings inside one demonstration.
std::vector<bool> marked_tokens(const TokenGroup& group, const StatisticsManifest::Vectors::Marker& marker);

}  // namespace moetrim
