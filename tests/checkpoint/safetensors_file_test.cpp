// Safetensors files that are unusual and legal, and how tensors are read from them.
#include "testing.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <string>
#include <thread>
#include <vector>

#include "given_files.h"
#include "moetrim/checkpoint.h"

using namespace moetrim;
using given::entry;
using given::has;
using given::safetensors;

namespace {

std::vector<std::string> names(const SafetensorsFile& file) {
  std::vector<std::string> out;
  for (const Tensor& tensor : file.tensors()) out.push_back(tensor.name);
  return out;
}

using Names = std::vector<std::string>;

/// A file whose header is these entries.
std::string file_of(const std::vector<std::string>& entries, std::size_t data_bytes) {
  std::string header;
  for (const std::string& each : entries) header += (header.empty() ? "{" : ",") + each;
  return safetensors(header + "}", data_bytes);
}

}  // namespace

TEST_CASE("what the reference reads is read", "[checkpoint]") {
  const std::string w = entry("w", "F32", "[1]", "[0,4]");
  struct Row {
    const char* what;
    std::string bytes;
    Names names;
  };
  const std::vector<Row> rows{
      {"no tensors", safetensors("{}"), {}},
      {"no metadata", safetensors("{" + w + "}", 4), {"w"}},
      {"metadata null", safetensors("{\"__metadata__\":null," + w + "}", 4), {"w"}},
      {"metadata empty", safetensors("{\"__metadata__\":{}," + w + "}", 4), {"w"}},
      {"metadata last", safetensors("{" + w + ",\"__metadata__\":{\"a\":\"b\"}}", 4), {"w"}},
      {"space in front", safetensors(" {" + w + "}", 4), {"w"}},
      {"spaces and a newline behind", safetensors("{" + w + "}  \r\n\t ", 4), {"w"}},
      {"odd-aligned F32",
       file_of({entry("a", "U8", "[1]", "[0,1]"), entry("w", "F32", "[1]", "[1,5]")}, 5),
       {"a", "w"}},
      {"header order differs",
       file_of({entry("b", "U8", "[3]", "[4,7]"), entry("a", "U8", "[4]", "[0,4]")}, 7),
       {"a", "b"}},
      {"zero-size tensors share offsets",
       file_of({entry("z2", "U8", "[5,0]", "[4,4]"), w, entry("z1", "F64", "[0]", "[0,0]"),
                entry("z0", "F64", "[0]", "[0,0]")},
               4),
       {"z1", "z0", "w", "z2"}},
      {"scalar", file_of({entry("w", "F32", "[]", "[0,4]")}, 4), {"w"}},
      {"huge extents with a zero", file_of({entry("w", "F32", "[0,4611686018427387904]", "[0,0]")}, 0), {"w"}},
      {"name that looks like a path", file_of({entry("../../passwd", "U8", "[1]", "[0,1]")}, 1), {"../../passwd"}},
      {"empty name", file_of({entry("", "U8", "[1]", "[0,1]")}, 1), {""}},
      {"escaped name", file_of({entry("a\\u00e4\\\"", "U8", "[1]", "[0,1]")}, 1), {"a\xC3\xA4\""}},
      {"fields in another order, and extra ones",
       safetensors("{\"w\":{\"x\":[{\"y\":[null,true,1,-1,1.5,\"\"]}],\"data_offsets\":[0,1],\"z\":{},\"shape\":[1],"
                   "\"q\":null,\"dtype\":\"U8\"}}",
                   1),
       {"w"}},
  };
  const given::Folder folder;
  for (const Row& row : rows) {
    INFO(row.what);
    CHECK(names(SafetensorsFile::open(folder.file("odd.safetensors", row.bytes))) == row.names);
  }
}

TEST_CASE("a name of a million characters is read", "[checkpoint]") {
  const given::Folder folder;
  const std::string name(1'000'000, 'x');
  const auto file = SafetensorsFile::open(folder.file("f", file_of({entry(name, "U8", "[1]", "[0,1]")}, 1)));
  CHECK(file.find(name) != nullptr);
}

TEST_CASE("tensors are found by name and read whole or in parts", "[checkpoint]") {
  const given::Folder folder;
  const std::string header = "{\"__metadata__\":{\"format\":\"pt\"}," + entry("b", "I16", "[5]", "[7,17]") + "," +
                             entry("a", "U8", "[7]", "[0,7]") + "}";
  const SafetensorsFile file = SafetensorsFile::open(folder.file("f.safetensors", safetensors(header, 17)));
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}});
  CHECK(file.file_bytes() == 8 + header.size() + 17);
  CHECK(file.find("c") == nullptr);
  const Tensor* b = file.find("b");
  REQUIRE(b != nullptr);
  CHECK(b->dtype == Dtype::i16);
  CHECK(b->shape == std::vector<std::int64_t>{5});
  CHECK(b->size == 10);
  CHECK(b->offset == 8 + header.size() + 7);
  CHECK(file.read(*b).front() == std::byte{7});
  std::vector<std::byte> part(3);
  file.read(*b, 7, part);
  CHECK(part == std::vector{std::byte{14}, std::byte{15}, std::byte{16}});
  CHECK_NOTHROW(file.drop_cache(*b));
}

TEST_CASE("bytes beyond a tensor are refused, even at offsets that wrap", "[checkpoint]") {
  const given::Folder folder;
  const auto file = SafetensorsFile::open(folder.file("f", file_of({entry("w", "U8", "[5]", "[0,5]")}, 5)));
  const Tensor& w = file.tensors().front();
  std::vector<std::byte> out(3);
  CHECK_NOTHROW(file.read(w, 2, out));
  CHECK_THROWS_AS(file.read(w, 3, out), Error);
  CHECK_THROWS_AS(file.read(w, 6, std::span<std::byte>()), Error);
  CHECK_THROWS_AS(file.read(w, ~std::uint64_t{0}, out), Error);
}

TEST_CASE("a file that becomes shorter is named", "[checkpoint]") {
  const given::Folder folder;
  const auto path = folder.file("f", file_of({entry("w", "U8", "[11]", "[0,11]")}, 11));
  const auto file = SafetensorsFile::open(path);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  const std::string message = given::refusal([&] { file.read(file.tensors().front()); });
  CHECK(has(message, path.string()));
  CHECK(has(message, "became shorter"));
}

TEST_CASE("a file stays readable when it is moved, and by several threads", "[checkpoint]") {
  const given::Folder folder;
  auto first = SafetensorsFile::open(folder.file("f", file_of({entry("w", "U8", "[251]", "[0,251]")}, 251)));
  auto file = SafetensorsFile::open(folder.file("g", safetensors("{}")));
  file = std::move(first);
  const SafetensorsFile moved(std::move(file));
  std::vector<int> wrong(4);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (unsigned i = 0; i < 251; ++i) {
        std::byte byte{};
        moved.read(moved.tensors().front(), i, std::span(&byte, 1));
        if (byte != static_cast<std::byte>(i)) ++wrong[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(4));
}

TEST_CASE("what is not a regular file is refused without hanging", "[checkpoint]") {
  const given::Folder folder;
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  CHECK(has(given::refusal([&] { SafetensorsFile::open(folder / "fifo"); }), "special file"));
  CHECK(has(given::refusal([&] { SafetensorsFile::open(folder.path()); }), "a folder"));
  CHECK(has(given::refusal([&] { SafetensorsFile::open(folder / "none"); }), (folder / "none").string()));
}

TEST_CASE("the limit of open files is raised when many files are open", "[checkpoint]") {
  rlimit before{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &before) == 0);
  if (before.rlim_max < 200) return;
  const rlimit low{64, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &low) == 0);
  const given::Folder folder;
  const auto path = folder.file("f", safetensors("{}"));
  std::vector<SafetensorsFile> files;
  for (int i = 0; i < 100; ++i) files.push_back(SafetensorsFile::open(path));
  CHECK(files.size() == 100);
  ::setrlimit(RLIMIT_NOFILE, &before);
}

TEST_CASE("every type has its own name and width", "[checkpoint]") {
  for (int i = 0; i <= static_cast<int>(Dtype::c64); ++i) {
    const auto dtype = static_cast<Dtype>(i);
    CHECK(dtype_from_name(dtype_name(dtype)) == dtype);
    CHECK(TensorSpec{"w", dtype, {5, 4}}.bytes() == 20U * static_cast<unsigned>(dtype_bits(dtype)) / 8);
  }
  CHECK(!dtype_from_name("F17"));
  CHECK_THROWS_AS((TensorSpec{"w", Dtype::f4, {7}}.bytes()), InvalidInput);
  CHECK_THROWS_AS((TensorSpec{"w", Dtype::u8, {-1}}.bytes()), InvalidInput);
}
