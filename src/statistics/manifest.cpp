// manifest.json of a statistics folder: what was measured, on what, how.
#include "moetrim/statistics.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/json_fields.h"

namespace moetrim {
namespace {

constexpr std::string_view kFormat = "moetrim-statistics";
constexpr int kVersion = 1;
constexpr int kMostBlocks = 64;
constexpr int kMostShares = 1 << 20;
constexpr std::int64_t kMostTokens = std::int64_t{1} << 53;  // beyond it fp64 no longer counts every token

constexpr std::int64_t kMostBytes = std::int64_t{1} << 50;  // a thousand layers of it still fit 64 bits
constexpr double kMostLoss = 1e300;

nlohmann::ordered_json task_to_json(const StatisticsManifest::TaskFacts& task, bool second_order) {
  nlohmann::ordered_json json = {{"name", task.name},
                                 {"digest", task.digest},
                                 {"demonstrations", task.demonstrations},
                                 {"tokens", task.tokens},
                                 {"counted_tokens", task.counted_tokens}};
  if (second_order) {
    json["predicted_tokens"] = task.predicted_tokens;
    json["loss"] = task.loss;
  }
  return json;
}

StatisticsManifest::TaskFacts task_from_json(JsonFields fields, bool second_order) {
  StatisticsManifest::TaskFacts task;
  task.name = fields.text("name");
  task.digest = fields.text("digest");
  task.demonstrations = fields.integer("demonstrations", 0, kMostTokens);
  task.tokens = fields.integer("tokens", 0, kMostTokens);
  task.counted_tokens = fields.integer("counted_tokens", 0, task.tokens);
  if (second_order) {
    task.predicted_tokens = fields.integer("predicted_tokens", 0, task.counted_tokens);
    task.loss = fields.number("loss", 0, kMostLoss);
  }
  fields.finish();
  return task;
}

nlohmann::ordered_json sizes_to_json(const StatisticsManifest::Sizes& sizes) {
  return {{"checkpoint_bytes", sizes.checkpoint_bytes},
          {"expert_bytes", sizes.expert_bytes},
          {"atom_bytes", sizes.atom_bytes},
          {"width", sizes.width},
          {"hidden", sizes.hidden}};
}

/// The bounds keep sums over experts and atomic experts within 64 bits.
StatisticsManifest::Sizes sizes_from_json(JsonFields fields, int experts) {
  StatisticsManifest::Sizes sizes;
  sizes.checkpoint_bytes = fields.integer("checkpoint_bytes", 1, kMostBytes);
  sizes.expert_bytes = fields.integer("expert_bytes", 1, std::max<std::int64_t>(1, sizes.checkpoint_bytes / experts));
  sizes.width = fields.whole("width", 1);
  sizes.atom_bytes = fields.integer("atom_bytes", 1, sizes.expert_bytes / sizes.width + 1);
  sizes.hidden = fields.whole("hidden", 1);
  fields.finish();
  return sizes;
}

void read_sizes(JsonFields& fields, const std::filesystem::path& file, StatisticsManifest& manifest) {
  if (!fields.has("sizes")) return;
  manifest.sizes = sizes_from_json(JsonFields(fields.object("sizes"), file, "sizes"), manifest.experts);
  const auto width = manifest.sizes.width;
  if (manifest.expert_width == 0 || width == manifest.expert_width) return;
  fields.fail("sizes.width", fmt::format("expected the {} of expert_width, got {}", manifest.expert_width, width));
}

std::vector<StatisticsManifest::TaskFacts> tasks_from_json(JsonFields& fields, const std::filesystem::path& file,
                                                           bool second_order) {
  std::vector<StatisticsManifest::TaskFacts> tasks;
  for (const auto& item : fields.array("tasks")) {
    const std::string where = fmt::format("tasks[{}]", tasks.size());
    tasks.push_back(task_from_json(JsonFields(item, file, where), second_order));
    for (std::size_t i = 0; i + 1 < tasks.size(); ++i) {
      if (tasks[i].name == tasks.back().name) fields.fail(where, "a second task named " + in_quotes(tasks[i].name));
    }
  }
  if (tasks.empty()) fields.fail("tasks", "expected at least one task, got none");
  return tasks;
}

nlohmann::ordered_json part_to_json(const StatisticsManifest::Part& part) {
  nlohmann::ordered_json whole = nlohmann::ordered_json::array();
  for (const auto& task : part.whole) {
    whole.push_back({{"demonstrations", task.demonstrations}, {"tokens", task.tokens}, {"counted_tokens", task.counted_tokens}});
  }
  return {{"count", part.count}, {"shares", part.shares}, {"whole", std::move(whole)}};
}

StatisticsManifest::Part part_from_json(JsonFields fields, const std::filesystem::path& file, const StatisticsManifest& manifest) {
  StatisticsManifest::Part part;
  part.count = fields.whole("count", 2, kMostShares);
  part.shares = fields.ascending("shares", 1, part.count);
  if (part.shares.empty() || part.shares.size() == static_cast<std::size_t>(part.count)) {
    fields.fail("shares", fmt::format("expected some of {} shares, got {} of them", part.count, part.shares.size()));
  }
  for (const auto& item : fields.array("whole")) {
    const auto& task = manifest.tasks[std::min(part.whole.size(), manifest.tasks.size() - 1)];
    JsonFields of_task(item, file, fmt::format("part.whole[{}]", part.whole.size()));
    part.whole.push_back({.demonstrations = of_task.integer("demonstrations", task.demonstrations, kMostTokens),
                          .tokens = of_task.integer("tokens", task.tokens, kMostTokens),
                          .counted_tokens = of_task.integer("counted_tokens", task.counted_tokens, kMostTokens)});
    of_task.finish();
  }
  if (part.whole.size() != manifest.tasks.size()) {
    fields.fail("whole", fmt::format("expected {} tasks, got {}", manifest.tasks.size(), part.whole.size()));
  }
  fields.finish();
  return part;
}

nlohmann::ordered_json vectors_to_json(const StatisticsManifest::Vectors& vectors) {
  nlohmann::ordered_json json{{"width", vectors.width}, {"hidden", vectors.hidden}};
  for (const auto& marker : vectors.markers) json["markers"].push_back({{"text", marker.text}, {"spellings", marker.spellings}});
  if (vectors.all_experts) {
    json["all_experts"] = {{"tokens", vectors.all_experts_tokens}, {"activation_samples", vectors.activation_samples}};
  }
  json["quantisation"] = vectors.quantisation;
  return json;
}

StatisticsManifest::Vectors::Marker marker_from_json(JsonFields fields) {
  StatisticsManifest::Vectors::Marker marker{.text = fields.text("text"), .spellings = {}};
  for (const auto& item : fields.array("spellings")) {
    const std::string where = fmt::format("spellings[{}]", marker.spellings.size());
    auto& spelling = marker.spellings.emplace_back();
    if (!item.is_array() || item.empty()) fields.fail(where, "expected an array of token ids");
    for (const auto& id : item) {
      const bool fits = id.is_number_integer() && id >= 0 && id <= std::numeric_limits<std::int32_t>::max();
      if (!fits) fields.fail(where, "expected whole numbers from 0");
      spelling.push_back(id.get<std::int32_t>());
    }
  }
  fields.finish();
  return marker;
}

StatisticsManifest::Vectors vectors_from_json(JsonFields fields, const std::filesystem::path& file,
                                              const StatisticsManifest::Sizes& sizes) {
  StatisticsManifest::Vectors vectors;
  vectors.width = fields.whole("width", 1);
  vectors.hidden = fields.whole("hidden", 1);
  if (sizes.width > 0 && (vectors.width != sizes.width || vectors.hidden != sizes.hidden)) {
    fields.fail("width", fmt::format("expected width {} and hidden {} as in sizes, got {} and {}", sizes.width, sizes.hidden,
                                     vectors.width, vectors.hidden));
  }
  if (fields.has("markers")) {
    for (const auto& item : fields.array("markers")) {
      const std::string where = fmt::format("vectors.markers[{}]", vectors.markers.size());
      vectors.markers.push_back(marker_from_json(JsonFields(item, file, where)));
    }
  }
  if (fields.has("all_experts")) {
    JsonFields all(fields.object("all_experts"), file, "vectors.all_experts");
    vectors.all_experts = true;
    vectors.all_experts_tokens = all.integer("tokens", 0, kMostTokens);
    vectors.activation_samples = all.whole("activation_samples", 0);
    all.finish();
  }
  vectors.quantisation = fields.flag("quantisation");
  fields.finish();
  return vectors;
}

/// Rows are measured with the atomic experts, and the rank is below both sides of a matrix.
int row_rank_from_json(JsonFields& fields, const StatisticsManifest& manifest) {
  if (!fields.has("row_rank")) return 0;
  const std::int64_t least = std::min<std::int64_t>(manifest.expert_width, manifest.sizes.hidden);
  if (least < 2) fields.fail("row_rank", "expected none without expert_width and sizes");
  return fields.whole("row_rank", 1, static_cast<int>(least) - 1);
}

/// Files of routers without groups, and those from before groups were known, have no such field.
RouterGroups groups_from_json(JsonFields& fields, const std::filesystem::path& file, const StatisticsManifest& manifest) {
  if (!fields.has("groups")) return {};
  const RouterGroups groups =
      router_groups_from_json(fields.object("groups"), file, "groups", manifest.experts, manifest.experts_per_token);
  const bool restricts = groups.rule == "each" ? groups.count > 1 : groups.chosen < groups.count;
  if (restricts && manifest.router_selects_by_logit) {
    fields.fail("router_selects_by_logit",
                fmt::format("expected false, got true: the router chooses among {} groups first", groups.count));
  }
  return groups;
}

}  // namespace

nlohmann::ordered_json manifest_to_json(const StatisticsManifest& manifest) {
  nlohmann::ordered_json tasks = nlohmann::ordered_json::array();
  for (const auto& task : manifest.tasks) tasks.push_back(task_to_json(task, manifest.expert_width > 0));
  nlohmann::ordered_json json = {
      {"format", kFormat},
      {"version", kVersion},
      {"tool_version", manifest.tool_version},
      {"checkpoint_fingerprint", manifest.checkpoint_fingerprint},
      {"family", manifest.family},
      {"router", manifest.router},
      {"router_selects_by_logit", manifest.router_selects_by_logit},
      {"gates_normalised", manifest.gates_normalised},
      {"layers", manifest.layers},
      {"experts", manifest.experts},
      {"experts_per_token", manifest.experts_per_token},
      {"moe_layers", manifest.moe_layers},
      {"tcess_top_k", manifest.tcess_top_k},
      {"tcess_threshold", manifest.tcess_threshold},
      {"dtype", manifest.dtype},
      {"count", manifest.count},
      {"tasks", std::move(tasks)},
      {"settings", manifest.settings},
  };
  if (manifest.mtp_layers > 0) json["mtp_layers"] = manifest.mtp_layers;
  if (manifest.groups != RouterGroups{}) json["groups"] = router_groups_to_json(manifest.groups);
  if (manifest.expert_width > 0) json["expert_width"] = manifest.expert_width;
  if (manifest.sizes != StatisticsManifest::Sizes{}) json["sizes"] = sizes_to_json(manifest.sizes);
  if (manifest.vectors) json["vectors"] = vectors_to_json(*manifest.vectors);
  if (manifest.row_rank > 0) json["row_rank"] = manifest.row_rank;
  if (manifest.part) json["part"] = part_to_json(*manifest.part);
  manifest_from_json(json, "manifest to be written");
  return json;
}

StatisticsManifest manifest_from_json(const nlohmann::ordered_json& json, const std::filesystem::path& file) {
  JsonFields fields(json, file);
  fields.choice("format", {kFormat});
  fields.integer("version", kVersion, kVersion);
  StatisticsManifest manifest;
  manifest.tool_version = fields.text("tool_version");
  manifest.checkpoint_fingerprint = fields.text("checkpoint_fingerprint");
  manifest.family = fields.text("family");
  manifest.router = fields.choice("router", {"softmax", "sigmoid"});
  manifest.router_selects_by_logit = fields.flag("router_selects_by_logit");
  manifest.gates_normalised = fields.flag("gates_normalised");
  manifest.layers = fields.whole("layers", 1);
  manifest.experts = fields.whole("experts", 1);
  manifest.experts_per_token = fields.whole("experts_per_token", 1, manifest.experts);
  manifest.groups = groups_from_json(fields, file, manifest);
  if (fields.has("mtp_layers")) manifest.mtp_layers = fields.whole("mtp_layers", 1, kMostBlocks);
  manifest.moe_layers = fields.ascending("moe_layers", 0, manifest.layers + manifest.mtp_layers - 1);
  if (manifest.moe_layers.empty()) fields.fail("moe_layers", "expected at least one layer, got none");
  manifest.tcess_top_k = fields.whole("tcess_top_k", 0, manifest.experts);
  manifest.tcess_threshold = fields.number("tcess_threshold", -1, 1);
  manifest.dtype = fields.choice("dtype", {"fp32", "bf16", "fp64"});
  manifest.count = fields.choice("count", {"all", "prompt", "response"});
  if (fields.has("expert_width")) manifest.expert_width = fields.whole("expert_width", 1);
  read_sizes(fields, file, manifest);
  manifest.tasks = tasks_from_json(fields, file, manifest.expert_width > 0);
  if (fields.has("part")) manifest.part = part_from_json(JsonFields(fields.object("part"), file, "part"), file, manifest);
  if (fields.has("vectors")) {
    manifest.vectors = vectors_from_json(JsonFields(fields.object("vectors"), file, "vectors"), file, manifest.sizes);
  }
  manifest.row_rank = row_rank_from_json(fields, manifest);
  manifest.settings = fields.object("settings");
  fields.finish();
  return manifest;
}

}  // namespace moetrim
