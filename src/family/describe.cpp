// config.json and tensor names to a Model.

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "family/config_reader.h"
#include "family/layer_kinds.h"
#include "family/place_tensors.h"
#include "family/rope.h"
#include "moetrim/error.h"
#include "moetrim/family.h"
#include "moetrim/suggest.h"

namespace moetrim {

namespace {

constexpr std::int64_t kLargest = 1 << 28;

const Family& known_family(const ConfigReader& config) {
  const std::string name = config.text("model_type");
  if (const Family* family = find_family(name)) return *family;
  std::vector<std::string_view> known;
  for (const Family* family : families()) known.push_back(family->name);
  throw InvalidInput(fmt::format("{}: model_type {} is not a family that moetrim knows; known are {}. docs/add-a-family.md "
                                 "tells how to add one", config.where(), in_quotes(name), fmt::join(known, ", ")));
}

/// A count that some configs give as a list with one entry per layer; unequal entries are refused.
std::int64_t uniform_count(const ConfigReader& config, std::string_view key) {
  const auto& value = config.raw(key);
  if (!value.is_array()) return config.integer(key, 1, 1 << 20);
  const bool uniform = !value.empty() && value[0].is_number_integer() &&
                       std::all_of(value.begin(), value.end(), [&](const auto& entry) { return entry == value[0]; });
  if (!uniform || value[0] < 1 || value[0] > (1 << 20)) {
    throw InvalidInput(fmt::format("{}: \"{}\" must be one number for all layers, got {}", config.where(), key,
                                   value.dump().substr(0, 80)));
  }
  return value[0].get<std::int64_t>();
}

/// All aliases that are present must agree: loaders differ in which one wins.
std::int64_t agreed_count(const ConfigReader& config, const std::vector<std::string_view>& keys, std::string_view what) {
  std::int64_t count = 0;
  std::string_view first;
  for (const auto key : keys) {
    if (!config.has(key)) continue;
    const std::int64_t value = uniform_count(config, key);
    if (count != 0 && value != count) {
      throw InvalidInput(fmt::format("{}: \"{}\" is {} but \"{}\" is {}; both count {}, make them equal", config.where(), first,
                                     count, key, value, what));
    }
    count = value;
    first = key;
  }
  if (count == 0) {
    throw InvalidInput(fmt::format("{}: no number of {}; expected one of {}", config.where(), what, fmt::join(keys, ", ")));
  }
  return count;
}

void read_latent(Model& model, const ConfigReader& config) {
  LatentSizes& latent = model.latent;
  latent.query_rank = config.has("q_lora_rank") ? config.integer("q_lora_rank", 1, kLargest) : 0;
  latent.rank = config.integer("kv_lora_rank", 1, kLargest);
  latent.plain = config.integer("qk_nope_head_dim", 1, 1 << 16);
  latent.rotated = config.integer("qk_rope_head_dim", 2, 1 << 16);
  latent.value = config.integer("v_head_dim", 1, 1 << 16);
  model.head_dim = latent.plain + latent.rotated;
  if (!config.boolean_or("rope_interleave", true)) model.rope_pairs = RopePairs::halves;
}

void read_delta(Model& model, const ConfigReader& config) {
  DeltaSizes& delta = model.delta;
  delta.key_heads = config.integer("linear_num_key_heads", 1, 1 << 16);
  delta.value_heads = config.integer("linear_num_value_heads", 1, 1 << 16);
  delta.key_dim = config.integer("linear_key_head_dim", 1, 1 << 16);
  delta.value_dim = config.integer("linear_value_head_dim", 1, 1 << 16);
  delta.kernel = config.integer("linear_conv_kernel_dim", 1, 1 << 10);
  if (delta.value_heads % delta.key_heads != 0) {
    throw InvalidInput(fmt::format("{}: linear_num_value_heads {} is not a multiple of linear_num_key_heads {}", config.where(),
                                   delta.value_heads, delta.key_heads));
  }
}

void read_attention(Model& model, const ConfigReader& config) {
  const AttentionTraits& traits = model.family->attention;
  model.heads = config.integer("num_attention_heads", 1, 1 << 16);
  model.key_value_heads =
      config.has("num_key_value_heads") && !traits.latent ? config.integer("num_key_value_heads", 1, 1 << 16) : model.heads;
  if (model.heads % model.key_value_heads != 0) {
    throw InvalidInput(fmt::format("{}: {} attention heads are not a multiple of {} key-value heads", config.where(),
                                   model.heads, model.key_value_heads));
  }
  model.rope_pairs = traits.pairs;
  if (traits.latent) {
    read_latent(model, config);
  } else {
    model.head_dim = config.has("head_dim") ? config.integer("head_dim", 1, 1 << 16) : model.hidden / model.heads;
  }
  if (traits.delta_net) read_delta(model, config);
  if (model.head_dim < 1) throw InvalidInput(fmt::format("{}: head_dim would be 0", config.where()));
  const bool normalised = traits.query_key_norm_key.empty() ||
                          config.boolean_or(traits.query_key_norm_key, traits.query_key_norm == QueryKeyNorm::unit_after_rope);
  model.query_key_norm = normalised ? traits.query_key_norm : QueryKeyNorm::none;
  if (!traits.clip_key.empty()) model.clip = config.number_or(traits.clip_key, 0.0);
  model.rope = read_rope(config, traits.latent ? model.latent.rotated : model.head_dim, traits.rope_theta, traits.rotated_part);
  model.attention_scale = config.number_or("attention_multiplier", 1.0 / std::sqrt(static_cast<double>(model.head_dim)));
  if (traits.latent) model.attention_scale *= latent_rope_scale(config);
  if (traits.rope_by_layer) {
    model.temperature_tuning = config.boolean_or("attn_temperature_tuning", true);
    model.temperature_floor = config.number_or("floor_scale", 8192);
    model.temperature_scale = config.number_or("attn_scale", 0.1);
  }
}

void read_groups(Model& model, const ConfigReader& config) {
  GroupRule rule = model.family->router.groups;
  if (rule == GroupRule::max && config.text_or("topk_method", "greedy") != "group_limited_greedy") rule = GroupRule::none;
  if (rule == GroupRule::none) return;
  if (rule == GroupRule::each) {
    model.groups = model.groups_chosen = config.integer_or("num_expert_groups", model.experts_per_token);
  } else {
    model.groups = config.has("n_group") ? config.integer("n_group", 1, 1 << 20) : 1;
    model.groups_chosen = config.has("topk_group") ? config.integer("topk_group", 1, 1 << 20) : model.groups;
  }
  if (model.groups == 1) return;
  model.group_rule = rule;
  const std::int64_t in_group = model.experts / model.groups;
  const auto refuse = [&](const std::string& why) {
    throw InvalidInput(fmt::format("{}: {} experts in {} groups, {} groups and {} experts per token: {}", config.where(),
                                   model.experts, model.groups, model.groups_chosen, model.experts_per_token, why));
  };
  if (model.experts % model.groups != 0) refuse("the groups would not be equal; some runtimes would run this silently wrong");
  if (model.groups_chosen > model.groups) refuse("more groups are chosen than there are");
  if (rule == GroupRule::top2 && in_group < 2) refuse("a group is scored by its two best experts and has only one");
  if (rule == GroupRule::each && model.experts_per_token % model.groups != 0) refuse("every group must give the same number");
  if (model.groups_chosen * in_group < model.experts_per_token) refuse("the chosen groups do not have that many experts");
}

void read_router(Model& model, const ConfigReader& config) {
  const Family& family = *model.family;
  const RouterTraits& router = family.router;
  model.experts = agreed_count(config, family.expert_count_keys, "experts");
  model.experts_per_token = agreed_count(config, family.experts_per_token_keys, "experts per token");
  if (model.experts_per_token > model.experts) {
    throw InvalidInput(fmt::format("{}: {} is {} but there are {} experts", config.where(), family.experts_per_token_keys[0],
                                   model.experts_per_token, model.experts));
  }
  const bool asked = config.boolean_or("norm_topk_prob", router.normalise_default);
  model.normalise_gates = router.normalise == NormaliseGates::always || (router.normalise == NormaliseGates::by_config && asked);
  if (router.normalise == NormaliseGates::never && router.scaled && config.boolean_or("norm_topk_prob", false)) {
    throw InvalidInput(fmt::format("{}: norm_topk_prob is true, which runtimes of {} take differently (transformers ignores it); "
                                   "set it to false if the gates are not to sum to one", config.where(), family.name));
  }
  // dots.llm1 writes "noaux_tc" here, DeepSeek-V3's name for the same sigmoids; only the other function is a contradiction.
  const bool sigmoids = router.score == RouterScore::sigmoid;
  if (const auto said = config.text_or("scoring_func", ""); said == (sigmoids ? "softmax" : "sigmoid")) {
    throw InvalidInput(fmt::format("{}: scoring_func is {}, but {} scores experts with a {}", config.where(), in_quotes(said),
                                   family.name, sigmoids ? "sigmoid" : "softmax"));
  }
  if (router.scaled) model.routed_scale = config.number_or("routed_scaling_factor", 1.0);
  if (router.score == RouterScore::sparsemixer) {
    model.jitter = config.number_or("router_jitter_noise", 0.01);
    if (model.experts_per_token != 2) {
      throw InvalidInput(fmt::format("{}: SparseMixer routes to 2 experts, got num_experts_per_tok {}", config.where(),
                                     model.experts_per_token));
    }
  }
  read_groups(model, config);
}

void read_sizes(Model& model, const ConfigReader& config) {
  const Family& family = *model.family;
  model.layers = config.integer("num_hidden_layers", 1, 100000);
  model.hidden = config.integer("hidden_size", 1, kLargest);
  model.vocabulary = config.integer("vocab_size", 1, kLargest);
  model.expert_width = config.integer(family.expert_width_key, 1, kLargest);
  if (!family.shared_width_key.empty()) {
    model.shared_width = config.integer(family.shared_width_key, 1, kLargest);
    if (!family.shared_count_key.empty()) {
      model.shared_width *= config.has(family.shared_count_key) ? config.integer(family.shared_count_key, 0, 1 << 12) : 0;
    }
  }
  if (config.has(family.dense_width_key)) model.dense_width = config.integer(family.dense_width_key, 1, kLargest);
  model.tied_embeddings = config.boolean_or("tie_word_embeddings", false);
  model.norm_epsilon = config.number_or("rms_norm_eps", 1e-6);
  model.swiglu_limit = config.number_or("swiglu_limit", 7.0);
  model.swiglu_alpha = config.number_or("swiglu_alpha", 1.702);
  model.embedding_scale = config.number_or("embedding_multiplier", 1.0);
  model.residual_scale = config.number_or("residual_multiplier", 1.0);
  model.logit_scale = 1.0 / config.number_or("logits_scaling", 1.0);
  if (const auto activation = config.text_or("hidden_act", "silu"); activation != "silu" && activation != "swish") {
    throw InvalidInput(fmt::format("{}: hidden_act {} is not supported; expected \"silu\"", config.where(), in_quotes(activation)));
  }
}

/// Multi-modal checkpoints keep the language model's keys in `text_config`.
ConfigReader language_model(const ConfigReader& config, Model& model) {
  const auto& text = config.raw("text_config");
  model.nested_config = text.is_object() && text.contains("num_hidden_layers");
  return model.nested_config ? config.object("text_config") : config;
}

}  // namespace

Model describe(const Checkpoint& checkpoint) {
  const ConfigReader whole(checkpoint.config(), (checkpoint.folder() / "config.json").string());
  Model model;
  model.family = &known_family(whole);
  model.checkpoint = &checkpoint;
  if (whole.has("moetrim_slim")) {
    throw InvalidInput(fmt::format("{}: the experts have different widths or differ in number by layer, or are shared by rows of "
                                   "the router (moetrim_slim), which transformers computes and moetrim does not; take the "
                                   "checkpoint that this one was made from, and evaluate it with --plan", whole.where()));
  }
  model.quantisation = read_quantisation(checkpoint.config(), whole.where());
  const ConfigReader config = language_model(whole, model);
  read_sizes(model, config);
  // Loaders take the outer key where both are there.
  if (model.nested_config && whole.has("tie_word_embeddings")) {
    model.tied_embeddings = whole.boolean_or("tie_word_embeddings", false);
  }
  read_router(model, config);
  read_attention(model, config);
  model.mtp_layers = count_mtp_layers(model, config);
  model.mtp_experts = model.mtp_layers > 0 ? count_mtp_experts(model) : 0;
  set_layer_kinds(model, config);
  place_tensors(model);
  return model;
}

}  // namespace moetrim
