// Every number of experts that a layer can keep.
#include "moetrim/keep_counts.h"

#include "plan/legal_keep.h"

namespace moetrim {

std::vector<int> keep_counts(const RouterLimits& limits, bool regroup) {
  const LegalCounts legal = legal_counts(limits, regroup);
  std::vector<int> counts;
  for (int keep = (legal.least + legal.step - 1) / legal.step * legal.step; keep <= legal.most; keep += legal.step) {
    counts.push_back(keep);
  }
  return counts;
}

}  // namespace moetrim
