// Experts in groups, as on a device, against experts one by one: the same code on the CPU, cut in every way.

#include <ATen/ATen.h>

#include "testing.h"
#include "tiny_checkpoint.h"

#include "forward/cuda_library.h"
#include "forward/expert_groups.h"
#include "forward/layer_weights.h"
#include "forward/load_weight.h"
#include "forward/workplace.h"
#include "moetrim/error.h"

using namespace moetrim;

namespace {

const Numerics kFp32{Precision::fp32, false};
const Numerics kBf16{Precision::bf16, false};

/// Tokens that chose K of E experts at random; expert 3 has none.
RoutedLayer some_routing(const Model& model, std::int64_t tokens) {
  RoutedLayer routed;
  routed.tokens = tokens;
  routed.experts = static_cast<int>(model.experts);
  routed.experts_per_token = static_cast<int>(model.experts_per_token);
  const at::Tensor order = at::rand({tokens, model.experts}).argsort(1, false).to(at::kInt);
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::int64_t taken = 0;
    for (std::int64_t e = 0; taken < model.experts_per_token; ++e) {
      const int id = order[t][e].item<int>();
      if (id == 3) continue;
      routed.ids.push_back(id);
      routed.gates.push_back(at::rand({1}).item<double>());
      ++taken;
    }
  }
  routed.norms.resize(routed.ids.size());
  routed.max_abs.resize(routed.ids.size());
  return routed;
}

WeightBuffer read_group(const Checkpoint& checkpoint, const WeightGroup& group) {
  std::size_t size = 0;
  for (const auto& range : group) size += range.size;
  WeightBuffer buffer(static_cast<std::byte*>(std::aligned_alloc(64, (size + 63) / 64 * 64)), [](std::byte* p) { std::free(p); });
  std::byte* at = buffer.get();
  for (const auto& range : group) {
    checkpoint.read(*range.tensor, range.begin, {at, range.size});
    at += range.size;
  }
  return buffer;
}

/// Does at once what a copy stream queues, and counts.
class CountedCopies : public cuda::CopyStream {
 public:
  void run(const std::function<void()>& body) override { body(); }
  Mark mark_compute() override { return std::make_shared<int>(0); }
  void wait_for(const Mark& mark) override {
    REQUIRE(mark != nullptr);
    ++waits;
  }
  void hold_compute() override { ++holds; }
  void keep(std::shared_ptr<const void> memory) override {
    REQUIRE(memory != nullptr);
    ++kept;
  }

  int waits = 0, holds = 0, kept = 0;
};

}  // namespace

TEST_CASE("experts in groups equal experts one by one, however they are cut", "[forward][groups]") {
  at::manual_seed(5);
  const Numerics numerics = GENERATE(kFp32, kBf16);
  const int hidden = GENERATE(8, 12);  // rows of 16 bytes and others
  const bool fused = GENERATE(false, true);
  const testing::TempFolder folder;
  testing::write_tiny_checkpoint(folder.path(), {.fused = fused, .hidden = hidden, .width = 8});
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const Model model = describe(checkpoint);
  const at::Device cpu = at::kCPU;
  const RotaryTable rotary(model, numerics, cpu);
  const TileContext context{model, numerics, cpu, rotary};
  const LayerTensors& tensors = model.layer[1];
  const FetchExpert fetch = [&](int expert) -> ExpertLoader {
    return [&, expert, bytes = read_group(checkpoint, expert_group(tensors, expert))] {
      return load_expert(model, tensors, expert, bytes, {.type = numerics.tile(), .numerics = numerics, .device = cpu});
    };
  };
  RoutedLayer one_by_one = some_routing(model, 23);
  RoutedLayer in_groups = one_by_one;
  const at::Tensor x = at::randn({23, hidden}).to(numerics.stored());
  at::Tensor sum = at::zeros({23, hidden}), sum2 = at::zeros({23, hidden});
  ThreadPool pool(1);
  std::vector<TileScratch> scratch(1);
  run_experts(context, fetch, x, {}, one_by_one, sum, pool, scratch);

  const auto limits = GENERATE(GroupLimits{7, 1000, false}, GroupLimits{7, 1000, true}, GroupLimits{2, 5, false},
                               GroupLimits{2, 5, true}, GroupLimits{1, 1, true});
  CAPTURE(static_cast<int>(numerics.precision), hidden, fused, limits.experts, limits.rows, limits.one_product);
  CountedCopies copies;
  const bool copied = GENERATE(false, true);
  run_expert_groups(context, fetch, copied ? &copies : nullptr, limits, x, in_groups, sum2);
  // Six of seven experts have rows. Their bytes are kept; a group waits for its room, and its product for the group.
  const int groups = static_cast<int>((6 + limits.experts - 1) / limits.experts);
  if (copied) CHECK((copies.kept == 6 && copies.waits == groups && copies.holds == groups));
  const double tolerance = numerics.precision == Precision::bf16 ? 1.0 / 128 : 1e-5;
  CHECK(at::allclose(sum, sum2, tolerance, 1e-4));
  CHECK(at::allclose(at::tensor(one_by_one.norms), at::tensor(in_groups.norms), tolerance, 1e-5));
  CHECK(at::allclose(at::tensor(one_by_one.max_abs), at::tensor(in_groups.max_abs), tolerance, 1e-5));
}

TEST_CASE("weights made of a copy of the bytes are those made of the bytes", "[forward][groups]") {
  const bool fused = GENERATE(false, true);
  const testing::TempFolder folder;
  testing::write_tiny_checkpoint(folder.path(), {.fused = fused, .width = 8});
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const Model model = describe(checkpoint);
  const at::Device cpu = at::kCPU;
  const LayerTensors& tensors = model.layer[1];
  const WeightGroup group = expert_group(tensors, 4);
  const WeightBuffer bytes = read_group(checkpoint, group);
  std::int64_t size = 0;
  for (const auto& range : group) size += static_cast<std::int64_t>(range.size);
  DeviceCopy copy{.host = bytes.get(), .bytes = at::from_blob(bytes.get(), {size}, at::kByte).clone()};
  const Conversion conversion{.type = at::kBFloat16, .numerics = kBf16, .device = cpu};
  Conversion by_copy = conversion;
  by_copy.copy = &copy;
  const ExpertWeights from_bytes = load_expert(model, tensors, 4, bytes, conversion);
  const ExpertWeights from_copy = load_expert(model, tensors, 4, bytes, by_copy);
  CHECK(at::equal(from_bytes.gate_up, from_copy.gate_up));
  CHECK(at::equal(from_bytes.down, from_copy.down));
  copy.bytes.zero_();
  CHECK(from_copy.down.abs().sum().item<double>() == 0);  // it does lie there
}

TEST_CASE("a device's room is shared out, and too little is refused", "[forward][groups]") {
  const testing::TempFolder folder;
  testing::write_tiny_checkpoint(folder.path(), {});
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  Model model = describe(checkpoint);
  model.hidden = 7168;
  model.expert_width = 2048;
  model.experts = 256;
  const auto gib = [](double size) { return cuda::Memory{static_cast<std::uint64_t>(size * (1ULL << 30)), 0}; };
  const GroupLimits large = plan_groups(model, kBf16, gib(78), true);
  CHECK(large.experts == 256);  // 2 x 256 x 84 MiB
  CHECK(large.rows == 1 << 17);
  const GroupLimits small = plan_groups(model, kBf16, gib(8), true);
  CHECK(small.experts > 20);
  CHECK(small.experts < 40);
  CHECK_THROWS_AS(plan_groups(model, kBf16, gib(0.4), true), OutOfResources);
}

TEST_CASE("a device that is not there is refused", "[forward]") {
  CHECK_THROWS_AS(cuda::open_device("gpu"), UsageError);
  CHECK_THROWS_AS(cuda::open_device("cuda:x"), UsageError);
  CHECK_THROWS_AS(cuda::open_device("cuda:120"), InvalidInput);
  CHECK(cuda::open_device("cpu").is_cpu());
}
