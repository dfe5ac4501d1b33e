// What the GGUF writer writes is what the reader reads; models in several files; values of metadata.
#include "testing.h"

#include <array>
#include <string>
#include <vector>

#include "given_gguf.h"
#include "moetrim/gguf_file.h"

using namespace moetrim;
using namespace moetrim::given;

namespace {

const std::vector<GgufTensorSpec> kSpecs{
    {"a", GgmlType::f32, {5, 3}}, {"b", GgmlType::q8_0, {32, 2}}, {"experts", GgmlType::q4_k, {256, 3, 5}}};

GgufMetadata metadata() {
  GgufMetadata out;
  out.set("general.architecture", "test");
  out.set("test.count", std::uint32_t{7});
  out.set("test.least", std::int8_t{-1});
  out.set("test.real", 0.5F);
  out.set("test.numbers", GgufArray::of_i32(std::array{3, -4}));
  out.set("test.texts", GgufArray::of_texts({"x", "", std::string("\0\xFF", 2)}));
  return out;
}

std::vector<std::byte> bytes_of(std::size_t tensor) {
  return counting_bytes(kSpecs[tensor].bytes(), static_cast<unsigned>(tensor));
}

void write_all(const std::filesystem::path& file, const std::vector<std::size_t>& order) {
  GgufWriter writer(file, metadata(), kSpecs);
  for (const std::size_t i : order) {
    const auto bytes = bytes_of(i);
    writer.write_at(i, 7, std::span(bytes).subspan(7));
    writer.write_at(i, 0, std::span(bytes).first(7));
  }
  writer.finish();
  CHECK(std::filesystem::file_size(file) == writer.file_bytes());
}

/// File `no` of `count` with one tensor, and further keys.
std::string part(std::size_t no, std::size_t count, const std::string& tensor, std::vector<std::string> keys = {}) {
  keys.push_back(gguf_key("split.no", 2, u16(no)));
  keys.push_back(gguf_key("split.count", 2, u16(count)));
  keys.push_back(gguf_key("split.tensors.count", 5, u32(count)));
  return Gguf{.keys = keys, .tensors = {gguf_tensor(tensor, {8}, 0, 0)}, .data_bytes = 32}.bytes();
}

}  // namespace

TEST_CASE("what is written to a GGUF file is read back", "[gguf]") {
  const Folder folder;
  write_all(folder / "w.gguf", {0, 1, 2});
  const GgufFile file = GgufFile::open(folder / "w.gguf");
  CHECK(file.metadata().items() == metadata().items());
  REQUIRE(file.tensors().size() == kSpecs.size());
  for (std::size_t i = 0; i < kSpecs.size(); ++i) {
    const GgufTensor& tensor = file.tensors()[i];
    CHECK(tensor.name == kSpecs[i].name);
    CHECK(tensor.type == kSpecs[i].type);
    CHECK(tensor.shape == kSpecs[i].shape);
    CHECK(tensor.offset % 32 == 0);
    CHECK(file.read(tensor) == bytes_of(i));
  }
  CHECK(file.tensors()[2].row_bytes() == 144);
  std::array<std::byte, 1> beyond{};
  CHECK_THROWS_AS(file.read(file.tensors()[0], 60, beyond), Error);
}

TEST_CASE("the bytes of a GGUF file do not depend on the order in which they come", "[gguf]") {
  const Folder folder;
  write_all(folder / "w.gguf", {0, 1, 2});
  write_all(folder / "again.gguf", {2, 0, 1});
  CHECK(contents(folder / "again.gguf") == contents(folder / "w.gguf"));
}

TEST_CASE("a GGUF file by hand", "[gguf]") {
  const Folder folder;
  const std::string by_hand = small_gguf().bytes();
  const GgufFile read = GgufFile::open(folder.file("hand.gguf", by_hand));
  GgufWriter writer(folder / "w.gguf", read.metadata(), {read.tensors().begin(), read.tensors().end()});
  for (std::size_t i = 0; i < 2; ++i) writer.copy_at(i, 0, read, read.tensors()[i].offset, read.tensors()[i].size);
  writer.finish();
  std::string expected = by_hand;
  const std::size_t data = by_hand.size() - 160;
  expected.replace(data + 60, 4, 4, '\0');  // what is written between tensors is zeros, whatever was there
  expected.replace(data + 64 + 68, 28, 28, '\0');
  CHECK(contents(folder / "w.gguf") == expected);
}

TEST_CASE("a GGUF file appears when it is whole, with every byte given once", "[gguf]") {
  const Folder folder;
  {
    GgufWriter writer(folder / "w.gguf", metadata(), kSpecs);
    writer.write_at(0, 0, bytes_of(0));
    CHECK_THROWS_AS(writer.write_at(0, 1, bytes_of(0)), Error);
    CHECK_THROWS_AS(writer.write_at(3, 0, bytes_of(0)), Error);
    CHECK_THROWS_AS(writer.finish(), Error);
    CHECK(!std::filesystem::exists(folder / "w.gguf"));
  }
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("what a reader would refuse is not written to a GGUF file", "[gguf]") {
  const Folder folder;
  const auto refused = [&](const GgufMetadata& keys, std::vector<GgufTensorSpec> specs) {
    const std::string message = refusal([&] { GgufWriter(folder / "w.gguf", keys, std::move(specs)); });
    CHECK(std::filesystem::is_empty(folder.path()));
    return has(message, (folder / "w.gguf").string());
  };
  const auto key = [](const std::string& name, GgufValue value) {
    return GgufMetadata({{name, std::move(value)}});
  };
  CHECK(refused(key("", true), {}));
  CHECK(refused(key("a\xFF", true), {}));
  CHECK(refused(key("general.alignment", std::uint32_t{12}), {}));
  CHECK(refused(key("general.alignment", std::uint64_t{32}), {}));
  CHECK(refused(key("k", GgufArray{.of = GgufType::array}), {}));
  CHECK(refused(key("k", GgufArray{.of = GgufType::u32, .numbers = {std::byte{1}}}), {}));
  CHECK(refused(key("k", GgufArray{.of = GgufType::boolean, .numbers = {std::byte{2}}}), {}));
  CHECK(refused(GgufMetadata({{"k", true}, {"k", true}}), {}));
  CHECK(refused({}, {kSpecs[0], kSpecs[0]}));
  CHECK(refused({}, {{std::string(64, 'n'), GgmlType::f32, {1}}}));
  CHECK(refused({}, {{"n", GgmlType::q4_k, {255}}}));
  CHECK(refused({}, {{"n", static_cast<GgmlType>(4), {32}}}));
  CHECK(refused({}, {{"n", GgmlType::f32, {}}}));
  CHECK(refused({}, {{"n", GgmlType::f32, {1ULL << 60}}, {"m", GgmlType::f32, {1ULL << 60}}}));
}

TEST_CASE("a GGUF file that became shorter is an error, not a crash", "[gguf]") {
  const Folder folder;
  const auto path = folder.file("w.gguf", small_gguf().bytes());
  const GgufFile file = GgufFile::open(path);
  std::filesystem::resize_file(path, file.tensors()[1].offset + 5);
  CHECK(has(refusal([&] { file.read(file.tensors()[1]); }), path.string() + ": ends at byte"));
  GgufWriter writer(folder / "copy.gguf", {}, {kSpecs[1]});
  CHECK(has(refusal([&] { writer.copy_at(0, 0, file, file.tensors()[1].offset, 68); }), path.string() + ": ends at byte"));
}

TEST_CASE("values of GGUF metadata are asked for by kind", "[gguf]") {
  const GgufMetadata keys = metadata();
  CHECK(keys.whole("test.count", "F") == 7);
  CHECK(keys.text("general.architecture", "F") == "test");
  CHECK(keys.real("test.real", "F") == 0.5);
  CHECK(!keys.whole("absent", "F"));
  CHECK(refusal([&] { keys.whole("test.least", "F"); }) ==
        "F: key 'test.least': expected a whole number that is not negative, got -1");
  CHECK(refusal([&] { keys.whole("test.real", "F"); }) ==
        "F: key 'test.real': expected a whole number, got a value of type f32");
  CHECK(refusal([&] { keys.text("test.count", "F"); }) == "F: key 'test.count': expected a string, got a value of type u32");
  CHECK(refusal([&] { keys.real("test.texts", "F"); }) ==
        "F: key 'test.texts': expected a float, got a value of type array");
  CHECK(std::get<GgufArray>(*keys.find("test.numbers")).whole_numbers("F") == std::vector<std::int64_t>{3, -4});
  CHECK(refusal([&] { std::get<GgufArray>(*keys.find("test.texts")).whole_numbers("F"); }) ==
        "F: expected an array of whole numbers, got one of type string");
  GgufArray large{.of = GgufType::u64, .numbers = std::vector<std::byte>(16, std::byte{0xFF})};
  CHECK(refusal([&] { large.whole_numbers("F"); }) == "F: number 0 of the array does not fit into 63 bits");
}

TEST_CASE("types of ggml by name", "[gguf]") {
  CHECK(ggml_type_from_name("q4_K") == GgmlType::q4_k);
  CHECK(ggml_type_from_name("MXFP4") == GgmlType::mxfp4);
  CHECK(!ggml_type_from_name("q4"));
  CHECK(find_ggml_layout(static_cast<GgmlType>(31)) == nullptr);
  CHECK(GgufTensorSpec{"n", GgmlType::iq1_m, {512, 3}}.row_bytes() == 112);
}

TEST_CASE("a model in several GGUF files is opened by any of them", "[gguf]") {
  const Folder folder;
  const auto path = [&](std::size_t i) { return gguf_split_path(folder / "m", i, 3); };
  CHECK(path(1).filename() == "m-00002-of-00003.gguf");
  for (std::size_t i = 0; i < 3; ++i) {
    std::vector<std::string> keys;
    if (i == 0) keys.push_back(gguf_key("general.architecture", 8, gguf_text("test")));
    folder.file(path(i).filename(), part(i, 3, "t" + std::to_string(i), keys));
  }
  for (std::size_t i = 0; i < 3; ++i) {
    const GgufModel model = GgufModel::open(path(i));
    CHECK(model.files().size() == 3);
    CHECK(model.metadata().text("general.architecture", "F") == "test");
    CHECK(model.total_bytes() == 96);
    REQUIRE(model.find("t2") != nullptr);
    CHECK(model.find("t2")->file == 2);
    CHECK(model.find("t") == nullptr);
  }
}

TEST_CASE("GGUF files that are no model together are refused", "[gguf]") {
  const Folder folder;
  const std::string first = folder.path().string() + "/m-00001-of-00002.gguf";
  const std::string second = folder.path().string() + "/m-00002-of-00002.gguf";
  const auto says = [&](const std::string& a, const std::string& b) {
    folder.file("m-00001-of-00002.gguf", a);
    folder.file("m-00002-of-00002.gguf", b);
    return refusal([&] { GgufModel::open(first); });
  };
  const std::string other = gguf_key("general.architecture", 8, gguf_text("other"));
  CHECK(says(part(0, 2, "a"), part(0, 2, "b")) ==
        second + ": its keys split.no and split.count say 0 of 2, expected 1 of 2");
  CHECK(says(part(0, 2, "a"), part(1, 3, "b")) ==
        second + ": its keys split.no and split.count say 1 of 3, expected 1 of 2");
  CHECK(says(part(0, 2, "a"), part(1, 2, "b", {other})) ==
        second + ": its key 'general.architecture' is not in the first file, " + first +
            "; these are parts of different models");
  CHECK(says(part(0, 2, "a", {gguf_key("general.architecture", 8, gguf_text("one"))}), part(1, 2, "b", {other})) ==
        second + ": its key 'general.architecture' has another value in the first file, " + first +
            "; these are parts of different models");
  CHECK(says(part(0, 2, "a"), part(1, 2, "a")) == second + ": tensor 'a' is in " + first + " too");
  CHECK(says(part(0, 2, "a"), small_gguf().bytes()) ==
        second + ": it is part of a model that is split over several files, but lacks the key 'split.no'");
  CHECK(says(part(2, 2, "a"), part(1, 2, "b")) ==
        first + ": its keys split.no and split.count say that it is file 2, from 0, of 2");
  CHECK(says(part(1, 1, "a"), part(1, 2, "b")) ==
        first + ": its key split.no is 1, but split.count says that there is one file");
  const std::string three = part(0, 2, "a").replace(part(0, 2, "a").find("split.tensors.count") + 23, 4, u32(3));
  CHECK(says(three, part(1, 2, "b").replace(part(1, 2, "b").find("split.tensors.count") + 23, 4, u32(3))) ==
        first + ": its key split.tensors.count says 3, but its 2 files have 2 tensors");
  CHECK(says(part(0, 2, "a"), "GGML") ==
        second + ": has 4 bytes, fewer than the 24 that a GGUF file begins with; it is none, or cut short");
  std::filesystem::remove(second);
  CHECK(refusal([&] { GgufModel::open(first); }) == first + ": the file m-00002-of-00002.gguf of the same model is missing");
  std::filesystem::rename(first, folder / "renamed.gguf");
  CHECK(refusal([&] { GgufModel::open(folder / "renamed.gguf"); }) ==
        (folder / "renamed.gguf").string() + ": it is file 1 of 2 of a model, so that its name must end in "
            "-00001-of-00002.gguf; give it and the others back the names under which they were published");
}
