// Plans that do not fit are refused before anything is written.

#include "testing.h"

#include "moetrim/error.h"
#include "moetrim/rewrite.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::testing;

TEST_CASE("a plan that does not fit the model is refused with what is wrong", "[rewrite]") {
  TempFolder folder;
  write_tiny_checkpoint(folder.path(), {});
  const Checkpoint source = Checkpoint::open(folder.path());
  const Model model = describe(source);
  const std::string fingerprint = source.fingerprint();
  Plan plan = plan_keeping(model, {{0, 3, 5}});
  CHECK_NOTHROW(check_plan(model, plan, fingerprint));
  std::string expected;
  SECTION("family") {
    plan.family = "mixtral";
    expected = "family mixtral";
  }
  SECTION("experts") {
    plan.experts = 8;
    expected = "8 experts per layer, the checkpoint has 7";
  }
  SECTION("experts per token") {
    plan.experts_per_token = 3;
    expected = "3 experts per token";
  }
  SECTION("fewer than a token needs") {
    plan = plan_keeping(model, {{4}});
    expected = "a token is routed to 2";
  }
  SECTION("fingerprint") {
    plan.checkpoint_fingerprint = "0123";
    expected = "fingerprint 0123";
    CHECK_NOTHROW(check_plan(model, plan, ""));
  }
  SECTION("layers") {
    plan.layers.pop_back();
    expected = "expected layers [0, 1], got [0]";
  }
  SECTION("unequal layers") {
    plan.layers[1].keep = {0, 1};
    expected = "layer 1 keeps 2 experts, expected 3";
  }
  SECTION("fewer than a token needs, in a layer with its own number") {
    plan.counts = LayerCounts::listed;
    plan.layers[1].keep = {0, 1};
    CHECK_NOTHROW(check_plan(model, plan, fingerprint));
    plan.layers[1].keep = {0};
    expected = "a token is routed to 2";
  }
  SECTION("id out of range") {
    plan.layers[1].keep = {0, 1, 7};
    expected = "layer 1 keeps expert 7, expected 0 to 6";
  }
  SECTION("id twice") {
    plan.layers[0].keep = {1, 4, 1};
    expected = "layer 0 keeps expert 1 twice";
  }
  if (expected.empty()) return;  // the run without a section
  CHECK_THROWS_WITH(check_plan(model, plan, fingerprint), Catch::Matchers::Contains(expected));
  CHECK_THROWS_AS(check_plan(model, plan, fingerprint), InvalidInput);
}
