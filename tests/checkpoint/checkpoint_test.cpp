// The Hugging Face folder: what is read, and every way in which it could mean two models.
#include "testing.h"

#include <string>
#include <vector>

#include "given_files.h"
#include "moetrim/checkpoint.h"

using namespace moetrim;
using given::has;

namespace {

const std::string kIndex = "model.safetensors.index.json";

void write(const std::filesystem::path& file, const std::vector<TensorSpec>& specs) {
  SafetensorsWriter writer(file, specs);
  for (const TensorSpec& spec : specs) writer.write(given::counting_bytes(spec.bytes(), spec.name.back()));
  writer.finish();
}

const TensorSpec kA{"a", Dtype::bf16, {5, 7}};
const TensorSpec kB{"b", Dtype::u8, {11}};
const TensorSpec kC{"c", Dtype::f32, {5000}};

/// Two shards: c in the first; a and b, in this order, in the second.
struct Sharded : given::Folder {
  Sharded() {
    file("config.json", "{\"model_type\": \"toy\", \"b\": 1, \"a\": 2}");
    write(*this / "one.safetensors", {kC});
    write(*this / "two.safetensors", {kA, kB});
    index({{"a", "two.safetensors"}, {"b", "two.safetensors"}, {"c", "one.safetensors"}});
  }
  void index(const std::map<std::string, std::string>& map) const {
    file(kIndex, nlohmann::json{{"metadata", {{"total_size", 1}}}, {"weight_map", map}}.dump());
  }
};

struct Single : given::Folder {
  Single() {
    file("config.json", "{}");
    write(*this / "model.safetensors", {kA, kB});
  }
};

std::string refused(const given::Folder& folder) {
  return given::refusal([&] { Checkpoint::open(folder.path()); });
}

}  // namespace

TEST_CASE("a folder with one file is read", "[checkpoint]") {
  const Single folder;
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  CHECK(checkpoint.files().size() == 1);
  CHECK(checkpoint.tensors().size() == 2);
  CHECK(checkpoint.total_bytes() == 70 + 11);
  CHECK(checkpoint.at("b").shape == kB.shape);
  CHECK(has(given::refusal([&] { checkpoint.at("z"); }), "'z'"));
}

TEST_CASE("a folder with shards is read in the order of files and bytes", "[checkpoint]") {
  const Sharded folder;
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  CHECK(checkpoint.config().dump() == R"({"model_type":"toy","b":1,"a":2})");
  REQUIRE(checkpoint.tensors().size() == 3);
  CHECK(checkpoint.tensors()[0].name == "c");
  CHECK(checkpoint.tensors()[1].name == "a");
  CHECK(checkpoint.tensors()[1].file == 1);
  CHECK(checkpoint.find("z") == nullptr);
  CHECK(checkpoint.read(checkpoint.at("b")) == given::counting_bytes(11, 'b'));
  std::vector<std::byte> part(5);
  checkpoint.read(checkpoint.at("c"), 0, part);
  CHECK(part == given::counting_bytes(5, 'c'));
  CHECK_NOTHROW(checkpoint.drop_cache(checkpoint.at("a")));
}

TEST_CASE("an index without metadata is read", "[checkpoint]") {
  const Sharded folder;
  folder.file(kIndex, R"({"weight_map":{"a":"two.safetensors","b":"two.safetensors","c":"one.safetensors"}})");
  CHECK(Checkpoint::open(folder.path()).tensors().size() == 3);
}

TEST_CASE("an index that names the single file is read", "[checkpoint]") {
  const Single folder;
  folder.file(kIndex, R"({"weight_map":{"a":"model.safetensors","b":"model.safetensors"}})");
  CHECK(Checkpoint::open(folder.path()).tensors().size() == 2);
}

TEST_CASE("links into a cache are followed", "[checkpoint]") {
  const Sharded blobs;
  const given::Folder folder;
  for (const std::string name : {"config.json", "one.safetensors", "two.safetensors", kIndex.c_str()}) {
    std::filesystem::create_symlink(blobs / name, folder / name);
  }
  CHECK(Checkpoint::open(folder.path()).tensors().size() == 3);
}

TEST_CASE("what is not a checkpoint folder is refused", "[checkpoint]") {
  const given::Folder folder;
  CHECK(has(given::refusal([&] { Checkpoint::open(folder / "none"); }), "does not exist"));
  CHECK(has(given::refusal([&] { Checkpoint::open(folder.file("file", "x")); }), "got a file"));
  CHECK(has(refused(folder), "config.json"));
  folder.file("config.json", "[]");
  CHECK(has(refused(folder), "expected a JSON object, got a JSON array"));
  folder.file("config.json", "{\"a\":1,\"a\":2}");
  CHECK(has(refused(folder), "twice"));
}

TEST_CASE("a config.json of more than 64 MiB is refused unread", "[checkpoint]") {
  const Single folder;
  std::filesystem::resize_file(folder / "config.json", (std::uintmax_t{64} << 20) + 1);
  CHECK(has(refused(folder), "67108864"));
}

TEST_CASE("weights that cannot be read are listed", "[checkpoint]") {
  const given::Folder folder;
  folder.file("config.json", "{}");
  CHECK(has(refused(folder), "no weights at all"));
  folder.file("pytorch_model.bin", "");
  CHECK(has(refused(folder), "'pytorch_model.bin'"));
  folder.file("model-00001-of-00002.safetensors", "");
  CHECK(has(refused(folder), "'model-00001-of-00002.safetensors', 'pytorch_model.bin'"));
  CHECK(has(refused(folder), "shards need their index"));
}

TEST_CASE("a missing shard is named with the index", "[checkpoint]") {
  const Sharded folder;
  std::filesystem::remove(folder / "two.safetensors");
  CHECK(has(refused(folder), "'two.safetensors'"));
  CHECK(has(refused(folder), (folder / kIndex).string()));
}

TEST_CASE("a broken shard is named", "[checkpoint]") {
  const Sharded folder;
  const auto shard = folder / "two.safetensors";
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 1);
  CHECK(has(refused(folder), shard.string()));
}

TEST_CASE("file names of the index stay in the folder", "[checkpoint]") {
  const Sharded folder;
  const std::vector<std::string> names{"/etc/passwd", "../two.safetensors", "sub/two.safetensors", "..", ".", "",
                                       "a\nb",        "two..safetensors",   "./two.safetensors"};
  for (const std::string& name : names) {
    INFO(name);
    folder.index({{"a", name}, {"b", "two.safetensors"}, {"c", "one.safetensors"}});
    CHECK(has(refused(folder), "'a' is assigned to the file"));
  }
}

TEST_CASE("an index of the wrong kind is refused", "[checkpoint]") {
  const Sharded folder;
  const std::vector<std::string> texts{
      "[]", "{}", "{", R"({"weight_map":[]})", R"({"weight_map":{}})", R"({"weight_map":{"a":1}})"};
  for (const std::string& text : texts) {
    INFO(text);
    folder.file(kIndex, text);
    CHECK(has(refused(folder), (folder / kIndex).string()));
  }
  folder.file(kIndex, R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})");
  CHECK(has(refused(folder), "'a' appears twice"));
}

TEST_CASE("index and shards must agree on every tensor", "[checkpoint]") {
  const Sharded folder;
  folder.index({{"a", "two.safetensors"},
                {"b", "two.safetensors"},
                {"c", "one.safetensors"},
                {"d", "one.safetensors"}});
  CHECK(has(refused(folder), "assigns tensor 'd' to 'one.safetensors', which does not hold it"));
  folder.index({{"a", "two.safetensors"}, {"c", "one.safetensors"}});
  CHECK(has(refused(folder), "holds tensor 'b', which"));
  folder.index({{"a", "two.safetensors"}, {"b", "one.safetensors"}, {"c", "one.safetensors"}});
  CHECK(has(refused(folder), "'b', which 'model.safetensors.index.json' assigns to 'one.safetensors'"));
}

TEST_CASE("a second copy in another shard is refused", "[checkpoint]") {
  const Sharded folder;
  write(folder / "one.safetensors", {kC, kA});
  CHECK(has(refused(folder), (folder / "one.safetensors").string() + ": holds tensor 'a'"));
}

TEST_CASE("a single file beside the index of shards is refused", "[checkpoint]") {
  const Sharded folder;
  write(folder / "model.safetensors", {kA});
  CHECK(has(refused(folder), "'model.safetensors' beside 'model.safetensors.index.json'"));
  folder.index({{"a", "model.safetensors"}, {"b", "two.safetensors"}, {"c", "one.safetensors"}});
  CHECK(has(refused(folder), "remove the stale one"));
}

TEST_CASE("a file that the index does not name is left alone", "[checkpoint]") {
  const Sharded folder;
  folder.file("three.safetensors", "not even safetensors");
  CHECK(Checkpoint::open(folder.path()).files().size() == 2);
}

TEST_CASE("the fingerprint follows the model, not its files", "[checkpoint]") {
  const Sharded sharded;
  const std::string fingerprint = Checkpoint::open(sharded.path()).fingerprint();
  CHECK(fingerprint.size() == 32);
  CHECK(fingerprint.find_first_not_of("0123456789abcdef") == std::string::npos);

  const given::Folder single;
  const std::string config = given::contents(sharded / "config.json");
  single.file("config.json", config);
  const auto with = [&](const std::vector<TensorSpec>& specs) {
    write(single / "model.safetensors", specs);
    return Checkpoint::open(single.path()).fingerprint();
  };
  CHECK(with({kA, kB, kC}) == fingerprint);
  CHECK(with({kC, kB, kA}) == fingerprint);
  CHECK(with({kA, kB}) != fingerprint);
  CHECK(with({kA, kB, {"d", Dtype::f32, {5000}}}) != fingerprint);
  CHECK(with({kA, kB, {"c", Dtype::i32, {5000}}}) != fingerprint);
  CHECK(with({kA, kB, {"c", Dtype::f32, {50, 100}}}) != fingerprint);
  with({kA, kB, kC});
  single.file("config.json", config + " ");
  CHECK(Checkpoint::open(single.path()).fingerprint() != fingerprint);
}

TEST_CASE("the fingerprint sees the first and the last 2 KiB of a tensor", "[checkpoint]") {
  const given::Folder folder;
  folder.file("config.json", "{}");
  const auto with_changed = [&](std::size_t at) {
    auto bytes = given::counting_bytes(20'000);
    bytes[at] ^= std::byte{1};
    SafetensorsWriter writer(folder / "model.safetensors", {{"w", Dtype::f32, {5000}}});
    writer.write(bytes);
    writer.finish();
    return Checkpoint::open(folder.path()).fingerprint();
  };
  const std::string middle = with_changed(10'000);
  CHECK(with_changed(2048) == middle);
  CHECK(with_changed(2047) != middle);
  CHECK(with_changed(0) != middle);
  CHECK(with_changed(20'000 - 2049) == middle);
  CHECK(with_changed(20'000 - 2048) != middle);
  CHECK(with_changed(19'999) != middle);
}
