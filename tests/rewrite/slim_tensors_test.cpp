// Which bytes stay when atomic experts go: against selections made element by element.

#include "testing.h"

#include <random>

#include "export/piece_reader.h"
#include "moetrim/error.h"
#include "moetrim/rewrite.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::testing;
using export_detail::PieceReader;

namespace {

using Bytes = std::vector<std::byte>;

/// What an output tensor will hold, read in spans of that many bytes.
Bytes bytes_of(const Checkpoint& source, const OutputTensor& tensor, std::size_t span = 7) {
  Bytes out;
  PieceReader reader(source);
  for (const Piece& piece : tensor.pieces) {
    reader.open(piece);
    Bytes part(span);
    std::uint64_t total = 0;
    for (std::size_t got = span; got == span;) {
      got = reader.read(part);
      out.insert(out.end(), part.begin(), part.begin() + static_cast<std::ptrdiff_t>(got));
      total += got;
    }
    CHECK(total == piece.bytes());
  }
  return out;
}

std::vector<int> numbers(const AtomRanges& ranges) {
  std::vector<int> out;
  for (const AtomRange& range : ranges) {
    for (int k = range.begin; k < range.end; ++k) out.push_back(k);
  }
  return out;
}

AtomRanges ranges(const std::vector<int>& numbers) {
  AtomRanges out;
  for (const int k : numbers) {
    if (!out.empty() && out.back().end == k) ++out.back().end;
    else out.push_back({k, k + 1});
  }
  return out;
}

AtomRanges random_atoms(int width, int count, std::mt19937& random) {
  std::vector<int> all(static_cast<std::size_t>(width));
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), random);
  all.resize(static_cast<std::size_t>(count));
  std::sort(all.begin(), all.end());
  return ranges(all);
}

/// Positions along an axis that stay: atoms in F, the same in both halves of F2.
std::vector<int> positions(Axis axis, const std::vector<int>& atoms, int width, bool paired) {
  if (axis == Axis::F) return atoms;
  std::vector<int> out;
  for (const int half : {0, 1}) {
    for (const int k : atoms) out.push_back(paired ? 2 * k + half : half * width + k);
  }
  if (paired) std::sort(out.begin(), out.end());
  return out;
}

/// Elements of a matrix [rows, cols] of 2 bytes each.
Bytes select(const Bytes& matrix, int cols, const std::vector<int>& rows, const std::vector<int>& columns) {
  Bytes out;
  for (const int r : rows) {
    for (const int c : columns) {
      const auto at = matrix.begin() + 2 * (static_cast<std::ptrdiff_t>(r) * cols + c);
      out.insert(out.end(), at, at + 2);
    }
  }
  return out;
}

std::vector<int> all(std::int64_t count) {
  std::vector<int> out(static_cast<std::size_t>(count));
  std::iota(out.begin(), out.end(), 0);
  return out;
}

bool is_atoms(Axis axis) { return axis == Axis::F || axis == Axis::F2; }

/// One expert's share of a source tensor with these atoms, without the code under test.
Bytes expected(const Model& model, const Tensor& tensor, const TensorPlace& place, int expert,
               const std::vector<int>& atoms) {
  std::vector<Axis> axes = place.rule->axes;
  Bytes bytes = model.checkpoint->read(tensor);
  if (axes[0] == Axis::E) {
    const auto size = static_cast<std::ptrdiff_t>(bytes.size()) / tensor.shape[0];
    bytes = Bytes(bytes.begin() + size * expert, bytes.begin() + size * (expert + 1));
    axes.erase(axes.begin());
  }
  if (axes.size() == 1) axes.insert(axes.begin(), Axis::one);
  const auto along = [&](Axis axis) {
    if (!is_atoms(axis)) return all(model.length(axis));
    return positions(axis, atoms, static_cast<int>(model.expert_width), model.family->fused_interleaved);
  };
  return select(bytes, static_cast<int>(model.length(axes[1])), along(axes[0]), along(axes[1]));
}

struct Given {
  explicit Given(const TinyModel& tiny)
      : source((write_tiny_checkpoint(folder / "in", tiny), Checkpoint::open(folder / "in"))), model(describe(source)) {}

  /// A plan that keeps these experts, with counts(layer, place) random atomic experts of each.
  template <class Counts>
  Plan plan(const std::vector<int>& keep, const Counts& counts) const {
    std::mt19937 random(3);
    Plan out = plan_keeping(model, {keep});
    out.width = static_cast<int>(model.expert_width);
    for (PlanLayer& layer : out.layers) {
      for (int i = 0; i < out.keep; ++i) layer.atoms.push_back(random_atoms(out.width, counts(layer.layer, i), random));
    }
    return out;
  }

  TempFolder folder;
  Checkpoint source;
  Model model;
};

const OutputTensor& named(const std::vector<OutputTensor>& tensors, const std::string& name) {
  const auto has_name = [&](const OutputTensor& tensor) { return tensor.spec.name == name; };
  const auto found = std::find_if(tensors.begin(), tensors.end(), has_name);
  INFO(name);
  REQUIRE(found != tensors.end());
  return *found;
}

const PlanLayer* layer_of(const Plan& plan, int layer) {
  for (const PlanLayer& candidate : plan.layers) {
    if (candidate.layer == layer) return &candidate;
  }
  return nullptr;
}

bool has_atoms(const TensorPlace& place) {
  return place.rule != nullptr && where_of(place.rule->role) == Where::experts && place.rule->role != Role::fused_down_bias;
}

bool is_tied(const Family& family) { return family.shared_width_key == family.expert_width_key; }

}  // namespace

TEST_CASE("atoms 0 and 2 of three stay, by hand", "[rewrite][slim]") {
  const Given given({.layers = 1, .experts = 2, .hidden = 4, .width = 3});
  Plan plan = plan_keeping(given.model, {{0, 1}});
  plan.width = 3;
  plan.layers[0].atoms = {{{0, 1}, {2, 3}}, {{0, 2}}};
  const auto tensors = plan_tensors(given.model, plan);
  const auto up = given.source.read(given.source.at("model.layers.0.mlp.experts.0.up_proj.weight"));      // [3, 4] bf16
  const auto down = given.source.read(given.source.at("model.layers.0.mlp.experts.0.down_proj.weight"));  // [4, 3]
  const auto& new_up = named(tensors, "model.layers.0.mlp.experts.0.up_proj.weight");
  CHECK(new_up.spec.shape == std::vector<std::int64_t>{2, 4});
  Bytes rows(up.begin(), up.begin() + 8);
  rows.insert(rows.end(), up.begin() + 16, up.end());
  CHECK(bytes_of(given.source, new_up) == rows);
  const auto& new_down = named(tensors, "model.layers.0.mlp.experts.0.down_proj.weight");
  CHECK(new_down.spec.shape == std::vector<std::int64_t>{4, 2});
  Bytes columns;
  for (int row = 0; row < 4; ++row) {
    for (const int byte : {0, 1, 4, 5}) columns.push_back(down[static_cast<std::size_t>(6 * row + byte)]);
  }
  CHECK(bytes_of(given.source, new_down) == columns);
}

TEST_CASE("equal widths: every layout of every family keeps the right elements", "[rewrite][slim][every]") {
  const Family* family = GENERATE(from_range(families()));
  const bool fused = GENERATE(false, true);
  CAPTURE(family->name, fused);
  if (is_tied(*family) && family->shared_count_key.empty()) return;
  const Given given({.family = std::string(family->name), .fused = fused, .experts = 5, .hidden = 8, .width = 7});
  const std::vector<int> keep{4, 0, 1};
  const Plan plan = given.plan(keep, [](int, int) { return 4; });
  check_plan(given.model, plan, {});
  const auto tensors = plan_tensors(given.model, plan);
  for (std::size_t i = 0; i < given.source.tensors().size(); ++i) {
    const Tensor& tensor = given.source.tensors()[i];
    const TensorPlace& place = given.model.places[i];
    if (!has_atoms(place)) continue;
    const PlanLayer& layer = *layer_of(plan, place.layer);
    Bytes bytes;
    std::string name = tensor.name;
    for (std::size_t e = 0; e < keep.size(); ++e) {
      if (place.expert >= 0 && place.expert != keep[e]) continue;
      const Bytes part = expected(given.model, tensor, place, keep[e], numbers(layer.atoms[e]));
      bytes.insert(bytes.end(), part.begin(), part.end());
      if (place.expert >= 0) name = with_expert(place.rule->name, tensor.name, static_cast<int>(e));
    }
    if (bytes.empty()) continue;
    const OutputTensor& slim = named(tensors, name);
    CHECK(slim.spec.bytes() == bytes.size());
    CHECK(bytes_of(given.source, slim) == bytes);
    for (std::size_t d = 0; d < place.rule->axes.size(); ++d) {
      const Axis axis = place.rule->axes[d];
      if (is_atoms(axis)) CHECK(slim.spec.shape[d] == (axis == Axis::F ? 4 : 8));
    }
  }
}

TEST_CASE("listed widths: every expert has its own tensors, in every layout of every family", "[rewrite][slim][every]") {
  const Family* family = GENERATE(from_range(families()));
  const bool fused = GENERATE(false, true);
  CAPTURE(family->name, fused);
  const Given given({.family = std::string(family->name), .fused = fused, .experts = 5, .hidden = 8, .width = 7});
  const std::vector<int> keep{4, 0, 1};
  const Plan plan = given.plan(keep, [](int layer, int place) { return (3 * layer + 2 * place) % 8; });
  if (family->name == "PanguProMoE") {
    using Catch::Matchers::Contains;
    CHECK_THROWS_WITH(plan_tensors(given.model, plan), Contains("PanguProMoE") && Contains("--scope expert"));
    return;
  }
  const auto tensors = plan_tensors(given.model, plan);
  std::size_t checked = 0;
  for (std::size_t i = 0; i < given.source.tensors().size(); ++i) {
    const Tensor& tensor = given.source.tensors()[i];
    const TensorPlace& place = given.model.places[i];
    if (!has_atoms(place)) continue;
    const PlanLayer& layer = *layer_of(plan, place.layer);
    for (std::size_t e = 0; e < keep.size(); ++e) {
      if (place.expert >= 0 && place.expert != keep[e]) continue;
      const auto atoms = numbers(layer.atoms[e]);
      Bytes bytes = expected(given.model, tensor, place, keep[e], atoms);
      const Role role = place.rule->role;
      if (role == Role::expert_down || role == Role::fused_down) {
        CHECK(bytes_of(given.source, named(tensors, slim_name(tensor.name, "down", static_cast<int>(e)))) == bytes);
        ++checked;
        continue;
      }
      // Gate and up of a fused tensor: each is the same selection with the other one's positions left out.
      Bytes halves;
      const bool bias = role == Role::fused_gate_up_bias;
      for (const std::string part : {"gate", "up"}) {
        if (role == (part == "gate" ? Role::expert_up : Role::expert_gate)) continue;
        const auto& slim = named(tensors, slim_name(tensor.name, part + (bias ? "_bias" : ""), static_cast<int>(e)));
        CHECK(slim.spec.shape[place.rule->input_first() ? 1 : 0] == static_cast<std::int64_t>(atoms.size()));
        const Bytes half = bytes_of(given.source, slim);
        CHECK(half.size() == slim.spec.bytes());
        halves.insert(halves.end(), half.begin(), half.end());
        ++checked;
      }
      const auto sorted = [](Bytes values) {
        std::sort(values.begin(), values.end());
        return values;
      };
      if (role == Role::expert_gate || role == Role::expert_up) CHECK(halves == bytes);
      else CHECK(sorted(halves) == sorted(bytes));
    }
  }
  CHECK(checked >= 3 * keep.size());
  for (const OutputTensor& tensor : tensors) CHECK(tensor.spec.name.find(".experts.0.") == std::string::npos);
}

TEST_CASE("a shared expert that config.json says in multiples grows by zeros, or is counted anew", "[rewrite][slim]") {
  const Given given({.family = "deepseek_v3", .experts = 4, .hidden = 6, .width = 6});
  const std::string name = "model.layers.1.mlp.shared_experts.";
  const auto before = [&](const char* part) { return given.source.read(given.source.at(name + part)); };
  const Plan divides = given.plan({0, 1, 2, 3}, [](int, int) { return 3; });
  CHECK(rewrite_config(given.model, divides)["n_shared_experts"] == 2);
  CHECK(rewrite_config(given.model, divides)["moe_intermediate_size"] == 3);
  const auto kept = plan_tensors(given.model, divides);
  CHECK(bytes_of(given.source, named(kept, name + "up_proj.weight")) == before("up_proj.weight"));
  const Plan grows = given.plan({0, 1, 2, 3}, [](int, int) { return 4; });
  CHECK(rewrite_config(given.model, grows)["n_shared_experts"] == 2);  // 8
  const auto tensors = plan_tensors(given.model, grows);
  const auto& up = named(tensors, name + "up_proj.weight");
  CHECK(up.spec.shape == std::vector<std::int64_t>{8, 6});
  Bytes rows = before("up_proj.weight");
  rows.resize(8 * 6 * 2);
  CHECK(bytes_of(given.source, up) == rows);
  const auto& down = named(tensors, name + "down_proj.weight");
  CHECK(down.spec.shape == std::vector<std::int64_t>{6, 8});
  const Bytes from = before("down_proj.weight"), to = bytes_of(given.source, down);
  REQUIRE(to.size() == 6 * 8 * 2);
  for (std::size_t row = 0; row < 6; ++row) {
    for (std::size_t byte = 0; byte < 16; ++byte) {
      CHECK(to[16 * row + byte] == (byte < 12 ? from[12 * row + byte] : std::byte{0}));
    }
  }
  REQUIRE(rewrite_warnings(given.model, grows).size() == 1);
  CHECK_THAT(rewrite_warnings(given.model, grows)[0], Catch::Matchers::Contains("from width 6 to 8"));
  CHECK(rewrite_warnings(given.model, divides).empty());
}

TEST_CASE("rows longer than a block of reading are cut right", "[rewrite][slim]") {
  TempFolder folder;
  constexpr std::int64_t kWidth = 2'500'000;  // 5 MB a row
  SafetensorsWriter writer(folder / "model.safetensors", {{"down", Dtype::u16, {3, kWidth}}});
  std::vector<std::uint16_t> values(static_cast<std::size_t>(3 * kWidth));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint16_t>(i * 2654435761U >> 13U);
  writer.write(std::as_bytes(std::span(values)));
  writer.finish();
  write_text(folder / "config.json", "{}");
  const Checkpoint source = Checkpoint::open(folder.path());
  const Tensor& tensor = source.at("down");
  AtomRanges kept;
  for (int k = 0; k < 100'000; k += 3) kept.push_back({k, k + 2});
  kept.push_back({1'000'000, 1'400'000});  // longer than what is copied from a window
  kept.push_back({kWidth - 1, kWidth});
  AtomCut cut{std::make_shared<const AtomRanges>(kept), 1, 2 * kWidth, 0, 2, 2, 4};
  const OutputTensor out{{"down", Dtype::u16, {3, 0}}, {{&tensor, 0, tensor.size, cut}}};
  std::vector<std::uint16_t> expected_values;
  for (std::int64_t row = 0; row < 3; ++row) {
    for (const int k : numbers(kept)) expected_values.push_back(values[static_cast<std::size_t>(row * kWidth + k)]);
    expected_values.resize(expected_values.size() + 2);
  }
  const auto bytes = std::as_bytes(std::span(expected_values));
  CHECK(bytes_of(source, out, GENERATE(std::size_t{1} << 20, std::size_t{999'999})) == Bytes(bytes.begin(), bytes.end()));
}

TEST_CASE("atomic experts that are not there, or in disorder, are refused", "[rewrite][slim]") {
  using Catch::Matchers::Contains;
  const Given given({.layers = 1, .experts = 3, .width = 5});
  Plan plan = given.plan({0, 1, 2}, [](int, int) { return 3; });
  CHECK_NOTHROW(check_plan(given.model, plan, {}));
  SECTION("another width") {
    plan.width = 6;
    CHECK_THROWS_WITH(check_plan(given.model, plan, {}), Contains("6 atomic experts") && Contains("has 5"));
  }
  SECTION("beyond the expert") {
    plan.layers[0].atoms[1] = {{0, 6}};
    CHECK_THROWS_WITH(check_plan(given.model, plan, {}), Contains("[0, 6)") && Contains("expert 1"));
  }
  SECTION("touching ranges") {
    plan.layers[0].atoms[2] = {{0, 2}, {2, 3}};
    CHECK_THROWS_AS(check_plan(given.model, plan, {}), InvalidInput);
  }
  SECTION("a list too few") {
    plan.layers[0].atoms.pop_back();
    CHECK_THROWS_WITH(check_plan(given.model, plan, {}), Contains("of 2 experts") && Contains("expected 3"));
  }
  SECTION("without a width") {
    plan.width = 0;
    CHECK_THROWS_AS(check_plan(given.model, plan, {}), InvalidInput);
  }
}

TEST_CASE("a list of widths in config.json is believed only when it can be meant", "[rewrite][slim]") {
  const auto read = [](const char* text) { return read_slim_widths(nlohmann::ordered_json::parse(text), "config.json"); };
  CHECK_FALSE(read(R"({"model_type": "x"})"));
  const auto good = read(R"({"moetrim_slim": {"version": 1, "input_first": true, "widths": {"3": [5, 0], "1": [7, 7]}}})");
  REQUIRE(good);
  CHECK(good->input_first);
  CHECK(good->widths == std::map<int, std::vector<std::int64_t>>{{1, {7, 7}}, {3, {5, 0}}});
  const auto by_layer = read(R"({"moetrim_slim": {"version": 1, "experts": {"3": 5, "1": 7}}})");
  REQUIRE(by_layer);
  CHECK(by_layer->experts == std::map<int, std::int64_t>{{1, 7}, {3, 5}});
  CHECK(by_layer->widths.empty());
  for (const char* bad : {R"({"moetrim_slim": 3})",
                          R"({"moetrim_slim": {"version": 1, "experts": {}}})",
                          R"({"moetrim_slim": {"version": 1, "experts": {"0": 0}}})",
                          R"({"moetrim_slim": {"version": 1, "experts": {"0": 1.5}}})",
                          R"({"moetrim_slim": {"version": 1, "experts": {"x": 1}}})",
                          R"({"moetrim_slim": {"version": 1, "experts": {"0": 1}, "widths": {"0": [1]}}})",
                          R"({"moetrim_slim": {"version": 2, "input_first": true, "widths": {"0": [1]}}})",
                          R"({"moetrim_slim": {"version": 1, "widths": {"0": [1]}}})",
                          R"({"moetrim_slim": {"version": 1, "input_first": false, "widths": {}}})",
                          R"({"moetrim_slim": {"version": 1, "input_first": false, "widths": {"x": [1]}}})",
                          R"({"moetrim_slim": {"version": 1, "input_first": false, "widths": {"0": []}}})",
                          R"({"moetrim_slim": {"version": 1, "input_first": false, "widths": {"0": [-1]}}})",
                          R"({"moetrim_slim": {"version": 1, "input_first": false, "widths": {"0": [1e9]}}})",
                          R"({"moetrim_slim": {"version": 1, "input_first": false, "widths": {"0": [4000000000]}}})"}) {
    CAPTURE(bad);
    CHECK_THROWS_AS(read(bad), InvalidInput);
  }
}
