// Weights read ahead: the right bytes in any order of taking, what nobody wants is not read, and no way to get stuck.
#include "forward/weight_stream.h"

#include "testing.h"

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <vector>

#include <fmt/format.h>

#include "checkpoint/given_files.h"
#include "moetrim/error.h"

using namespace moetrim;

namespace {

constexpr std::int64_t kExpertBytes = 300'000;
constexpr int kExperts = 6;
constexpr int kLayers = 3;

/// Of every layer one tensor that is always needed and two for each expert, the second before the first in the file.
struct Given {
  Given() {
    folder.file("config.json", "{}");
    std::vector<TensorSpec> specs;
    for (int layer = 0; layer < kLayers; ++layer) {
      specs.push_back({fmt::format("{}.always", layer), Dtype::u8, {1000 + layer}});
      for (int expert = 0; expert < kExperts; ++expert) {
        specs.push_back({fmt::format("{}.{}.b", layer, expert), Dtype::u8, {kExpertBytes}});
        specs.push_back({fmt::format("{}.{}.a", layer, expert), Dtype::u8, {7}});
      }
    }
    SafetensorsWriter writer(folder / "model.safetensors", specs);
    for (std::size_t i = 0; i < specs.size(); ++i) {
      writer.write(given::counting_bytes(static_cast<std::size_t>(specs[i].shape[0]), static_cast<unsigned>(i)));
    }
    writer.finish();
    checkpoint.emplace(Checkpoint::open(folder.path()));
  }

  ByteRange whole(const std::string& name) const {
    const Tensor& tensor = checkpoint->at(name);
    return {&tensor, 0, tensor.size};
  }
  WeightGroup expert(int layer, int number) const {
    return {whole(fmt::format("{}.{}.a", layer, number)), whole(fmt::format("{}.{}.b", layer, number))};
  }
  std::vector<LayerGroups> layers() const {
    std::vector<LayerGroups> out;
    for (int layer = 0; layer < kLayers; ++layer) {
      out.push_back({.always = {whole(fmt::format("{}.always", layer))}, .experts = {}});
      for (int e = 0; e < kExperts; ++e) out.back().experts.push_back(expert(layer, e));
    }
    return out;
  }
  bool holds(const WeightBuffer& buffer, const WeightGroup& group) const {
    const std::byte* at = buffer.get();
    for (const ByteRange& range : group) {
      const auto bytes = checkpoint->read(*range.tensor);
      if (!std::equal(bytes.begin(), bytes.end(), at)) return false;
      at += bytes.size();
    }
    return true;
  }

  given::Folder folder;
  std::optional<Checkpoint> checkpoint;
};

}  // namespace

TEST_CASE("experts come in the order in which they are taken, and the unwanted are not read", "[stream]") {
  const Given given;
  ReadingTime time;
  const std::uint64_t ahead = GENERATE(0U, 700'000U, 100'000'000U);
  {
    WeightStream stream(*given.checkpoint, given.layers(), {.ahead_bytes = ahead, .cache = PageCache::use, .time = &time});
    for (int layer = 0; layer < kLayers; ++layer) {
      CHECK(given.holds(stream.next_layer(), given.layers()[static_cast<std::size_t>(layer)].always));
      // The later ones may fill the budget before the first is wanted; it is taken first all the same.
      stream.want_experts(std::vector<std::int32_t>{5, 4, 3, 3});
      stream.want_experts(std::vector<std::int32_t>{1, 5});
      std::vector<WeightBuffer> kept;  // as workers keep them
      for (const int e : {1, 3, 4, 5}) kept.push_back(stream.take_expert(e));
      for (std::size_t i = 0; i < kept.size(); ++i) CHECK(given.holds(kept[i], given.expert(layer, std::vector{1, 3, 4, 5}[i])));
      CHECK(given.holds(stream.take_expert(0), given.expert(layer, 0)));  // not announced
      CHECK_THROWS_AS(stream.take_expert(0), Error);
    }
    CHECK_THROWS_AS(stream.next_layer(), Error);
  }
  constexpr std::uint64_t kTaken = kLayers * 5 * (kExpertBytes + 7);
  CHECK(time.bytes >= kTaken);
  CHECK(time.bytes < kTaken + kLayers * 12 * 8192);  // whole pages; the sixth expert of each layer is not among them
}

TEST_CASE("a layer that ends early lets its experts go", "[stream]") {
  const Given given;
  std::vector<std::int32_t> all(kExperts);
  std::iota(all.begin(), all.end(), 0);
  WeightStream stream(*given.checkpoint, given.layers(), {.ahead_bytes = 700'000});
  for (int layer = 0; layer < kLayers; ++layer) {
    stream.next_layer();
    stream.want_experts(all);
    CHECK(given.holds(stream.take_expert(2), given.expert(layer, 2)));
  }
}

TEST_CASE("what fails while reading ahead is thrown where it is needed", "[stream]") {
  const Given given;
  WeightStream stream(*given.checkpoint, given.layers(), {.ahead_bytes = 100'000'000});
  stream.next_layer();
  std::filesystem::resize_file(given.folder / "model.safetensors", 20'000);
  stream.want_experts(std::vector<std::int32_t>{4});
  CHECK(given::has(given::refusal([&] { stream.take_expert(4); }), "became shorter"));
  CHECK(given::has(given::refusal([&] { stream.next_layer(); stream.next_layer(); }), "became shorter"));
}

TEST_CASE("experts that were taken are read once more when they are wanted again", "[stream]") {
  const Given given;
  ReadingTime time;
  {
    WeightStream stream(*given.checkpoint, given.layers(), {.ahead_bytes = 700'000, .cache = PageCache::use, .time = &time});
    for (int layer = 0; layer < kLayers; ++layer) {
      stream.next_layer();
      stream.want_experts(std::vector<std::int32_t>{0, 2, 4});
      for (const int e : {0, 2, 4}) CHECK(given.holds(stream.take_expert(e), given.expert(layer, e)));
      stream.want_experts(std::vector<std::int32_t>{0});
      CHECK_THROWS_AS(stream.take_expert(0), Error);
      stream.want_again(std::vector<std::int32_t>{2, 5});
      for (const int e : {2, 5}) CHECK(given.holds(stream.take_expert(e), given.expert(layer, e)));
      CHECK_THROWS_AS(stream.take_expert(2), Error);
    }
  }
  CHECK(time.bytes >= kLayers * 5 * kExpertBytes);
  CHECK(time.bytes < kLayers * 6 * kExpertBytes);
}
