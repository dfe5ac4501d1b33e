// Plans in the forms of other tools: those that leave experts out while they load a whole checkpoint, and one that reports
// which it has removed. The forms name experts and nothing else, so a plan that does more than drop experts is not written.
//
// None of these forms is a standard. Where each was read:
// - vllm_ascend: vllm-project/vllm-ascend pull request 12525 (open, 2026-07-22), vllm_ascend/patch/worker/
//   patch_qwen3_moe_pruning.py. A proposal, for Qwen3-MoE alone.
// - profile: vllm-project/vllm pull request 42613 (closed, 2026-05-14), vllm/utils/moe_pruned_experts.py, and its ancestor
//   "RIY", pull request 37824 (open, 2026-03-22), vllm/model_executor/layers/fused_moe/riy.py. A proposal; both read the same file.
// - llm_compressor: llm-compressor 0.14.0.1, `report_path` of REAPPruningModifier (modifiers/pruning/reap/base.py), released.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "moetrim/family.h"
#include "moetrim/plan.h"
#include "moetrim/score.h"

namespace moetrim {

enum class PlanForm : std::uint8_t {
  vllm_ascend,     ///< JSONL, {"LAYER": [expert ids, best first]} a line; how many of them stay is the runtime's option
  profile,         ///< {"version": 1, "pruned_experts": [[layer, expert], …]}: those that go; a layer without any keeps all
  llm_compressor,  ///< {"model.layers.LAYER.mlp": [expert ids], …}: those that stay, by the block's module
};
/// "vllm-ascend", "profile", "llm-compressor".
std::string_view plan_form_name(PlanForm form);
/// @throws UsageError
PlanForm plan_form_from_name(std::string_view name);

/// The `expert_prune_ratio` with which vllm-ascend keeps as many experts of a layer as the plan: it cuts E (1 - ratio), in
/// floating point, down to a whole number, so that the obvious ratio can lose one (35 / 60 of 60 keeps 24, not 25).
double expert_prune_ratio(const Plan& plan);
/// What vllm-ascend keeps.
int kept_at_prune_ratio(int experts, double ratio);

/// The file's text; equal plans and scores give equal bytes.
/// @param scores  of every expert, for vllm_ascend: the plan's kept experts come first, then the others, each by score, ties
///                to the lower id. So the plan's own ratio gives the plan, and other ratios what the scores say. Null elsewhere.
/// @throws InvalidInput when the plan does more than drop experts (naming what), has other counts in every layer where the form
///         has one, or the scores are of another checkpoint; UsageError for scores that are missing or not needed.
std::string export_plan(const Plan& plan, PlanForm form, const Scores* scores = nullptr);

struct ImportOptions {
  std::optional<double> expert_prune_ratio = {};  ///< of vllm_ascend, in [0, 1), which its file does not say
  bool by_layer = false;                          ///< layers may keep different numbers of experts
};

/// A plan of method "imported" for this checkpoint; `source.imported` has the form, the file's name and its digest (XXH3,
/// 128 bits). Nothing was measured, so it says nothing of unseen experts and kept mass.
/// @throws InvalidInput naming the file, and line, layer or field: ids out of range or doubled, a layer that is missing, doubled
///         or not an MoE layer, unequal counts without by_layer, counts or groups that the router does not work with.
///         UsageError for a ratio that is missing, not needed or out of range.
Plan import_plan(const Model& model, const std::filesystem::path& file, PlanForm form, const ImportOptions& options = {});

}  // namespace moetrim
