// Names of tensors, taken apart.
#include "moetrim/quantised.h"
#include "testing.h"

using namespace moetrim;

TEST_CASE("every published ending names its part") {
  struct Case {
    const char* ending;
    Part part;
  };
  const Case cases[] = {
      {".weight", Part::values},
      {".weight_packed", Part::values},
      {".qweight", Part::values},
      {".weight_scale", Part::scale},
      {".weight_scale_inv", Part::scale},
      {".scales", Part::scale},
      {".weight_global_scale", Part::global_scale},
      {".weight_scale_2", Part::global_scale},
      {".input_scale", Part::input_scale},
      {".activation_scale", Part::input_scale},
      {".input_global_scale", Part::input_scale},
      {".weight_zero_point", Part::zeros},
      {".qzeros", Part::zeros},
      {".weight_shape", Part::shape},
      {".g_idx", Part::order},
      {".weight_g_idx", Part::order},
      {"_blocks", Part::values},
      {"_scales", Part::scale},
      {"_scale_inv", Part::scale},
      {"_scale", Part::scale},
  };
  for (const Case& one : cases) {
    const std::string module = "model.layers.0.mlp.experts.3.gate_proj";
    const std::string name = module + one.ending;
    INFO(name);
    const auto split = split_part(name);
    REQUIRE(split.has_value());
    CHECK(split->module == module);
    CHECK(split->part == one.part);
    CHECK(split->suffix == one.ending);
  }
}

TEST_CASE("what is no part of a weight is left alone") {
  const std::string name = GENERATE(
      "a.gate_proj.bias", "experts.gate_up_proj_bias", "experts.gate_up_proj", "a.sinks", "a.k_proj.k_scale", ".weight",
      "weight", "", "a.weights", "a.blocks", "a.norm_scale", "a.some_blocks", "a.weight_scale_3", "_proj_blocks_",
      "a.gate_proj.weight_scale_inv.weight_scale_inv2");
  INFO(name);
  CHECK_FALSE(split_part(name).has_value());
}

TEST_CASE("a fused ending needs the separator only once") {
  CHECK(split_part("e.down_proj_scales")->module == "e.down_proj");
  CHECK(split_part("e.down_proj.weight_scale")->module == "e.down_proj");
  CHECK(part_name(Part::order) == "column order");
}
