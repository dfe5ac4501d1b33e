// The CPU loops against the LibTorch form of every kernel, in every way numbers are held, at odd sizes.

#include <ATen/ATen.h>

#include "testing.h"

#include "forward/kernels.h"
#include "forward/kernels_aten.h"

using namespace moetrim;

namespace {

constexpr std::int64_t kRows = 7;
constexpr std::int64_t kWidth = 45;  // not a multiple of any vector length

const Numerics kFp32{Precision::fp32, false};
const Numerics kBf16InFp32{Precision::bf16, true};
const Numerics kBf16{Precision::bf16, false};

at::Tensor random(at::IntArrayRef shape, at::ScalarType type) { return at::randn(shape).to(at::kBFloat16).to(type); }
/// What a matrix product leaves: in a tile, not yet rounded.
at::Tensor product(const Numerics& numerics, at::IntArrayRef shape) { return at::randn(shape).to(numerics.tile()); }

void check_close(const at::Tensor& a, const at::Tensor& b, const Numerics& numerics) {
  // Another order of a sum may round a bf16 value to its neighbour.
  const double tolerance = numerics.precision == Precision::bf16 ? 1.0 / 128 : 1e-5;
  CHECK(at::allclose(a.to(at::kDouble), b.to(at::kDouble), tolerance, 1e-5));
}

}  // namespace

TEST_CASE("CPU loops equal the LibTorch form", "[forward][kernels]") {
  at::manual_seed(3);
  const Numerics numerics = GENERATE(kFp32, kBf16InFp32, kBf16);
  CAPTURE(static_cast<int>(numerics.precision), numerics.bf16_in_fp32);
  const auto stored = random({kRows, kWidth}, numerics.stored());
  const auto rows = at::tensor({4, 0, 6, 2}, at::kInt);

  SECTION("norm_rows") {
    const NormKind kind = GENERATE(NormKind::rms, NormKind::rms_fp32, NormKind::layer);
    Norm norm{.kind = kind, .epsilon = 1e-6, .weight = random({kWidth}, at::kFloat), .bias = {}};
    if (kind == NormKind::layer) norm.bias = random({kWidth}, at::kFloat);
    auto ours = at::empty({kRows, kWidth}, numerics.tile());
    auto theirs = at::empty_like(ours);
    kernels::norm_rows(numerics, stored, norm, ours);
    kernels::aten::norm_rows(numerics, stored, norm, theirs);
    check_close(ours, theirs, numerics);
    const auto wide = product(numerics, {kRows, kWidth + 5});
    kernels::norm_product(numerics, wide.narrow(1, 3, kWidth), norm, ours);
    kernels::aten::norm_product(numerics, wide.narrow(1, 3, kWidth), norm, theirs);
    check_close(ours, theirs, numerics);
  }
  SECTION("rotate_rows") {
    const QueryKeyNorm norm = GENERATE(QueryKeyNorm::none, QueryKeyNorm::per_head, QueryKeyNorm::full,
                                       QueryKeyNorm::per_head_after_rope, QueryKeyNorm::unit_after_rope);
    const auto weights = [&](std::int64_t heads) {
      Norm out{.kind = NormKind::rms, .epsilon = 1e-6, .weight = {}, .bias = {}};
      if (norm != QueryKeyNorm::unit_after_rope) out.weight = random({norm == QueryKeyNorm::full ? heads * 6 : 6}, at::kFloat);
      return out;
    };
    kernels::HeadLayout layout{.heads = 4, .key_value_heads = 2, .head_dim = 6, .norm = norm, .clip = 0.8,
                               .query_norm = weights(4), .key_norm = weights(2)};
    auto ours = product(numerics, {kRows, 48 + 3});  // a few columns behind the values
    auto theirs = ours.clone();
    const kernels::Rotation rotation{.cosine = random({kRows, 2}, at::kFloat),  // four of six dimensions rotate
                                     .sine = random({kRows, 2}, at::kFloat),
                                     .pairs = GENERATE(RopePairs::halves, RopePairs::neighbours),
                                     .in_fp32 = GENERATE(false, true)};
    kernels::rotate_rows(numerics, ours, layout, rotation);
    kernels::aten::rotate_rows(numerics, theirs, layout, rotation);
    check_close(ours, theirs, numerics);
    auto heads = random({kRows, 3, 9}, numerics.tile());
    auto heads2 = heads.clone();
    auto part = heads.narrow(2, 5, 4);
    auto part2 = heads2.narrow(2, 5, 4);
    kernels::rotate_heads(numerics, part, rotation);
    kernels::aten::rotate_heads(numerics, part2, rotation);
    check_close(heads, heads2, numerics);
  }
  SECTION("add_rows") {
    const auto delta = product(numerics, {kRows, kWidth});
    auto ours = stored.clone();
    auto theirs = stored.clone();
    const double scale = GENERATE(1.0, 0.22);
    kernels::add_rows(numerics, ours, delta, scale);
    kernels::aten::add_rows(numerics, theirs, delta, scale);
    check_close(ours, theirs, numerics);
  }
  SECTION("gather_rows") {
    auto ours = at::empty({4, kWidth}, numerics.tile());
    auto theirs = at::empty_like(ours);
    kernels::gather_rows(numerics, stored, rows, ours);
    kernels::aten::gather_rows(numerics, stored, rows, theirs);
    CHECK(at::equal(ours, theirs));
  }
  SECTION("gated_silu") {
    const auto gate_up = product(numerics, {kRows, 2 * kWidth}) * 3;
    auto ours = at::empty({kRows, kWidth}, numerics.tile());
    auto theirs = at::empty_like(ours);
    kernels::gated_silu(numerics, gate_up, ours);
    kernels::aten::gated_silu(numerics, gate_up, theirs);
    check_close(ours, theirs, numerics);
  }
  SECTION("clamped_swiglu") {
    const auto gate_up = product(numerics, {kRows, 2 * kWidth}) * 6;
    auto ours = at::empty({kRows, kWidth}, numerics.tile());
    auto theirs = at::empty_like(ours);
    kernels::clamped_swiglu(numerics, gate_up, 7.0, 1.702, ours);
    kernels::aten::clamped_swiglu(numerics, gate_up, 7.0, 1.702, theirs);
    check_close(ours, theirs, numerics);
  }
  SECTION("scatter_rows") {
    const auto f = product(numerics, {4, kWidth});
    const auto gates = at::rand({4});
    auto ours = random({kRows, kWidth}, at::kFloat);
    auto theirs = ours.clone();
    auto norms = at::empty({4}), norms2 = at::empty({4}), most = at::empty({4}), most2 = at::empty({4});
    kernels::scatter_rows(numerics, f, rows, gates, ours, norms, most);
    kernels::aten::scatter_rows(numerics, f, rows, gates, theirs, norms2, most2);
    CHECK(at::allclose(ours, theirs, 1e-6, 1e-6));
    CHECK(at::allclose(norms, norms2, 1e-6, 0));
    CHECK(at::equal(most, most2));
  }
  SECTION("finish_rows and gate_rows") {
    const auto gate = product(numerics, {kRows, 1});
    const auto x = product(numerics, {kRows, kWidth});
    auto shared = at::empty({kRows, kWidth}, numerics.tile());
    auto shared2 = at::empty_like(shared);
    kernels::gate_rows(numerics, gate, x, shared);
    kernels::aten::gate_rows(numerics, gate, x, shared2);
    check_close(shared, shared2, numerics);
    const auto routed = at::randn({kRows, kWidth});
    auto ours = stored.clone();
    auto theirs = stored.clone();
    auto turns = at::empty({kRows}, at::kDouble), turns2 = at::empty({kRows}, at::kDouble);
    const bool with_shared = GENERATE(true, false);
    const double scale = GENERATE(1.0, 0.22);
    kernels::finish_rows(numerics, ours, routed, with_shared ? shared : at::Tensor(), turns, scale);
    kernels::aten::finish_rows(numerics, theirs, routed, with_shared ? shared : at::Tensor(), turns2, scale);
    check_close(ours, theirs, numerics);
    CHECK(at::allclose(turns, turns2, 1e-6, 1e-9));
  }
}

TEST_CASE("the turn of a token is by hand", "[forward][kernels]") {
  // h = (3, 4), r = (-3, 0): after = (0, 4), cos = 16 / 20. A zero residual has no direction to turn from.
  auto hidden = at::tensor({3.0F, 4.0F, 0.0F, 0.0F}).view({2, 2});
  const auto routed = at::tensor({-3.0F, 0.0F, 1.0F, 0.0F}).view({2, 2});
  auto turns = at::empty({2}, at::kDouble);
  kernels::finish_rows(kFp32, hidden, routed, {}, turns);
  CHECK(turns[0].item<double>() == moetrim::testing::Approx(0.2));
  CHECK(turns[1].item<double>() == 0.0);
  CHECK(at::equal(hidden, at::tensor({0.0F, 4.0F, 1.0F, 0.0F}).view({2, 2})));
}

TEST_CASE("the gated delta rule equals its LibTorch form, also in two parts", "[forward][kernels]") {
  at::manual_seed(8);
  const auto q = at::randn({70, 2, 5});
  const auto raw = at::randn({70, 2, 5});
  const auto k = raw / raw.norm(2, {-1}, true);
  const auto v = at::randn({70, 6, 67});  // wider than a block of columns
  const auto decay = -at::rand({70, 6});
  const auto beta = at::rand({70, 6});
  auto state = at::zeros({6, 5, 67}), state2 = at::zeros({6, 5, 67});
  auto ours = at::empty_like(v), theirs = at::empty_like(v);
  auto front = ours.narrow(0, 0, 33);
  auto back = ours.narrow(0, 33, 37);
  const auto part = [](const at::Tensor& x, std::int64_t from, std::int64_t count) { return x.narrow(0, from, count); };
  kernels::delta_rule(part(q, 0, 33), part(k, 0, 33), part(v, 0, 33), part(decay, 0, 33), part(beta, 0, 33), state, front);
  kernels::delta_rule(part(q, 33, 37), part(k, 33, 37), part(v, 33, 37), part(decay, 33, 37), part(beta, 33, 37), state, back);
  kernels::aten::delta_rule(q, k, v, decay, beta, state2, theirs);
  CHECK(at::allclose(ours, theirs, 1e-4, 1e-5));
  CHECK(at::allclose(state, state2, 1e-4, 1e-5));
}
