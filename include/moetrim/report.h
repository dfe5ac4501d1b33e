// What was measured, made readable: load, specialisation, local routing consistency, and how sure a kept set is.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/confidence.h"
#include "moetrim/plan.h"
#include "moetrim/statistics.h"

namespace moetrim {

/// How a layer's counted tokens are spread over its experts. n_e: tokens routed to e, T: tokens, of the chosen tasks.
struct LayerLoad {
  int layer = 0;              ///< absolute id
  double tokens = 0;          ///< T
  int most_used = 0, least_used = 0;         ///< experts; ties go to the lower id
  double most_share = 0, least_share = 0;    ///< their n_e / T
  double variation = 0;       ///< standard deviation of n_e over their mean
  int unseen = 0;             ///< experts with n_e = 0
  double entropy = 0;         ///< of n_e / sum n over log E: 1 where all are used alike
  std::optional<double> soft_entropy;  ///< the same of the router's probability before selection; absent where there is none
};
/// @param tasks  indices
std::vector<LayerLoad> routing_load(const Statistics& statistics, const std::vector<int>& tasks);

/// How much the tasks use different experts of a layer. q_t(e): share of task t's routed tokens that expert e has.
struct LayerSpecialisation {
  int layer = 0;                 ///< absolute id
  double divergence = 0;         ///< Jensen-Shannon, tasks weighing alike: H(mean q) - mean H(q), in bits
  double mutual_information = 0; ///< of task and expert, tasks weighing by their routed tokens, in bits
  struct Own {
    int expert = 0;
    int task = 0;                ///< index
    double share = 0;            ///< q_t(e) over the sum of all tasks' q(e)
  };
  std::vector<Own> own;          ///< experts that one task has at least nine tenths of; ascending
};
/// Tasks without counted tokens in a layer are left out there. @param tasks  indices, two or more
std::vector<LayerSpecialisation> specialisation(const Statistics& statistics, const std::vector<int>& tasks);

/// A figure and its 95% basic bootstrap interval over sequences: [2 x - q97.5, 2 x - q2.5].
struct Estimate {
  double value = 0;
  std::optional<std::pair<double, double>> interval;  ///< absent where there is one sequence
};

/// A set of experts for a whole window of m tokens, as a router of windows would choose: those with at least `threshold` of
/// the tokens. F1 of it against what the tokens use is SRP at the best threshold.
struct SegmentRouting {
  double srp = 0;
  int threshold = 0;   ///< p; ties go to the smallest
  double held = 0;     ///< tokens times experts held over those used: how much larger than K the set is
};

/// Segment routing best performance (arXiv:2505.16056), from a trace.
struct RoutingConsistency {
  int window = 0;                                ///< m
  std::int64_t windows = 0;                      ///< of a layer; 0: no sequence is that long, and the rest says nothing
  SegmentRouting model;                          ///< one threshold for all layers and experts
  Estimate srp;                                  ///< of the model
  std::vector<SegmentRouting> layers;            ///< one threshold for the experts of a layer
  std::vector<std::vector<double>> experts;      ///< [layers][E] SRP with a threshold of its own; 0 for an unused expert
};

/// Segment cache best hit rate (arXiv:2505.16056): hits of a cache that holds so many of a layer's experts and, where it is
/// full, gives up the one that the next m tokens use least, of equals the one used longest ago.
struct CacheHits {
  int window = 0;                                ///< m
  struct Size {
    int experts = 0;                             ///< of every layer
    Estimate model;                              ///< hits over accesses, all layers together
    std::vector<double> layers;
  };
  std::vector<Size> sizes;                       ///< K, 2 K, 3 K, 4 K where a layer has as many
};

struct TraceReport {
  std::int64_t tokens = 0;
  std::int64_t sequences = 0;
  std::vector<int> layers;                       ///< absolute ids, without multi-token-prediction blocks
  std::vector<RoutingConsistency> consistency;
  std::vector<CacheHits> cache;
};

struct TraceOptions {
  std::vector<int> windows{4, 16, 64, 256};
  int resamples = 1000;
  std::uint64_t seed = 0;
};

/// Reads `FOLDER/trace`, a layer at a time. @return nothing where calibration recorded none.
/// @throws InvalidInput naming the file that is missing or damaged.
std::optional<TraceReport> report_trace(const std::filesystem::path& folder, const StatisticsManifest& manifest,
                                        const TraceOptions& options);

/// What the statistics say about a plan.
struct PlanReport {
  double routed_share = 0;       ///< of the routed tokens, those whose expert has a router row after it; mean over layers
  double least_routed_share = 0;
  int least_layer = 0;           ///< absolute id
  std::vector<double> convergence;              ///< see convergence(); empty where it cannot be said, and `why` says why
  std::optional<KeptSetConfidence> confidence;  ///< absent where `why` says so
  std::string why;
};
/// @throws InvalidInput when the plan is of another checkpoint.
PlanReport report_plan(const Statistics& statistics, const Plan& plan, int resamples, std::uint64_t seed);

struct Report {
  std::vector<std::string> tasks;                    ///< all names
  std::vector<int> chosen;                           ///< indices of those that load and specialisation are of
  std::vector<LayerLoad> load;
  std::vector<LayerSpecialisation> specialisation;   ///< empty with one task
  std::optional<TraceReport> trace;
  std::vector<std::pair<std::string, PlanReport>> plans;  ///< by file
};
nlohmann::ordered_json report_to_json(const Report& report);
/// Tables for a terminal.
std::string report_to_text(const Report& report);

}  // namespace moetrim
