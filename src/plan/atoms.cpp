// How many atomic experts a plan keeps, and whether every expert has the same number.
#include "moetrim/plan.h"

namespace moetrim {

int atom_count(const AtomRanges& ranges) {
  int count = 0;
  for (const AtomRange& range : ranges) count += range.end - range.begin;
  return count;
}

std::int64_t kept_atoms(const Plan& plan) {
  std::int64_t count = 0;
  for (const PlanLayer& layer : plan.layers) {
    for (const AtomRanges& ranges : layer.atoms) count += atom_count(ranges);
  }
  return count;
}

std::optional<int> uniform_width(const Plan& plan, int width_before) {
  if (plan.width == 0) return width_before;
  std::optional<int> width;
  for (const PlanLayer& layer : plan.layers) {
    for (const AtomRanges& ranges : layer.atoms) {
      const int count = atom_count(ranges);
      if (width.value_or(count) != count) return {};
      width = count;
    }
  }
  return width;
}

}  // namespace moetrim
