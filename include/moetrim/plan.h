// Plans: scores, a budget and constraints to what is done to every layer's experts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/score.h"
#include "moetrim/statistics.h"

namespace moetrim {

struct Model;

/// How many experts of every layer stay: a number, or a ratio that is rounded once, half up, and reported.
struct KeepBudget {
  std::optional<int> experts;
  std::optional<double> ratio;  ///< in (0, 1]

  bool empty() const { return !experts && !ratio; }
  /// "16" or "0.5" or "50%"; "1" is one expert, "1.0" and "100%" are all. @throws UsageError
  static KeepBudget parse(std::string_view text);
  /// Whole experts to keep of `experts`; a ratio is rounded here and nowhere else, to a multiple of `step`.
  /// @throws UsageError when nothing is set
  int of(int experts_before, int step = 1) const;
};

/// A share above 0 and at most 1 as an exact decimal: binary fractions would cut an atomic expert too many or too few.
struct Share {
  std::int64_t part = 1;
  std::int64_t whole = 1;  ///< at most 10^9

  /// "0.75", "75%", "12.5%"; at most nine digits behind the point, seven before a percent sign.
  /// @param what  the option that is named in errors. @throws UsageError
  static Share parse(std::string_view text, std::string_view what);
  double value() const { return static_cast<double>(part) / static_cast<double>(whole); }
};

/// How many atomic experts stay, of all that the kept experts have.
struct AtomBudget {
  std::optional<std::int64_t> atoms;  ///< in all layers together
  std::optional<Share> share;

  bool empty() const { return !atoms && !share; }
  /// "0.75" or "75%" or "1500000"; "1" is one atomic expert, "1.0" and "100%" are all. @throws UsageError
  static AtomBudget parse(std::string_view text);
  /// total - floor((1 - share) total), in integers; `total` when it is empty. @throws InvalidInput for more than there are
  std::int64_t of(std::int64_t total) const;
};

/// Among which atomic experts the best are chosen.
enum class AtomScope {
  global,  ///< one ranking over all layers: widths differ, experts may end with none
  layer,   ///< the same number in every layer
  expert,  ///< the same number in every expert: a uniform width
};
/// "global", "layer", "expert".
std::string_view atom_scope_name(AtomScope scope);
/// @throws UsageError
AtomScope atom_scope_from_name(std::string_view name);

/// What decides how many experts a layer can do with. Known before anything is measured.
struct RouterLimits {
  int experts = 0;            ///< per layer
  int experts_per_token = 0;
  RouterGroups groups = {};
  std::string router = "softmax";  ///< or "sigmoid"
  bool gates_normalised = true;

  /// Kept gates grow when experts go: they are shares of a softmax over all experts, and stay as they are.
  bool drifts() const { return router == "softmax" && !gates_normalised; }
};

RouterLimits router_limits(const StatisticsManifest& manifest);
RouterLimits router_limits(const Model& model);
RouterGroups router_groups(const Model& model);

/// How many experts of every layer a plan keeps, before protection is asked for.
///
/// With groups every group keeps the same number: enough for a token that may use `chosen` groups only, and two where a
/// group's score is the sum of its two best. A ratio goes to the nearest number that is legal, half up; without groups it
/// goes to the nearest whole number.
/// @param regroup  all experts become one group; rules "max" and "top2" only.
/// @throws InvalidInput naming the rule, why the number is not legal and the nearest that are; or when the router could not
///         choose among its own experts, or cannot be regrouped. UsageError when the budget is empty.
int legal_keep(const RouterLimits& limits, const KeepBudget& budget, bool regroup);
/// @throws InvalidInput when kept gates do not grow, so that there is nothing to correct.
void check_correct_drift(const RouterLimits& limits);

struct ProtectedExpert {
  int layer = 0;   ///< absolute id
  int expert = 0;
  std::string why; ///< "super", "requested", or "task NAME": among the best of a task
};

/// Neighbouring atomic experts [begin, end) of an expert: columns of down_proj with the same rows of gate_proj and up_proj.
struct AtomRange {
  int begin = 0;
  int end = 0;

  bool operator==(const AtomRange&) const = default;
};
using AtomRanges = std::vector<AtomRange>;
/// Atomic experts in them.
int atom_count(const AtomRanges& ranges);

/// Experts that become one. Its values are the weighted mean of theirs, each with its atomic experts in the order that fits
/// those of `into` best (Plan::align).
struct MergeGroup {
  int into = 0;                     ///< original id; its router row is the one that stays where only one does
  std::vector<int> members;         ///< original ids, ascending, two or more; `into` is one of them
  std::vector<double> weights;      ///< parallel to members, not negative, sum 1
};

/// An expert whose output is multiplied by a factor.
struct ScaledExpert {
  int expert = 0;                   ///< original id
  double factor = 1;
};

struct PlanLayer {
  int layer = 0;                    ///< absolute id
  /// One original id per slot, that is per expert of the new checkpoint: where its router row, selection bias and weights come
  /// from. Ascending without repetition, unless Plan::order is free.
  std::vector<int> keep;
  /// Per kept expert, in the order of `keep`, the atomic experts that stay: ascending ranges that do not touch, none for an
  /// expert that keeps its router row and puts out zeros (or its bias). Empty when the plan keeps experts whole.
  std::vector<AtomRanges> atoms = {};
  int unseen = 0;                   ///< experts that no counted token reached
  int unseen_kept = 0;              ///< those of them that the plan keeps all the same
  /// Share of the router's probability that the kept experts had, mean over the counted tokens, in (0, 1]. Absent where
  /// gates do not depend on it (see RouterLimits::drifts), or nothing was measured.
  std::optional<double> kept_mass = {};
  std::vector<MergeGroup> merge = {};      ///< by `into`, ascending; an expert is in one group at most
  std::vector<ScaledExpert> scale = {};    ///< by expert, ascending
  std::vector<int> silence = {};           ///< kept, but never chosen: their selection bias becomes very negative; ascending
  std::vector<int> constant = {};          ///< put out their mean output whatever the token: a bias without weights; ascending
  /// Function-preserving smoothing (EAQuant): the norm before the block is divided by these, and what reads the normed hidden
  /// states is multiplied by them. [H], above 0; empty: none.
  std::vector<float> smooth = {};
};

/// How many slots the layers have.
enum class LayerCounts : std::uint8_t {
  equal,   ///< as many in every layer: Plan::keep
  listed,  ///< every layer its own number, Plan::keep in the largest
};

/// How the slots of a layer may lie.
enum class SlotOrder : std::uint8_t {
  ascending,  ///< by original id, each at most once
  free,       ///< in any order (placement), and more than once (upcycling)
};

/// What becomes of the router rows of merged experts.
enum class MergedRouter : std::uint8_t {
  centroid,   ///< only that of `into` stays: as many rows as experts, a plain checkpoint, not the merged model's routing
  map,        ///< all stay, and a map says which expert a row means: exact, for our own modelling code
  duplicate,  ///< all stay, and every member has a copy of the merged expert: exact, a plain checkpoint, nothing saved
};
/// "centroid", "map", "duplicate".
std::string_view merged_router_name(MergedRouter router);
/// @throws UsageError
MergedRouter merged_router_from_name(std::string_view name);

/// How the atomic experts of merged experts are brought into the order of the expert they merge into.
enum class Alignment : std::uint8_t {
  none,
  weights,      ///< largest sum of inner products of their weights
  activations,  ///< largest sum of correlations of their values on sampled tokens; needs the statistics' vectors
};
/// "none", "weights", "activations".
std::string_view alignment_name(Alignment alignment);
/// @throws UsageError
Alignment alignment_from_name(std::string_view name);

struct Plan {
  int version = 1;
  std::string method;
  std::string variant;
  std::string checkpoint_fingerprint;
  std::string family;
  int experts = 0;                  ///< per layer before
  int keep = 0;                     ///< per layer after: slots, in the layer with most
  LayerCounts counts = LayerCounts::equal;
  int experts_per_token = 0;
  int experts_per_token_after = 0;  ///< 0: as before
  SlotOrder order = SlotOrder::ascending;
  MergedRouter router = MergedRouter::centroid;  ///< where layers have merge groups
  Alignment align = Alignment::none;             ///< likewise
  double noise = 0;                 ///< of repeated slots: second and later copies get Gaussian noise of that share of a
                                    ///< matrix's root mean square
  std::uint64_t noise_seed = 0;
  int width = 0;                    ///< atomic experts of an expert before; 0: the plan keeps experts whole
  RouterGroups groups;              ///< of the checkpoint; every group keeps the same number unless `regroup`
  bool regroup = false;             ///< the new checkpoint has one group
  bool correct_drift = false;       ///< the new checkpoint scales its gates by the mean kept mass
  std::vector<PlanLayer> layers;    ///< every MoE layer, ascending
  std::vector<ProtectedExpert> protect;
  nlohmann::ordered_json source = nlohmann::ordered_json::object();  ///< tasks, weights, seed, rounding: for the reader
};

/// Whether any layer has merge groups.
bool merges(const Plan& plan);
/// Slots of all layers together.
std::int64_t kept_experts(const Plan& plan);
/// "16", or "8 to 20" where the layers differ: router rows of a layer.
std::string keep_text(const Plan& plan);
/// @throws InvalidInput when the layers keep different numbers of experts. @param what  that cannot be done then: "merging"
void check_equal_counts(const Plan& plan, std::string_view what);
/// Whether tensors of the new checkpoint hold values that the old one does not have, so that no mask can stand for the plan.
bool changes_values(const Plan& plan);
/// Original ids of the layer's router rows after the plan: those of the slots, or with a map those of all members and other
/// kept experts, ascending.
std::vector<int> router_rows(const Plan& plan, const PlanLayer& layer);
/// The plan that keeps every expert of every layer that was measured: what other plans start from.
Plan whole_plan(const StatisticsManifest& manifest);
/// @throws InvalidInput unless the plan is of the checkpoint, and of all the layers, that were measured.
void check_plan_of(const Plan& plan, const StatisticsManifest& manifest);

/// Atomic experts that stay in all layers. 0 for a plan that keeps experts whole.
std::int64_t kept_atoms(const Plan& plan);

/// The width that every expert of every layer has after the plan: what config.json can say. Absent where widths differ.
/// @param width_before  of the checkpoint, for a plan that keeps experts whole.
std::optional<int> uniform_width(const Plan& plan, int width_before);

/// What a plan must not exceed, and how it may choose. Of several limits the tightest wins.
struct PlanRequest {
  KeepBudget keep = {};                   ///< experts of every layer; empty: all, or what the other limits allow
  /// Experts of each MoE layer of the statistics, in their order, instead of `keep`; empty: as many in every layer. Every
  /// number must be legal by itself (legal_keep).
  std::vector<int> keep_by_layer = {};
  std::vector<std::string> protect = {}; ///< each "super" or "L:E,E,…" (absolute layer : expert ids), or several with commas
  std::vector<ProtectedExpert> protect_experts = {};  ///< the same by id, with reasons
  bool regroup = false;              ///< ignore the router's groups, and make one of them
  bool correct_drift = false;        ///< let the new checkpoint undo the growth of kept gates
  std::optional<std::uint64_t> budget_bytes = {};  ///< of the new checkpoint's tensors
  // What follows is for plans over atomic experts only.
  AtomBudget keep_atoms = {};
  std::optional<Share> budget_flops = {};  ///< of the routed experts' multiply-adds on the calibrated tokens
  AtomScope scope = AtomScope::global;
  /// Every width that is not full is a multiple of `align`, and atomic experts go and stay in blocks of `atom_blocks`
  /// neighbours, counted from 0. One of the two divides the other.
  int align = 1;
  int atom_blocks = 1;
};

/// Whether a request says how much stays, and nothing that such scores cannot serve: before anything is measured.
/// @param method   whose scores will be given, named in errors; `grain`: theirs.
/// @param experts  scores of experts will be given beside those of atomic experts.
/// @throws UsageError
void check_limits(const PlanRequest& request, std::string_view method, Grain grain, bool experts);

/// What an expert's max|f| is compared with; see find_super_experts.
struct SuperExpertThresholds {
  int layers_end = 0;       ///< candidates are the experts of layers with absolute id < layers_end
  double percentile = 0;    ///< 99.5th percentile of the candidates, linear interpolation
  double tenth = 0;         ///< a tenth of the largest
  double least = 0;         ///< `executed` only: ten times the median of the experts that saw a token
};

SuperExpertThresholds super_expert_thresholds(const Statistics& statistics, Variant variant);

/// Super experts (arXiv 2507.23279): max|f| above the 99.5th percentile and above a tenth of the largest, among the experts of
/// the first three quarters of all layers (dense ones count; half rounds to even), and at least ten times the median.
///
/// The last condition is ours: a percentile always admits somebody, also in a model that has no super expert. `official`
/// is the published code: it sees one row per expert and sequence, floors the tenth, and has no such condition.
/// @return by layer, then expert.
/// @throws InvalidInput when no MoE layer is among the first three quarters.
std::vector<ProtectedExpert> find_super_experts(const Statistics& statistics, Variant variant);

/// Experts: the best `keep` of every layer, or keep / groups of every group; protected ones first; ties go to the lower id.
/// With a budget of bytes, the largest legal number that fits. With `keep_by_layer` every layer keeps its own number, and a
/// budget of bytes is only checked: which layer should give way is for the caller to say.
///
/// Atomic experts, when `scores` are of those: the experts are chosen by `experts`, then the best of their atomic experts
/// stay, those of protected experts first; ties go to the lower layer, expert and atomic expert. In blocks or aligned, the
/// unit is the sum of its scores: an expert's best blocks, as many as make up a multiple of `align`.
///
/// Bytes are those of StatisticsManifest::sizes. Multiply-adds of a layer are its routed tokens, in the proportions in which
/// the kept experts were used, times their widths: dropping experts saves none, since a token still uses as many.
/// @param variant  of the super experts, when they are asked for.
/// @param experts  scores of experts; needed when `scores` are of atomic experts and request.keep is set.
/// @throws InvalidInput when legal_keep or check_correct_drift refuses, more experts of a layer or group are protected than
///         kept, a limit cannot be met (naming the least that can), or the scores are not of these statistics; UsageError
///         for no limit at all, limits that say nothing for such scores, and a protection that cannot be read.
Plan make_plan(const Statistics& statistics, const Scores& scores, const PlanRequest& request, Variant variant,
               const Scores* experts = nullptr);

/// How much the kept gates grow: by 1 / mass, since a softmax over fewer experts gives each a larger share.
struct RouterDrift {
  double mean_mass = 1;   ///< of PlanLayer::kept_mass over the layers; what correct_drift multiplies the gates by
  double least_mass = 1;
  int least_layer = 0;    ///< absolute id
};

/// @return nothing where gates do not drift, or nothing was measured.
std::optional<RouterDrift> router_drift(const Plan& plan);

/// How soon the decision settles: the kept set from the first 1, 2, … kSlices slices of the demonstrations against the kept
/// set from all of them, as overlap (Jaccard: size of the intersection over size of the union), mean over the layers.
/// Protection is left out. The last value is 1.
/// @throws InvalidInput for a method from second-order statistics, which are not kept per slice.
std::vector<double> convergence(const Statistics& statistics, const MethodMix& method, const ScoreOptions& options,
                                const KeepBudget& keep,
                                const std::vector<std::pair<std::string, double>>& task_weights = {}, bool regroup = false);

/// `recipes/plan.schema.json` describes it.
nlohmann::ordered_json plan_to_json(const Plan& plan);
/// @throws InvalidInput naming file and field; ids out of range, doubled, unsorted or counts that differ, in a layer (unless
///         the plan lists them) or in one of its groups, are refused.
Plan read_plan(const std::filesystem::path& file);
/// One line per layer; equal plans give equal bytes. @throws InvalidInput when read_plan would refuse it.
void write_plan(const std::filesystem::path& file, const Plan& plan);

}  // namespace moetrim
