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
    const auto weight = random({kWidth}, at::kFloat);
    auto ours = at::empty({kRows, kWidth}, numerics.tile());
    auto theirs = at::empty_like(ours);
    kernels::norm_rows(numerics, stored, weight, 1e-6, ours);
    kernels::aten::norm_rows(numerics, stored, weight, 1e-6, theirs);
    check_close(ours, theirs, numerics);
  }
  SECTION("rotate_rows") {
    const QueryKeyNorm norm = GENERATE(QueryKeyNorm::none, QueryKeyNorm::per_head, QueryKeyNorm::full);
    const bool full = norm == QueryKeyNorm::full;
    kernels::HeadLayout layout{.heads = 4, .key_value_heads = 2, .head_dim = 6, .norm = norm, .epsilon = 1e-6, .clip = 0.8,
                               .query_norm = random({full ? 24 : 6}, at::kFloat), .key_norm = random({full ? 12 : 6}, at::kFloat)};
    auto ours = product(numerics, {kRows, 48});
    auto theirs = ours.clone();
    const auto cosine = random({kRows, 2}, at::kFloat);  // four of six dimensions rotate
    const auto sine = random({kRows, 2}, at::kFloat);
    kernels::rotate_rows(numerics, ours, layout, cosine, sine);
    kernels::aten::rotate_rows(numerics, theirs, layout, cosine, sine);
    check_close(ours, theirs, numerics);
  }
  SECTION("add_rows") {
    const auto delta = product(numerics, {kRows, kWidth});
    auto ours = stored.clone();
    auto theirs = stored.clone();
    kernels::add_rows(numerics, ours, delta);
    kernels::aten::add_rows(numerics, theirs, delta);
    CHECK(at::equal(ours, theirs));
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
    kernels::finish_rows(numerics, ours, routed, with_shared ? shared : at::Tensor(), turns);
    kernels::aten::finish_rows(numerics, theirs, routed, with_shared ? shared : at::Tensor(), turns2);
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
