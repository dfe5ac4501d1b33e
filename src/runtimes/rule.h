// What a rule is made of, private to the stage: data in rules/RUNTIME.cpp, one evaluation for all of them.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "moetrim/runtimes.h"

namespace moetrim {

/// The number, or name, that a rule is about.
enum class Fact : std::uint8_t {
  family, architecture, model_type,
  experts,              ///< of a layer
  experts_and_copies,   ///< with redundant ones
  experts_per_rank,     ///< of ep; nothing where it does not divide
  experts_per_group,
  reachable_experts,    ///< in the groups that a token may use
  groups, groups_chosen, experts_per_token,
  width,                ///< F
  width_per_rank,       ///< F over the ranks that share an expert; nothing where they do not divide it
  shared_width, shared_width_per_rank, dense_width, dense_width_per_rank,
  heads, key_value_heads, delta_key_heads, delta_value_heads,
  tp, ep,
  group_size,           ///< of the quantisation
  mtp_layers, mtp_experts,
  listed_counts, listed_widths,  ///< 1 or 0
};

enum class Demand : std::uint8_t {
  multiple_of, at_most, at_least, below, equal_to,
  shares,        ///< divides the bound or is divided by it
  power_of_two,
  one_of,        ///< Rule::numbers
  named,         ///< Rule::names
  absent,        ///< 0
};

/// What Rule::number is multiplied by.
enum class Times : std::uint8_t { one, tp, ep, dp, tp_dp, expert_ranks, attention_ranks, block, groups, experts };

/// All of a rule's conditions must hold.
enum class When : std::uint8_t {
  grouped, ungrouped, scored_by_best,  ///< the router's groups; scored by the best expert alone
  softmax, biased,                     ///< a selection bias
  expert_parallel, balanced, unbalanced, ///< ep above 1; with or without eplb
  drafting,                            ///< mtp
  plain_attention,                     ///< not latent: key-value heads are split
  delta_net, shared,
  shared_quantised, dense_quantised,   ///< unless the checkpoint leaves them as they were
  own_code,                            ///< trust_remote_code is not given
  mtp_blocks,
  gguf_file,                           ///< the model is one, not made into one
};

struct Rule {
  std::string_view id;
  Fact fact;
  Demand demand;
  std::int64_t number = 1;
  Times times = Times::one;
  std::vector<std::int64_t> numbers = {};
  std::vector<std::string_view> names = {};
  std::vector<When> when = {};
  std::vector<QuantScheme> quant = {};           ///< empty: any
  std::vector<std::string_view> families = {};   ///< empty: any
  RuleSeverity severity = RuleSeverity::refused;
  std::string_view why;
  std::string_view source;  ///< file:line of the version, or a thread
};

/// A word that `quant=` takes.
struct QuantName {
  std::string_view name;
  QuantScheme scheme;
  std::int64_t block = 1;
  bool grouped = false;  ///< `group=` changes the block
};

/// How a runtime spreads the experts over its ranks.
enum class Spread : std::uint8_t {
  none,    ///< no ranks
  either,  ///< whole experts over tp x dp ranks, or every expert over all of them (vLLM)
  both,    ///< whole experts over ep of the tp ranks, each over tp / ep of them (SGLang)
  whole,   ///< whole experts over ep ranks; how one is split does not matter (transformers)
};

struct RuntimeRules {
  std::string_view name, version;
  std::string_view read_from;               ///< the package
  Spread spread = Spread::none;
  std::vector<std::string_view> keys = {};  ///< of a target beside quant and group
  std::vector<QuantName> quants = {};
  std::vector<Rule> rules = {};
};

namespace runtime_rules {
extern const RuntimeRules vllm, sglang, llama_cpp, transformers, mlx;
}  // namespace runtime_rules

/// A fact of a model: a number or a name, not known, or nothing that the model has.
struct FactValue {
  enum class State : std::uint8_t { known, unknown, none } state = State::none;
  std::int64_t number = 0;
  std::string_view name = {};
};
FactValue fact_value(Fact fact, const ServedModel& model, const RuntimeTarget& target);
/// "width per rank".
std::string_view fact_label(Fact fact);
bool holds(When when, const ServedModel& model, const RuntimeTarget& target);
std::string_view when_label(When when);
std::string_view times_label(Times times);
std::int64_t times_value(Times times, const ServedModel& model, const RuntimeTarget& target);
/// The quantisation that is served; null: not known.
const ServedQuantisation* served_quant(const ServedModel& model, const RuntimeTarget& target);

enum class Verdict : std::uint8_t { kept, broken, unknown };
Verdict judge(const Rule& rule, const ServedModel& model, const RuntimeTarget& target);

}  // namespace moetrim
