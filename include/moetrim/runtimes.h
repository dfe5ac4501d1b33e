// Runtimes: what vLLM, SGLang, llama.cpp, transformers and MLX accept, as rules that were read from the source of one
// version of each, and the numbers of experts and widths that satisfy them.
//
// Nothing here runs a runtime. A rule says what it demands of which number, when, why, and where that was read; a later
// version may have lifted it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/plan.h"
#include "moetrim/rewrite.h"

namespace moetrim {

struct RuntimeRules;  ///< what is known of one runtime

/// How weights are stored while they are served, as far as rules tell them apart.
enum class QuantScheme : std::uint8_t {
  none,            ///< bf16, f16, f32
  fp8_block,       ///< `quant_method` fp8 with blocks
  fp8_compressed,  ///< compressed-tensors, FP8 in blocks
  fp8_tensor,      ///< FP8, a scale per tensor or row
  int_group,       ///< compressed-tensors, integers in groups
  gptq,
  awq,
  mxfp4,
  nvfp4,
  blocks,          ///< of a GGUF file, or of MLX
  other,           ///< no rule is about it
};

struct ServedQuantisation {
  std::string name;                       ///< "fp8", "q4_k_m", "as stored: gptq"
  QuantScheme scheme = QuantScheme::none;
  std::int64_t block = 1;                 ///< neighbours of a row (or column) that share a scale; 1: none do
};

/// A runtime and how it is to serve.
struct RuntimeTarget {
  const RuntimeRules* rules = nullptr;
  std::string text;                         ///< as it was given: "vllm,tp=8,ep=8,quant=fp8"
  std::int64_t tp = 1, ep = 1, dp = 1;
  std::int64_t redundant = 0;               ///< copies of experts, with eplb
  std::optional<ServedQuantisation> quant;  ///< absent: as the checkpoint is stored
  bool eplb = false;
  bool mtp = false;                         ///< multi-token-prediction blocks draft tokens
  bool remote_code = false;                 ///< trust_remote_code

  std::string_view runtime() const;
  std::string_view version() const;         ///< that the rules were read from
};

/// "vllm", "sglang", "llama.cpp", "transformers", "mlx".
std::span<const RuntimeRules* const> runtimes();
std::string_view runtime_name(const RuntimeRules& rules);
std::string_view runtime_version(const RuntimeRules& rules);
/// What the rules were read from: "vllm from PyPI".
std::string_view runtime_package(const RuntimeRules& rules);
/// "vllm,tp=8,ep=8,quant=fp8". Keys that another runtime knows are refused too. @throws UsageError naming the known ones
RuntimeTarget parse_runtime(std::string_view text);
/// The same for several; "all" stands for every runtime by itself.
std::vector<RuntimeTarget> parse_runtimes(std::span<const std::string> texts);

/// The numbers of a model that rules are about. Absent: not known, so that rules about it are not checked.
struct ServedModel {
  const Family* family = nullptr;
  std::string model_type, architecture;  ///< of config.json; empty: not known
  RouterLimits router;                   ///< as served
  int experts_before = 0;                ///< that a plan could keep
  bool listed_counts = false;            ///< layers keep different numbers of experts: router.experts is the largest
  bool listed_widths = false;            ///< experts have different widths, or anything else that only our own code reads
  std::optional<std::int64_t> width;     ///< F
  std::int64_t width_before = 0;
  std::optional<std::int64_t> hidden, heads, key_value_heads;
  std::optional<std::int64_t> shared_width, dense_width;        ///< 0: there is none
  std::optional<std::int64_t> delta_key_heads, delta_value_heads;
  bool shared_quantised = true, dense_quantised = true;         ///< as stored; else they are left as they were
  bool shared_follows_width = false;     ///< a shared expert is as wide as some routed ones: it grows to the next multiple
  std::int64_t mtp_layers = 0, mtp_experts = 0;
  bool gguf_file = false;                ///< it is stored as one
  bool mtp_follows = false;              ///< the blocks keep as many experts as the layers
  std::optional<ServedQuantisation> quant;
};

ServedModel served_model(const Model& model);
/// As a plan leaves it. @throws InvalidInput where check_plan or slimming_of does; the fingerprint is not compared
ServedModel served_model(const Model& model, const Plan& plan, Mtp mtp = Mtp::prune);
/// What statistics know: not the heads, and not how weights are stored.
ServedModel served_model(const StatisticsManifest& manifest);
ServedModel served_model(const StatisticsManifest& manifest, const Plan& plan);

/// The same with another number of experts in every layer, or of another width.
ServedModel with_keep(ServedModel model, int keep);
ServedModel with_width(ServedModel model, std::int64_t width);

enum class RuleSeverity : std::uint8_t {
  refused,  ///< does not load, fails at the first request, or computes something else
  slower,   ///< works, slower or larger than it could
};
/// "refused", "slower".
std::string_view rule_severity_name(RuleSeverity severity);

/// A rule that a model breaks.
struct RuntimeFinding {
  std::string rule;            ///< "vllm.fp8-block"
  RuleSeverity severity = RuleSeverity::refused;
  std::string text;            ///< what is demanded and what is there
  std::string why, source;
  /// The nearest that break no rule of the target, below and above: numbers of experts, or widths. Empty where neither
  /// helps.
  std::vector<std::int64_t> nearest;
  bool nearest_widths = false; ///< `nearest` are widths
};

struct RuntimeCheck {
  RuntimeTarget target;
  std::vector<RuntimeFinding> findings;  ///< refused ones first
  std::vector<std::string> unchecked;    ///< rules about numbers that are not known

  bool refused() const { return !findings.empty() && findings.front().severity == RuleSeverity::refused; }
};

RuntimeCheck check_runtime(const ServedModel& model, const RuntimeTarget& target);
/// @throws InvalidInput saying the first rule that refuses, why, and the nearest legal number
void require_runtime(const RuntimeCheck& check);

/// Numbers of experts that the router can work with and no rule of any target refuses, ascending. Rules that no number of
/// experts could satisfy are left out.
std::vector<int> legal_keeps(const ServedModel& model, std::span<const RuntimeTarget> targets);
/// Widths up to that before the plan, likewise.
std::vector<std::int64_t> legal_widths(const ServedModel& model, std::span<const RuntimeTarget> targets);
/// Of `legal`, the largest below `value` and the smallest above it.
std::vector<std::int64_t> nearest_of(std::span<const std::int64_t> legal, std::int64_t value);

/// The legal number of experts for a budget: a number must be legal itself, a ratio goes to the nearest, half up.
/// @throws InvalidInput naming the rule and the nearest
int legal_keep(const ServedModel& model, std::span<const RuntimeTarget> targets, const KeepBudget& budget);

/// What of tp and ep in {1, 2, 4, 8, 16} serves the model, with the other options of `base`. Where a runtime has ep over tp
/// times dp ranks, dp is set so.
struct ParallelChoice {
  RuntimeTarget target;
  std::string refused_by;  ///< rule; empty: legal
};
std::vector<ParallelChoice> parallel_choices(const ServedModel& model, const RuntimeTarget& base);

/// A rule, for the reader.
struct RuleText {
  std::string id, demand, applies, why, source;
  RuleSeverity severity = RuleSeverity::refused;
};
std::vector<RuleText> describe_rules(const RuntimeRules& rules);

nlohmann::ordered_json check_to_json(const RuntimeCheck& check);

}  // namespace moetrim
