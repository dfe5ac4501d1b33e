// Patterns: what calibration measured on one task each, kept in a library, and found again by what a query's first routers do.
//
// A pattern is one file and stands alone, so that any number of processes may add, read and remove patterns at the same time.
// Source of the idea: PreMoe's task-adaptive expert retrieval (arXiv 2505.17639). File format: docs/file_formats.md.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/statistics.h"

namespace moetrim {

/// What texts are compared by: the Stat of the same name per token, in the first MoE layers.
enum class SignatureStat : int {
  routed_count,     ///< how often an expert is used: what tells short texts apart best, see docs/patterns.md
  gate_sum,
  router_mass,
  tcess_logit_sum,  ///< PreMoe as published; not kept as a signature, but there in every pattern's statistics
};
inline constexpr int kSignatureStats = 3;  ///< that are kept as signatures
/// "routed_count", "gate_sum", "router_mass", "tcess_logit_sum".
std::string_view signature_stat_name(SignatureStat stat);

/// MoE layers, from the first one on, that a signature covers at most. A query that runs more is no quick look any more.
inline constexpr int kMostSignatureLayers = 8;

/// What one text did in the first MoE layers: by SignatureStat [depth, experts] per token.
struct TextRouting {
  std::array<std::vector<float>, kSignatureStats + 1> shares;
};

/// What a pattern is recognised by.
struct Signature {
  /// "task": the tokens that the pattern itself was measured on; "statistics": others, say prompts alone; "prompts": single
  /// prompts, which also show how far they lie from the signature.
  std::string source = "task";
  int depth = 0;             ///< MoE layers that it covers
  int prototypes = 1;        ///< a task may have several kinds of prompts; each gets a row of its own
  std::int64_t prompts = 0;  ///< that were routed one by one; 0 unless `source` says so
  std::array<std::vector<float>, kSignatureStats> rows = {};   ///< [depth, prototypes, experts] per token
  /// [depth] distance from its nearest row that 99% of those prompts keep within, over the first 1, 2, … layers; empty: not
  /// measured.
  std::array<std::vector<double>, kSignatureStats> radius = {};
};

/// Fewest prompts that a row of a signature may stand for.
inline constexpr int kLeastPromptsPerPrototype = 16;
/// Kinds of prompts that the signature of a task keeps apart, at most.
inline constexpr int kMostKinds = 16;

/// {"source", "depth", "prototypes"}, and "prompts" where there are any.
nlohmann::ordered_json signature_to_json(const Signature& signature);

/// The signature of a task as a whole. In the first layer its routed_count has a row for every kind of prompt that the
/// statistics keep apart (LayerStatistics::prompt_routing); what is rarer than kLeastPromptsPerPrototype, or beyond kMostKinds,
/// goes to the nearest of the others. All else, and a task without a frequent kind, has the mean.
/// @throws InvalidInput when no token of the task counted.
Signature signature_of_task(const Statistics& statistics, int task, std::string_view source);

/// Spherical k-means over the prompts' routed_count, which starts from the mean and adds the prompt that is farthest from all
/// rows; a row is the mean of its prompts. Fewer rows than asked for where there are not enough prompts.
/// @throws InvalidInput for fewer than kLeastPromptsPerPrototype prompts.
Signature signature_of_prompts(std::span<const TextRouting> prompts, int depth, int experts, int prototypes);

/// One task's statistics, added over the slices, without pairs of experts.
struct Pattern {
  StatisticsManifest manifest;   ///< with that task alone, and without what the pattern does not have
  Signature signature;
  std::vector<double> tokens = {};    ///< [layers] counted
  std::array<std::vector<double>, kStatCount> values = {};  ///< by Stat [layers, experts]
  std::vector<AtomStatistics> atoms = {};  ///< second-order statistics, by layer; empty: not kept
};

/// Takes a task out of statistics, with a signature of its own tokens. Second-order statistics that were read are kept.
/// @throws InvalidInput when no token of the task counted.
Pattern make_pattern(const Statistics& statistics, int task);

/// A name that may be that of a file everywhere. @throws UsageError saying what is wrong
void check_pattern_name(std::string_view name);

/// What a pattern is about, without its values.
struct PatternFacts {
  std::string name;
  StatisticsManifest manifest;
  Signature signature;                ///< without rows
  bool second_order = false;          ///< has second-order statistics
  std::uint64_t bytes = 0;            ///< of the file
};

/// Rows of many patterns side by side, to be compared with queries in one matrix product.
struct SignatureTable {
  SignatureStat stat = SignatureStat::routed_count;
  int depth = 1;
  int experts = 0;
  std::vector<std::string> names = {};     ///< ascending
  std::vector<double> limits = {};         ///< by pattern: distance beyond which a text does not belong to it
  std::vector<std::size_t> owner = {};     ///< by row: its pattern
  std::vector<float> rows = {};            ///< [rows, depth * experts]
};

/// A folder of patterns of one checkpoint: library.json, and a file per pattern.
///
/// Files are written beside and linked into place, so that a reader sees a whole pattern or none, and of writers that add the
/// same name at the same time one wins and the others are told. Nothing is shared that all writers would have to update.
class PatternLibrary {
 public:
  /// @throws InvalidInput when the folder is no library.
  static PatternLibrary open(const std::filesystem::path& folder);
  /// Opens the library, or makes one for the checkpoint of these statistics. @throws InvalidInput as open and check do
  static PatternLibrary open_or_make(const std::filesystem::path& folder, const StatisticsManifest& manifest);

  const std::filesystem::path& folder() const { return folder_; }
  const std::string& fingerprint() const { return fingerprint_; }
  /// @throws InvalidInput unless the statistics are of the library's checkpoint and layers.
  void check(const StatisticsManifest& manifest, const std::string& where) const;

  /// Ascending. Files that a killed writer left are no patterns.
  std::vector<std::string> names() const;
  std::filesystem::path file(std::string_view name) const;
  /// @throws InvalidInput when there is none, with the nearest name, or the file is damaged or of another library.
  PatternFacts facts(const std::string& name) const;
  Pattern read(const std::string& name) const;
  /// Of all patterns; those that are removed meanwhile are left out.
  std::vector<PatternFacts> list() const;

  /// Also removes what writers that were killed a day ago left.
  /// @throws InvalidInput when there is a pattern of that name and `overwrite` is not set, or it is of another checkpoint;
  ///         UsageError for a bad name.
  void add(const std::string& name, const Pattern& pattern, bool overwrite = false) const;
  /// @throws InvalidInput when there is none.
  void remove(const std::string& name) const;

  /// Reads a few kilobytes of every pattern.
  /// @throws InvalidInput naming a pattern whose signature is not that deep; UsageError when `depth` is not 1 for
  ///         tcess_logit_sum, which is PreMoe's.
  SignatureTable signatures(SignatureStat stat, int depth) const;

 private:
  PatternLibrary(std::filesystem::path folder, nlohmann::ordered_json head);
  [[noreturn]] void fail_missing(std::string_view name) const;
  void remove_left_overs() const;

  std::filesystem::path folder_;
  nlohmann::ordered_json head_;   // what all patterns have in common
  std::string fingerprint_;
};

/// One pattern's file outside a library. @throws InvalidInput naming file and tensor.
Pattern read_pattern(const std::filesystem::path& file);
/// The file appears when it is whole, and takes the place of another. Equal patterns give equal bytes.
void write_pattern(const std::filesystem::path& file, const Pattern& pattern);

struct RetrieveOptions {
  int nearest = 3;             ///< patterns that are named, at most
  double threshold = 0;        ///< confidence below which no pattern fits, in [0, 1]
  std::optional<double> limit = {};  ///< instead of the patterns' own
};

struct Match {
  std::string name;
  double distance = 0;
};

/// What a query is like.
struct Retrieval {
  std::vector<Match> nearest;   ///< nearest first; ties: by name
  /// 1 - d / min(limit, d of the second pattern), d the distance of the nearest, not below 0: 1 is a text that lies on the
  /// pattern, 0 one that lies between two, or at the border of what the pattern holds. Without a limit, by the second alone.
  double confidence = 0;
  bool fits = false;            ///< within the limit, and confidence not below the threshold
};

/// Distances of texts from patterns: 1 - cosine to the pattern's nearest row; for tcess_logit_sum, as published, the squared
/// Euclidean distance, without a limit.
/// @throws InvalidInput when the table is empty.
std::vector<Retrieval> retrieve(const SignatureTable& table, std::span<const TextRouting> texts,
                                const RetrieveOptions& options);

/// Statistics with one task per pattern, in the order given, for scores and plans. All tokens lie in the first slice: there are
/// no others to tell how sure a score is, and no pairs of experts. Second-order statistics where all patterns have them.
/// @param names  of the tasks. @throws InvalidInput when patterns are of different checkpoints.
Statistics statistics_of(std::span<const Pattern> patterns, std::span<const std::string> names);

}  // namespace moetrim
