// What calibration measured: sums, counts and extremes per MoE layer, task, slice and expert, and their file format.
// Nothing is a mean, so statistics of separate runs can be added.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/run_options.h"

namespace moetrim {

/// What is kept per task, slice and expert. T: the counted tokens, S(t): the routed set, g: the gate weight that really
/// multiplied the expert's output f, p: the router's probability before selection, z: its raw logit.
enum class Stat : int {
  routed_count,         ///< tokens with e in S(t)
  gate_sum,             ///< sum of g over routed tokens
  gate_square_sum,      ///< sum of g^2 over routed tokens
  router_mass,          ///< sum of p over ALL counted tokens (soft router mass)
  tcess_sum,            ///< sum of the local softmax share q(e) over S(t), where q(e) >= r (PreMoe, executed routing)
  tcess_logit_sum,      ///< sum of z where e is among the k largest raw logits and its share of them >= r (PreMoe as published)
  norm_sum,             ///< sum of |f|2 over routed tokens (EAN)
  gated_norm_sum,       ///< sum of g |f|2 (REAP)
  easy_ep_sum,          ///< sum of d g |f|2, d = max(0, 1 - cos(h, h + r)), r: the routed output alone (EASY-EP)
  max_abs,              ///< largest |f| of any channel over routed tokens; combines by maximum
  max_abs_first_row,    ///< the same over the row that a per-sequence expert batch has first (Super Experts as published);
                        ///< combines by maximum
};
inline constexpr int kStatCount = 11;

/// Spelling in files, for example "gated_norm_sum".
std::string_view stat_name(Stat stat);
/// How two parts combine: true for the extremes, false for sums.
bool stat_combines_by_max(Stat stat);
/// Whether a value below zero is possible: raw logits only.
bool stat_can_be_negative(Stat stat);

/// Length of a prompt's routed counts in LayerStatistics::prompt_routing.
inline constexpr double kPromptLength = 1 << 20;

/// One MoE layer.
///
/// `values(stat)` is [tasks, kSlices, experts] fp64, row-major.
class LayerStatistics {
 public:
  LayerStatistics() = default;
  /// All zeros. @throws InvalidInput unless layer >= 0, tasks >= 1 and experts >= 1.
  LayerStatistics(int layer, int tasks, int experts);

  int layer = 0;    ///< absolute layer id
  int tasks = 0;
  int experts = 0;
  std::vector<double> token_count;  ///< [tasks, kSlices] counted tokens
  std::vector<double> coactivation; ///< [tasks, experts, experts] tokens that routed to both; symmetric, diagonal = routed_count
  std::vector<double> transitions;  ///< [tasks, experts, experts] routed pair (i here, j in the next MoE layer); zero for the last one
  /// Of the first MoE layer, kinds of prompts, told apart by the expert i that a demonstration's prompt uses most (ties to the
  /// lower id): [tasks, experts, experts] the sum, over the prompts of kind i, of their routed counts scaled to length
  /// kPromptLength and rounded, so that sums are exact in any order. Of a demonstration without a prompt all tokens. Empty in
  /// other layers, and in statistics from before they were recorded.
  std::vector<double> prompt_routing;
  std::vector<double> prompt_count; ///< [tasks, experts] prompts of kind i, counted tokens or not; empty like prompt_routing

  std::span<double> values(Stat stat);
  std::span<const double> values(Stat stat) const;
  double& at(Stat stat, int task, int slice, int expert);
  double at(Stat stat, int task, int slice, int expert) const;

  /// One task's values with the slices combined: [experts].
  std::vector<double> task_total(Stat stat, int task) const;
  /// One task's counted tokens.
  double task_tokens(int task) const;
  /// Makes room for prompt_routing and prompt_count, zeros where there is none yet.
  void keep_prompts();
  /// Adds sums and takes maxima. @throws InvalidInput on different shapes.
  void add(const LayerStatistics& other);
  /// The same for one task, whose place may differ in the two. @throws InvalidInput on another layer or expert count.
  void add_task(int task, const LayerStatistics& other, int other_task);
  /// What the first `count` slices measured; without co-activation and transitions, which are not kept per slice.
  LayerStatistics first_slices(int count) const;

 private:
  std::array<std::vector<double>, kStatCount> values_;
};

/// What the reverse sweep measured in one MoE layer, per atomic expert (column k of down_proj with rows k of gate_proj and
/// up_proj) and per expert. Over all tokens that ran, counted or not: the loss of a counted token depends on those before it.
///
/// The loss is the SUM of the next-token cross entropy over a task's predicted tokens; TaskFacts::predicted_tokens makes it a
/// mean. x: an atom's value, the input of down_proj; c: d loss / d x with the gate weight in it, summed over the output.
/// Source: HEAPr; its score (mean x^2) wT (mean g gT) w is A B / n^2 exactly, g the gradient at the expert's output.
struct AtomStatistics {
  int layer = 0;     ///< absolute layer id
  int tasks = 0;
  int experts = 0;
  int width = 0;     ///< atomic experts of an expert
  std::vector<double> tokens;           ///< n [tasks, experts] tokens routed to the expert
  std::vector<double> activation;       ///< A [tasks, experts, width] sum of x^2
  std::vector<double> gradient;         ///< B [tasks, experts, width] sum of c^2
  std::vector<double> joint;            ///< J [tasks, experts, width] sum of x^2 c^2
  std::vector<double> taylor;           ///< [tasks, kSlices, experts] sum of gT o, o the gated output, g = d loss / d o
  std::vector<double> fisher;           ///< [tasks, kSlices, experts] sum of (gT o)^2
  std::vector<double> down_squares;     ///< [experts, width] squared length of the atom's column of down_proj, not measured
  std::vector<double> gate_up_squares;  ///< [experts, width] of its rows of gate_proj and up_proj together

  AtomStatistics() = default;
  /// All zeros. @throws InvalidInput unless layer >= 0 and the sizes are at least 1.
  AtomStatistics(int layer, int tasks, int experts, int width);
  /// @throws InvalidInput on another layer, size or other weights.
  void add(const AtomStatistics& other);
  /// Adds one task's sums, whose place may differ in the two. @throws InvalidInput on another layer, size or other weights.
  void add_task(int task, const AtomStatistics& other, int other_task);
};

/// A router that first chooses groups of contiguous experts, then a token's experts among those.
struct RouterGroups {
  int count = 1;              ///< groups of equal size; 1: no choice of groups
  int chosen = 1;             ///< groups that one token may use
  std::string rule = "none";  ///< a group's score: "max" of its experts (DeepSeek-V2), "top2": its two best added up
                              ///< (DeepSeek-V3); "each": every group gives the same number of experts (Pangu Pro MoE)

  bool operator==(const RouterGroups&) const = default;
};

/// Experts of one group that a token can always need: a group with fewer cannot be routed to.
int least_per_group(const RouterGroups& groups, int experts_per_token);
/// Why such a router cannot choose among that many experts: groups of unequal size (which transformers runs, silently wrong),
/// more groups chosen than there are, too few experts in those. Empty when it can.
std::string router_groups_problem(const RouterGroups& groups, int experts, int experts_per_token);

/// {"count", "chosen", "rule"}
nlohmann::ordered_json router_groups_to_json(const RouterGroups& groups);
/// @param where  path of the object inside the file.
/// @throws InvalidInput naming file and field; a rule of "none" is written by leaving the object out.
RouterGroups router_groups_from_json(const nlohmann::ordered_json& json, const std::filesystem::path& file,
                                     const std::string& where, int experts, int experts_per_token);

/// What was measured, on what, how. Written as manifest.json; two statistics with equal manifests (but for the
/// tasks) may be added.
struct StatisticsManifest {
  std::string checkpoint_fingerprint;
  std::string family;          ///< model_type
  std::string router;          ///< "softmax" or "sigmoid": what `--variant official` must know
  bool router_selects_by_logit = true;   ///< false with a selection bias or groups
  bool gates_normalised = true;          ///< gates of a token sum to one (times a scale)
  RouterGroups groups;         ///< left out of manifest.json when there are none
  int layers = 0;              ///< all decoder layers, without multi-token-prediction blocks
  int mtp_layers = 0;          ///< blocks that were measured
  int experts = 0;
  int experts_per_token = 0;
  std::vector<int> moe_layers; ///< absolute ids, ascending; blocks that were measured have ids from `layers` on
  int tcess_top_k = 0;         ///< k of PreMoe's marks on raw logits; 0: they were not recorded
  double tcess_threshold = 0;  ///< r of PreMoe's marks, in [0, 1], or -1 for none
  std::string dtype;           ///< how the forward pass ran: "fp32", "bf16" or "fp64"
  int expert_width = 0;        ///< atomic experts of an expert; 0: there are no second-order statistics
  /// What an expert weighs, for budgets; all 0 in statistics from before they were recorded.
  struct Sizes {
    std::int64_t checkpoint_bytes = 0;  ///< all tensors
    std::int64_t expert_bytes = 0;      ///< one expert with its router row, in one layer
    std::int64_t atom_bytes = 0;        ///< one atomic expert, scales shared with others in part and rounded down
    std::int64_t width = 0;             ///< atomic experts of an expert
    std::int64_t hidden = 0;            ///< H

    bool operator==(const Sizes&) const = default;
  };
  Sizes sizes;
  std::string count;           ///< "all", "prompt" or "response"
  struct TaskFacts {
    std::string name;
    std::string digest;                 ///< of the demonstrations' token ids; those of merged parts joined with '+'
    std::int64_t demonstrations = 0;
    std::int64_t tokens = 0;            ///< all tokens that were run
    std::int64_t counted_tokens = 0;    ///< those that were measured
    std::int64_t predicted_tokens = 0;  ///< counted tokens that have a predecessor: what the second-order loss is a sum over
    double loss = 0;                    ///< that sum, in nats; 0 without second-order statistics
  };
  std::vector<TaskFacts> tasks;
  /// What tells a share of a run from the whole of it; see DemonstrationShare.
  struct Part {
    int count = 1;             ///< shares of the run
    std::vector<int> shares;   ///< those that are in here, ascending; fewer than `count`
    /// Per task, of all shares together: only shares of the same whole are added.
    struct Whole {
      std::int64_t demonstrations = 0, tokens = 0, counted_tokens = 0;

      bool operator==(const Whole&) const = default;
    };
    std::vector<Whole> whole;
  };
  std::optional<Part> part;    ///< none: a whole run
  /// What is there of the statistics on request, see ExpertVectors.
  struct Vectors {
    /// A text whose tokens are counted apart.
    struct Marker {
      std::string text;
      std::vector<std::vector<std::int32_t>> spellings;  ///< token ids, as the text is written and behind a space

      bool operator==(const Marker&) const = default;
    };
    int width = 0;                  ///< F, the inputs of down_proj
    int hidden = 0;                 ///< H
    std::vector<Marker> markers;
    bool all_experts = false;       ///< every expert was run on every counted token, or on some of them:
    std::int64_t all_experts_tokens = 0;  ///< the first so many of every demonstration; 0: all
    int activation_samples = 0;     ///< tokens whose activations were kept, at most; 0: none
    bool quantisation = false;      ///< experts were also run with quantised weights

    bool operator==(const Vectors&) const = default;
  };
  std::optional<Vectors> vectors;   ///< none: they were not asked for
  int row_rank = 0;                 ///< of the factors that RowStatistics are about; 0: they were not asked for
  /// Further options that change what the numbers mean, for the reader. Parts are merged only when these are equal, so
  /// devices, paths and memory limits do not belong here.
  nlohmann::ordered_json settings = nlohmann::ordered_json::object();
  std::string tool_version;
};

struct ExpertVectors;
struct RowStatistics;

/// Statistics of a whole run: `NAME.stats/manifest.json` and one safetensors file per MoE layer.
struct Statistics {
  StatisticsManifest manifest;
  std::vector<LayerStatistics> layers;  ///< in the order of manifest.moe_layers
  std::vector<AtomStatistics> atoms = {};  ///< the same; empty when they were not measured, or not asked for

  /// Every shape is checked against the manifest, every value for being finite and (counts, norms) not negative.
  /// @param atoms  also read second-order statistics, which are large.
  /// @throws InvalidInput naming the file that is missing, damaged or of another run; or when there are no second-order
  ///         statistics and they are asked for.
  static Statistics read(const std::filesystem::path& folder, bool atoms = false);
  /// Index of a task by name. @throws InvalidInput listing the tasks there are.
  int task(std::string_view name) const;
  /// Indices of tasks, ascending, each once; of all where none is named. @throws InvalidInput like task()
  std::vector<int> tasks(const std::vector<std::string>& names) const;
};

/// What a folder holds, without its large files. @throws InvalidInput as Statistics::read does for manifest.json.
StatisticsManifest read_statistics_manifest(const std::filesystem::path& folder);

/// Writes `folder` beside its place and renames it when it is whole.
/// @throws InvalidInput when `folder` exists already, manifest and layers do not fit together, or the manifest announces
///         vectors or rows, which are written layer by layer.
void write_statistics(const std::filesystem::path& folder, const Statistics& statistics);

/// How statistics are added: shares of one run to the whole, or several runs on the same checkpoint with the same settings.
///
/// Shares may come in any order. All of them give the manifest that one process writes, and up to kSlices of them also its sums.
/// Of runs, a task that several have is added up and keeps all its digests; other tasks are put side by side, in the order in
/// which they first appear. Associative but for the last bits of floating-point sums.
class StatisticsMerge {
 public:
  /// @param names    what the parts are called in messages.
  /// @param partial  whether shares may be missing; the sum is then a part itself.
  /// @throws InvalidInput when parts differ in anything but their tasks, hold the same demonstrations twice, or a share is missing.
  StatisticsMerge(std::vector<StatisticsManifest> parts, std::vector<std::string> names, bool partial = false);

  const StatisticsManifest& manifest() const { return manifest_; }

  /// The sum of one layer. No more than the logarithm of the number of parts are held at a time.
  /// @param read  gives that layer of a part; called once for each.
  LayerStatistics layer(const std::function<LayerStatistics(std::size_t part)>& read) const;
  AtomStatistics atoms(const std::function<AtomStatistics(std::size_t part)>& read) const;
  ExpertVectors vectors(const std::function<ExpertVectors(std::size_t part)>& read) const;
  RowStatistics rows(const std::function<RowStatistics(std::size_t part)>& read) const;

 private:
  void place_runs();
  void place_shares();

  std::vector<StatisticsManifest> parts_;
  std::vector<std::string> names_;
  std::vector<std::size_t> order_;        // in which the parts are added
  std::vector<std::vector<int>> places_;  // [parts][tasks of the part] to tasks of the sum
  StatisticsManifest manifest_;
};

/// Adds statistics in memory, without those on request. @throws InvalidInput as StatisticsMerge does.
Statistics merge_statistics(std::span<const Statistics> parts);

/// Where a layer of a part is read from.
struct PartReader {
  std::function<LayerStatistics(std::size_t part, int layer)> layer;
  std::function<AtomStatistics(std::size_t part, int layer)> atoms;   ///< of the layer just read
  std::function<ExpertVectors(std::size_t part, int layer)> vectors;  ///< the same
  std::function<RowStatistics(std::size_t part, int layer)> rows = {};  ///< the same
};

/// Reads from folders, and checks every file against its folder's manifest.
/// @throws InvalidInput as Statistics::read does.
PartReader read_parts(const std::vector<std::filesystem::path>& folders);

/// Adds statistics layer by layer and writes them like write_statistics, in the memory of a few layers.
/// @throws InvalidInput when `folder` exists already, or what a reader gives does not fit its manifest.
void write_merged_statistics(const std::filesystem::path& folder, const StatisticsMerge& merge, const PartReader& read);

/// @throws InvalidInput when manifest_from_json would refuse it, so that hours of work do not end in a file nobody can read.
nlohmann::ordered_json manifest_to_json(const StatisticsManifest& manifest);
/// @param file  named in errors. @throws InvalidInput
StatisticsManifest manifest_from_json(const nlohmann::ordered_json& json, const std::filesystem::path& file);

/// Name of a layer's file inside the folder, for example "layer-00003.safetensors".
std::string layer_file_name(int layer);
/// The same for second-order statistics, for example "atoms-00003.safetensors".
std::string atom_file_name(int layer);
/// Equal statistics give equal bytes.
void write_layer_statistics(const std::filesystem::path& file, const LayerStatistics& layer);
/// @throws InvalidInput naming file and tensor.
LayerStatistics read_layer_statistics(const std::filesystem::path& file);
void write_atom_statistics(const std::filesystem::path& file, const AtomStatistics& atoms);
/// @throws InvalidInput naming file and tensor.
AtomStatistics read_atom_statistics(const std::filesystem::path& file);

}  // namespace moetrim
