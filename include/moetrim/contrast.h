// Which experts a behaviour uses: routing in some tasks held against routing in others, or against a marker in the text.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/statistics.h"

namespace moetrim {

enum class ContrastMeasure {
  ftri,  ///< difference of relative activation frequencies (MoTE, arXiv:2502.11096)
  npmi,  ///< normalised pointwise mutual information of an expert and a marker (RICE, arXiv:2505.14681)
};
/// "ftri" or "npmi".
std::string_view contrast_measure_name(ContrastMeasure measure);

struct RankedExpert {
  int layer = 0;              ///< absolute id
  int expert = 0;
  double score = 0;           ///< in [-1, 1]
  double count = 0;           ///< counted tokens routed to it: of the tasks (ftri), of the marker (npmi)
  double against_count = 0;   ///< the same of the tasks they are held against (ftri), of all counted tokens (npmi)
  /// ftri: of the score, by leaving out one slice of the demonstrations at a time; absent where a side has only one slice.
  std::optional<double> standard_error = {};
  /// ftri: share of the slices that both sides have in which the difference has the score's sign.
  std::optional<double> agreement = {};
  std::optional<double> pmi = {};  ///< npmi: in bits; absent for an expert that no token of the marker reached
};

/// Experts of all layers, by descending score; ties go to the lower layer, then to the lower expert.
struct Contrast {
  ContrastMeasure measure = ContrastMeasure::ftri;
  std::string checkpoint_fingerprint;
  std::string family;
  int experts = 0;                ///< per layer
  std::vector<int> layers;        ///< absolute ids of the MoE layers
  std::vector<RankedExpert> ranked;
  nlohmann::ordered_json source = nlohmann::ordered_json::object();  ///< tasks, marker, least count: for the reader
};

/// fTRI. The relative activation frequency of an expert is the share of the counted tokens that were routed to it, in a
/// layer; the experts' frequencies add up to K. Tasks of one side are pooled token by token.
///
/// The standard error is the jackknife's over slices, demonstrations of a slice together: the two sides' squares added up.
/// @param least_count  leaves out experts that fewer counted tokens of both sides together reached.
/// @throws InvalidInput for an unknown task or one without counted tokens; UsageError for a task on both sides or twice.
Contrast contrast_tasks(const Statistics& statistics, const std::vector<std::string>& tasks,
                        const std::vector<std::string>& against, double least_count);

/// What one layer's counted tokens say about a marker.
struct MarkerCounts {
  int layer = 0;                ///< absolute id
  double tokens = 0;            ///< T, counted
  double marker_tokens = 0;     ///< those of them that are part of the marker
  std::vector<double> routed;   ///< [E] tokens routed to the expert
  std::vector<double> marker;   ///< [E] those of them that are part of the marker
};

/// Normalised PMI over the counted tokens of a layer: x, the token is part of the marker, and y, it is routed to the expert.
/// p are shares of those tokens, PMI = log2(p(y|x) / p(y)), nPMI = PMI / -log2 p(x, y), in [-1, 1]: 1 where x and y only
/// come together, 0 where one says nothing about the other, -1 where they never come together (PMI is then minus infinity).
/// @param least_count  leaves out experts that fewer counted tokens reached; those that no token reached always are.
/// @throws InvalidInput when a layer has no token of the marker, or no other one, or counts contradict each other.
Contrast contrast_marker(const StatisticsManifest& manifest, const std::vector<MarkerCounts>& layers, double least_count);

/// Reads the counts of one marker, of some tasks added up, from a folder with vectors (`calibrate --marker`).
/// @param tasks  empty: all
/// @throws InvalidInput when there is no such marker, listing those there are.
std::vector<MarkerCounts> read_marker_counts(const Statistics& statistics, const std::filesystem::path& folder,
                                             const std::string& marker, const std::vector<std::string>& tasks);

/// {"format": "moetrim-contrast", …}, see docs/behaviour.md.
nlohmann::ordered_json contrast_to_json(const Contrast& contrast);
/// One ranked expert a line; equal contrasts give equal bytes.
void write_contrast(const std::filesystem::path& file, const Contrast& contrast);
/// @throws InvalidInput naming file and field; ids out of range, doubled or out of order are refused.
Contrast read_contrast(const std::filesystem::path& file);

}  // namespace moetrim
