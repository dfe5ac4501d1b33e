// What a plan does beside keeping experts and atomic experts, in its file: merging, scaling, silencing, constants, smoothing.

#include "plan/layer_changes.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kMostFactor = 1e6;
constexpr double kMostSmoothing = 1e12;

bool contains(const std::vector<int>& ids, int id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

MergeGroup group_from_json(JsonFields fields, const Plan& plan) {
  MergeGroup group;
  group.into = fields.whole("into", 0, plan.experts - 1);
  group.members = fields.ascending("members", 0, plan.experts - 1);
  group.weights = fields.numbers("weights", 0, 1);
  if (group.members.size() < 2) fields.fail("members", "expected two experts or more; one alone is not merged");
  if (!contains(group.members, group.into)) fields.fail("into", fmt::format("expert {} is not one of the members", group.into));
  if (group.weights.size() != group.members.size()) {
    fields.fail("weights", fmt::format("expected {}, one per member, got {}", group.members.size(), group.weights.size()));
  }
  const double sum = std::accumulate(group.weights.begin(), group.weights.end(), 0.0);
  if (std::abs(sum - 1) > 1e-6) fields.fail("weights", fmt::format("expected a sum of 1, got {}", sum));
  fields.finish();
  return group;
}

/// Where the members' rows go decides which of them have a slot.
void check_members(const JsonFields& fields, const Plan& plan, const PlanLayer& layer, const MergeGroup& group,
                   std::vector<bool>& taken) {
  for (const int member : group.members) {
    if (taken[static_cast<std::size_t>(member)]) fields.fail("merge", fmt::format("expert {} is in two groups", member));
    taken[static_cast<std::size_t>(member)] = true;
    const bool wanted = member == group.into || plan.router == MergedRouter::duplicate;
    if (contains(layer.keep, member) == wanted) continue;
    fields.fail("merge", fmt::format("expert {} merges into {} with router {}, so keep must {} it", member, group.into,
                                     merged_router_name(plan.router), wanted ? "have" : "not have"));
  }
}

void read_merge(JsonFields& fields, const std::filesystem::path& file, const std::string& where, const Plan& plan,
                PlanLayer& layer) {
  if (!fields.has("merge")) return;
  std::vector<bool> taken(static_cast<std::size_t>(plan.experts));
  for (const Json& item : fields.array("merge")) {
    const std::string at = fmt::format("{}.merge[{}]", where, layer.merge.size());
    MergeGroup group = group_from_json(JsonFields(item, file, at), plan);
    if (!layer.merge.empty() && group.into <= layer.merge.back().into) {
      fields.fail("merge", fmt::format("expected groups in the order of into, got {} after {}", group.into,
                                       layer.merge.back().into));
    }
    check_members(fields, plan, layer, group, taken);
    layer.merge.push_back(std::move(group));
  }
  if (layer.merge.empty()) fields.fail("merge", "expected at least one group; leave it out where nothing is merged");
}

std::vector<int> kept_ids(JsonFields& fields, std::string_view name, const Plan& plan, const PlanLayer& layer) {
  if (!fields.has(name)) return {};
  std::vector<int> ids = fields.ascending(name, 0, plan.experts - 1);
  if (ids.empty()) fields.fail(name, "expected at least one expert; leave it out where there is none");
  for (const int id : ids) {
    if (!contains(layer.keep, id)) fields.fail(name, fmt::format("expert {} is not in keep", id));
  }
  return ids;
}

void read_scale(JsonFields& fields, const std::filesystem::path& file, const std::string& where, PlanLayer& layer) {
  if (!fields.has("scale")) return;
  for (const Json& item : fields.array("scale")) {
    JsonFields entry(item, file, fmt::format("{}.scale[{}]", where, layer.scale.size()));
    ScaledExpert scaled;
    scaled.expert = entry.whole("expert", layer.scale.empty() ? 0 : layer.scale.back().expert + 1);
    scaled.factor = entry.number("factor", -kMostFactor, kMostFactor);
    entry.finish();
    if (!contains(layer.keep, scaled.expert)) entry.fail("expert", fmt::format("expert {} is not in keep", scaled.expert));
    layer.scale.push_back(scaled);
  }
  if (layer.scale.empty()) fields.fail("scale", "expected at least one expert; leave it out where there is none");
}

void read_smooth(JsonFields& fields, PlanLayer& layer) {
  if (!fields.has("smooth")) return;
  for (const double value : fields.numbers("smooth", 1 / kMostSmoothing, kMostSmoothing)) {
    layer.smooth.push_back(static_cast<float>(value));
  }
  if (layer.smooth.empty()) fields.fail("smooth", "expected a factor per hidden channel; leave it out where there is none");
}

template <class Value>
struct Spelling {
  Value value;
  std::string_view name;
};

template <class Value, std::size_t N>
std::string_view name_of(const Spelling<Value> (&spellings)[N], Value value) {
  for (const auto& spelling : spellings) {
    if (spelling.value == value) return spelling.name;
  }
  throw Error("an option without a name");
}

template <class Value, std::size_t N>
Value value_of(const Spelling<Value> (&spellings)[N], std::string_view what, std::string_view name) {
  std::string list;
  for (const auto& spelling : spellings) {
    if (spelling.name == name) return spelling.value;
    list += (list.empty() ? "" : ", ") + std::string(spelling.name);
  }
  throw UsageError(fmt::format("{} {}: expected one of {}", what, in_quotes(name), list));
}

constexpr Spelling<MergedRouter> kRouters[] = {
    {MergedRouter::centroid, "centroid"}, {MergedRouter::map, "map"}, {MergedRouter::duplicate, "duplicate"}};
constexpr Spelling<Alignment> kAlignments[] = {
    {Alignment::none, "none"}, {Alignment::weights, "weights"}, {Alignment::activations, "activations"}};

}  // namespace

std::string_view merged_router_name(MergedRouter router) { return name_of(kRouters, router); }
MergedRouter merged_router_from_name(std::string_view name) { return value_of(kRouters, "router", name); }
std::string_view alignment_name(Alignment alignment) { return name_of(kAlignments, alignment); }
Alignment alignment_from_name(std::string_view name) { return value_of(kAlignments, "align", name); }

void read_head_changes(JsonFields& fields, Plan& plan) {
  if (fields.has("order")) {
    plan.order = fields.choice("order", {"ascending", "free"}) == "free" ? SlotOrder::free : SlotOrder::ascending;
  }
  if (fields.has("router")) plan.router = merged_router_from_name(fields.choice("router", {"centroid", "map", "duplicate"}));
  if (fields.has("align")) plan.align = alignment_from_name(fields.choice("align", {"none", "weights", "activations"}));
  if (!fields.has("noise")) return;
  plan.noise = fields.number("noise", 0, 1);
  plan.noise_seed = static_cast<std::uint64_t>(fields.integer("noise_seed", 0, std::int64_t{1} << 40));
  if (plan.order != SlotOrder::free) fields.fail("noise", "expected only with order free: it is for experts that have two slots");
}

void write_head_changes(const Plan& plan, Json& json) {
  if (plan.experts_per_token_after > 0) json["experts_per_token_after"] = plan.experts_per_token_after;
  if (plan.order == SlotOrder::free) json["order"] = "free";
  if (merges(plan)) {
    json["router"] = merged_router_name(plan.router);
    json["align"] = alignment_name(plan.align);
  }
  if (plan.noise > 0) {
    json["noise"] = plan.noise;
    json["noise_seed"] = plan.noise_seed;
  }
}

void read_changes(JsonFields& fields, const std::filesystem::path& file, const std::string& where, const Plan& plan,
                  PlanLayer& layer) {
  read_merge(fields, file, where, plan, layer);
  read_scale(fields, file, where, layer);
  layer.silence = kept_ids(fields, "silence", plan, layer);
  layer.constant = kept_ids(fields, "constant", plan, layer);
  read_smooth(fields, layer);
}

void write_changes(const PlanLayer& layer, Json& json) {
  for (const MergeGroup& group : layer.merge) {
    json["merge"].push_back({{"into", group.into}, {"members", group.members}, {"weights", group.weights}});
  }
  for (const ScaledExpert& scaled : layer.scale) json["scale"].push_back({{"expert", scaled.expert}, {"factor", scaled.factor}});
  if (!layer.silence.empty()) json["silence"] = layer.silence;
  if (!layer.constant.empty()) json["constant"] = layer.constant;
  if (!layer.smooth.empty()) json["smooth"] = layer.smooth;
}

void check_slots(const JsonFields& fields, const Plan& plan, const PlanLayer& layer) {
  const int rows = static_cast<int>(router_rows(plan, layer).size());
  if (rows == plan.keep) return;
  fields.fail("keep", fmt::format("expected {} experts as in the plan's keep, got {}{}", plan.keep, rows,
                                  plan.router == MergedRouter::map ? " router rows" : ""));
}

}  // namespace moetrim
