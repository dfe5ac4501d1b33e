// Tensor name patterns: one spelling per name, look-alikes told apart.

#include "testing.h"

#include "family/name_pattern.h"
#include "moetrim/family.h"

using namespace moetrim;

TEST_CASE("a pattern takes the numbers out of a name", "[family]") {
  const auto found = match_name("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", "model.layers.12.mlp.experts.7.up_proj.weight");
  REQUIRE(found);
  CHECK(found->layer == 12);
  CHECK(found->expert == 7);
  CHECK(expand_name("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", 12, 7) == "model.layers.12.mlp.experts.7.up_proj.weight");
}

TEST_CASE("other spellings do not match", "[family]") {
  const char* pattern = "model.layers.{layer}.mlp.gate.weight";
  for (const char* name : {"model.layers..mlp.gate.weight", "model.layers.01.mlp.gate.weight", "model.layers.-1.mlp.gate.weight",
                           "model.layers.1.mlp.gate.weights", "model.layers.1.mlp.gate_proj.weight", "xmodel.layers.1.mlp.gate.weight",
                           "model.layers.9999999.mlp.gate.weight", ""}) {
    CAPTURE(name);
    CHECK_FALSE(match_name(pattern, name));
  }
}

TEST_CASE("no two rules of a family share name and shape", "[family][every]") {
  for (const Family* family : families()) {
    for (const TensorRule& a : family->tensors) {
      int same = 0;
      for (const TensorRule& b : family->tensors) same += a.name == b.name && a.axes == b.axes;
      CAPTURE(family->name, a.name);
      CHECK(same == 1);
    }
  }
}

TEST_CASE("rope frequencies by hand", "[family][rope]") {
  Rope rope;
  rope.theta = 100.0;
  rope.dimensions = 4;
  rope.max_positions = rope.original_max_positions = 8;
  const auto plain = inverse_frequencies(rope, 8);
  CHECK(plain[0] == 1.0F);
  CHECK(plain[1] == moetrim::testing::Approx(0.1));
  rope.kind = RopeKind::linear;
  rope.factor = 4.0;
  CHECK(inverse_frequencies(rope, 8)[1] == moetrim::testing::Approx(0.025));
  rope.kind = RopeKind::dynamic;
  CHECK(inverse_frequencies(rope, 8)[1] == moetrim::testing::Approx(0.1));  // not longer than trained: as it was
  CHECK(inverse_frequencies(rope, 16)[1] < 0.1F);
}
