// The ids of a trace: which experts every recorded token used, sequence by sequence.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "moetrim/checkpoint.h"
#include "moetrim/statistics.h"

namespace moetrim {

/// Tokens [begin, end) of one demonstration.
struct TraceSequence {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

class TraceReader {
 public:
  /// @throws InvalidInput naming the file that is damaged.
  TraceReader(std::filesystem::path folder, const StatisticsManifest& manifest);

  const std::vector<TraceSequence>& sequences() const { return sequences_; }
  std::int64_t tokens() const { return tokens_; }
  /// Layers of the model that were measured, without multi-token-prediction blocks: the last tokens have nothing to route
  /// there.
  const std::vector<int>& layers() const { return layers_; }
  /// [tokens, K], different experts of a token. @throws InvalidInput
  std::vector<std::int32_t> ids(int layer) const;

 private:
  std::vector<std::int32_t> column(const SafetensorsFile& file, const char* name, std::int64_t width) const;

  std::filesystem::path folder_;
  int experts_, experts_per_token_;
  std::int64_t tokens_ = 0;
  std::vector<int> layers_;
  std::vector<TraceSequence> sequences_;
};

}  // namespace moetrim
