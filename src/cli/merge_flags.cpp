// The options of plans that merge.

#include <fmt/format.h>

#include "cli/stages.h"
#include "moetrim/error.h"
#include "moetrim/family.h"

namespace moetrim::cli {

namespace {

/// The methods' own alignments, for the help.
std::string default_alignments() {
  std::string text;
  for (const MergingMethod* method : merging_methods()) {
    text += fmt::format("{}{} for {}", text.empty() ? "" : ", ", alignment_name(method->align), method->name);
  }
  return text;
}

}  // namespace

void MergeFlags::add(CLI::App& command) {
  std::string names;
  for (const MergingMethod* known : merging_methods()) names += (names.empty() ? "" : ", ") + std::string(known->name);
  command.add_option("--merge", method, "Merge experts, all or those that --keep keeps, by this method: " + names);
  command.add_option("--merge-to", to,
                     "Experts of every layer after merging: a number, or a ratio or share of all before it");
  command.add_option("--merge-counts", counts,
                     "uniform: as many in every layer; adaptive: by usage over all layers, m-smoe only; default: uniform");
  command.add_option("--merge-features", features,
                     "What hc-smoe compares: outputs (mean outputs, needs calibrate --statistics all-experts), logits or "
                     "weights; default: outputs");
  command.add_option("--checkpoint", checkpoint, "The checkpoint that was calibrated, for --merge-features weights");
  command.add_option("--linkage", linkage, "Of hc-smoe: average, complete, single or ward; default: average");
  command.add_option("--group-size", group_size, "Of ream: most experts of a group; default: 16");
  command.add_option("--router", router,
                     "Router rows of merged experts: centroid (one each, plain, inexact), map (all, exact, own loader), "
                     "duplicate (all, exact, nothing saved); default: centroid");
  command.add_option("--merge-align", align,
                     "How the neurons of merged experts are matched: weights, activations or none; default: " +
                         default_alignments());
}

void MergeFlags::check_unused() const {
  for (const auto& [option, value] : {std::pair("--merge-to", &to), std::pair("--merge-counts", &counts),
                                      std::pair("--merge-features", &features), std::pair("--linkage", &linkage),
                                      std::pair("--group-size", &group_size), std::pair("--router", &router),
                                      std::pair("--merge-align", &align), std::pair("--checkpoint", &checkpoint)}) {
    if (!value->empty()) throw UsageError(fmt::format("{} is for plans that merge; add --merge, or leave it out", option));
  }
}

MergeRequest MergeFlags::request(const ScoreFlags& score) const {
  MergeRequest out{.method = method, .task_weights = score.weights(), .variant = variant_from_name(score.variant)};
  if (!to.empty()) out.to = KeepBudget::parse(to);
  if (!counts.empty()) out.counts = merge_counts_from_name(counts);
  if (!features.empty()) out.features = merge_features_from_name(features);
  if (!linkage.empty()) out.linkage = linkage_from_name(linkage);
  if (!group_size.empty()) out.group_size = parse_count(group_size, "--group-size", 2);
  if (!router.empty()) out.router = merged_router_from_name(router);
  if (!align.empty()) out.align = alignment_from_name(align);
  const bool compares_weights = out.features == MergeFeatures::weights;
  if (compares_weights && checkpoint.empty()) throw UsageError("--merge-features weights: name the checkpoint with --checkpoint");
  if (!compares_weights && !checkpoint.empty()) throw UsageError("--checkpoint is for --merge-features weights; leave it out");
  return out;
}

MergeRequest MergeFlags::request(const ScoreFlags& score, const StatisticsManifest& manifest) const {
  MergeRequest out = request(score);
  if (out.features != MergeFeatures::weights) return out;
  const auto opened = std::make_shared<const Checkpoint>(Checkpoint::open(checkpoint));
  if (opened->fingerprint() != manifest.checkpoint_fingerprint) {
    throw InvalidInput(fmt::format("--checkpoint {}: the statistics are of another checkpoint", checkpoint));
  }
  const auto model = std::make_shared<const Model>(describe(*opened));
  out.weight_distances = [opened, model](int layer) { return weight_distances(*model, layer); };
  return out;
}

}  // namespace moetrim::cli
