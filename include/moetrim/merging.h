// Plans that merge: which experts of a layer become one, and with what weights.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moetrim/plan.h"
#include "moetrim/score.h"
#include "moetrim/statistics.h"
#include "moetrim/vectors.h"

namespace moetrim {

/// What is compared where a method leaves the choice.
enum class MergeFeatures {
  outputs,  ///< an expert's mean output over tokens that every expert was run on
  logits,   ///< an expert's raw router logits, token by token
  weights,  ///< all values of an expert's matrices
};
/// "outputs", "logits", "weights".
std::string_view merge_features_name(MergeFeatures features);
/// @throws UsageError
MergeFeatures merge_features_from_name(std::string_view name);

/// How far apart two clusters are, given the distances of their experts; as scipy.cluster.hierarchy defines them.
enum class Linkage {
  average,   ///< mean over all pairs (UPGMA)
  complete,  ///< of the farthest pair
  single,    ///< of the nearest pair
  ward,      ///< by which the square root of twice the squared error grows
};
/// "average", "complete", "single", "ward".
std::string_view linkage_name(Linkage linkage);
/// @throws UsageError
Linkage linkage_from_name(std::string_view name);

/// How the experts that stay are shared out among the layers.
enum class MergeCounts {
  uniform,   ///< as many in every layer
  adaptive,  ///< more where usage is spread: M-SMoE's threshold over all layers
};
/// "uniform", "adaptive".
std::string_view merge_counts_name(MergeCounts counts);
/// @throws UsageError
MergeCounts merge_counts_from_name(std::string_view name);

/// What is known of the experts that may be merged with each other: n of a layer, or of one of its router's groups, by
/// ascending id. fp64, row-major.
struct MergeFacts {
  std::vector<double> usage = {};     ///< [n] tokens routed to the expert, per counted token
  std::vector<double> mass = {};      ///< [n] the router's probability before selection, per counted token
  std::vector<double> saliency = {};  ///< [n] REAP's score
  std::vector<double> gram = {};      ///< [n, n] products of raw router logits, per counted token; empty unless needed
  std::vector<double> outputs = {};   ///< [n, hidden] mean outputs; likewise
  std::vector<double> weight_distances = {};  ///< [n, n]; likewise
  std::size_t hidden = 0;

  int size() const { return static_cast<int>(usage.size()); }
};

struct MergeOptions {
  MergeFeatures features = MergeFeatures::outputs;  ///< of methods that leave the choice
  Linkage linkage = Linkage::average;               ///< of hierarchical clustering
  int group_size = 16;                              ///< most experts of a group, of methods with such a limit
};

/// Groups the experts 0 to n - 1, each in exactly one group, alone or with others.
/// @param count  of groups, from 1 to n.
/// @return exactly `count` groups by their lowest member, members ascending, weights that sum to 1.
/// @throws InvalidInput when the options leave no such grouping.
using GroupFn = std::vector<MergeGroup> (*)(const MergeFacts& facts, int count, const MergeOptions& options);

struct MergingMethod {
  std::string_view name;     ///< spelling in recipes and on the command line
  std::string_view source;   ///< paper
  std::string_view weights;  ///< what a member's weight is in proportion to
  Alignment align;           ///< unless another is asked for
  bool needs_logits;         ///< MergeFacts::gram
  bool needs_outputs;        ///< MergeFacts::outputs
  bool chooses_features;     ///< needs one of the two, as MergeOptions::features says
  bool has_linkage;          ///< reads MergeOptions::linkage
  bool has_group_size;       ///< reads MergeOptions::group_size
  bool adaptive;             ///< knows MergeCounts::adaptive
  GroupFn group;
};

/// Every method, in the order of `methods.def`.
std::span<const MergingMethod* const> merging_methods();
/// @throws UsageError listing the known names, with a suggestion.
const MergingMethod& find_merging_method(std::string_view name);

/// Experts of every layer whose usage is above one threshold over all layers: M-SMoE's number of groups (arXiv:2310.01334).
///
/// Each layer's usage is made to sum to 1, its most used expert and those that are protected are set to 1, and the threshold
/// is the value that `average` experts per layer leave below them: experts strictly above it count, so ties go out together
/// and the sum may be less than the budget, never more. A layer keeps at least one.
/// @param usage    [layers][experts]
/// @param fixed    the same; experts that stay whatever their usage. Empty: none.
/// @throws InvalidInput when no threshold is below 1: fewer groups than experts that stay whatever their usage.
std::vector<int> adaptive_counts(const std::vector<std::vector<double>>& usage, const std::vector<std::vector<bool>>& fixed,
                                 int average);

struct MergeRequest {
  std::string method;
  KeepBudget to = {};          ///< experts of every layer after merging; with `adaptive` their mean
  MergeCounts counts = MergeCounts::uniform;
  std::optional<MergeFeatures> features = {};
  std::optional<Linkage> linkage = {};
  std::optional<int> group_size = {};
  MergedRouter router = MergedRouter::centroid;
  std::optional<Alignment> align = {};  ///< none: the method's own
  std::vector<std::pair<std::string, double>> task_weights = {};  ///< as for score()
  Variant variant = Variant::executed;  ///< of REAP's score, for methods that weigh by it
  /// Of a layer, as weight_distances() gives it; for MergeFeatures::weights only.
  std::function<std::vector<double>(int layer)> weight_distances = {};
};

/// How far apart the matrices of a layer's experts are: Euclidean, over gate, up and down together, biases left out.
/// Blocks of all experts are compared as they are read, once; memory is 512 KiB for each.
/// @return [experts, experts] fp64
/// @throws InvalidInput naming the tensor for quantised weights, and for values that are not finite.
std::vector<double> weight_distances(const Model& model, int layer);

/// Whether the options say something to the method and go together: before anything is measured.
/// @throws UsageError
void check_merge(const MergeRequest& request);
/// Also what such a router refuses. @param regroup  all experts become one group. @throws InvalidInput
void check_merge(const MergeRequest& request, const RouterLimits& limits, bool regroup);
/// Whether the statistics must have every expert's outputs: calibrate --statistics all-experts.
bool needs_all_experts(const MergeRequest& request);
/// Whether they must have anything beside counts: calibrate --statistics vectors.
bool needs_vectors(const MergeRequest& request);
/// Whether activations of sampled tokens are compared when the new checkpoint is written.
bool aligns_by_activations(const MergeRequest& request);

/// Reads what calibration recorded of a layer on request.
using ReadVectors = std::function<ExpertVectors(int layer)>;

/// Merges experts that a plan keeps, until every layer has as many as were asked for. Protected experts stay as they are and
/// nothing is merged into them; experts of different router groups are not merged, and every group ends with as many.
///
/// Several tasks: each one's sums per counted token, by weight. A layer's vectors are in memory one at a time.
/// @param base     a plan over experts made from `statistics`, without atomic experts.
/// @throws InvalidInput when that number is not legal, is none below what `base` keeps, leaves no room for the protected
///         experts, or statistics are missing; UsageError as check_merge.
Plan merge_plan(Plan base, const Statistics& statistics, const ReadVectors& vectors, const MergeRequest& request);

/// @throws UsageError when a plan that merges so cannot lose atomic experts as well.
void check_slim(const MergeRequest& merge);
/// Chooses the atomic experts that stay of a plan that merges. A merged expert is ranked by the atomic experts of
/// MergeGroup::into, whose order its own follow, and is used by the tokens of all members.
/// @param plan     from merge_plan, with as many slots in every layer.
/// @param scores   of atomic experts. @param request  whose `keep` is not looked at.
/// @throws as make_plan for such scores.
void slim_plan(Plan& plan, const Statistics& statistics, const Scores& scores, PlanRequest request);

}  // namespace moetrim
