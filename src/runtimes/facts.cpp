// The numbers that rules are about.
#include <algorithm>

#include "runtimes/rule.h"

namespace moetrim {

namespace {

using State = FactValue::State;

FactValue known(std::int64_t number) { return {.state = State::known, .number = number}; }
FactValue maybe(const std::optional<std::int64_t>& number) {
  return number ? known(*number) : FactValue{.state = State::unknown};
}
/// A number of something that a model may not have.
FactValue unless_none(const std::optional<std::int64_t>& number) {
  return number == 0 ? FactValue{} : maybe(number);
}
FactValue named(std::string_view name) {
  return name.empty() ? FactValue{.state = State::unknown} : FactValue{.state = State::known, .name = name};
}

/// Nothing where it leaves a remainder: another rule is about that.
FactValue part(const FactValue& whole, std::int64_t parts) {
  if (whole.state != State::known) return whole;
  return whole.number % parts == 0 ? known(whole.number / parts) : FactValue{};
}

std::int64_t expert_ranks(const RuntimeTarget& target) {
  switch (target.rules->spread) {
    case Spread::either: return target.ep > 1 ? 1 : target.tp * target.dp;
    case Spread::both: return std::max<std::int64_t>(1, target.tp / target.ep);
    case Spread::none:
    case Spread::whole: return 1;
  }
  return 1;
}

/// The ranks over which heads are split: those of dp have heads of their own where they are some of the tp ranks.
std::int64_t attention_ranks(const RuntimeTarget& target) {
  return target.rules->spread == Spread::both ? std::max<std::int64_t>(1, target.tp / target.dp) : target.tp;
}

}  // namespace

std::int64_t times_value(Times times, const ServedModel& model, const RuntimeTarget& target) {
  switch (times) {
    case Times::one: return 1;
    case Times::tp: return target.tp;
    case Times::ep: return target.ep;
    case Times::dp: return target.dp;
    case Times::tp_dp: return target.tp * target.dp;
    case Times::expert_ranks: return expert_ranks(target);
    case Times::attention_ranks: return attention_ranks(target);
    case Times::block: {
      const ServedQuantisation* quant = served_quant(model, target);
      return quant == nullptr ? 1 : quant->block;
    }
    case Times::groups: return model.router.groups.count;
    case Times::experts: return model.router.experts;
  }
  return 1;
}

const ServedQuantisation* served_quant(const ServedModel& model, const RuntimeTarget& target) {
  if (target.quant) return &*target.quant;
  return model.quant ? &*model.quant : nullptr;
}

FactValue fact_value(Fact fact, const ServedModel& model, const RuntimeTarget& target) {
  const RouterLimits& router = model.router;
  switch (fact) {
    case Fact::family: return named(model.family->name);
    case Fact::architecture: return named(model.architecture);
    case Fact::model_type: return named(model.model_type);
    case Fact::experts: return known(router.experts);
    case Fact::experts_and_copies: return known(router.experts + target.redundant);
    case Fact::experts_per_rank: return part(known(router.experts + target.redundant), target.ep);
    case Fact::experts_per_group: return part(known(router.experts), router.groups.count);
    case Fact::reachable_experts: {
      const FactValue group = part(known(router.experts), router.groups.count);
      return group.state == State::known ? known(group.number * router.groups.chosen) : group;
    }
    case Fact::groups: return known(router.groups.count);
    case Fact::groups_chosen: return known(router.groups.chosen);
    case Fact::experts_per_token: return known(router.experts_per_token);
    // Widths that differ have no rule but that they may not.
    case Fact::width: return model.listed_widths ? FactValue{} : maybe(model.width);
    case Fact::width_per_rank: return model.listed_widths ? FactValue{} : part(maybe(model.width), expert_ranks(target));
    case Fact::shared_width: return unless_none(model.shared_width);
    case Fact::shared_width_per_rank: return part(unless_none(model.shared_width), target.tp);
    case Fact::dense_width: return unless_none(model.dense_width);
    case Fact::dense_width_per_rank: return part(unless_none(model.dense_width), target.tp);
    case Fact::heads: return maybe(model.heads);
    case Fact::key_value_heads: return maybe(model.key_value_heads);
    case Fact::delta_key_heads: return maybe(model.delta_key_heads);
    case Fact::delta_value_heads: return maybe(model.delta_value_heads);
    case Fact::tp: return known(target.tp);
    case Fact::ep: return known(target.ep);
    case Fact::group_size: {
      const ServedQuantisation* quant = served_quant(model, target);
      return quant == nullptr ? FactValue{.state = State::unknown} : known(quant->block);
    }
    case Fact::mtp_layers: return known(model.mtp_layers);
    case Fact::mtp_experts: return known(model.mtp_experts);
    case Fact::listed_counts: return known(model.listed_counts ? 1 : 0);
    case Fact::listed_widths: return known(model.listed_widths ? 1 : 0);
  }
  return {};
}

std::string_view fact_label(Fact fact) {
  switch (fact) {
    case Fact::family: return "family";
    case Fact::architecture: return "architecture";
    case Fact::model_type: return "model_type";
    case Fact::experts: return "experts";
    case Fact::experts_and_copies: return "experts with redundant ones";
    case Fact::experts_per_rank: return "experts per rank";
    case Fact::experts_per_group: return "experts per group";
    case Fact::reachable_experts: return "experts in the groups of a token";
    case Fact::groups: return "groups of experts";
    case Fact::groups_chosen: return "groups per token";
    case Fact::experts_per_token: return "experts per token";
    case Fact::width: return "expert width";
    case Fact::width_per_rank: return "expert width per rank";
    case Fact::shared_width: return "width of the shared expert";
    case Fact::shared_width_per_rank: return "width of the shared expert per rank";
    case Fact::dense_width: return "width of dense layers";
    case Fact::dense_width_per_rank: return "width of dense layers per rank";
    case Fact::heads: return "attention heads";
    case Fact::key_value_heads: return "key-value heads";
    case Fact::delta_key_heads: return "key heads of linear attention";
    case Fact::delta_value_heads: return "value heads of linear attention";
    case Fact::tp: return "tp";
    case Fact::ep: return "ep";
    case Fact::group_size: return "group size";
    case Fact::mtp_layers: return "multi-token-prediction blocks";
    case Fact::mtp_experts: return "experts of the multi-token-prediction blocks";
    case Fact::listed_counts: return "numbers of experts that differ by layer";
    case Fact::listed_widths: return "experts that only moetrim's own class reads";
  }
  return "";
}

std::string_view times_label(Times times) {
  switch (times) {
    case Times::one: return "";
    case Times::tp: return "tp";
    case Times::ep: return "ep";
    case Times::dp: return "dp";
    case Times::tp_dp: return "tp x dp";
    case Times::expert_ranks: return "the ranks that share an expert";
    case Times::attention_ranks: return "the ranks that share attention";
    case Times::block: return "the quantisation's block";
    case Times::groups: return "the groups";
    case Times::experts: return "the experts of a layer";
  }
  return "";
}

bool holds(When when, const ServedModel& model, const RuntimeTarget& target) {
  const RouterGroups& groups = model.router.groups;
  const Family& family = *model.family;
  switch (when) {
    case When::grouped: return groups.count > 1;
    case When::ungrouped: return groups.count == 1;
    case When::scored_by_best: return groups.rule == "max";
    case When::softmax: return model.router.router == "softmax";
    case When::biased: return family.has(Role::selection_bias);
    case When::expert_parallel: return target.ep > 1;
    case When::balanced: return target.eplb;
    case When::unbalanced: return !target.eplb;
    case When::drafting: return target.mtp;
    case When::plain_attention: return !family.attention.latent;
    case When::delta_net: return family.attention.delta_net;
    case When::shared: return !family.shared_width_key.empty();
    case When::shared_quantised: return target.quant || model.shared_quantised;
    case When::dense_quantised: return target.quant || model.dense_quantised;
    case When::own_code: return !target.remote_code;
    case When::gguf_file: return model.gguf_file;
    case When::mtp_blocks: return model.mtp_layers > 0;
  }
  return false;
}

std::string_view when_label(When when) {
  switch (when) {
    case When::grouped: return "groups of experts";
    case When::ungrouped: return "one group";
    case When::scored_by_best: return "groups scored by their best expert";
    case When::softmax: return "softmax routers";
    case When::biased: return "selection biases";
    case When::expert_parallel: return "ep above 1";
    case When::balanced: return "eplb";
    case When::unbalanced: return "without eplb";
    case When::drafting: return "mtp";
    case When::plain_attention: return "attention that is not latent";
    case When::delta_net: return "linear attention";
    case When::shared: return "a shared expert";
    case When::shared_quantised: return "the shared expert is quantised too";
    case When::dense_quantised: return "dense layers are quantised too";
    case When::own_code: return "without trust_remote_code";
    case When::gguf_file: return "GGUF files";
    case When::mtp_blocks: return "multi-token-prediction blocks";
  }
  return "";
}

}  // namespace moetrim
