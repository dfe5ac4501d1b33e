// What the reverse sweep is made of: attention on tape against autograd through the formula, the gated unit backwards against
// autograd through its forward form, and the numbers of HEAPr's worked example.

#include <cmath>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "testing.h"

#include "forward/attention_core.h"
#include "forward/kernels.h"
#include "forward/kernels_aten.h"

using namespace moetrim;
using moetrim::testing::Approx;

namespace {

const Numerics kFp32{Precision::fp32, false};
const Numerics kFp64{Precision::fp64, false};

at::Tensor leaf(const at::Tensor& x) { return x.detach().clone().requires_grad_(true); }

void check_close(const at::Tensor& a, const at::Tensor& b, double tolerance = 1e-4) {
  CHECK(at::allclose(a.to(at::kDouble), b.to(at::kDouble), tolerance, tolerance * 0.1));
}

/// silu(gate) up, or the clamped form of gpt-oss, as autograd can follow them.
at::Tensor forward_form(const Numerics& numerics, const kernels::GatedUnit& unit, const at::Tensor& gate_up) {
  return std::isinf(unit.limit) ? kernels::aten::silu_times(numerics, gate_up)
                                : kernels::aten::swiglu(numerics, gate_up, unit.limit, unit.alpha);
}

}  // namespace

TEST_CASE("gradients of blocked attention equal those of the formula in fp64", "[forward][gradient]") {
  at::manual_seed(11);
  const auto length = GENERATE(1, 5, 128, 131, 300);
  const auto window = GENERATE(0, 40);
  const auto chunk = GENERATE(0, 16);
  const bool with_sinks = GENERATE(false, true);
  CAPTURE(length, window, chunk, with_sinks);
  AttentionRule rule{.scale = 0.4, .window = window, .chunk = chunk};
  if (with_sinks) rule.sinks = at::randn({6});
  const std::vector<at::Tensor> inputs{at::randn({length, 6, 10}), at::randn({length, 3, 10}), at::randn({length, 3, 7})};
  const at::Tensor of_out = at::randn({length, 6 * 7});
  const auto gradients = [&](at::ScalarType type) {
    std::vector<at::Tensor> leaves;
    for (const auto& input : inputs) leaves.push_back(leaf(input.to(type)));
    AttentionRule typed = rule;
    if (with_sinks) typed.sinks = rule.sinks.to(type);
    return torch::autograd::grad({taped_attention(leaves[0], leaves[1], leaves[2], typed)}, leaves, {of_out.to(type)});
  };
  const auto blocked = gradients(at::kFloat);     // blocks of queries
  const auto written_out = gradients(at::kDouble);  // LibTorch's operators
  for (std::size_t i = 0; i < inputs.size(); ++i) check_close(blocked[i], written_out[i]);
}

TEST_CASE("the gated unit backwards equals autograd, and sums what it passes", "[forward][gradient]") {
  at::manual_seed(12);
  const Numerics numerics = GENERATE(kFp32, kFp64);
  const kernels::GatedUnit unit = GENERATE(kernels::GatedUnit{}, kernels::GatedUnit{.limit = 0.8, .alpha = 1.7, .offset = 1.0});
  constexpr std::int64_t kRows = 9, kWidth = 37;  // not a multiple of any vector length
  const auto random = [&](at::IntArrayRef shape) { return at::randn(shape).to(numerics.wide()); };
  const at::Tensor before = random({kRows, 2 * kWidth});
  const at::Tensor of_activated = random({kRows, kWidth});
  const at::Tensor gates = at::rand({kRows}).to(numerics.wide());
  const at::Tensor x = leaf(before);
  const at::Tensor activated = forward_form(numerics, unit, x);
  const at::Tensor c = of_activated * gates.unsqueeze(1);
  const auto expected = torch::autograd::grad({activated}, {x}, {c});

  at::Tensor gate_up = before.clone();
  at::Tensor products = at::empty({kRows}, gates.options());
  at::Tensor sums = at::ones({3, kWidth}, at::kDouble);  // they are added to
  kernels::reverse_atoms(numerics, unit, activated.detach(), of_activated, gates, gate_up, products, sums);
  check_close(gate_up, expected[0]);
  check_close(products, (activated * of_activated).sum(1));
  const at::Tensor x2 = activated.detach().to(at::kDouble).square();
  const at::Tensor c2 = c.to(at::kDouble).square();
  check_close(sums, at::stack({x2.sum(0), c2.sum(0), (x2 * c2).sum(0)}) + 1.0);
}

TEST_CASE("HEAPr's worked example: sums of an expert with two rows", "[forward][gradient]") {
  // X rows (1, 2), (3, 0); g rows (1, 0), (0, 2); W columns are atoms, so c = g W is (1, 0), (2, -2).
  const at::Tensor down = at::tensor({1.0F, 0.0F, 1.0F, -1.0F}).view({2, 2});
  const at::Tensor g = at::tensor({1.0F, 0.0F, 0.0F, 2.0F}).view({2, 2});
  const at::Tensor x = at::tensor({1.0F, 2.0F, 3.0F, 0.0F}).view({2, 2});
  at::Tensor gate_up = at::zeros({2, 4});
  at::Tensor products = at::empty({2});
  at::Tensor sums = at::zeros({3, 2}, at::kDouble);
  kernels::reverse_atoms(kFp32, {}, x, at::mm(g, down), at::ones({2}), gate_up, products, sums);
  CHECK(at::equal(sums, at::tensor({10.0, 4.0, 5.0, 4.0, 37.0, 0.0}).view({3, 2})));
  const double scores[] = {10.0 * 5.0 / 4.0, 4.0 * 4.0 / 4.0};  // A B / n^2
  CHECK(scores[0] == Approx(12.5));
  CHECK(scores[1] == Approx(4.0));
}

TEST_CASE("the gated delta rule in chunks has the gradient of the rule token by token", "[forward][gradient]") {
  at::manual_seed(13);
  constexpr std::int64_t kLength = 70;  // more than a chunk
  const auto type = at::kDouble;
  const at::Tensor k = at::randn({kLength, 2, 5}).to(type);
  const std::vector<at::Tensor> inputs{at::randn({kLength, 2, 5}).to(type), k / k.norm(2, {-1}, true), at::randn({kLength, 4, 3}).to(type),
                                       -at::rand({kLength, 4}).to(type), at::rand({kLength, 4}).to(type)};
  const at::Tensor start = at::zeros({4, 5, 3}, type);
  const at::Tensor of_out = at::randn({kLength, 4, 3}).to(type);
  const auto leaves_of = [&] {
    std::vector<at::Tensor> leaves;
    for (const auto& input : inputs) leaves.push_back(leaf(input));
    return leaves;
  };
  const auto leaves = leaves_of();
  const auto [out, state] = kernels::aten::delta_rule_chunks(leaves[0], leaves[1], leaves[2], leaves[3], leaves[4], start);
  const auto ours = torch::autograd::grad({out}, leaves, {of_out});

  const auto others = leaves_of();
  at::Tensor memory = start;
  std::vector<at::Tensor> rows;
  for (std::int64_t t = 0; t < kLength; ++t) {
    const at::Tensor key = others[1][t].repeat_interleave(2, 0).unsqueeze(2);
    memory = memory * others[3][t].exp().view({4, 1, 1});
    const at::Tensor delta = others[4][t].view({4, 1, 1}) * (others[2][t].unsqueeze(1) - at::bmm(key.transpose(1, 2), memory));
    memory = memory + at::bmm(key, delta);
    rows.push_back(at::bmm(others[0][t].repeat_interleave(2, 0).unsqueeze(1), memory).squeeze(1));
  }
  const at::Tensor by_token = at::stack(rows);
  CHECK(at::allclose(out, by_token, 1e-9, 1e-10));
  CHECK(at::allclose(state, memory, 1e-9, 1e-10));
  const auto theirs = torch::autograd::grad({by_token}, others, {of_out});
  for (std::size_t i = 0; i < inputs.size(); ++i) CHECK(at::allclose(ours[i], theirs[i], 1e-8, 1e-9));
}
