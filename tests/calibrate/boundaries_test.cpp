// How many hidden states between layers the disk is asked to hold.

#include "testing.h"

#include "calibrate/boundaries.h"
#include "moetrim/error.h"
#include "tiny_checkpoint.h"

using namespace moetrim;

namespace {

/// Ten MoE layers of width 100: a boundary of a token has 200 bytes in bf16, its gradient 400.
Model ten_layers() {
  Model model;
  model.layers = 10;
  model.hidden = 100;
  model.layer.resize(10);
  for (LayerTensors& layer : model.layer) layer.sparse = true;
  return model;
}

CalibrateOptions with_disk(std::uint64_t bytes) {
  CalibrateOptions options;
  options.precision = "bf16";
  options.max_disk = bytes;
  return options;
}

}  // namespace

TEST_CASE("all boundaries, then fewer, then fewer tokens, then a refusal", "[calibrate][boundaries]") {
  const Model model = ten_layers();
  const auto plan = [&](std::uint64_t bytes, std::int64_t longest = 10) {
    return plan_boundaries(model, with_disk(bytes), "out.stats", /*group_tokens=*/1000, longest);
  };
  // Twelve boundaries and two gradients a token: 12 x 200 + 2 x 400.
  const BoundaryPlan all = plan(3'200'000);
  CHECK(all.step == 1);
  CHECK(all.group_tokens == 1000);
  CHECK(all.token_bytes == 3200);
  CHECK((all.keeps(0) && all.keeps(7)));
  // 10 / 2 + 2 kept and one of the segment.
  const BoundaryPlan some = plan(3'199'999);
  CHECK(some.step == 2);
  CHECK(some.token_bytes == 2400);
  CHECK((some.keeps(4) && !some.keeps(5)));
  // A step of 3 has the fewest: 3 + 2 kept, 2 of the segment. Half of the tokens fit.
  const BoundaryPlan waves = plan(1'100'000);
  CHECK(waves.step == 3);
  CHECK(waves.group_tokens == 500);
  CHECK_THROWS_AS(plan(22'000, 11), OutOfResources);
  CHECK(plan(22'000, 10).group_tokens == 10);
}
