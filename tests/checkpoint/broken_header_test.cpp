// Broken safetensors files, named by their defect: each is refused with a message that names the file and the place.
#include "testing.h"

#include <string>
#include <vector>

#include "given_files.h"
#include "moetrim/checkpoint.h"

using namespace moetrim;
using given::entry;
using given::has;
using given::safetensors;

namespace {

struct Broken {
  const char* defect;
  std::string bytes;
  std::string names;  ///< the tensor or byte that the message must name
  std::string says;
};

std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets, std::size_t data) {
  return safetensors("{" + entry("w", dtype, shape, offsets) + "}", data);
}

std::string two(const std::string& first, const std::string& second, std::size_t data) {
  return safetensors("{" + first + "," + second + "}", data);
}

std::string repeated(const std::string& text, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += text;
  return out;
}

const std::string kGood = entry("w", "U8", "[4]", "[0,4]");

std::vector<Broken> broken_lengths() {
  return {
      {"empty file", "", "has 0 bytes", "not a safetensors file"},
      {"seven bytes", "1234567", "has 7 bytes", "not a safetensors file"},
      {"header length 0", given::little_endian(0), "byte 8", "begin with '{'"},
      {"header length 2^64-1", given::little_endian(~std::uint64_t{0}) + "{}", "byte 0", "18446744073709551615"},
      {"header length 2^64-8", given::little_endian(~std::uint64_t{7}) + "{}", "byte 0", "18446744073709551608"},
      {"header length 2^63", given::little_endian(std::uint64_t{1} << 63) + "{}", "byte 0", "9223372036854775808"},
      {"header longer than the limit", given::little_endian(100'000'001) + "{}", "byte 0", "100000000"},
      {"header longer than the file", given::little_endian(3) + "{}", "byte 0", "only 2 bytes follow"},
      {"header length lie, one short", given::little_endian(kGood.size() + 1) + "{" + kGood + "}123", "not valid JSON",
       "byte"},
  };
}

std::vector<Broken> broken_json() {
  return {
      {"not an object", safetensors("[]"), "byte 8", "begin with '{'"},
      {"only spaces", safetensors("   "), "byte 8", "begin with '{'"},
      {"byte order mark", safetensors("\xEF\xBB\xBF{}"), "byte 8", "begin with '{'"},
      {"half an object", safetensors("{\"w\":"), "not valid JSON", "byte"},
      {"trailing comma", safetensors("{" + kGood + ",}", 4), "not valid JSON", "byte"},
      {"text behind the object", safetensors("{} {}"), "not valid JSON", "byte 11"},
      {"trailing NUL", safetensors(std::string("{}\0\0", 4)), "NUL", "byte 10"},
      {"NUL inside", safetensors(std::string("{\"a\0\":1}", 8)), "NUL", "byte 11"},
      {"comment", safetensors("{/* */}"), "not valid JSON", "byte"},
      {"invalid UTF-8 in a name", safetensors("{\"\xFF\xFE\":1}"), "UTF-8", "byte 10"},
      {"overlong UTF-8", safetensors("{\"\xC0\xAF\":1}"), "UTF-8", "byte 10"},
      {"lone surrogate", safetensors("{\"\\ud800\":1}"), "not valid JSON", "surrogate"},
      {"5000-deep nesting", safetensors("{\"w\":{\"x\":" + repeated("[", 5000) + repeated("]", 5000) + "}}"), "'w'",
       "nests deeper"},
      {"5000-deep nesting, never closed", safetensors(repeated("{\"w\":", 5000)), "'w'", "nests deeper"},
      {"number as a tensor", safetensors("{\"w\":7}"), "'w'", "must be an object"},
      {"array as a tensor", safetensors("{\"w\":[]}"), "'w'", "must be an object"},
      {"null as a tensor", safetensors("{\"w\":null}"), "'w'", "must be an object"},
      {"string as a tensor", safetensors("{\"w\":\"F32\"}"), "'w'", "must be an object"},
  };
}

std::vector<Broken> broken_names() {
  const std::string other = entry("w", "U8", "[4]", "[4,8]");
  return {
      {"name twice, same range", two(kGood, kGood, 4), "'w'", "twice"},
      {"name twice, two ranges", two(kGood, other, 8), "'w'", "twice"},
      {"name twice, once escaped", two(kGood, entry("\\u0077", "U8", "[4]", "[4,8]"), 8), "'w'", "twice"},
      {"metadata twice", safetensors("{\"__metadata__\":{},\"__metadata__\":{}}"), "'__metadata__'", "twice"},
      {"metadata key twice", safetensors("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}"), "'a'", "twice"},
      {"field twice", safetensors("{\"w\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}"), "'w'", "'dtype' twice"},
      {"unknown field's key twice", safetensors("{\"w\":{\"x\":{\"y\":1,\"y\":1}}}"), "'w'", "'y' twice"},
      {"NUL in a name", safetensors("{" + entry("a\\u0000b", "U8", "[0]", "[0,0]") + "}"), "a\\x00b", "control"},
      {"line break in a name", safetensors("{" + entry("a\\nb", "U8", "[0]", "[0,0]") + "}"), "a\\x0ab", "control"},
      {"DEL in a name", safetensors("{" + entry("a\x7F", "U8", "[0]", "[0,0]") + "}"), "a\\x7f", "control"},
      {"C1 in a name", safetensors("{" + entry("a\\u009b", "U8", "[0]", "[0,0]") + "}"), "a\\xc2\\x9b", "control"},
      {"metadata is a number", safetensors("{\"__metadata__\":1}"), "__metadata__", "object or null"},
      {"metadata is an array", safetensors("{\"__metadata__\":[]}"), "__metadata__", "object or null"},
      {"metadata value is a number", safetensors("{\"__metadata__\":{\"a\":1}}"), "__metadata__", "strings"},
      {"metadata value is null", safetensors("{\"__metadata__\":{\"a\":null}}"), "__metadata__", "strings"},
      {"metadata value is nested", safetensors("{\"__metadata__\":{\"a\":{}}}"), "__metadata__", "strings"},
  };
}

std::vector<Broken> broken_entries() {
  return {
      {"no dtype", safetensors("{\"w\":{\"shape\":[4],\"data_offsets\":[0,4]}}", 4), "'w'", "lacks dtype"},
      {"no shape", safetensors("{\"w\":{\"dtype\":\"U8\",\"data_offsets\":[0,4]}}", 4), "'w'", "lacks shape"},
      {"no offsets", safetensors("{\"w\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4), "'w'", "lacks data_offsets"},
      {"unknown dtype", one("F17", "[4]", "[0,4]", 4), "'w'", "'F17'"},
      {"dtype in small letters", one("u8", "[4]", "[0,4]", 4), "'w'", "'u8'"},
      {"dtype is a number", safetensors("{\"w\":{\"dtype\":8}}"), "'w'", "dtype must be a string"},
      {"shape is a number", one("U8", "4", "[0,4]", 4), "'w'", "shape must be an array"},
      {"shape is null", one("U8", "null", "[0,4]", 4), "'w'", "shape must be an array"},
      {"negative extent", one("U8", "[-4]", "[0,4]", 4), "'w'", "negative number -4"},
      {"minus zero extent", one("U8", "[-0]", "[0,0]", 0), "'w'", "negative number"},
      {"float extent", one("U8", "[4.0]", "[0,4]", 4), "'w'", "4.0"},
      {"exponent extent", one("U8", "[4e0]", "[0,4]", 4), "'w'", "4e0"},
      {"text extent", one("U8", "[\"4\"]", "[0,4]", 4), "'w'", "the string '4'"},
      {"nested extent", one("U8", "[[4]]", "[0,4]", 4), "'w'", "got an array"},
      {"extent of 2^63", one("U8", "[9223372036854775808]", "[0,4]", 4), "'w'", "63 bits"},
      {"extent of 2^64", one("U8", "[18446744073709551616]", "[0,4]", 4), "'w'", "shape must be"},
      {"shape overflow", one("U8", "[4294967296,4294967296]", "[0,0]", 0), "'w'", "64 bits"},
      {"shape overflow to the right size", one("U8", "[4611686018427387905,4]", "[0,4]", 4), "'w'", "64 bits"},
      {"bit count overflow", one("F64", "[4611686018427387904]", "[0,0]", 0), "'w'", "64 bits"},
      {"F4 odd count", one("F4", "[5]", "[0,3]", 3), "'w'", "multiple of 2"},
      {"F6 count 7", one("F6_E2M3", "[7]", "[0,6]", 6), "'w'", "multiple of 4"},
      {"shape larger than range", one("F32", "[2]", "[0,4]", 4), "'w'", "takes 8 bytes"},
      {"shape smaller than range", one("F32", "[1]", "[0,8]", 8), "'w'", "takes 4 bytes"},
  };
}

std::vector<Broken> broken_offsets() {
  const std::string early = entry("a", "U8", "[4]", "[0,4]");
  return {
      {"no numbers", one("U8", "[4]", "[]", 4), "'w'", "got 0"},
      {"one number", one("U8", "[4]", "[4]", 4), "'w'", "got 1"},
      {"three numbers", one("U8", "[4]", "[0,4,4]", 4), "'w'", "exactly two"},
      {"not an array", one("U8", "[4]", "4", 4), "'w'", "array of two"},
      {"float offset", one("U8", "[4]", "[0.0,4]", 4), "'w'", "0.0"},
      {"negative offset", one("U8", "[4]", "[-4,0]", 4), "'w'", "-4"},
      {"offset of 2^64", one("U8", "[4]", "[0,18446744073709551616]", 4), "'w'", "data_offsets"},
      {"end before begin", one("U8", "[4]", "[4,0]", 4), "'w'", "before its begin"},
      {"range wraps", one("U8", "[4]", "[18446744073709551615,3]", 4), "'w'", "before its begin"},
      {"missing bytes", one("U8", "[5]", "[0,5]", 4), "'w'", "only 4 bytes"},
      {"tail", one("U8", "[4]", "[0,4]", 5), "'w'", "1 more bytes"},
      {"tail without tensors", safetensors("{}", 7), "byte 0", "7 more bytes"},
      {"first offset not 0", one("U8", "[4]", "[1,5]", 5), "'w'", "bytes 0 to 1"},
      {"hole", two(early, entry("b", "U8", "[2]", "[5,7]"), 7), "'b'", "bytes 4 to 5"},
      {"overlap", two(early, entry("b", "U8", "[3]", "[3,6]"), 7), "'b'", "overlaps tensor 'a'"},
      {"overlap at the end", two(early, entry("b", "U8", "[3]", "[3,6]"), 6), "'b'", "shares bytes"},
      {"alias", two(early, entry("b", "U8", "[4]", "[0,4]"), 4), "'b'", "shares bytes"},
      {"zero-size tensor inside another", two(early, entry("z", "U8", "[0]", "[2,2]"), 4), "'z'", "overlaps"},
      {"zero-size tensor behind the data", two(early, entry("z", "U8", "[0]", "[5,5]"), 4), "'z'", "only 4 bytes"},
  };
}

void check_all_refused(const std::vector<Broken>& table) {
  const given::Folder folder;
  for (const Broken& broken : table) {
    INFO(broken.defect);
    const auto file = folder.file("broken.safetensors", broken.bytes);
    const std::string message = given::refusal([&] { SafetensorsFile::open(file); });
    INFO(message);
    CHECK(has(message, file.string()));
    CHECK(has(message, broken.names));
    CHECK(has(message, broken.says));
    CHECK(message.find('\n') == message.npos);
  }
}

}  // namespace

TEST_CASE("a wrong header length is refused before anything is allocated", "[checkpoint]") {
  check_all_refused(broken_lengths());
}
TEST_CASE("a header that is not JSON of the right kind is refused", "[checkpoint]") {
  check_all_refused(broken_json());
}
TEST_CASE("duplicate and unprintable names are refused", "[checkpoint]") { check_all_refused(broken_names()); }
TEST_CASE("an entry that is not dtype, shape and offsets is refused", "[checkpoint]") {
  check_all_refused(broken_entries());
}
TEST_CASE("offsets that do not tile the data are refused", "[checkpoint]") { check_all_refused(broken_offsets()); }

TEST_CASE("every prefix of a good file is refused", "[checkpoint]") {
  const given::Folder folder;
  const std::string whole = two(kGood, entry("b", "BF16", "[5,7]", "[4,74]"), 74);
  REQUIRE_NOTHROW(SafetensorsFile::open(folder.file("whole", whole)));
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
    const auto file = folder.file("cut", whole.substr(0, bytes));
    if (!has(given::refusal([&] { SafetensorsFile::open(file); }), file.string())) FAIL("a prefix of " << bytes);
  }
}

TEST_CASE("any single changed byte of a header is refused or changes nothing but text", "[checkpoint]") {
  const given::Folder folder;
  const std::string whole = two(kGood, entry("b", "BF16", "[5,7]", "[4,74]"), 74);
  for (std::size_t at = 0; at < whole.size() - 74; ++at) {
    for (const int change : {0x01, 0x08, 0x20, 0x80, 0xFF}) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ change);
      const auto file = folder.file("damaged", damaged);
      try {
        const SafetensorsFile opened = SafetensorsFile::open(file);
        std::uint64_t bytes = 0;
        for (const Tensor& tensor : opened.tensors()) bytes += opened.read(tensor).size();
        CHECK(bytes == 74);
      } catch (const InvalidInput& refused) {
        CHECK(has(refused.what(), file.string()));
      }
    }
  }
}

TEST_CASE("a hundred thousand aliases of one range are refused early", "[checkpoint]") {
  const given::Folder folder;
  std::string header = "{" + entry("t0", "U8", "[4096]", "[0,4096]");
  for (int i = 1; i < 100'000; ++i) header += "," + entry("t" + std::to_string(i), "U8", "[4096]", "[0,4096]");
  const auto file = folder.file("aliases.safetensors", safetensors(header + "}", 4096));
  const std::string message = given::refusal([&] { SafetensorsFile::open(file); });
  CHECK(has(message, "'t1'"));
  CHECK(has(message, "shares bytes"));
}

TEST_CASE("long names are cut in messages", "[checkpoint]") {
  const given::Folder folder;
  const std::string name = repeated("\xC3\xA4", 500'000);
  const auto file = folder.file("long.safetensors", safetensors("{" + entry(name, "F17", "[1]", "[0,1]") + "}", 1));
  const std::string message = given::refusal([&] { SafetensorsFile::open(file); });
  CHECK(message.size() < 500);
  CHECK(has(message, "(1000000 bytes)"));
}
