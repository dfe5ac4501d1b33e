// Broken GGUF files, named by their defect: each is refused with a message that names the file and the place.
#include "testing.h"

#include <optional>
#include <string>
#include <vector>

#include "given_gguf.h"
#include "moetrim/gguf_file.h"

using namespace moetrim;
using namespace moetrim::given;

namespace {

struct Broken {
  const char* defect;
  std::string bytes;
  std::string says;  ///< all of the message behind "FILE: "
};

constexpr std::uint64_t kHuge = std::uint64_t{1} << 63;
const std::string kCut = "; the file is damaged or cut short";
const std::string kMayBeCut = " bytes of data; it may be cut short";

std::string with_key(const std::string& key) { return Gguf{.keys = {key}}.bytes(); }
std::string with_tensor(const std::string& tensor, std::size_t data) {
  return Gguf{.tensors = {tensor}, .data_bytes = data}.bytes();
}
std::string with_alignment(std::uint32_t type, const std::string& value) {
  const Gguf file{
      .keys = {gguf_key("general.alignment", type, value)}, .tensors = {gguf_tensor("w", {8}, 0, 0)}, .data_bytes = 32};
  return file.bytes();
}
std::string two(const std::string& first, const std::string& second, std::size_t data) {
  return Gguf{.tensors = {first, second}, .data_bytes = data}.bytes();
}

std::vector<Broken> broken_beginnings() {
  const std::string write_anew = "write it anew with a current llama.cpp (`llama-quantize OLD NEW COPY`, or its converter)";
  const std::string key = gguf_key("k", 8, gguf_text(std::string(40, 'x')));
  return {
      {"empty", "", "has 0 bytes, fewer than the 24 that a GGUF file begins with; it is none, or cut short"},
      {"another format", "GGML" + std::string(40, '\0'), "begins with 'GGML', expected 'GGUF'; this is not a GGUF file"},
      {"version 0", Gguf{.version = 0}.bytes(),
       "it is GGUF version 0, and only version 3 is read; " + write_anew},
      {"version 2", Gguf{.version = 2}.bytes(),
       "it is GGUF version 2, and only version 3 is read; " + write_anew},
      {"big-endian", Gguf{.version = 3U << 24}.bytes(),
       "its version 0x3000000 is that of a big-endian file, and only little-endian ones are read; "
       "convert it with gguf_convert_endian.py of the gguf package"},
      {"2^63 tensors", Gguf{.tensor_count = kHuge}.bytes(),
       "the list of tensors at byte 24 takes 9223372036854775808 times at least 33 bytes, but only 0 are left" + kCut},
      {"24 bytes that ask for 61 GB of keys", Gguf{.key_count = 4'400'000'000}.bytes(),
       "the list of keys at byte 24 takes 4400000000 times at least 14 bytes, but only 0 are left" + kCut},
      {"a tensor fewer than said", Gguf{.keys = {key}, .tensor_count = 1}.bytes(),
       "the list of tensors at byte 85 takes 1 times at least 33 bytes, but only 0 are left" + kCut},
  };
}

std::vector<Broken> broken_keys() {
  const std::string good = gguf_key("k", 4, u32(1));
  const std::string filler(40, 'x');
  return {
      {"a key of 2^64-1 bytes", with_key(u64(~std::uint64_t{0}) + filler),
       "the key at byte 32 takes 18446744073709551615 bytes, but only 40 are left" + kCut},
      {"an empty key", with_key(gguf_key("", 4, u32(1) + filler)), "key is empty"},
      {"a key of 65536 bytes", with_key(gguf_key(std::string(65'536, 'k'), 4, u32(1))),
       "key '" + std::string(160, 'k') + "...' has 65536 bytes, more than the 65535 that the format allows"},
      {"a key that is not UTF-8", with_key(gguf_key("k\xC0\xAF", 4, u32(1))), "key 'k\\xc0\\xaf' is not valid UTF-8"},
      {"a surrogate in a key", with_key(gguf_key("\xED\xA0\x80", 4, u32(1))), "key '\\xed\\xa0\\x80' is not valid UTF-8"},
      {"a NUL in a key", with_key(gguf_key(std::string("k\0k", 3), 4, u32(1))), "key 'k\\x00k' has a control character"},
      {"a key twice", Gguf{.keys = {good, gguf_key("m", 0, "x"), good}}.bytes(), "key 'k' is there twice"},
      {"an unknown type", with_key(gguf_key("k", 13, u32(1))),
       "key 'k': its type is 13 at byte 33, expected a number below 13"},
      {"the type 2^32-1", with_key(gguf_key("k", ~0U, u32(1))),
       "key 'k': its type is 4294967295 at byte 33, expected a number below 13"},
      {"a boolean of 2", with_key(gguf_key("k", 7, "\2")), "key 'k': a boolean must be 0 or 1, got 2"},
      {"a number that is cut", with_key(gguf_key("kkkkkkkk", 10, "1234567")),
       "key 'kkkkkkkk': its value at byte 44 takes 8 bytes, but only 7 are left" + kCut},
      {"a string longer than the file", with_key(gguf_key("k", 8, u64(61ULL << 30) + "x")),
       "key 'k': its value at byte 45 takes 65498251264 bytes, but only 1 are left" + kCut},
  };
}

std::vector<Broken> broken_arrays() {
  std::string nested;
  for (int i = 0; i < 10'000; ++i) nested += u32(9) + u64(1);
  return {
      {"an array of arrays, 10,000 deep", with_key(gguf_key("k", 9, nested)),
       "key 'k': it is an array of arrays, which ggml does not read either"},
      {"an array of an unknown type", with_key(gguf_key("k", 9, u32(99) + u64(1) + "x")),
       "key 'k': the type of its array is 99 at byte 37, expected a number below 13"},
      {"an array longer than the file", with_key(gguf_key("k", 9, u32(0) + u64(61ULL << 30) + "x")),
       "key 'k': its array at byte 49 takes 65498251264 bytes, but only 1 are left" + kCut},
      {"length times width overflows", with_key(gguf_key("k", 9, u32(10) + u64(1ULL << 61) + "12345678")),
       "key 'k': its array at byte 49 takes 2305843009213693952 times at least 8 bytes, but only 8 are left" + kCut},
      {"more strings than lengths", with_key(gguf_key("k", 9, u32(8) + u64(3) + gguf_text("a") + gguf_text("b"))),
       "key 'k': its array at byte 49 takes 3 times at least 8 bytes, but only 18 are left" + kCut},
      {"a string longer than the array", with_key(gguf_key("k", 9, u32(8) + u64(2) + gguf_text("a") + u64(kHuge))),
       "key 'k': a string of its array at byte 66 takes 9223372036854775808 bytes, but only 0 are left" + kCut},
      {"booleans of 3", with_key(gguf_key("k", 9, u32(7) + u64(2) + "\1\3")),
       "key 'k': the booleans of its array must be 0 or 1"},
  };
}

std::vector<Broken> broken_alignments() {
  const std::string rule = "key 'general.alignment' must be a power of two of at least 8, got ";
  return {
      {"alignment 0", with_alignment(4, u32(0)), rule + "0"},
      {"alignment 4", with_alignment(4, u32(4)), rule + "4"},
      {"alignment 48", with_alignment(4, u32(48)), rule + "48"},
      {"alignment 2^32-1, which makes sums wrap", with_alignment(4, u32(~0U)), rule + "4294967295"},
      {"alignment 2^30", with_alignment(4, u32(1U << 30)),
       "tensor 'w': its 32 bytes begin at data byte 0, but the file has only 0" + kMayBeCut},
      {"alignment as a string", with_alignment(8, gguf_text("32")),
       "key 'general.alignment' must be of type u32, got string"},
      {"alignment of 64 bits", with_alignment(10, u64(32)), "key 'general.alignment' must be of type u32, got u64"},
  };
}

std::vector<Broken> broken_tensors() {
  const std::string in_63_bits = "has more elements or bytes than 63 bits can count";
  return {
      {"a name of 64 bytes", with_tensor(gguf_tensor(std::string(64, 'n'), {8}, 0, 0), 32),
       "tensor name '" + std::string(64, 'n') + "' has 64 bytes, more than the 63 that the format allows"},
      {"a name of a gigabyte", with_tensor(u64(1ULL << 30) + std::string(40, 'n'), 0),
       "the name of a tensor at byte 32 takes 1073741824 bytes, but only 40 are left" + kCut},
      {"no name", with_tensor(gguf_tensor("", {8, 1}, 0, 0), 32), "tensor name is empty"},
      {"a NUL in a name", with_tensor(gguf_tensor(std::string("w\0", 2), {8}, 0, 0), 32),
       "tensor name 'w\\x00' has a control character"},
      {"a name twice", two(gguf_tensor("w", {8}, 0, 0), gguf_tensor("w", {8}, 0, 32), 64), "tensor 'w' is there twice"},
      {"no dimensions", with_tensor(gguf_tensor("wwwwwwwww", {}, 0, 0), 32),
       "tensor 'wwwwwwwww': it has 0 dimensions, expected one to four"},
      {"five dimensions", with_tensor(gguf_tensor("w", {1, 1, 1, 1, 8}, 0, 0), 32),
       "tensor 'w': it has 5 dimensions, expected one to four"},
      {"2^32-1 dimensions", with_tensor(gguf_text("w") + u32(~0U) + std::string(40, 'x'), 0),
       "tensor 'w': it has 4294967295 dimensions, expected one to four"},
      {"an extent of 0", with_tensor(gguf_tensor("w", {8, 0}, 0, 0), 32), "tensor 'w': its shape [8, 0] has an extent of 0"},
      {"elements that wrap to 8", with_tensor(gguf_tensor("w", {1ULL << 32, (1ULL << 32) + 8}, 0, 0), 32),
       "tensor 'w': its shape [4294967296, 4294967304] " + in_63_bits},
      {"a negative extent", with_tensor(gguf_tensor("w", {~std::uint64_t{7}}, 0, 0), 32),
       "tensor 'w': its shape [18446744073709551608] " + in_63_bits},
      {"bytes that wrap to 0", with_tensor(gguf_tensor("w", {1ULL << 62}, 0, 0), 32),
       "tensor 'w': its shape [4611686018427387904] " + in_63_bits},
      {"an exabyte", with_tensor(gguf_tensor("w", {1ULL << 60}, 24, 0), 32),
       "tensor 'w': its 1152921504606846976 bytes begin at data byte 0, but the file has only 32" + kMayBeCut},
      {"a shape larger than the file", with_tensor(gguf_tensor("w", {9}, 0, 0), 32),
       "tensor 'w': its 36 bytes begin at data byte 0, but the file has only 32" + kMayBeCut},
      {"an unknown type", with_tensor(gguf_tensor("w", {8}, 43, 0), 32),
       "tensor 'w': its type 43 is none of ggml's, or one that ggml has given up"},
      {"a type that was given up", with_tensor(gguf_tensor("w", {32}, 4, 0), 32),
       "tensor 'w': its type 4 is none of ggml's, or one that ggml has given up"},
      {"half a block", with_tensor(gguf_tensor("w", {16, 2}, 8, 0), 34),
       "tensor 'w': its rows of 16 elements are no whole number of Q8_0 blocks, which have 32"},
  };
}

std::vector<Broken> broken_offsets() {
  const std::string padding = "tensors lie one behind the other, each padded to 32 bytes";
  const std::string first = gguf_tensor("a", {5}, 0, 0);
  const std::string exabyte = gguf_tensor("b", {(1ULL << 60) - 4}, 0, 32);
  return {
      {"a sum of sizes that overflows", two(first, exabyte, 64),
       "tensor 'b': its 4611686018427387888 bytes begin at data byte 32, but the file has only 64" + kMayBeCut},
      {"an overlap", two(first, gguf_tensor("b", {5}, 0, 16), 64),
       "tensor 'b': it begins at data byte 16, expected 32: " + padding},
      {"the same bytes", two(first, gguf_tensor("b", {5}, 0, 0), 64),
       "tensor 'b': it begins at data byte 0, expected 32: " + padding},
      {"a hole", two(first, gguf_tensor("b", {5}, 0, 64), 128),
       "tensor 'b': it begins at data byte 64, expected 32: " + padding},
      {"without padding", two(first, gguf_tensor("b", {5}, 0, 20), 64),
       "tensor 'b': it begins at data byte 20, expected 32: " + padding},
      {"out of order", two(gguf_tensor("a", {5}, 0, 32), gguf_tensor("b", {5}, 0, 0), 64),
       "tensor 'a': it begins at data byte 32, expected 0: " + padding},
      {"the offset 2^64-32", two(first, gguf_tensor("b", {5}, 0, ~std::uint64_t{31}), 64),
       "tensor 'b': it begins at data byte 18446744073709551584, expected 32: " + padding},
      {"bytes behind the tensors", with_tensor(first, 33),
       "its tensors end at byte 96, but the file goes on for 1 more bytes"},
      {"bytes behind no tensors", Gguf{.data_bytes = 64}.bytes(),
       "its tensors end at byte 32, but the file goes on for 64 more bytes"},
  };
}

void check_all_refused(const std::vector<Broken>& table) {
  const Folder folder;
  for (const Broken& broken : table) {
    INFO(broken.defect);
    const auto file = folder.file("broken.gguf", broken.bytes);
    CHECK(refusal([&] { GgufFile::open(file); }) == file.string() + ": " + broken.says);
  }
}

/// @return the bytes of the tensors when it can be opened; it must be refused by name otherwise
std::optional<std::uint64_t> opened_bytes(const std::filesystem::path& file) {
  try {
    const GgufFile opened = GgufFile::open(file);
    std::uint64_t bytes = 0;
    for (const GgufTensor& tensor : opened.tensors()) bytes += opened.read(tensor).size();
    return bytes;
  } catch (const InvalidInput& refused) {
    if (!has(refused.what(), file.string())) FAIL(refused.what());
  }
  return std::nullopt;
}

}  // namespace

TEST_CASE("a GGUF file that begins wrong is refused", "[gguf]") { check_all_refused(broken_beginnings()); }
TEST_CASE("wrong keys of a GGUF file are refused", "[gguf]") { check_all_refused(broken_keys()); }
TEST_CASE("wrong arrays of a GGUF file are refused", "[gguf]") { check_all_refused(broken_arrays()); }
TEST_CASE("a wrong alignment of a GGUF file is refused", "[gguf]") { check_all_refused(broken_alignments()); }
TEST_CASE("wrong tensors of a GGUF file are refused", "[gguf]") { check_all_refused(broken_tensors()); }
TEST_CASE("tensors of a GGUF file that do not lie one behind the other are refused", "[gguf]") {
  check_all_refused(broken_offsets());
}

TEST_CASE("every prefix of a GGUF file is refused, but for the padding at its end", "[gguf]") {
  const Folder folder;
  const std::string whole = small_gguf().bytes();
  constexpr std::uint64_t kDataBytes = 60 + 68;
  REQUIRE(opened_bytes(folder.file("whole", whole)) == kDataBytes);
  for (std::size_t bytes = 0; bytes < whole.size(); ++bytes) {
    const bool only_padding_lacks = whole.size() - bytes <= 96 - 68;
    const auto opened = opened_bytes(folder.file("cut", whole.substr(0, bytes)));
    if (opened.has_value() != only_padding_lacks) FAIL("a prefix of " << bytes);
  }
}

TEST_CASE("any single changed byte of a GGUF header is refused, or read without harm", "[gguf]") {
  const Folder folder;
  const std::string whole = small_gguf().bytes();
  for (std::size_t at = 0; at < whole.size() - 160; ++at) {
    for (const int change : {0x01, 0x08, 0x20, 0x80, 0xFF}) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ change);
      const auto bytes = opened_bytes(folder.file("damaged", damaged));
      if (bytes && *bytes > 160) FAIL("byte " << at << " by " << change << " gives " << *bytes << " bytes");
    }
  }
}
