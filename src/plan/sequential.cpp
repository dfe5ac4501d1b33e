// Sequential calibration as plans see it.
#include "moetrim/sequential.h"

#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "plan/protect.h"

namespace moetrim {

namespace {

/// Whether nothing beside a choice of that form decided what stays.
bool is_plain(const Plan& plan) {
  const auto requested = [](const ProtectedExpert& expert) { return expert.why == "requested"; };
  return plan.counts == LayerCounts::equal && plan.width == 0 && !merges(plan) && !plan.source.contains("combine") &&
         !plan.source.contains("drop") && std::all_of(plan.protect.begin(), plan.protect.end(), requested);
}

}  // namespace

nlohmann::ordered_json choice_of(const Plan& plan, const std::vector<std::string>& protect) {
  nlohmann::ordered_json tasks = nlohmann::ordered_json::array();
  for (const auto& task : plan.source.value("tasks", nlohmann::ordered_json::array())) {
    tasks.push_back({{"name", task.value("name", "")}, {"weight", task.value("weight", 1.0)}});
  }
  return {{"method", plan.method},   {"variant", plan.variant},           {"keep", plan.keep},
          {"regroup", plan.regroup}, {"seed", plan.source.value("seed", std::uint64_t{0})}, {"tasks", tasks},
          {"protect", protect}};
}

std::string sequential_note(const StatisticsManifest& manifest, const Plan& plan) {
  const auto found = manifest.settings.find("sequential");
  if (found == manifest.settings.end() || !found->is_object()) return "";
  const auto requests = plan.source.value("protect", std::vector<std::string>{});
  if (is_plain(plan) && choice_of(plan, requests) == *found) return "";
  return fmt::format("every layer was measured behind layers that keep {} experts by {} (calibrate --sequential); this plan "
                     "is another one, for which such statistics are an approximation",
                     found->value("keep", 0), found->value("method", ""));
}

std::vector<std::string> protection_of_layer(const std::vector<std::string>& protect, const StatisticsManifest& manifest,
                                             int layer) {
  for (const std::string& request : protect) {
    if (request.find("super") == std::string::npos) continue;
    throw UsageError("--protect super compares the experts of all layers, which a sequential calibration does not have when "
                     "it chooses; name them as LAYER:EXPERT");
  }
  std::vector<std::string> out;
  const Statistics nothing_measured{.manifest = manifest, .layers = {}};
  for (const auto& expert : resolve_protection(nothing_measured, {.protect = protect}, Variant::executed)) {
    if (expert.layer == layer) out.push_back(fmt::format("{}:{}", layer, expert.expert));
  }
  return out;
}

}  // namespace moetrim
