// What the writer writes: read back equal, same bytes every time, and nothing under the final name before the end.
#include "testing.h"

#include <signal.h>
#include <sys/resource.h>

#include <string>
#include <vector>

#include "given_files.h"
#include "moetrim/checkpoint.h"

using namespace moetrim;
using given::has;

namespace {

/// Odd sizes of every type; 4 and 6 bit types end on a byte.
std::vector<TensorSpec> one_of_each() {
  std::vector<TensorSpec> specs;
  for (int i = 0; i <= static_cast<int>(Dtype::c64); ++i) {
    const auto dtype = static_cast<Dtype>(i);
    specs.push_back({"t." + std::string(dtype_name(dtype)), dtype, {5, dtype_bits(dtype) < 8 ? 4 : 7}});
  }
  specs.push_back({"scalar", Dtype::f32, {}});
  specs.push_back({"empty", Dtype::bf16, {11, 0}});
  specs.push_back({"last/../\"quoted\" \xC3\xA4", Dtype::u8, {11}});
  return specs;
}

void write_all(const std::filesystem::path& file, const std::vector<TensorSpec>& specs, std::size_t piece_bytes) {
  std::vector<std::byte> all;
  for (unsigned i = 0; i < specs.size(); ++i) {
    const auto bytes = given::counting_bytes(specs[i].bytes(), i);
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  SafetensorsWriter writer(file, specs, {{"note", "a \"b\"\n"}});
  for (std::size_t at = 0; at < all.size(); at += piece_bytes) {
    writer.write(std::span(all).subspan(at, std::min(piece_bytes, all.size() - at)));
  }
  writer.finish();
}

}  // namespace

TEST_CASE("what is written is read back, in the order given", "[checkpoint]") {
  const given::Folder folder;
  const auto specs = one_of_each();
  write_all(folder / "w.safetensors", specs, 13);
  const auto file = SafetensorsFile::open(folder / "w.safetensors");
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"note", "a \"b\"\n"}});
  REQUIRE(file.tensors().size() == specs.size());
  CHECK(file.tensors().front().offset % 64 == 0);
  for (unsigned i = 0; i < specs.size(); ++i) {
    const Tensor& tensor = file.tensors()[i];
    CHECK(tensor.name == specs[i].name);
    CHECK(tensor.dtype == specs[i].dtype);
    CHECK(tensor.shape == specs[i].shape);
    CHECK(file.read(tensor) == given::counting_bytes(specs[i].bytes(), i));
  }
}

TEST_CASE("the bytes do not depend on the pieces", "[checkpoint]") {
  const given::Folder folder;
  std::vector<TensorSpec> specs = one_of_each();
  specs.push_back({"large", Dtype::u8, {(1 << 20) + 5}});
  specs.push_back({"larger", Dtype::u8, {(3 << 20) + 7}});
  write_all(folder / "whole", specs, std::size_t{1} << 30);
  const std::string whole = given::contents(folder / "whole");
  for (const std::size_t piece : {11, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1}) {
    write_all(folder / "pieces", specs, piece);
    CHECK(given::contents(folder / "pieces") == whole);
  }
}

TEST_CASE("the header by hand", "[checkpoint]") {
  const given::Folder folder;
  SafetensorsWriter writer(folder / "w", {{"a", Dtype::bf16, {1, 2}}, {"b", Dtype::u8, {}}});
  writer.write(given::counting_bytes(5));
  writer.finish();
  const std::string bytes = given::contents(folder / "w");
  CHECK(has(bytes, R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]},)"
                   R"("b":{"dtype":"U8","shape":[],"data_offsets":[4,5]}} )"));
  CHECK(bytes.substr(0, 8) == given::little_endian(bytes.size() - 5 - 8));
}

TEST_CASE("a file without tensors can be written", "[checkpoint]") {
  const given::Folder folder;
  SafetensorsWriter(folder / "w", {}).finish();
  CHECK(SafetensorsFile::open(folder / "w").tensors().empty());
}

TEST_CASE("nothing is under the final name before finish, and nothing is left behind", "[checkpoint]") {
  const given::Folder folder;
  const auto old = folder.file("w", "old");
  folder.file("w.partial", "left by a killed run");
  {
    SafetensorsWriter writer(old, {{"a", Dtype::u8, {5}}});
    writer.write(given::counting_bytes(5));
    CHECK(given::contents(old) == "old");
    CHECK(std::filesystem::exists(folder / "w.partial"));
  }
  CHECK(given::contents(old) == "old");
  CHECK(!std::filesystem::exists(folder / "w.partial"));
}

TEST_CASE("a link is replaced, never written through", "[checkpoint]") {
  const given::Folder folder;
  folder.file("target", "precious");
  std::filesystem::create_symlink("target", folder / "w");
  std::filesystem::create_symlink("target", folder / "w.partial");
  write_file_atomically(folder / "w", "new");
  CHECK(given::contents(folder / "target") == "precious");
  CHECK(given::contents(folder / "w") == "new");
  CHECK(!std::filesystem::is_symlink(folder / "w"));
}

TEST_CASE("more or fewer bytes than announced are refused", "[checkpoint]") {
  const given::Folder folder;
  SafetensorsWriter writer(folder / "w", {{"a", Dtype::u8, {5}}});
  CHECK_THROWS_AS(writer.write(given::counting_bytes(6)), Error);
  writer.write(given::counting_bytes(4));
  CHECK_THROWS_AS(writer.finish(), Error);
  CHECK_THROWS_AS(writer.write(given::counting_bytes(2)), Error);
  writer.write(given::counting_bytes(1));
  writer.finish();
  CHECK_NOTHROW(writer.finish());
  CHECK_THROWS_AS(writer.write(given::counting_bytes(1)), Error);
}

TEST_CASE("names and shapes that a reader would refuse are not written", "[checkpoint]") {
  const given::Folder folder;
  const auto refused = [&](std::vector<TensorSpec> specs, std::map<std::string, std::string> metadata = {}) {
    const std::string message = given::refusal([&] { SafetensorsWriter(folder / "w", specs, metadata); });
    return has(message, (folder / "w").string());
  };
  CHECK(refused({{"a", Dtype::u8, {1}}, {"a", Dtype::u8, {1}}}));
  CHECK(refused({{"__metadata__", Dtype::u8, {1}}}));
  CHECK(refused({{"a\nb", Dtype::u8, {1}}}));
  CHECK(refused({{"a\xFF", Dtype::u8, {1}}}));
  CHECK(refused({{"a", Dtype::u8, {-1}}}));
  CHECK(refused({{"a", Dtype::f4, {7}}}));
  CHECK(refused({{"a", Dtype::u8, {1LL << 62}}, {"b", Dtype::u8, {1LL << 62}}, {"c", Dtype::u8, {1LL << 62}},
                 {"d", Dtype::u8, {1LL << 62}}, {"e", Dtype::u8, {1LL << 62}}}));
  CHECK(refused({}, {{"key", "\xFF"}}));
  CHECK(refused({{std::string(100'000'000, 'x'), Dtype::u8, {1}}}));
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("a full disk is a lack of resources that names file and bytes", "[checkpoint]") {
  const given::Folder folder;
  // A limit on the file size stands for the full disk; its signal would end the program.
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &before) == 0);
  const rlimit low{4096, before.rlim_max};
  std::string message;
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &low) == 0);
  try {
    SafetensorsWriter writer(folder / "w", {{"a", Dtype::u8, {4 << 20}}});
    writer.write(given::counting_bytes(4 << 20));
  } catch (const OutOfResources& full) {
    message = full.what();
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  CHECK(has(message, (folder / "w.partial").string()));
  CHECK(has(message, "after 4096 bytes"));
  CHECK(has(message, "are free there"));
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("a file in a folder that is not there is an error that names it", "[checkpoint]") {
  const given::Folder folder;
  CHECK_THROWS_AS(SafetensorsWriter(folder / "none/w", {}), Error);
  CHECK_THROWS_AS(write_file_atomically(folder / "none/w", "text"), Error);
}
