// The list of merging methods, and how names of them and of their options are found.
#include <array>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"
#include "plan/merging/methods.h"

namespace moetrim {
namespace {

constexpr std::array kMethods{
#define MOETRIM_METHOD(name) &merging::name,
#include "plan/merging/methods.def"
#undef MOETRIM_METHOD
};

constexpr std::array<std::string_view, 3> kFeatures{"outputs", "logits", "weights"};
constexpr std::array<std::string_view, 4> kLinkages{"average", "complete", "single", "ward"};
constexpr std::array<std::string_view, 2> kCounts{"uniform", "adaptive"};

/// Place of a name in a list that is in the order of its enumeration.
template <class Names>
std::size_t place(const Names& names, std::string_view what, std::string_view name) {
  std::string list;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (names[i] == name) return i;
    list += (list.empty() ? "" : ", ") + std::string(names[i]);
  }
  throw UsageError(fmt::format("{} {}{}; expected one of {}", what, in_quotes(name), did_you_mean(name, names), list));
}

}  // namespace

std::span<const MergingMethod* const> merging_methods() { return kMethods; }

const MergingMethod& find_merging_method(std::string_view name) {
  std::array<std::string_view, kMethods.size()> names;
  for (std::size_t i = 0; i < names.size(); ++i) names[i] = kMethods[i]->name;
  return *kMethods[place(names, "merge", name)];
}

std::string_view merge_features_name(MergeFeatures features) { return kFeatures[static_cast<std::size_t>(features)]; }
MergeFeatures merge_features_from_name(std::string_view name) {
  return static_cast<MergeFeatures>(place(kFeatures, "merge-features", name));
}

std::string_view linkage_name(Linkage linkage) { return kLinkages[static_cast<std::size_t>(linkage)]; }
Linkage linkage_from_name(std::string_view name) { return static_cast<Linkage>(place(kLinkages, "linkage", name)); }

std::string_view merge_counts_name(MergeCounts counts) { return kCounts[static_cast<std::size_t>(counts)]; }
MergeCounts merge_counts_from_name(std::string_view name) {
  return static_cast<MergeCounts>(place(kCounts, "merge-counts", name));
}

}  // namespace moetrim
