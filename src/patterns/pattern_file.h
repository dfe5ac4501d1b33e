// A pattern as one safetensors file, private to the stage: what is known of it in the header's metadata, then F64 tensors, and
// last the signature, of which retrieval reads the first layers alone.
#pragma once

#include <filesystem>
#include <string>

#include "moetrim/checkpoint.h"
#include "moetrim/patterns.h"

namespace moetrim {

inline constexpr std::string_view kPatternEnding = ".safetensors";

/// A pattern file that was opened, and whose header was checked whole: every tensor has the shape that the facts demand.
class PatternFile {
 public:
  /// @throws InvalidInput naming file and tensor.
  explicit PatternFile(const std::filesystem::path& path);

  PatternFacts facts() const;
  const StatisticsManifest& manifest() const { return facts_.manifest; }
  /// See head.h.
  const nlohmann::ordered_json& head() const { return head_; }
  const Signature& signature() const { return facts_.signature; }
  Pattern read() const;
  /// The signature's rows over its first layers, [prototypes, depth * experts].
  std::vector<float> signature_rows(SignatureStat stat, int depth) const;
  /// Distance that 99% of the prompts keep within over those layers; absent: not measured.
  std::optional<double> radius(SignatureStat stat, int depth) const;
  /// PreMoe's signature: tcess_logit_sum of the first MoE layer per token.
  std::vector<float> published_row() const;

 private:
  void read_metadata();

  SafetensorsFile file_;
  PatternFacts facts_;              // without a name
  nlohmann::ordered_json head_;
};

}  // namespace moetrim
