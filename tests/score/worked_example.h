// The worked example of the PreMoe and EASY-EP papers' methods: 2 layers, 4 experts, 3 tokens, top-2 of sigmoid + bias,
// gates renormalised over the two and times 2.5. Gates and turns (d) were computed apart, in fp64, and are given to six and
// eight digits.
#pragma once

#include <vector>

#include "given.h"

namespace moetrim::worked_example {

inline std::vector<given::Token> layer_a() {
  return {
      {.experts = {3, 0}, .gates = {1.035185, 1.464815}, .norms = {5, 1}, .turn = 0.19744590, .logits = {2, 1, -1, 0.5}},
      {.experts = {2, 3}, .gates = {2.255662, 0.244338}, .norms = {2, 2.5}, .turn = 0.00082815, .logits = {-0.5, -2, -0.25, -3}},
      {.experts = {2, 1}, .gates = {1.049247, 1.450753}, .norms = {10, 1}, .turn = 0.00183931, .logits = {0.5, 1.25, 0.25, -1}},
  };
}

inline std::vector<given::Token> layer_b() {
  return {
      {.experts = {2, 1}, .gates = {1.367817, 1.132183}, .norms = {1, 2}, .turn = 0.27728154, .logits = {-1, 0.25, 0.75, 3}},
      {.experts = {0, 2}, .gates = {1.350294, 1.149706}, .norms = {5, 1}, .turn = 0.00202178, .logits = {1, -0.5, 0.5, 0}},
      {.experts = {0, 2}, .gates = {0.677252, 1.822748}, .norms = {0.5, 5}, .turn = 0.80147500, .logits = {-2, -1.5, -0.75, -1}},
  };
}

/// The model of the example: a sigmoid router with a selection bias.
inline Statistics statistics(given::Marks marks = {}) {
  auto manifest = given::manifest(2, 4, 2);
  manifest.router = "sigmoid";
  manifest.router_selects_by_logit = false;
  manifest.tcess_top_k = marks.top_k;
  manifest.tcess_threshold = marks.threshold;
  return given::statistics(manifest, {given::layer(0, 1, 4, layer_a(), marks), given::layer(1, 1, 4, layer_b(), marks)});
}

}  // namespace moetrim::worked_example
