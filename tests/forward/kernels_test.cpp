// Every form of every kernel against its LibTorch form, in every way numbers are held, at odd sizes and at sizes that vectors
// divide: CPU loops, the CUDA kernels' code run on the CPU, and CUDA where there is a device.

#include <ATen/ATen.h>

#include "testing.h"

#include "forward/cuda/kernel_table.h"
#include "forward/cuda_library.h"
#include "forward/kernels.h"
#include "forward/kernels_aten.h"
#include "moetrim/error.h"
#include "moetrim/quantised.h"

using namespace moetrim;

namespace {

constexpr std::int64_t kRows = 7;

const Numerics kFp32{Precision::fp32, false};
const Numerics kBf16InFp32{Precision::bf16, true};
const Numerics kBf16{Precision::bf16, false};

/// A form under test: its functions, and where its tensors lie.
struct Form {
  const cuda::Kernels* kernels;
  at::Device device;

  at::Tensor on(const at::Tensor& x) const { return x.defined() ? x.to(device).clone() : x; }
  Norm on(Norm norm) const {
    norm.weight = on(norm.weight);
    norm.bias = on(norm.bias);
    return norm;
  }
};

const cuda::Kernels kLoops{.norm_rows = kernels::norm_rows,
                           .norm_product = kernels::norm_product,
                           .rotate_rows = kernels::rotate_rows,
                           .rotate_heads = kernels::rotate_heads,
                           .add_rows = kernels::add_rows,
                           .gather_rows = kernels::gather_rows,
                           .gated_silu = kernels::gated_silu,
                           .clamped_swiglu = kernels::clamped_swiglu,
                           .scatter_rows = kernels::scatter_rows,
                           .scatter_pairs = kernels::scatter_pairs,
                           .finish_rows = kernels::finish_rows,
                           .gate_rows = kernels::gate_rows};

/// The library and its first device, or a message and nothing.
const cuda::Table* device_library() {
  try {
    cuda::open_device("cuda:0");
    return &cuda::library();
  } catch (const InvalidInput& reason) {
    WARN("skipped: " << reason.what());
    return nullptr;
  }
}

at::Tensor random(at::IntArrayRef shape, at::ScalarType type) { return at::randn(shape).to(at::kBFloat16).to(type); }
/// What a matrix product leaves: in a tile, not yet rounded.
at::Tensor product(const Numerics& numerics, at::IntArrayRef shape) { return at::randn(shape).to(numerics.tile()); }

void check_close(const at::Tensor& a, const at::Tensor& b, const Numerics& numerics) {
  // Another order of a sum may round a bf16 value to its neighbour.
  const double tolerance = numerics.precision == Precision::bf16 ? 1.0 / 128 : 1e-5;
  CHECK(at::allclose(a.to(at::kCPU, at::kDouble), b.to(at::kDouble), tolerance, 1e-5));
}

/// Pairs of 5 tokens with 3 slots each among 6 experts, in the order of experts.
kernels::LayerPairs some_pairs() {
  return {.tokens = at::tensor({0, 3, 4, 1, 2, 0, 3, 1, 2, 4, 0, 2, 4, 1, 3}, at::kInt),
          .places = at::tensor({0, 5, 10, 3, 7, 13, 4, 8, 11, 1, 6, 14, 2, 9, 12}, at::kInt).view({5, 3}),
          .gates = at::rand({15})};
}

void check_kernels(const Form& form, const Numerics& numerics, const std::int64_t width) {
  CAPTURE(static_cast<int>(numerics.precision), numerics.bf16_in_fp32, width);
  const cuda::Kernels& ours_of = *form.kernels;
  const auto stored = random({kRows, width}, numerics.stored());
  const auto rows = at::tensor({4, 0, 6, 2}, at::kInt);
  const auto wide = at::TensorOptions().device(form.device);

  SECTION("norm_rows") {
    const NormKind kind = GENERATE(NormKind::rms, NormKind::rms_fp32, NormKind::layer);
    Norm norm{.kind = kind, .epsilon = 1e-6, .weight = random({width}, at::kFloat), .bias = {}};
    if (kind == NormKind::layer) norm.bias = random({width}, at::kFloat);
    auto theirs = at::empty({kRows, width}, numerics.tile());
    auto ours = form.on(theirs);
    ours_of.norm_rows(numerics, form.on(stored), form.on(norm), ours);
    kernels::aten::norm_rows(numerics, stored, norm, theirs);
    check_close(ours, theirs, numerics);
    const auto apart = product(numerics, {kRows, width + 8});
    ours_of.norm_product(numerics, form.on(apart).narrow(1, 3, width), form.on(norm), ours);
    kernels::aten::norm_product(numerics, apart.narrow(1, 3, width), norm, theirs);
    check_close(ours, theirs, numerics);
  }
  SECTION("rotate_rows") {
    const QueryKeyNorm norm = GENERATE(QueryKeyNorm::none, QueryKeyNorm::per_head, QueryKeyNorm::full,
                                       QueryKeyNorm::per_head_after_rope, QueryKeyNorm::unit_after_rope);
    const auto weights = [&](std::int64_t heads) {
      Norm out{.kind = NormKind::rms, .epsilon = 1e-6, .weight = {}, .bias = {}};
      if (norm != QueryKeyNorm::unit_after_rope) out.weight = random({norm == QueryKeyNorm::full ? heads * 6 : 6}, at::kFloat);
      return form.on(out);
    };
    kernels::HeadLayout layout{.heads = 4, .key_value_heads = 2, .head_dim = 6, .norm = norm, .clip = 0.8,
                               .query_norm = weights(4), .key_norm = weights(2)};
    const auto qkv = product(numerics, {kRows, 48 + 3});  // a few columns behind the values
    auto ours = form.on(qkv);
    auto theirs = form.on(qkv);
    const kernels::Rotation rotation{.cosine = form.on(random({kRows, 2}, at::kFloat)),  // four of six dimensions rotate
                                     .sine = form.on(random({kRows, 2}, at::kFloat)),
                                     .pairs = GENERATE(RopePairs::halves, RopePairs::neighbours),
                                     .in_fp32 = GENERATE(false, true)};
    ours_of.rotate_rows(numerics, ours, layout, rotation);
    kernels::aten::rotate_rows(numerics, theirs, layout, rotation);
    check_close(ours, theirs.cpu(), numerics);
    const auto heads = random({kRows, 3, 9}, numerics.tile());
    ours = form.on(heads);
    theirs = form.on(heads);
    auto part = ours.narrow(2, 5, 4);
    auto part2 = theirs.narrow(2, 5, 4);
    ours_of.rotate_heads(numerics, part, rotation);
    kernels::aten::rotate_heads(numerics, part2, rotation);
    check_close(ours, theirs.cpu(), numerics);
  }
  SECTION("add_rows") {
    const auto delta = product(numerics, {kRows, width});
    auto ours = form.on(stored);
    auto theirs = stored.clone();
    const double scale = GENERATE(1.0, 0.22);
    ours_of.add_rows(numerics, ours, form.on(delta), scale);
    kernels::aten::add_rows(numerics, theirs, delta, scale);
    check_close(ours, theirs, numerics);
  }
  SECTION("gather_rows") {
    auto theirs = at::empty({4, width}, numerics.tile());
    auto ours = form.on(theirs);
    ours_of.gather_rows(numerics, form.on(stored), form.on(rows), ours);
    kernels::aten::gather_rows(numerics, stored, rows, theirs);
    CHECK(at::equal(ours.cpu(), theirs));
  }
  SECTION("gated_silu and clamped_swiglu") {
    const auto gate_up = product(numerics, {kRows, 2 * width}) * 5;
    auto theirs = at::empty({kRows, width}, numerics.tile());
    auto ours = form.on(theirs);
    ours_of.gated_silu(numerics, form.on(gate_up), ours);
    kernels::aten::gated_silu(numerics, gate_up, theirs);
    check_close(ours, theirs, numerics);
    ours_of.clamped_swiglu(numerics, form.on(gate_up), 7.0, 1.702, ours);
    kernels::aten::clamped_swiglu(numerics, gate_up, 7.0, 1.702, theirs);
    check_close(ours, theirs, numerics);
  }
  SECTION("scatter_rows") {
    const auto f = product(numerics, {4, width});
    const auto gates = at::rand({kRows});
    auto theirs = random({kRows, width}, at::kFloat);
    auto ours = form.on(theirs);
    auto norms = at::empty({4}, wide), norms2 = at::empty({4}), most = at::empty({4}, wide), most2 = at::empty({4});
    ours_of.scatter_rows(numerics, form.on(f), form.on(rows), form.on(gates.narrow(0, 0, 4)), ours, norms, most);
    kernels::aten::scatter_rows(numerics, f, rows, gates.narrow(0, 0, 4), theirs, norms2, most2);
    CHECK(at::allclose(ours.cpu(), theirs, 1e-6, 1e-6));
    CHECK(at::allclose(norms.cpu(), norms2, 1e-6, 0));
    CHECK(at::equal(most.cpu(), most2));
  }
  SECTION("scatter_pairs, in three parts") {
    const auto f = product(numerics, {15, width});
    const auto pairs = some_pairs();
    const kernels::LayerPairs there{form.on(pairs.tokens), form.on(pairs.places), form.on(pairs.gates)};
    auto theirs = random({5, width}, at::kFloat);
    auto ours = form.on(theirs);
    auto norms = at::empty({15}, wide), norms2 = at::empty({15}), most = at::empty({15}, wide), most2 = at::empty({15});
    for (const auto& [first, count] : {std::pair{0, 5}, {5, 9}, {14, 1}}) {
      ours_of.scatter_pairs(numerics, form.on(f.narrow(0, first, count)), there, first, ours, norms, most);
      kernels::aten::scatter_pairs(numerics, f.narrow(0, first, count), pairs, first, theirs, norms2, most2);
    }
    CHECK(at::equal(ours.cpu(), theirs));  // one order of sums, however the pairs are cut
    CHECK(at::allclose(norms.cpu(), norms2, 1e-6, 0));
    CHECK(at::equal(most.cpu(), most2));
  }
  SECTION("finish_rows and gate_rows") {
    const auto gate = product(numerics, {kRows, 1});
    const auto x = product(numerics, {kRows, width});
    auto shared2 = at::empty({kRows, width}, numerics.tile());
    auto shared = form.on(shared2);
    ours_of.gate_rows(numerics, form.on(gate), form.on(x), shared);
    kernels::aten::gate_rows(numerics, gate, x, shared2);
    check_close(shared, shared2, numerics);
    const auto routed = at::randn({kRows, width});
    auto ours = form.on(stored);
    auto theirs = stored.clone();
    auto turns = at::empty({kRows}, wide.dtype(at::kDouble)), turns2 = at::empty({kRows}, at::kDouble);
    const bool with_shared = GENERATE(true, false);
    const double scale = GENERATE(1.0, 0.22);
    ours_of.finish_rows(numerics, ours, form.on(routed), with_shared ? shared : at::Tensor(), turns, scale);
    kernels::aten::finish_rows(numerics, theirs, routed, with_shared ? shared.cpu() : at::Tensor(), turns2, scale);
    check_close(ours, theirs, numerics);
    CHECK(at::allclose(turns.cpu(), turns2, 1e-6, 1e-9));
  }
}

/// Codes and scales of every kind that a device decodes, against the quantised stage bit for bit.
void check_dequantise(cuda::Dequantise dequantise, const at::Device& device) {
  struct Kind {
    PackingKind packing;
    Dtype codes;
    cuda::Code code;
    std::int64_t rows, cols, scale_rows, scale_cols;
  };
  const auto kind = GENERATE(Kind{PackingKind::fp8, Dtype::f8_e4m3, cuda::Code::e4m3, 260, 192, 128, 128},
                             Kind{PackingKind::fp8, Dtype::f8_e4m3, cuda::Code::e4m3, 7, 45, 4, 16},
                             Kind{PackingKind::fp8, Dtype::f8_e5m2, cuda::Code::e5m2, 9, 64, 1, 64},
                             Kind{PackingKind::mxfp4, Dtype::u8, cuda::Code::e2m1, 5, 96, 1, 32});
  const std::int64_t per_byte = kind.packing == PackingKind::mxfp4 ? 2 : 1;
  const bool by_power = kind.packing == PackingKind::mxfp4;
  const auto groups = (kind.cols + kind.scale_cols - 1) / kind.scale_cols;
  const auto bands = (kind.rows + kind.scale_rows - 1) / kind.scale_rows;
  const auto codes = at::arange(kind.rows * kind.cols / per_byte).mul(37).remainder(256).to(at::kByte);  // every code, NaN too
  const auto powers = at::randint(100, 140, {bands, groups}, at::kByte);
  const auto scales = by_power ? at::pow(2.0, powers.to(at::kFloat) - 127) : at::rand({bands, groups});
  PackedWeight weight;
  weight[Part::values] = {.name = "w", .dtype = kind.codes, .shape = {kind.rows, kind.cols / per_byte},
                          .bytes = static_cast<const std::byte*>(codes.const_data_ptr())};
  weight[Part::scale] = {.name = "w_scale", .dtype = by_power ? Dtype::u8 : Dtype::f32, .shape = {bands, groups},
                         .bytes = static_cast<const std::byte*>((by_power ? powers : scales).const_data_ptr())};
  const Packing packing{.kind = kind.packing, .rows = kind.rows, .cols = kind.cols, .bits = by_power ? 4 : 8,
                        .scale_rows = kind.scale_rows, .scale_cols = kind.scale_cols};
  const auto theirs = at::empty({kind.rows, kind.cols}, at::kBFloat16);
  dequantise_bf16(weight, packing, {static_cast<std::uint16_t*>(theirs.mutable_data_ptr()), static_cast<std::size_t>(theirs.numel())});
  at::Tensor ours = at::empty_like(theirs).to(device);
  const auto scales_of = dequantise_scales(weight, packing);
  CHECK(at::equal(at::tensor(scales_of).view({bands, groups}), scales.to(at::kFloat)));
  dequantise(kind.code, codes.to(device), scales.to(device, at::kFloat), kind.scale_rows, kind.scale_cols, ours);
  CHECK(at::equal(ours.cpu().view(at::kShort), theirs.view(at::kShort)));
}

}  // namespace

TEST_CASE("The matrix product equals LibTorch's, with weights as they lie", "[forward][kernels]") {
  at::manual_seed(5);
  const std::int64_t rows = GENERATE(1, 5, 12, 600);
  const std::int64_t depth = GENERATE(1, 20, 700);
  const std::int64_t columns = GENERATE(3, 32, 75);
  const at::ScalarType type = GENERATE(at::kFloat, at::kBFloat16);
  const bool transposed = GENERATE(false, true);
  CAPTURE(rows, depth, columns, transposed);
  const auto x = at::randn({rows, depth + 3}).narrow(1, 2, depth);
  const auto stored = at::randn(transposed ? at::IntArrayRef{depth, columns + 5} : at::IntArrayRef{columns, depth + 5}).to(type);
  const auto weight = transposed ? stored.narrow(1, 4, columns).t() : stored.narrow(1, 4, depth);
  const auto bias = at::randn({columns});
  const auto expected = at::mm(x.to(at::kDouble), weight.t().to(at::kDouble));
  auto whole = at::full({rows, columns + 2}, 7.0F);
  auto out = whole.narrow(1, 1, columns);
  kernels::multiply(x, weight, out);
  CHECK(at::allclose(out.to(at::kDouble), expected, 1e-5, 1e-4));
  kernels::multiply(x, weight, out, out);
  CHECK(at::allclose(out.to(at::kDouble), 2 * expected, 1e-5, 2e-4));
  kernels::multiply(x, weight, out, bias);
  CHECK(at::allclose(out.to(at::kDouble), expected + bias, 1e-5, 1e-4));
  CHECK(at::equal(whole.select(1, 0), at::full({rows}, 7.0F)));
  CHECK(at::equal(whole.select(1, columns + 1), at::full({rows}, 7.0F)));
}

TEST_CASE("A row of a product has the same bits whatever rows stand beside it", "[forward][kernels]") {
  at::manual_seed(6);
  const auto x = at::randn({1100, 600});
  const auto weight = at::randn({50, 600}).to(at::kBFloat16);
  auto all = at::empty({1100, 50});
  kernels::multiply(x, weight, all);
  for (const std::int64_t count : {1, 2, 7, 515, 517}) {
    for (const std::int64_t first : {0, 1, 100, 516}) {
      auto some = at::empty({count, 50});
      kernels::multiply(x.narrow(0, first, count), weight, some);
      CHECK(at::equal(some, all.narrow(0, first, count)));
    }
  }
}

TEST_CASE("CPU loops equal the LibTorch form", "[forward][kernels]") {
  at::manual_seed(3);
  check_kernels({&kLoops, at::kCPU}, GENERATE(kFp32, kBf16InFp32, kBf16), 45);  // not a multiple of any vector length
}

TEST_CASE("the code of the CUDA kernels, run on the CPU, equals the LibTorch form", "[forward][kernels]") {
  at::manual_seed(3);
  // A few values, values one by one and in vectors of 16 bytes that a block must go over twice.
  check_kernels({&cuda::kKernels, at::kCPU}, GENERATE(kFp32, kBf16), GENERATE(45, 301, 2072));
}

TEST_CASE("the CUDA kernels equal the LibTorch form", "[forward][kernels][cuda]") {
  const cuda::Table* library = device_library();
  if (library == nullptr) return;
  at::manual_seed(3);
  check_kernels({&library->kernels, at::Device("cuda:0")}, GENERATE(kFp32, kBf16), GENERATE(45, 301, 2072, 7168));
}

TEST_CASE("codes become bf16 on a device as on the CPU", "[forward][kernels]") { check_dequantise(cuda::dequantise_tensor, at::kCPU); }

TEST_CASE("codes become bf16 on CUDA as on the CPU", "[forward][kernels][cuda]") {
  if (const cuda::Table* library = device_library()) check_dequantise(library->dequantise, at::Device("cuda:0"));
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
