// Expert upcycling: a plan with more experts than the checkpoint has, by repeating them; for training that goes on from
// there.
//
// Source: Expert Upcycling (arXiv 2604.19835). Copies of an expert have the same router row and so the same logit. With as
// many experts per token as before they compete: a token takes two copies of its best expert where it took its two best.
// Only when every expert has m copies and a token takes m times as many is the function the same, where copies share the
// gate weight that one had: softmax gates, and sigmoid gates that are divided by their sum.
#pragma once

#include <cstdint>
#include <string_view>

#include "moetrim/plan.h"
#include "moetrim/score.h"
#include "moetrim/statistics.h"

namespace moetrim {

/// Experts per token of the new checkpoint.
enum class UpcycleTopK {
  keep,   ///< as before: as fast, another function until it is trained
  scale,  ///< times the copies of every expert: the same function
};
/// "keep", "scale". @throws UsageError
UpcycleTopK upcycle_top_k_from_name(std::string_view name);

struct UpcycleRequest {
  int to = 0;             ///< experts of every layer afterwards; 0: `times` as many
  int times = 0;
  bool uniform = false;   ///< as many copies of every expert, as far as that goes; else by utility
  UpcycleTopK top_k = UpcycleTopK::keep;
  double noise = 0;       ///< of second and later copies: standard deviation as a share of a matrix's root mean square
  std::uint64_t seed = 0;

  /// "2x" or "128". @throws UsageError
  void parse_to(std::string_view text);
  /// Experts of a layer afterwards.
  int experts(int before) const { return to > 0 ? to : times * before; }
};

/// Before anything is read but the manifest.
/// @throws UsageError for options that do not go together; InvalidInput for a number of experts that is not larger or that
///         the router's groups do not divide, and for UpcycleTopK::scale on a router whose copies would not share a gate
///         weight.
void check_upcycle(const StatisticsManifest& manifest, const UpcycleRequest& request);

/// Every expert stays in its place and is followed by its copies. Of the slots that are left once every expert has one, each
/// expert gets its share of the layer's (or its router group's) utility; remainders go to the largest, ties to the lower id.
/// @param utility  scores of experts; null with `uniform`
/// @throws as check_upcycle; InvalidInput for scores of other layers or below zero
Plan upcycle_plan(const StatisticsManifest& manifest, const Scores* utility, const UpcycleRequest& request);

}  // namespace moetrim
