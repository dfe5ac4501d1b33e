// A report as JSON and as tables.
#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/report.h"

namespace moetrim {
namespace {

using Json = nlohmann::ordered_json;

Json load_json(const LayerLoad& load) {
  return {{"layer", load.layer},
          {"tokens", load.tokens},
          {"most_used", {{"expert", load.most_used}, {"share", load.most_share}}},
          {"least_used", {{"expert", load.least_used}, {"share", load.least_share}}},
          {"variation", load.variation},
          {"unseen", load.unseen},
          {"entropy", load.entropy},
          {"soft_entropy", load.soft_entropy ? Json(*load.soft_entropy) : Json()}};
}

Json specialisation_json(const LayerSpecialisation& layer, const std::vector<std::string>& tasks) {
  Json own = Json::array();
  for (const auto& expert : layer.own) {
    own.push_back(
        {{"expert", expert.expert}, {"task", tasks[static_cast<std::size_t>(expert.task)]}, {"share", expert.share}});
  }
  return {{"layer", layer.layer},
          {"divergence", layer.divergence},
          {"mutual_information", layer.mutual_information},
          {"own_experts", std::move(own)}};
}

Json interval_json(const Estimate& estimate) {
  return estimate.interval ? Json::array({estimate.interval->first, estimate.interval->second}) : Json();
}

Json segment_json(const SegmentRouting& routing) {
  return {{"srp", routing.srp}, {"threshold", routing.threshold}, {"held", routing.held}};
}

Json consistency_json(const RoutingConsistency& entry, const std::vector<int>& layers) {
  Json json = {{"window", entry.window}, {"windows", entry.windows}};
  if (entry.windows == 0) return json;
  json["model"] = segment_json(entry.model);
  json["model"]["interval"] = interval_json(entry.srp);
  json["layers"] = Json::array();
  for (std::size_t l = 0; l < layers.size(); ++l) {
    Json row = {{"layer", layers[l]}};
    row.update(segment_json(entry.layers[l]));
    row["experts"] = entry.experts[l];
    json["layers"].push_back(std::move(row));
  }
  return json;
}

Json cache_json(const CacheHits& entry, const std::vector<int>& layers) {
  Json sizes = Json::array();
  for (const auto& size : entry.sizes) {
    Json rows = Json::array();
    for (std::size_t l = 0; l < layers.size(); ++l) rows.push_back({{"layer", layers[l]}, {"sch", size.layers[l]}});
    sizes.push_back({{"experts", size.experts},
                     {"model", {{"sch", size.model.value}, {"interval", interval_json(size.model)}}},
                     {"layers", std::move(rows)}});
  }
  return {{"window", entry.window}, {"sizes", std::move(sizes)}};
}

Json trace_json(const TraceReport& trace) {
  Json json = {{"tokens", trace.tokens}, {"sequences", trace.sequences}, {"srp", Json::array()}, {"sch", Json::array()}};
  for (const auto& entry : trace.consistency) json["srp"].push_back(consistency_json(entry, trace.layers));
  for (const auto& entry : trace.cache) json["sch"].push_back(cache_json(entry, trace.layers));
  return json;
}

Json confidence_json(const KeptSetConfidence& confidence) {
  Json layers = Json::array();
  for (const auto& layer : confidence.layers) {
    Json uncertain = Json::array();
    for (const auto& expert : layer.uncertain) {
      uncertain.push_back({{"expert", expert.expert}, {"share", expert.share}, {"kept", expert.kept}});
    }
    layers.push_back({{"layer", layer.layer}, {"uncertain", std::move(uncertain)}});
  }
  return {{"slices", confidence.slices},
          {"overlap", confidence.overlap},
          {"interval", {confidence.lower, confidence.upper}},
          {"layers", std::move(layers)}};
}

Json plan_json(const std::string& file, const PlanReport& plan) {
  Json json = {{"plan", file},
               {"routed_share", plan.routed_share},
               {"least_routed_share", {{"layer", plan.least_layer}, {"share", plan.least_routed_share}}},
               {"convergence", plan.convergence.empty() ? Json() : Json(plan.convergence)},
               {"confidence", plan.confidence ? confidence_json(*plan.confidence) : Json()}};
  if (!plan.why.empty()) json["why"] = plan.why;
  return json;
}

std::string interval_text(const Estimate& estimate) {
  if (!estimate.interval) return "";
  return fmt::format(" [{:.3f}, {:.3f}]", estimate.interval->first, estimate.interval->second);
}

std::string load_text(const std::vector<LayerLoad>& load) {
  std::string text =
      "Load: most and least used expert with their shares of the counted tokens; variation; unseen experts; entropy of use, "
      "and of the router's probability\n";
  for (const auto& row : load) {
    text += fmt::format("layer {:3}  {:3}: {:5.1f}%  {:3}: {:5.1f}%  {:5.2f}  {:3}  {:.3f}  {}\n", row.layer, row.most_used,
                        100 * row.most_share, row.least_used, 100 * row.least_share, row.variation, row.unseen, row.entropy,
                        row.soft_entropy ? fmt::format("{:.3f}", *row.soft_entropy) : "-");
  }
  return text;
}

std::string specialisation_text(const Report& report) {
  if (report.specialisation.empty()) return "";
  std::string text = fmt::format(
      "\nSpecialisation over {} tasks: divergence and mutual information in bits; experts that one task has nine "
      "tenths of\n",
      report.chosen.size());
  for (const auto& layer : report.specialisation) {
    text += fmt::format("layer {:3}  {:.3f}  {:.3f}  {}", layer.layer, layer.divergence, layer.mutual_information,
                        layer.own.size());
    for (std::size_t t = 0; t < report.tasks.size(); ++t) {
      const auto count = std::count_if(layer.own.begin(), layer.own.end(),
                                       [&](const auto& own) { return own.task == static_cast<int>(t); });
      if (count > 0) text += fmt::format("  {}: {}", report.tasks[t], count);
    }
    text += "\n";
  }
  return text;
}

std::string trace_text(const std::optional<TraceReport>& trace) {
  if (!trace) return "\nNo trace: calibrate with --trace N for local routing consistency\n";
  std::string text =
      fmt::format("\nLocal routing consistency over {} traced tokens in {} sequences\n", trace->tokens, trace->sequences);
  for (const auto& entry : trace->consistency) {
    if (entry.windows == 0) {
      text += fmt::format("window {:3}  no sequence is that long\n", entry.window);
      continue;
    }
    text += fmt::format("window {:3}  SRP {:.3f}{}, holding {:.2f} times the experts in use\n", entry.window,
                        entry.srp.value, interval_text(entry.srp), entry.model.held);
  }
  for (const auto& entry : trace->cache) {
    text += fmt::format("window {:3}  SCH", entry.window);
    for (const auto& size : entry.sizes) {
      text += fmt::format("  {} experts {:.3f}{}", size.experts, size.model.value, interval_text(size.model));
    }
    text += "\n";
  }
  return text;
}

std::string plan_text(const std::string& file, const PlanReport& plan) {
  std::string text = fmt::format("\n{}: {:.1f}% of the routed tokens keep their expert, least in layer {}: {:.1f}%\n", file,
                                 100 * plan.routed_share, plan.least_layer, 100 * plan.least_routed_share);
  if (!plan.convergence.empty()) {
    text += fmt::format("overlap of the kept set after 1 to {} slices with that of all: {:.2f}\n", plan.convergence.size(),
                        fmt::join(plan.convergence, " "));
  }
  if (!plan.why.empty()) text += plan.why + "\n";
  if (!plan.confidence) return text;
  text += fmt::format("overlap of resampled kept sets: {:.3f} [{:.3f}, {:.3f}]\n", plan.confidence->overlap,
                      plan.confidence->lower, plan.confidence->upper);
  for (const auto& layer : plan.confidence->layers) {
    if (layer.uncertain.empty()) continue;
    text += fmt::format("layer {:3}  uncertain:", layer.layer);
    for (const auto& expert : layer.uncertain) {
      text += fmt::format("  {}{} {:.0f}%", expert.expert, expert.kept ? " kept" : "", 100 * expert.share);
    }
    text += "\n";
  }
  return text;
}

}  // namespace

nlohmann::ordered_json report_to_json(const Report& report) {
  Json json = {{"tasks", Json::array()}, {"load", Json::array()}, {"specialisation", Json::array()}};
  for (const int task : report.chosen) json["tasks"].push_back(report.tasks[static_cast<std::size_t>(task)]);
  for (const auto& load : report.load) json["load"].push_back(load_json(load));
  for (const auto& layer : report.specialisation) json["specialisation"].push_back(specialisation_json(layer, report.tasks));
  json["trace"] = report.trace ? trace_json(*report.trace) : Json();
  json["plans"] = Json::array();
  for (const auto& [file, plan] : report.plans) json["plans"].push_back(plan_json(file, plan));
  return json;
}

std::string report_to_text(const Report& report) {
  std::string text = load_text(report.load) + specialisation_text(report) + trace_text(report.trace);
  for (const auto& [file, plan] : report.plans) text += plan_text(file, plan);
  return text;
}

}  // namespace moetrim
