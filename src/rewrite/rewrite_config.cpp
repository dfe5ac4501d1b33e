// config.json of the new checkpoint, and what the user should know about the result.

#include <algorithm>
#include <array>
#include <charconv>
#include <map>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/rewrite.h"
#include "moetrim/suggest.h"
#include "rewrite/module_lists.h"
#include "rewrite/renumbering.h"

namespace moetrim {

namespace {

constexpr const char* kSlimKey = "moetrim_slim";
constexpr const char* kSlimClass = "SlimMoe";
constexpr const char* kText = "text_config";  // where multi-modal models keep the language model's keys
constexpr const char* kQuantization = "quantization_config";
constexpr const char* kRoutedScale = "routed_scaling_factor";

std::optional<int> whole_number(std::string_view text) {
  int value = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 0) return std::nullopt;
  return value;
}

/// Loaders differ in which alias wins, so a stale one must not stay behind.
void set_expert_counts(nlohmann::ordered_json& object, const Model& model, int keep) {
  for (const auto key : model.family->expert_count_keys) {
    const auto found = object.find(std::string(key));
    if (found == object.end() || found->is_null()) continue;
    if (!found->is_number_integer() || *found != model.experts) {
      throw InvalidInput(fmt::format("{}: \"{}\" is {}, expected the expert count {}",
                                     (model.checkpoint->folder() / "config.json").string(), key, found->dump(),
                                     model.experts));
    }
    *found = keep;
  }
}

/// Every spelling of the number of multi-token-prediction blocks.
constexpr std::array<std::string_view, 3> kMtpCounts = {"num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers"};

void set_where_present(nlohmann::ordered_json& object, std::string_view key, const nlohmann::ordered_json& value) {
  const auto found = object.find(std::string(key));
  if (found != object.end() && !found->is_null()) *found = value;
}

/// Only where it says what the language model's key says: vision towers have a key of this name too.
void set_width(nlohmann::ordered_json& object, const Model& model, const Slimming& slimming) {
  const Family& family = *model.family;
  const auto found = object.find(std::string(family.expert_width_key));
  if (found == object.end() || *found != model.expert_width) return;
  *found = slimming.width;
  if (family.shared_width_key == family.expert_width_key && !family.shared_count_key.empty()) {
    set_where_present(object, family.shared_count_key, slimming.shared_width / slimming.width);
  }
}

/// Of every row of the router the slot of its expert.
std::vector<std::size_t> row_map(const Plan& plan, const PlanLayer& layer) {
  std::map<int, int> into;
  for (const MergeGroup& group : layer.merge) {
    for (const int member : group.members) into[member] = group.into;
  }
  std::vector<std::size_t> out;
  for (const int expert : router_rows(plan, layer)) {
    const auto merged = into.find(expert);
    const auto slot = std::find(layer.keep.begin(), layer.keep.end(), merged == into.end() ? expert : merged->second);
    out.push_back(static_cast<std::size_t>(slot - layer.keep.begin()));
  }
  return out;
}

/// Of the layers that are written, which need not have Plan::keep.
int largest_count(const Model& model, const Plan& plan, Mtp mtp) {
  if (plan.counts == LayerCounts::equal) return plan.keep;
  std::size_t largest = 0;
  for (const PlanLayer* layer : written_layers(model, plan, mtp)) largest = std::max(largest, layer->keep.size());
  return static_cast<int>(largest);
}

void list_counts(nlohmann::ordered_json& slim, const Model& model, const Plan& plan, Mtp mtp) {
  slim["count_keys"] = model.family->expert_count_keys;
  for (const PlanLayer* layer : written_layers(model, plan, mtp)) {
    slim["experts"][std::to_string(layer->layer)] = layer->keep.size();
  }
}

void list_widths(nlohmann::ordered_json& slim, const Model& model, const Plan& plan, Mtp mtp, const Slimming& slimming) {
  slim["input_first"] = slimming.input_first;
  slim["widths"] = nlohmann::ordered_json::object();
  for (const PlanLayer* layer : written_layers(model, plan, mtp)) {
    auto& widths = slim["widths"][std::to_string(layer->layer)] = nlohmann::ordered_json::array();
    for (const AtomRanges& atoms : layer->atoms) widths.push_back(atom_count(atoms));
    for (std::size_t slot = layer->atoms.size(); slot < layer->keep.size(); ++slot) widths.push_back(model.expert_width);
    if (merges(plan) && plan.router == MergedRouter::map) slim["map"][std::to_string(layer->layer)] = row_map(plan, *layer);
  }
}

/// Names the class that reads the lists, and gives it them.
void add_lists(nlohmann::ordered_json& config, const Model& model, const Plan& plan, Mtp mtp, const Slimming& slimming) {
  config["architectures"] = {kSlimClass};
  auto& classes = config["auto_map"] = nlohmann::ordered_json::object();
  for (const char* loader : {"AutoModelForCausalLM", "AutoModelForImageTextToText"}) {
    classes[loader] = fmt::format("{}.{}", kSlimFile.substr(0, kSlimFile.find('.')), kSlimClass);
  }
  auto& slim = config[kSlimKey] = nlohmann::ordered_json::object();
  slim["version"] = 1;
  slim["architecture"] = slimming.architecture;
  if (slimming.by_layer) list_counts(slim, model, plan, mtp);
  if (slimming.form == WidthForm::listed) list_widths(slim, model, plan, mtp, slimming);
}

void rewrite_object(nlohmann::ordered_json& object, const Model& model, const Plan& plan, Mtp mtp, const Slimming& slimming) {
  set_expert_counts(object, model, largest_count(model, plan, mtp));
  if (plan.experts_per_token_after > 0) {
    for (const auto key : model.family->experts_per_token_keys) set_where_present(object, key, plan.experts_per_token_after);
  }
  if (slimming.form == WidthForm::config) set_width(object, model, slimming);
  if (mtp == Mtp::drop) {
    for (const auto key : kMtpCounts) set_where_present(object, key, 0);
  }
  if (plan.regroup) {
    for (const auto key : {"n_group", "topk_group"}) set_where_present(object, key, 1);
  }
  if (plan.correct_drift) set_where_present(object, kRoutedScale, model.routed_scale * router_drift(plan)->mean_mass);
  const auto quantization = object.find(kQuantization);
  if (quantization != object.end()) renumber_module_lists(*quantization, model, Renumbering(model, plan, mtp), mtp);
}

std::vector<std::string> width_warnings(const Model& model, const Slimming& slimming) {
  std::vector<std::string> out;
  if (slimming.listed()) {
    out.push_back(fmt::format("Only transformers 5 with trust_remote_code=True loads the result: {}, so they are "
                              "listed and {} reads the list.", slimming.why, kSlimFile));
  }
  if (slimming.by_layer) {
    out.back() += " For any other runtime make a plan with the same number in every layer (plan --keep).";
  }
  if (slimming.form == WidthForm::config && slimming.shared_width > model.shared_width) {
    out.push_back(fmt::format("The shared expert grew from width {} to {} by zeros, which change no output: config.json "
                              "says its width as a multiple of the experts' ({}). A width that divides {} would leave it as "
                              "it is.", model.shared_width, slimming.shared_width, slimming.width, model.shared_width));
  }
  return out;
}

/// What the form of the router means for merged experts.
std::string merging_warning(const Plan& plan) {
  switch (plan.router) {
    case MergedRouter::centroid:
      return "Of a group of merged experts the router keeps one row: tokens that went to the others are routed by that row alone, and "
             "gates of two members no longer add up. A plan with --router map or --router duplicate keeps the routing.";
    case MergedRouter::map:
      return "The router keeps a row for every merged expert, so that tokens are routed as in the original.";
    case MergedRouter::duplicate:
      return "Every member of a group of merged experts holds a copy of the merged weights: the checkpoint is as large as if nothing had "
             "been merged.";
  }
  return {};
}

/// What happens to gates that are shares of a softmax over all experts.
std::string drift_warning(const Model& model, const Plan& plan) {
  const std::string keep = keep_text(plan);
  const auto drift = router_drift(plan);
  const std::string by = drift ? fmt::format(" by about {:.3g} (layer {}: {:.3g})", 1 / drift->mean_mass, drift->least_layer,
                                             1 / drift->least_mass) : "";
  if (plan.correct_drift) {
    return fmt::format("Router drift: with {} instead of {} experts the kept gate weights grow{}; {} was multiplied by {:.6g}, the mean "
                       "share of the kept experts.", keep, plan.experts, by, kRoutedScale, drift->mean_mass);
  }
  return fmt::format("Router drift: gate weights of {} are a softmax over all experts and are not renormalised, so with {} instead "
                     "of {} experts the kept gate weights grow{} and expert outputs weigh more than in the original.",
                     model.family->name, keep, model.experts, by);
}

}  // namespace

std::optional<SlimWidths> read_slim_widths(const nlohmann::ordered_json& config, std::string_view where) {
  const auto found = config.find(kSlimKey);
  if (found == config.end()) return std::nullopt;
  constexpr std::int64_t kMost = 1 << 28;
  const auto wrong = [&](std::string_view what) {
    throw InvalidInput(fmt::format("{}: {}: {}; write the checkpoint again", where, kSlimKey, what));
  };
  SlimWidths out;
  const bool known = found->is_object() && found->value("version", nlohmann::ordered_json()) == 1;
  if (!known) wrong("expected an object of version 1");
  const auto first = found->find("input_first"), widths = found->find("widths");
  if (const auto counts = found->find("experts"); counts != found->end()) {
    if (!counts->is_object() || counts->empty()) wrong("expected experts, an object by layer");
    for (const auto& [key, count] : counts->items()) {
      const auto layer = whole_number(key);
      const std::uint64_t experts = count.is_number_unsigned() ? count.get<std::uint64_t>() : 0;
      if (!layer || experts == 0 || experts > kMost) {
        wrong(fmt::format("experts: expected a number of experts by a layer's number, got {}", in_quotes(key)));
      }
      out.experts[*layer] = count.get<std::int64_t>();
    }
    if (widths == found->end()) return out;
  }
  if (first == found->end() || !first->is_boolean()) wrong("expected input_first, true or false");
  if (widths == found->end() || !widths->is_object() || widths->empty()) wrong("expected widths, an object by layer");
  out.input_first = *first;
  using Lists = std::map<int, std::vector<std::int64_t>>;
  const auto read = [&](const nlohmann::ordered_json& lists, std::string_view what, Lists& into) {
    for (const auto& [key, list] : lists.items()) {
      const auto layer = whole_number(key);
      if (!layer || !list.is_array() || list.empty()) {
        wrong(fmt::format("expected a list of {}s by a layer's number, got {}", what, in_quotes(key)));
      }
      for (const auto& number : list) {
        const bool counts = number.is_number_unsigned() && number.get<std::uint64_t>() <= kMost;
        if (!counts) wrong(fmt::format("layer {}: {} is no {}", *layer, number.dump().substr(0, 40), what));
        into[*layer].push_back(number.get<std::int64_t>());
      }
    }
  };
  read(*widths, "width", out.widths);
  if (const auto map = found->find("map"); map != found->end()) {
    if (!map->is_object()) wrong("expected map, an object by layer");
    read(*map, "expert", out.map);
  }
  const auto factors = found->find("low_rank");
  if (factors == found->end()) return out;
  const auto whole = [&](const nlohmann::ordered_json& number) { return number.is_number_unsigned() && number.get<std::uint64_t>() <= kMost; };
  if (!factors->is_object() || !factors->contains("rank") || !whole((*factors)["rank"]) || (*factors)["rank"] == 0) {
    wrong("expected low_rank, an object with a rank");
  }
  out.rank = (*factors)["rank"].get<std::int64_t>();
  const auto rows = factors->find("rows");
  if (rows == factors->end() || !rows->is_object()) wrong("expected the numbers of rows of low_rank, an object by layer");
  for (const auto& [key, experts] : rows->items()) {
    const auto layer = whole_number(key);
    if (!layer || !experts.is_array()) wrong(fmt::format("low_rank: expected a list of experts by a layer's number, got {}", in_quotes(key)));
    auto& into = out.rows[*layer];
    for (const auto& expert : experts) {
      if (expert.is_null()) {
        into.emplace_back();
        continue;
      }
      if (!expert.is_array() || expert.size() != 3 || !std::all_of(expert.begin(), expert.end(), whole)) {
        wrong(fmt::format("low_rank: layer {}: expected null or three numbers of rows", *layer));
      }
      into.push_back(expert.get<std::array<std::int64_t, 3>>());
    }
  }
  return out;
}

nlohmann::ordered_json rewrite_config(const Model& model, const Plan& plan, Mtp mtp, const RewriteSources& sources) {
  const Slimming slimming = slimming_of(model, plan, mtp, sources);
  nlohmann::ordered_json config = model.checkpoint->config();
  rewrite_object(config, model, plan, mtp, slimming);
  const auto text = config.find(kText);
  if (text != config.end() && text->is_object()) rewrite_object(*text, model, plan, mtp, slimming);
  if (slimming.listed()) add_lists(config, model, plan, mtp, slimming);
  return config;
}

std::vector<std::string> rewrite_warnings(const Model& model, const Plan& plan, Mtp mtp, const RewriteSources& sources) {
  std::vector<std::string> out = width_warnings(model, slimming_of(model, plan, mtp, sources));
  const bool drops = plan.keep < model.experts || plan.counts == LayerCounts::listed;
  if (model.mtp_layers > 0 && mtp == Mtp::keep && drops) {
    out.push_back(fmt::format("The {} multi-token-prediction block(s) keep all {} experts beside {} in the layers; runtimes with one "
                              "expert count for both cannot load them.", model.mtp_layers, model.experts, keep_text(plan)));
  }
  if (merges(plan)) out.push_back(merging_warning(plan));
  if (plan.regroup) {
    out.push_back(fmt::format("The router's {} groups became one: a token may now be routed to any {} experts, which the original "
                              "would not have allowed. Measure it: moetrim evaluate --plan gives the KL divergence.", model.groups,
                              model.experts_per_token));
  }
  if (drops && router_limits(model).drifts()) out.push_back(drift_warning(model, plan));
  const auto& config = model.checkpoint->config();
  const auto quantization = config.find(kQuantization);
  if (quantization == config.end()) return out;
  for (const auto& pattern : suspicious_patterns(*quantization)) {
    out.push_back(fmt::format("quantization_config keeps the pattern {} as it is; if it names single experts, it now means "
                              "others.", in_quotes(pattern)));
  }
  return out;
}

}  // namespace moetrim
