// A layer's second-order statistics: adding, and what a damaged or hostile file says.
#include "testing.h"

#include <limits>

#include "moetrim/error.h"
#include "score/second_order.h"
#include "statistics/raw_file.h"

using namespace moetrim;
using Catch::Matchers::Contains;
using given::BrokenFile;
using given::RawFile;

namespace {

const double kNan = std::numeric_limits<double>::quiet_NaN();

// The file has 2 tasks and 5 experts of 4 atoms.
const std::vector<BrokenFile> kBrokenFiles{
    {"of another kind", [](RawFile& f) { f.metadata["moetrim_format"] = "statistics-layer-1"; }, "\"statistics-layer-1\""},
    {"no layer id", [](RawFile& f) { f.metadata.erase("moetrim_layer"); }, "moetrim_layer"},
    {"a tensor missing", [](RawFile& f) { f.tensors.pop_back(); }, "gate_up_squares is missing"},
    {"misspelt tensor", [](RawFile& f) { f.tensors.push_back({{"gradients", Dtype::f64, {0}}, {}}); }, "did you mean \"gradient\"?"},
    {"no atoms", [](RawFile& f) { f.reshape("activation", {2, 5, 0}); }, "activation: expected shape [tasks, experts, width]"},
    {"flat atoms", [](RawFile& f) { f.reshape("activation", {2, 20}); }, "activation: expected shape [tasks, experts, width]"},
    {"other width in one tensor", [](RawFile& f) { f.reshape("joint", {2, 5, 3}); }, "joint: expected shape [2, 5, 4]"},
    {"tokens of one task", [](RawFile& f) { f.reshape("tokens", {1, 5}); }, "tokens: expected shape [2, 5]"},
    {"seven slices", [](RawFile& f) { f.reshape("taylor", {2, 7, 5}); }, "taylor: expected shape [2, 8, 5]"},
    {"weights of every task", [](RawFile& f) { f.reshape("down_squares", {2, 5, 4}); }, "down_squares: expected shape [5, 4]"},
    {"not a number", [](RawFile& f) { f.set("taylor", 3, kNan); }, "taylor, element 3: expected a finite number,"},
    {"negative sum of squares", [](RawFile& f) { f.set("gradient", 39, -1); }, "gradient, element 39"},
    {"negative square", [](RawFile& f) { f.set("fisher", 0, -1e-9); }, "fisher, element 0"},
    {"negative length", [](RawFile& f) { f.set("gate_up_squares", 19, -1); }, "gate_up_squares, element 19"},
};

}  // namespace

TEST_CASE("a broken file of atoms is refused with file and tensor", "[statistics][atoms]") {
  const given::TempFolder folder;
  const auto path = folder / atom_file_name(1);
  auto atoms = given::random_atoms(1, 2, 5, 4, 1);
  atoms.taylor[2] = -3;  // the only one that may be negative
  write_atom_statistics(path, atoms);
  CHECK(read_atom_statistics(path).taylor == atoms.taylor);
  for (const auto& broken : kBrokenFiles) {
    DYNAMIC_SECTION(broken.name) {
      RawFile raw = RawFile::read(path);
      broken.damage(raw);
      raw.write(folder / "broken.safetensors");
      CHECK_THAT(given::thrown_by([&] { read_atom_statistics(folder / "broken.safetensors"); }),
                 Contains("InvalidInput") && Contains("broken.safetensors") && Contains(broken.expected));
    }
  }
}

TEST_CASE("sums of a task are added in its place, lengths of weights are not", "[statistics][atoms]") {
  const auto one = given::heapr_example(3);
  AtomStatistics sum(3, 2, 3, 2);
  sum.down_squares = one.down_squares;
  sum.gate_up_squares = one.gate_up_squares;
  sum.add_task(1, one, 0);
  sum.add_task(1, one, 0);
  CHECK(sum.tokens == std::vector<double>{0, 0, 0, 4, 2, 0});
  CHECK(sum.activation == std::vector<double>{0, 0, 0, 0, 0, 0, 20, 8, 8, 2, 0, 0});
  CHECK(sum.gradient == std::vector<double>{0, 0, 0, 0, 0, 0, 10, 8, 2, 2, 0, 0});
  CHECK(sum.joint == std::vector<double>{0, 0, 0, 0, 0, 0, 74, 0, 8, 2, 0, 0});
  CHECK(sum.taylor[24] == 2);                // task 1, slice 0, expert 0
  CHECK(sum.fisher[24 + 3] == 72);           // slice 1
  CHECK(sum.fisher[24 + 3 + 1] == 18);
  CHECK(sum.down_squares == one.down_squares);

  CHECK_THROWS_AS(sum.add_task(0, given::heapr_example(4), 0), InvalidInput);
  CHECK_THROWS_AS(sum.add_task(0, AtomStatistics(3, 1, 3, 4), 0), InvalidInput);
  CHECK_THAT(given::thrown_by([&] { sum.add_task(0, AtomStatistics(3, 1, 3, 2), 0); }), Contains("different checkpoints"));
  for (const auto& sizes : {std::array{-1, 1, 1, 1}, {0, 0, 1, 1}, {0, 1, 0, 1}, {0, 1, 1, 0}}) {
    CHECK_THROWS_AS(AtomStatistics(sizes[0], sizes[1], sizes[2], sizes[3]), InvalidInput);
  }
}
