// Whether a request to merge says something, and nothing that its method does not know.
#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/merging.h"
#include "plan/legal_keep.h"

namespace moetrim {
namespace {

[[noreturn]] void unknown_to(const MergingMethod& method, std::string_view option, std::string_view of) {
  throw UsageError(fmt::format("{}: {} does not know it, only {} does; leave it out", option, method.name, of));
}

}  // namespace

bool needs_all_experts(const MergeRequest& request) {
  const MergingMethod& method = find_merging_method(request.method);
  const auto features = request.features.value_or(MergeFeatures::outputs);
  return method.needs_outputs || (method.chooses_features && features == MergeFeatures::outputs);
}

bool needs_vectors(const MergeRequest& request) {
  const MergingMethod& method = find_merging_method(request.method);
  return method.needs_logits || needs_all_experts(request) ||
         (method.chooses_features && request.features == MergeFeatures::logits);
}

bool aligns_by_activations(const MergeRequest& request) {
  return request.align.value_or(find_merging_method(request.method).align) == Alignment::activations;
}

void check_merge(const MergeRequest& request) {
  const MergingMethod& method = find_merging_method(request.method);
  if (request.to.empty()) {
    throw UsageError(fmt::format("{}: nothing says how many experts stay; add --merge-to", method.name));
  }
  if (request.features && !method.chooses_features) unknown_to(method, "merge-features", "hc-smoe");
  if (request.linkage && !method.has_linkage) unknown_to(method, "linkage", "hc-smoe");
  if (request.group_size && !method.has_group_size) unknown_to(method, "group-size", "ream");
  if (request.group_size && *request.group_size < 2) {
    throw UsageError(fmt::format("group-size {}: a group has two experts or more", *request.group_size));
  }
  if (request.counts != MergeCounts::adaptive) return;
  if (!method.adaptive) unknown_to(method, "merge-counts adaptive", "m-smoe");
  if (request.router == MergedRouter::centroid) {
    throw UsageError("merge-counts adaptive: layers get different numbers of experts, and a checkpoint with one router row "
                     "for each has one number for all layers; use --router map or duplicate");
  }
}

void check_merge(const MergeRequest& request, const RouterLimits& limits, bool regroup) {
  check_merge(request);
  try {
    legal_keep(limits, request.to, regroup);
  } catch (const InvalidInput& error) {
    throw InvalidInput(fmt::format("merge-to: {}", error.what()));
  }
  if (request.counts == MergeCounts::adaptive && legal_counts(limits, regroup).step > 1) {
    throw InvalidInput(fmt::format("merge-counts adaptive: the router has {} groups of experts, which must stay equal; leave "
                                   "it out", limits.groups.count));
  }
}

}  // namespace moetrim
