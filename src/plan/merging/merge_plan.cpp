// A plan over experts to one that merges: in every layer, and in every group of its router, what may be merged becomes as
// many experts as are left for it.
#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/merging.h"
#include "plan/cost.h"
#include "plan/legal_keep.h"
#include "plan/measured.h"
#include "plan/merging/facts.h"

namespace moetrim {
namespace {

/// Experts of a layer, or of one group of its router, that may be merged with each other.
struct Candidates {
  std::vector<int> ids;   ///< ascending; protected ones left out
  int fixed = 0;          ///< protected ones
  int group = 0;
};

class Merging {
 public:
  Merging(const Plan& base, const Statistics& statistics, const ReadVectors& read, const MergeRequest& request)
      : base_(base), statistics_(statistics), read_(read), request_(request), method_(find_merging_method(request.method)),
        counts_(legal_counts(router_limits(statistics.manifest), base.regroup)),
        options_{.features = request.features.value_or(MergeFeatures::outputs),
                 .linkage = request.linkage.value_or(Linkage::average),
                 .group_size = request.group_size.value_or(MergeOptions{}.group_size)} {
    check_merge(request, router_limits(statistics.manifest), base.regroup);
    check_equal_counts(base, "merge");
    if (needs_all_experts(request)) require_all_experts(statistics.manifest, std::string(method_.name));
    if (aligns_by_activations(request)) check_samples();
    to_ = legal_keep(router_limits(statistics.manifest), request.to, base.regroup);
    if (to_ >= base.keep) {
      throw InvalidInput(fmt::format("merge-to {}: every layer keeps {} experts, so nothing would be merged; give fewer",
                                     to_, base.keep));
    }
    saliency_ =
        score(statistics, find_scoring_method("reap"), {.variant = request.variant, .seed = 0}, request.task_weights);
    weights_ = task_weights(statistics.manifest, saliency_);
  }

  Plan plan() const {
    Plan plan = base_;
    if (plan.keep == plan.experts) plan.method = method_.name;
    plan.router = request_.router;
    plan.align = request_.align.value_or(method_.align);
    if (plan.router == MergedRouter::centroid) plan.keep = to_;
    const auto counts = layer_counts();
    for (std::size_t l = 0; l < plan.layers.size(); ++l) {
      PlanLayer& layer = plan.layers[l];  // its kept mass stays: members' probability goes to what they merge into
      apply(merged(l, counts[l]), layer);
      count_unseen(routed_tokens(statistics_.layers[l], weights_), layer);
    }
    write_source(plan);
    return plan;
  }

 private:
  void check_samples() const {
    require_all_experts(statistics_.manifest, "merge-align activations");
    if (statistics_.manifest.vectors->activation_samples > 0) return;
    throw InvalidInput("merge-align activations: the statistics hold no activations of sampled tokens; calibrate with "
                       "--statistics all-experts --activation-samples 128");
  }

  bool is_protected(int layer, int expert) const {
    return std::any_of(base_.protect.begin(), base_.protect.end(),
                       [&](const ProtectedExpert& other) { return other.layer == layer && other.expert == expert; });
  }

  std::vector<Candidates> candidates(const PlanLayer& layer) const {
    const int size = base_.experts / counts_.step;
    std::vector<Candidates> groups(static_cast<std::size_t>(counts_.step));
    for (const int id : layer.keep) {
      Candidates& group = groups[static_cast<std::size_t>(id / size)];
      group.group = id / size;
      if (is_protected(layer.layer, id)) {
        ++group.fixed;
      } else {
        group.ids.push_back(id);
      }
    }
    return groups;
  }

  /// Experts of every layer after merging, protected ones among them.
  std::vector<int> layer_counts() const {
    if (request_.counts == MergeCounts::uniform) return std::vector<int>(base_.layers.size(), to_);
    std::vector<std::vector<double>> usage;
    std::vector<std::vector<bool>> fixed;
    for (std::size_t l = 0; l < base_.layers.size(); ++l) {
      const PlanLayer& layer = base_.layers[l];
      const auto facts = layer_facts(statistics_.layers[l], {}, {}, weights_, false, false);
      usage.push_back(facts_of(facts, layer.keep).usage);
      fixed.emplace_back();
      for (const int id : layer.keep) fixed.back().push_back(is_protected(layer.layer, id));
    }
    return adaptive_counts(usage, fixed, to_);
  }

  /// The layer's groups of two and more, with original ids.
  std::vector<MergeGroup> merged(std::size_t index, int count) const {
    const PlanLayer& layer = base_.layers[index];
    const bool outputs = needs_all_experts(request_);
    const bool logits = method_.needs_logits || (method_.chooses_features && options_.features == MergeFeatures::logits);
    auto facts =
        layer_facts(statistics_.layers[index], needs_vectors(request_) ? read_(layer.layer) : ExpertVectors{},
                    saliency_.values[index], weights_, logits, outputs);
    if (method_.chooses_features && options_.features == MergeFeatures::weights) {
      facts.weight_distances = request_.weight_distances(layer.layer);
    }
    std::vector<MergeGroup> out;
    for (const Candidates& group : candidates(layer)) {
      if (group.ids.empty()) continue;
      const int left = count / counts_.step - group.fixed;
      if (left < 1) refuse_protection(layer.layer, group);
      for (MergeGroup& merged : method_.group(facts_of(facts, group.ids), left, options_)) {
        if (merged.members.size() < 2) continue;
        const auto id = [&](int place) { return group.ids[static_cast<std::size_t>(place)]; };
        merged.into = id(merged.into);
        std::transform(merged.members.begin(), merged.members.end(), merged.members.begin(), id);
        out.push_back(std::move(merged));
      }
    }
    std::sort(out.begin(), out.end(), [](const MergeGroup& a, const MergeGroup& b) { return a.into < b.into; });
    return out;
  }

  [[noreturn]] void refuse_protection(int layer, const Candidates& group) const {
    const std::string where = counts_.step == 1 ? "" : fmt::format(", group {}", group.group);
    throw InvalidInput(fmt::format("merge-to {}: layer {}{} has {} protected experts and {} others, which need one to merge "
                                   "into; the smallest that works is {}",
                                   to_, layer, where, group.fixed, group.ids.size(), (group.fixed + 1) * counts_.step));
  }

  void apply(std::vector<MergeGroup> groups, PlanLayer& layer) const {
    if (request_.router != MergedRouter::duplicate) {
      for (const MergeGroup& group : groups) {
        const auto goes = [&](int id) {
          return id != group.into && std::binary_search(group.members.begin(), group.members.end(), id);
        };
        layer.keep.erase(std::remove_if(layer.keep.begin(), layer.keep.end(), goes), layer.keep.end());
      }
    }
    layer.merge = std::move(groups);
  }

  void write_source(Plan& plan) const {
    nlohmann::ordered_json merge{{"method", method_.name}, {"to", to_}, {"counts", merge_counts_name(request_.counts)}};
    if (request_.to.ratio) merge["ratio"] = *request_.to.ratio;
    if (method_.chooses_features) merge["features"] = merge_features_name(options_.features);
    if (method_.has_linkage) merge["linkage"] = linkage_name(options_.linkage);
    if (method_.has_group_size) merge["group_size"] = options_.group_size;
    merge["weights"] = method_.weights;
    merge["tasks"] = saliency_.source.at("tasks");
    for (const auto& layer : statistics_.layers) merge["usage"].push_back(routed_tokens(layer, weights_));
    plan.source["merge"] = std::move(merge);
    if (!has_sizes(statistics_.manifest)) return;
    std::int64_t dropped = 0;
    for (const PlanLayer& layer : plan.layers) dropped += plan.experts - std::ssize(layer.keep);
    plan.source["expected"] = {{"bytes", expected_bytes(statistics_.manifest, dropped, 0)}};
  }

  const Plan& base_;
  const Statistics& statistics_;
  const ReadVectors& read_;
  const MergeRequest& request_;
  const MergingMethod& method_;
  const LegalCounts counts_;
  const MergeOptions options_;
  int to_ = 0;
  Scores saliency_;
  std::vector<double> weights_;  ///< [tasks]
};

}  // namespace

Plan merge_plan(Plan base, const Statistics& statistics, const ReadVectors& vectors, const MergeRequest& request) {
  return Merging(base, statistics, vectors, request).plan();
}

}  // namespace moetrim
