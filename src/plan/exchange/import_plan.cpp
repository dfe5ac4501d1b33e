// Other tools' forms to a plan for a checkpoint.

#include <algorithm>
#include <charconv>
#include <map>
#include <numeric>
#include <optional>

#include <fmt/format.h>

#include "checkpoint/digest.h"
#include "checkpoint/json_file.h"
#include "checkpoint/posix_file.h"
#include "moetrim/error.h"
#include "moetrim/json_fields.h"
#include "moetrim/plan_exchange.h"
#include "plan/legal_keep.h"

namespace moetrim {
namespace {

using Json = nlohmann::ordered_json;
/// By absolute layer id, ascending expert ids.
using KeptExperts = std::map<int, std::vector<int>>;

constexpr std::uint64_t kMostBytes = std::uint64_t{16} << 20;  // a hundred layers of a thousand experts take one

/// A file that is being imported, for whatever is wrong with it.
struct Imported {
  const Model& model;
  std::filesystem::path file;
  std::string text;

  int experts() const { return static_cast<int>(model.experts); }
  [[noreturn]] void fail(const std::string& problem) const { throw InvalidInput(fmt::format("{}: {}", file.string(), problem)); }
};

std::optional<int> decimal(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole && value >= 0 && std::to_string(value) == text ? std::optional(value) : std::nullopt;
}

/// @return them ascending
std::vector<int> each_once(const Imported& from, int layer, std::vector<int> ids) {
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  if (twice != ids.end()) from.fail(fmt::format("layer {} names expert {} twice", layer, *twice));
  return ids;
}

void add(const Imported& from, KeptExperts& kept, int layer, std::vector<int> ids) {
  if (!kept.emplace(layer, each_once(from, layer, std::move(ids))).second) from.fail(fmt::format("layer {} is there twice", layer));
}

/// The first `keep` of every line's ranking.
KeptExperts read_ranking(const Imported& from, int keep) {
  KeptExperts kept;
  int number = 0;
  for (std::size_t at = 0; at < from.text.size();) {
    const std::size_t end = std::min(from.text.find('\n', at), from.text.size());
    const std::string line = from.text.substr(at, end - at);
    at = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    const std::string where = fmt::format("{}, line {}", from.file.string(), number);
    const Json json = checkpoint_detail::parse_json(where, line, /*comments=*/false);
    if (!json.is_object() || json.size() != 1) throw InvalidInput(where + ": expected an object with one layer");
    const std::string& key = json.begin().key();
    const auto layer = decimal(key);
    if (!layer) throw InvalidInput(fmt::format("{}: expected a layer id, got {}", where, in_quotes(key)));
    std::vector<int> ids = JsonFields(json, where).whole_numbers(key, 0, from.experts() - 1);
    each_once(from, *layer, ids);
    if (std::ssize(ids) < keep) {
      throw InvalidInput(fmt::format("{}: layer {} ranks {} experts, and {} are to stay", where, *layer, ids.size(), keep));
    }
    ids.resize(static_cast<std::size_t>(keep));
    add(from, kept, *layer, std::move(ids));
  }
  return kept;
}

/// All experts but those that are named. A profile that names no multi-token-prediction block says nothing of them.
KeptExperts read_profile(const Imported& from) {
  const Json json = checkpoint_detail::parse_json(from.file, from.text, /*comments=*/false);
  JsonFields fields(json, from.file);
  fields.whole("version", 1, 1);
  for (const char* note : {"model", "model_revision", "workload"}) {
    if (fields.has(note)) fields.text(note);
  }
  std::map<int, std::vector<int>> pruned;
  const Json& pairs = fields.array("pruned_experts");
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const std::string where = fmt::format("pruned_experts[{}]", i);
    if (!pairs[i].is_array() || pairs[i].size() != 2) fields.fail(where, "expected [layer, expert]");
    const Json named{{"layer", pairs[i][0]}, {"expert", pairs[i][1]}};
    JsonFields pair(named, from.file, where);
    pruned[pair.whole("layer", 0)].push_back(pair.whole("expert", 0, from.experts() - 1));
  }
  fields.finish();
  KeptExperts gone, kept;
  for (auto& [layer, ids] : pruned) add(from, gone, layer, std::move(ids));
  const bool with_mtp = !gone.empty() && gone.rbegin()->first >= from.model.layers;
  for (const int layer : from.model.moe_layers(with_mtp)) gone.try_emplace(layer);
  std::vector<int> all(static_cast<std::size_t>(from.experts()));
  std::iota(all.begin(), all.end(), 0);
  for (const auto& [layer, ids] : gone) {
    auto& stay = kept[layer];
    std::set_difference(all.begin(), all.end(), ids.begin(), ids.end(), std::back_inserter(stay));
  }
  return kept;
}

/// The number behind "layers." in the name of a decoder layer's module.
std::optional<int> layer_of(std::string_view module) {
  constexpr std::string_view kLayers = "layers.";
  const auto at = module.find(kLayers);
  const bool printable = std::all_of(module.begin(), module.end(), [](char c) { return c > ' ' && c < 0x7F; });
  if (!printable || at == module.npos || (at > 0 && module[at - 1] != '.') || module.starts_with("mtp.")) return std::nullopt;
  const std::string_view rest = module.substr(at + kLayers.size());
  return decimal(rest.substr(0, rest.find('.')));
}

KeptExperts read_report(const Imported& from) {
  const Json json = checkpoint_detail::parse_json(from.file, from.text, /*comments=*/false);
  JsonFields fields(json, from.file);
  KeptExperts kept;
  for (const auto& item : json.items()) {
    const auto layer = layer_of(item.key());
    if (!layer) from.fail(fmt::format("{} is no module of a decoder layer", in_quotes(item.key())));
    add(from, kept, *layer, fields.whole_numbers(item.key(), 0, from.experts() - 1));
  }
  return kept;
}

void check_layers(const Imported& from, const KeptExperts& kept) {
  if (kept.empty()) from.fail("it names no layer");
  const std::vector<int> all = from.model.moe_layers(true);
  for (const auto& [layer, ids] : kept) {
    if (std::find(all.begin(), all.end(), layer) != all.end()) continue;
    from.fail(fmt::format("layer {} is no MoE layer of {}", layer, from.model.checkpoint->folder().string()));
  }
  // Multi-token-prediction blocks all or none: rewrite can drop them, or copy them whole.
  const bool with_mtp = kept.rbegin()->first >= from.model.layers;
  for (const int layer : from.model.moe_layers(with_mtp)) {
    if (!kept.contains(layer)) from.fail(fmt::format("MoE layer {} is missing", layer));
  }
}

/// What the router needs of one layer.
void check_layer(const Imported& from, const RouterLimits& limits, const LegalCounts& legal, int layer, const std::vector<int>& ids) {
  const int count = static_cast<int>(ids.size());
  const std::string problem = keep_problem(limits, legal, count);
  if (!problem.empty()) from.fail(fmt::format("layer {} keeps {} experts, which does not work: {}", layer, count, problem));
  const int size = limits.experts / legal.step;
  for (int group = 0; group < legal.step; ++group) {
    const auto of_group = std::count_if(ids.begin(), ids.end(), [&](int expert) { return expert / size == group; });
    if (of_group == count / legal.step) continue;
    from.fail(fmt::format("layer {} keeps {} experts of the router's group {} (experts {} to {}), expected {} as of every group",
                          layer, of_group, group, group * size, (group + 1) * size - 1, count / legal.step));
  }
}

void check_counts(const Imported& from, const KeptExperts& kept, bool by_layer) {
  const auto& [first, ids] = *kept.begin();
  for (const auto& [layer, other] : kept) {
    if (by_layer || other.size() == ids.size()) continue;
    from.fail(fmt::format("layer {} keeps {} experts and layer {} {}; runtimes read one number for all layers, and --by-layer "
                          "makes a plan for the modelling code that moetrim writes", first, ids.size(), layer, other.size()));
  }
}

Plan plan_of(const Imported& from, KeptExperts kept) {
  const RouterLimits limits = router_limits(from.model);
  Plan plan;
  plan.method = "imported";
  plan.variant = variant_name(Variant::executed);
  plan.checkpoint_fingerprint = from.model.checkpoint->fingerprint();
  plan.family = from.model.family->name;
  plan.experts = limits.experts;
  plan.experts_per_token = limits.experts_per_token;
  if (limits.groups.count > 1) plan.groups = limits.groups;
  for (auto& [layer, ids] : kept) {
    const int count = static_cast<int>(ids.size());
    if (!plan.layers.empty() && count != plan.keep) plan.counts = LayerCounts::listed;
    plan.keep = std::max(plan.keep, count);
    plan.layers.push_back({.layer = layer, .keep = std::move(ids)});
  }
  return plan;
}

int ratio_keep(const Imported& from, PlanForm form, const std::optional<double>& ratio) {
  if (form != PlanForm::vllm_ascend) {
    if (ratio) throw UsageError(fmt::format("form {} says itself which experts stay; leave the prune ratio out", plan_form_name(form)));
    return 0;
  }
  if (!ratio) throw UsageError("form vllm-ascend does not say how many experts stay; give the expert prune ratio that the runtime gets");
  if (!(*ratio >= 0 && *ratio < 1)) throw UsageError(fmt::format("expert prune ratio {}: expected 0 or more, and less than 1", *ratio));
  return kept_at_prune_ratio(from.experts(), *ratio);
}

}  // namespace

Plan import_plan(const Model& model, const std::filesystem::path& file, PlanForm form, const ImportOptions& options) {
  const Imported from{model, file, checkpoint_detail::read_text(file, kMostBytes)};
  const int keep = ratio_keep(from, form, options.expert_prune_ratio);
  KeptExperts kept = form == PlanForm::vllm_ascend ? read_ranking(from, keep)
                     : form == PlanForm::profile   ? read_profile(from)
                                                   : read_report(from);
  check_layers(from, kept);
  const RouterLimits limits = router_limits(model);
  const LegalCounts legal = legal_counts(limits, /*regroup=*/false);
  for (const auto& [layer, ids] : kept) check_layer(from, limits, legal, layer, ids);
  check_counts(from, kept, options.by_layer);
  Plan plan = plan_of(from, std::move(kept));
  Json& source = plan.source["imported"];
  source = {{"form", plan_form_name(form)}, {"file", file.filename().string()}, {"digest", checkpoint_detail::digest_of(from.text)}};
  if (options.expert_prune_ratio) source["expert_prune_ratio"] = *options.expert_prune_ratio;
  return plan;
}

}  // namespace moetrim
