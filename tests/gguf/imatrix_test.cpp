// Importance matrices: written and read again, cut to a plan, added up, and what damaged ones are told.
#include "testing.h"

#include <functional>
#include <limits>

#include "given.h"
#include "moetrim/error.h"
#include "moetrim/imatrix.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

constexpr std::uint64_t kExperts = 4;

/// Tensors of two inputs each; sum and count of an expert name it.
Imatrix example() {
  Imatrix out{.datasets = {"chat"},
              .chunk_count = 3,
              .chunk_size = 512,
              .entries = {{"blk.1.attn_q.weight", 2, 1},
                          {"blk.1.ffn_down_exps.weight", 2, kExperts},
                          {"blk.3.ffn_down_exps.weight", 2, kExperts},
                          {"blk.3.nextn.eh_proj.weight", 4, 1}},
              .values = {}};
  out.values = [entries = out.entries](std::size_t i) {
    ImatrixValues values;
    for (std::uint64_t m = 0; m < entries[i].matrices; ++m) {
      const float first = static_cast<float>(100 * i + 10 * m);
      for (std::uint64_t c = 0; c < entries[i].inputs; ++c) values.sums.push_back(first + static_cast<float>(c));
      values.counts.push_back(static_cast<float>(m));
    }
    return values;
  };
  return out;
}

Plan plan_of(std::vector<int> layers, const std::vector<int>& keep) {
  Plan plan;
  plan.experts = static_cast<int>(kExperts);
  plan.keep = static_cast<int>(keep.size());
  plan.order = SlotOrder::free;
  for (const int layer : layers) plan.layers.push_back({.layer = layer, .keep = keep});
  return plan;
}

/// A file by hand: what a test changes is one thing of a good one.
struct Draft {
  GgufMetadata metadata;
  std::vector<GgufTensorSpec> specs{{.name = "blk.0.ffn_up_exps.weight.in_sum2", .shape = {3, 2}},
                                    {.name = "blk.0.ffn_up_exps.weight.counts", .shape = {1, 2}}};
  std::vector<std::vector<float>> values{{1, 2, 3, 4, 5, 6}, {7, 8}};

  Draft() {
    metadata.set("general.type", std::string("imatrix"));
    metadata.set("imatrix.datasets", GgufArray::of_texts({"a"}));
    metadata.set("imatrix.chunk_count", std::uint32_t{1});
    metadata.set("imatrix.chunk_size", std::uint32_t{512});
  }

  void write(const std::filesystem::path& file) const {
    GgufWriter writer(file, metadata, specs);
    for (std::size_t i = 0; i < specs.size(); ++i) writer.write_at(i, 0, std::as_bytes(std::span(values[i])));
    writer.finish();
  }
};

struct Damage {
  const char* name;
  std::function<void(Draft&)> damage;
  const char* message;
};

const std::vector<Damage> kDamages{
    {"another type", [](Draft& d) { d.metadata.set("general.type", std::string("model")); }, "not an imatrix"},
    {"no chunks", [](Draft& d) { d.metadata.erase("imatrix.chunk_size"); }, "imatrix.chunk_size is missing"},
    {"datasets of numbers", [](Draft& d) { d.metadata.set("imatrix.datasets", std::uint32_t{1}); },
     "expected a list of strings"},
    {"half a pair", [](Draft& d) { d.specs.pop_back(); }, ".counts is missing"},
    {"a stranger", [](Draft& d) { d.specs[1].name = "blk.0.ffn_up_exps.weight"; }, "expected names that end with"},
    {"other counts",
     [](Draft& d) {
       d.specs[1].shape = {1, 3};
       d.values[1].push_back(9);
     },
     "do not fit together"},
    {"counts on their side", [](Draft& d) { d.specs[1].shape = {2}; }, "do not fit together"},
    {"another type of values", [](Draft& d) { d.specs[1].type = GgmlType::i32; }, "expected F32"},
    {"not a number", [](Draft& d) { d.values[0][4] = std::numeric_limits<float>::quiet_NaN(); }, "in_sum2, element 4"},
    {"negative", [](Draft& d) { d.values[1][1] = -1; }, "counts, element 1"},
};

}  // namespace

TEST_CASE("an imatrix is read as it was written", "[gguf][imatrix]") {
  const given::TempFolder folder;
  const auto file = folder.path() / "x.gguf";
  write_imatrix(file, example());
  const Imatrix read = open_imatrix(file);
  CHECK(read.datasets == std::vector<std::string>{"chat"});
  CHECK(read.chunk_count == 3);
  REQUIRE(read.entries.size() == 4);
  CHECK(read.entries[1].name == "blk.1.ffn_down_exps.weight");
  CHECK(read.entries[1].matrices == kExperts);
  CHECK(read.entries[3].inputs == 4);
  CHECK(read.values(2).sums == example().values(2).sums);
  CHECK(read.values(2).counts == std::vector<float>{0, 1, 2, 3});
  // A trailing extent of 1 is not written, as ggml does it.
  CHECK(GgufFile::open(file).tensors().front().shape == std::vector<std::uint64_t>{2});
  CHECK_THROWS_AS(write_imatrix(file, example()), UsageError);
  CHECK_NOTHROW(write_imatrix(file, example(), /*overwrite=*/true));
}

TEST_CASE("a plan's slots choose experts in their order, also twice", "[gguf][imatrix]") {
  const Imatrix cut = slice_imatrix(example(), plan_of({1, 3}, {3, 0, 3}));
  REQUIRE(cut.entries.size() == 4);
  CHECK(cut.entries[1].matrices == 3);
  CHECK(cut.values(1).sums == std::vector<float>{130, 131, 100, 101, 130, 131});
  CHECK(cut.values(1).counts == std::vector<float>{3, 0, 3});
  CHECK(cut.values(0).sums == example().values(0).sums);

  const Imatrix without = slice_imatrix(example(), plan_of({1}, {0, 1}), Mtp::drop);
  REQUIRE(without.entries.size() == 2);
  CHECK(without.values(1).sums == std::vector<float>{100, 101, 110, 111});

  CHECK_THROWS_WITH(slice_imatrix(example(), plan_of({1}, {0, 1})), Contains("layer 3") && Contains("--mtp drop"));
  CHECK_THROWS_AS(slice_imatrix(example(), plan_of({1, 3}, {0, 4})), InvalidInput);
  CHECK_THROWS_AS(slice_imatrix(example(), plan_of({1, 3}, {0}), Mtp::keep), UsageError);
  Plan other = plan_of({1, 3}, {0, 1});
  other.experts = 8;
  CHECK_THROWS_WITH(slice_imatrix(example(), other), Contains("is of 4 experts, the plan of 8"));
  Plan narrow = plan_of({1, 3}, {0, 1});
  narrow.width = 2;
  CHECK_THROWS_WITH(slice_imatrix(example(), narrow), Contains("calibrate the new model"));
}

TEST_CASE("imatrices add up tensor by tensor", "[gguf][imatrix]") {
  Imatrix fewer = example();
  fewer.entries.pop_back();
  const Imatrix sum = merge_imatrices({example(), fewer}, {"a", "b"});
  CHECK(sum.chunk_count == 6);
  CHECK(sum.datasets.size() == 2);
  REQUIRE(sum.entries.size() == 4);
  CHECK(sum.values(1).sums[2] == 220);
  CHECK(sum.values(1).counts == std::vector<float>{0, 2, 4, 6});
  CHECK(sum.values(3).sums == example().values(3).sums);
  Imatrix other = example();
  other.entries[1].matrices = 5;
  CHECK_THROWS_WITH(merge_imatrices({example(), other}, {"a", "b"}),
                    Contains("b: tensor blk.1.ffn_down_exps.weight is [2, 5], in a"));
  other = example();
  other.chunk_size = 100;
  CHECK_THROWS_WITH(merge_imatrices({example(), other}, {"a", "b"}), Contains("chunks of 100 tokens"));
}

TEST_CASE("a damaged imatrix is refused with file and tensor", "[gguf][imatrix]") {
  const given::TempFolder folder;
  for (const Damage& damage : kDamages) {
    CAPTURE(damage.name);
    Draft draft;
    damage.damage(draft);
    const auto file = folder.path() / "damaged.gguf";
    std::filesystem::remove(file);
    draft.write(file);
    const auto read = [&] {
      const Imatrix matrix = open_imatrix(file);
      for (std::size_t i = 0; i < matrix.entries.size(); ++i) matrix.values(i);
    };
    CHECK_THROWS_WITH(read(), Contains("damaged.gguf") && Contains(damage.message));
  }
  given::write_text(folder.path() / "old.dat", "\x10some older form");
  CHECK_THROWS_WITH(open_imatrix(folder.path() / "old.dat"), Contains("llama-imatrix --in-file old.dat"));
}
