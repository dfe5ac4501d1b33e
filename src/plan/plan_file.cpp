// The plan file: JSON, read strictly and written one layer a line.
#include <algorithm>
#include <cstdint>
#include <limits>

#include <fmt/format.h>

#include "moetrim/checkpoint.h"
#include "moetrim/json_fields.h"
#include "moetrim/plan.h"
#include "moetrim/suggest.h"
#include "plan/layer_changes.h"
#include "plan/legal_keep.h"

namespace moetrim {
namespace {

constexpr std::string_view kFormat = "moetrim-plan";
constexpr int kVersion = 1;
constexpr int kMostWidth = std::numeric_limits<int>::max();

using Json = nlohmann::ordered_json;

/// Where slots are in any order, a new group holds experts of one old group.
void check_moved_groups(const JsonFields& fields, const Plan& plan, const std::vector<int>& keep) {
  const std::size_t after = keep.size() / static_cast<std::size_t>(plan.groups.count);
  const int before = plan.experts / plan.groups.count;
  for (std::size_t slot = 0; slot < keep.size(); ++slot) {
    const int group = keep[slot / after * after] / before;
    if (keep[slot] / before == group) continue;
    fields.fail(fmt::format("keep[{}]", slot), fmt::format("expert {} is of group {}, those before it are of group {}; the "
                                                          "router's groups must stay together", keep[slot],
                                                          keep[slot] / before, group));
  }
}

/// What the router needs of a layer, whatever the layer's number of experts is.
RouterLimits limits_of(const Plan& plan) {
  return {.experts = std::max(plan.experts, plan.keep),
          .experts_per_token = plan.experts_per_token_after > 0 ? plan.experts_per_token_after : plan.experts_per_token,
          .groups = plan.groups};
}

void check_count(const JsonFields& fields, const Plan& plan, const PlanLayer& layer) {
  if (plan.counts == LayerCounts::equal) return check_slots(fields, plan, layer);
  const int count = static_cast<int>(layer.keep.size());
  if (count > plan.keep) {
    fields.fail("keep", fmt::format("expected at most {} experts as in the plan's keep, got {}", plan.keep, count));
  }
  const RouterLimits limits = limits_of(plan);
  const std::string problem = keep_problem(limits, legal_counts(limits, plan.regroup), count);
  if (!problem.empty()) fields.fail("keep", fmt::format("{} experts do not work: {}", count, problem));
}

/// The new checkpoint's groups are runs of equal length: unequal numbers would move experts into other groups.
void check_groups(const JsonFields& fields, const Plan& plan, const std::vector<int>& keep) {
  if (plan.regroup) return;
  if (plan.order == SlotOrder::free) {
    check_moved_groups(fields, plan, keep);
    return;
  }
  const int size = plan.experts / plan.groups.count;
  const int expected = static_cast<int>(keep.size()) / plan.groups.count;
  for (int group = 0; group < plan.groups.count; ++group) {
    const auto count = std::count_if(keep.begin(), keep.end(), [&](int expert) { return expert / size == group; });
    if (count == expected) continue;
    fields.fail("keep", fmt::format("expected {} of group {} (experts {} to {}) as of every group, got {}", expected, group,
                                    group * size, (group + 1) * size - 1, count));
  }
}

void read_kept_mass(JsonFields& fields, const Plan& plan, PlanLayer& layer) {
  if (!fields.has("kept_mass")) {
    if (plan.correct_drift) fields.fail("kept_mass", "is missing; correct_drift needs it in every layer");
    return;
  }
  layer.kept_mass = fields.number("kept_mass", 0, 1);
  if (*layer.kept_mass == 0) fields.fail("kept_mass", "expected a share above 0, got 0");
}

[[noreturn]] void fail_range(const JsonFields& fields, const std::string& where, const std::string& expected,
                             const Json& got) {
  fields.fail(where, fmt::format("expected {}, got {}", expected, got.is_structured() ? got.type_name() : got.dump()));
}

AtomRange range_from_json(const JsonFields& fields, const std::string& where, const Json& json, int least, int width) {
  const auto whole = [](const Json& value) { return value.is_number_integer(); };
  if (!json.is_array() || json.size() != 2 || !whole(json[0]) || !whole(json[1])) {
    fail_range(fields, where, "[begin, end)", json);
  }
  const auto checked = [&](const Json& value, int lowest, int highest) {
    const bool fits = !value.is_number_unsigned() || value.get<std::uint64_t>() <= std::uint64_t{kMostWidth};
    if (!fits || value.get<std::int64_t>() < lowest || value.get<std::int64_t>() > highest) {
      fail_range(fields, where, fmt::format("a number from {} to {}", lowest, highest), value);
    }
    return value.get<int>();
  };
  const int begin = checked(json[0], least, width - 1);
  return {begin, checked(json[1], begin + 1, width)};
}

AtomRanges ranges_from_json(const JsonFields& fields, const std::string& where, const Json& json, int width) {
  if (!json.is_array()) fail_range(fields, where, "an array of [begin, end) pairs", json);
  AtomRanges ranges;
  for (const Json& item : json) {
    // Ranges that touch would be a second way to write one range.
    const int least = ranges.empty() ? 0 : ranges.back().end + 1;
    ranges.push_back(range_from_json(fields, fmt::format("{}[{}]", where, ranges.size()), item, least, width));
  }
  return ranges;
}

void read_atoms(JsonFields& fields, const Plan& plan, PlanLayer& layer) {
  if (!fields.has("atoms")) {
    if (plan.width > 0) fields.fail("atoms", "is missing; a plan with width names the atomic experts of every layer");
    return;
  }
  if (plan.width == 0) fields.fail("atoms", "expected only in a plan with width");
  const Json& lists = fields.array("atoms");
  if (lists.size() != layer.keep.size()) {
    fields.fail("atoms", fmt::format("expected {} lists, one per kept expert, got {}", layer.keep.size(), lists.size()));
  }
  for (const Json& item : lists) {
    layer.atoms.push_back(ranges_from_json(fields, fmt::format("atoms[{}]", layer.atoms.size()), item, plan.width));
  }
}

/// Original ids in any order, each as often as wanted.
std::vector<int> slots(JsonFields& fields, const Plan& plan) {
  if (plan.order == SlotOrder::ascending) return fields.ascending("keep", 0, plan.experts - 1);
  return fields.whole_numbers("keep", 0, plan.experts - 1);
}

PlanLayer layer_from_json(JsonFields fields, const Plan& plan, const std::filesystem::path& file, const std::string& where) {
  PlanLayer layer;
  layer.layer = fields.whole("layer", 0);
  layer.keep = slots(fields, plan);
  if (layer.keep.empty()) fields.fail("keep", "expected at least one expert, got none");
  read_changes(fields, file, where, plan, layer);
  check_count(fields, plan, layer);
  check_groups(fields, plan, router_rows(plan, layer));
  read_atoms(fields, plan, layer);
  layer.unseen = fields.whole("unseen", 0, plan.experts);
  const int slots_unseen = plan.order == SlotOrder::free ? static_cast<int>(layer.keep.size()) : layer.unseen;
  layer.unseen_kept = fields.whole("unseen_kept", 0, std::min(slots_unseen, static_cast<int>(layer.keep.size())));
  read_kept_mass(fields, plan, layer);
  fields.finish();
  return layer;
}

/// Equal numbers have one spelling, which every reader of plans understands.
void check_listed_counts(const JsonFields& fields, const Plan& plan) {
  if (plan.counts == LayerCounts::equal) return;
  if (merges(plan)) fields.fail("counts", "expected only where no experts are merged");
  const auto fewer = [](const PlanLayer& a, const PlanLayer& b) { return a.keep.size() < b.keep.size(); };
  const auto [least, most] = std::minmax_element(plan.layers.begin(), plan.layers.end(), fewer);
  if (std::ssize(most->keep) != plan.keep) {
    fields.fail("keep", fmt::format("expected {}, the most that a layer keeps, got {}", most->keep.size(), plan.keep));
  }
  if (least->keep.size() == most->keep.size()) fields.fail("counts", "every layer keeps the same number; leave it out");
}

void read_layers(JsonFields& fields, const std::filesystem::path& file, Plan& plan) {
  for (const auto& item : fields.array("layers")) {
    const std::string where = fmt::format("layers[{}]", plan.layers.size());
    PlanLayer layer = layer_from_json(JsonFields(item, file, where), plan, file, where);
    if (!plan.layers.empty() && layer.layer <= plan.layers.back().layer) {
      fields.fail(where + ".layer",
                  fmt::format("expected more than the {} before it, got {}; layers are ascending and not doubled",
                              plan.layers.back().layer, layer.layer));
    }
    plan.layers.push_back(std::move(layer));
  }
  if (plan.layers.empty()) fields.fail("layers", "expected at least one layer, got none");
  check_listed_counts(fields, plan);
  if (plan.width > 0 && uniform_width(plan, plan.width) == 0) {
    fields.fail("layers", "expected at least one atomic expert, got none in any layer");
  }
}

/// A protected expert that the plan drops, or takes atomic experts from, is a contradiction.
void check_protected(const JsonFields& fields, const Plan& plan, const ProtectedExpert& expert) {
  const auto layer = std::find_if(plan.layers.begin(), plan.layers.end(),
                                  [&](const PlanLayer& candidate) { return candidate.layer == expert.layer; });
  if (layer == plan.layers.end()) fields.fail("layer", fmt::format("layer {} is not in layers", expert.layer));
  const auto kept = std::find(layer->keep.begin(), layer->keep.end(), expert.expert);
  if (kept == layer->keep.end()) {
    fields.fail("expert", fmt::format("expert {} of layer {} is protected but not kept", expert.expert, expert.layer));
  }
  if (plan.width == 0) return;
  const int atoms = atom_count(layer->atoms[static_cast<std::size_t>(kept - layer->keep.begin())]);
  if (atoms < plan.width) {
    fields.fail("expert", fmt::format("expert {} of layer {} is protected but keeps {} of {} atomic experts", expert.expert,
                                      expert.layer, atoms, plan.width));
  }
}

void read_protect(JsonFields& fields, const std::filesystem::path& file, Plan& plan) {
  for (const auto& item : fields.array("protect")) {
    JsonFields entry(item, file, fmt::format("protect[{}]", plan.protect.size()));
    ProtectedExpert expert;
    expert.layer = entry.whole("layer", 0);
    expert.expert = entry.whole("expert", 0, plan.experts - 1);
    expert.why = entry.text("why");
    if (expert.why != "super" && expert.why != "requested" && !expert.why.starts_with("task ")) {
      entry.fail("why", fmt::format("{}: expected super, requested or task NAME", in_quotes(expert.why)));
    }
    entry.finish();
    check_protected(entry, plan, expert);
    plan.protect.push_back(std::move(expert));
  }
}

/// A flag that is left out unless it is set.
bool read_set(JsonFields& fields, std::string_view name) {
  if (!fields.has(name)) return false;
  if (!fields.flag(name)) fields.fail(name, "expected true, got false; leave it out where it is not set");
  return true;
}

void read_groups(JsonFields& fields, const std::filesystem::path& file, Plan& plan) {
  if (fields.has("groups")) {
    plan.groups = router_groups_from_json(fields.object("groups"), file, "groups", plan.experts, plan.experts_per_token);
    if (plan.groups.count == 1) fields.fail("groups", "expected at least two groups, got one; leave it out");
  }
  plan.regroup = read_set(fields, "regroup");
  if (plan.regroup && (plan.groups.count == 1 || plan.groups.rule == "each")) {
    fields.fail("regroup", "expected only with groups of rule max or top2, got " +
                               (plan.groups.count == 1 ? std::string("no groups") : "rule each"));
  }
  const RouterLimits limits = limits_of(plan);
  const std::string groups = router_groups_problem(plan.groups, limits.experts, limits.experts_per_token);
  if (!groups.empty()) fields.fail(plan.experts_per_token_after > 0 ? "experts_per_token_after" : "keep", groups);
  const std::string problem = keep_problem(limits, legal_counts(limits, plan.regroup), plan.keep);
  if (!problem.empty()) fields.fail("keep", fmt::format("{} does not work: {}", plan.keep, problem));
}

/// What is said of merged experts' routers means something only where experts are merged.
void check_routers(JsonFields& fields, const Plan& plan) {
  for (const char* name : {"router", "align"}) {
    if (fields.has(name) != merges(plan)) {
      fields.fail(name, merges(plan) ? "is missing; layers have merge groups" : "expected only where layers have merge groups");
    }
  }
  if (plan.order == SlotOrder::free && merges(plan)) fields.fail("order", "expected ascending where experts are merged");
}

Plan plan_from_json(const Json& json, const std::filesystem::path& file) {
  JsonFields fields(json, file);
  fields.choice("format", {kFormat});
  Plan plan;
  plan.version = fields.whole("version", kVersion, kVersion);
  plan.method = fields.text("method");
  plan.variant = fields.choice("variant", {"executed", "official"});
  plan.checkpoint_fingerprint = fields.text("checkpoint_fingerprint");
  plan.family = fields.text("family");
  plan.experts = fields.whole("experts", 1);
  read_head_changes(fields, plan);
  plan.keep = fields.whole("keep", 1, plan.order == SlotOrder::free ? kMostSlots : plan.experts);
  if (fields.has("counts")) {
    fields.choice("counts", {"by-layer"});
    plan.counts = LayerCounts::listed;
  }
  plan.experts_per_token = fields.whole("experts_per_token", 1, plan.keep);
  if (fields.has("experts_per_token_after")) plan.experts_per_token_after = fields.whole("experts_per_token_after", 1, plan.keep);
  if (fields.has("width")) plan.width = fields.whole("width", 1, kMostWidth);
  read_groups(fields, file, plan);
  plan.correct_drift = read_set(fields, "correct_drift");
  read_layers(fields, file, plan);
  read_protect(fields, file, plan);
  check_routers(fields, plan);
  plan.source = fields.object("source");
  fields.finish();
  return plan;
}

Json atoms_to_json(const std::vector<AtomRanges>& experts) {
  Json json = Json::array();
  for (const AtomRanges& ranges : experts) {
    Json& list = json.emplace_back(Json::array());
    for (const AtomRange& range : ranges) list.push_back(Json::array({range.begin, range.end}));
  }
  return json;
}

Json layer_to_json(const PlanLayer& layer, bool with_atoms) {
  Json json = {{"layer", layer.layer}, {"keep", layer.keep}};
  if (with_atoms) json["atoms"] = atoms_to_json(layer.atoms);
  json["unseen"] = layer.unseen;
  json["unseen_kept"] = layer.unseen_kept;
  if (layer.kept_mass) json["kept_mass"] = *layer.kept_mass;
  write_changes(layer, json);
  return json;
}

/// Arrays of objects one object a line: a kept set on one line can be read and compared, one id a line cannot.
std::string pretty(const Json& json) {
  std::string text = "{";
  for (const auto& field : json.items()) {
    text += (text.size() > 1 ? ",\n  " : "\n  ") + nlohmann::ordered_json(field.key()).dump() + ": ";
    const auto& value = field.value();
    if (!value.is_array() || value.empty()) {
      text += value.dump();
      continue;
    }
    for (std::size_t i = 0; i < value.size(); ++i) text += (i == 0 ? "[\n    " : ",\n    ") + value[i].dump();
    text += "\n  ]";
  }
  return text + "\n}\n";
}

}  // namespace

nlohmann::ordered_json plan_to_json(const Plan& plan) {
  nlohmann::ordered_json json = {{"format", kFormat},
                                 {"version", plan.version},
                                 {"method", plan.method},
                                 {"variant", plan.variant},
                                 {"checkpoint_fingerprint", plan.checkpoint_fingerprint},
                                 {"family", plan.family},
                                 {"experts", plan.experts},
                                 {"keep", plan.keep}};
  if (plan.counts == LayerCounts::listed) json["counts"] = "by-layer";
  json["experts_per_token"] = plan.experts_per_token;
  write_head_changes(plan, json);
  if (plan.width > 0) json["width"] = plan.width;
  if (plan.groups.count > 1) json["groups"] = router_groups_to_json(plan.groups);
  if (plan.regroup) json["regroup"] = true;
  if (plan.correct_drift) json["correct_drift"] = true;
  json["layers"] = nlohmann::ordered_json::array();
  for (const auto& layer : plan.layers) {
    json["layers"].push_back(layer_to_json(layer, plan.width > 0 || !layer.atoms.empty()));
  }
  json["protect"] = nlohmann::ordered_json::array();
  for (const auto& expert : plan.protect) {
    json["protect"].push_back({{"layer", expert.layer}, {"expert", expert.expert}, {"why", expert.why}});
  }
  json["source"] = plan.source;
  return json;
}

Plan read_plan(const std::filesystem::path& file) { return plan_from_json(read_json_file(file), file); }

void write_plan(const std::filesystem::path& file, const Plan& plan) {
  const auto json = plan_to_json(plan);
  plan_from_json(json, file);
  write_file_atomically(file, pretty(json));
}

}  // namespace moetrim
