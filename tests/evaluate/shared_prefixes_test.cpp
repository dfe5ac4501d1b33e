// Plans that share their first layers: which copies of the tokens a pass runs, and from where.

#include <ATen/ATen.h>

#include "testing.h"

#include "evaluate/shared_prefixes.h"

using namespace moetrim;

namespace {

/// A layer per number: 0 keeps all, n drops expert n - 1.
ExpertMask mask(const std::vector<int>& dropped) {
  ExpertMask out(dropped.size());
  for (std::size_t layer = 0; layer < dropped.size(); ++layer) {
    if (dropped[layer] == 0) continue;
    out[layer].kept.assign(4, true);
    out[layer].kept[static_cast<std::size_t>(dropped[layer] - 1)] = false;
  }
  return out;
}

std::vector<std::vector<int>> as_numbers(const SharedPass& pass) {
  std::vector<std::vector<int>> out;
  for (const Copy& copy : pass.copies) out.push_back({copy.from, copy.layer, copy.plan});
  return out;
}

}  // namespace

TEST_CASE("a plan begins where it leaves the plan that it agrees with longest", "[evaluate][shared_prefixes]") {
  const std::vector<ExpertMask> masks{mask({0, 1, 2}),   // leaves the model at layer 1
                                      mask({0, 0, 3}),   // the model at layer 2
                                      mask({0, 1, 4}),   // the first plan at layer 2
                                      mask({0, 0, 0}),   // is the model
                                      mask({0, 1, 4}),   // is the third plan
                                      mask({0, 2, 2}),   // leaves the model at layer 1, like the first
                                      mask({0, 1, 1})};  // the first plan at layer 2, not the third: it came earlier
  const SharedPass pass = share_prefixes(masks);
  REQUIRE(as_numbers(pass) == std::vector<std::vector<int>>{{-1, 0, -1}, {0, 1, 0}, {0, 1, 5}, {0, 2, 1}, {1, 2, 2}, {1, 2, 6}});
  REQUIRE(pass.copy_of == std::vector<int>{1, 3, 4, 0, 4, 2, 5});
}

TEST_CASE("masks differ by atoms, gates and groups too", "[evaluate][shared_prefixes]") {
  std::vector<ExpertMask> masks(4, mask({1, 1}));
  masks[1][1].gate_scale = 0.5;
  masks[2][1].regroup = true;
  masks[3][1].atoms = {{true, false}};
  const SharedPass pass = share_prefixes(masks);
  REQUIRE(as_numbers(pass) == std::vector<std::vector<int>>{{-1, 0, -1}, {0, 0, 0}, {1, 1, 1}, {1, 1, 2}, {1, 1, 3}});
}
