// Parses the header of a GGUF file and places its tensors: see gguf_header.h.
#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "gguf_cursor.h"
#include "gguf_header.h"
#include "moetrim/error.h"
#include "quote.h"

namespace moetrim::checkpoint_detail {
namespace {

constexpr std::uint64_t kFixedBytes = 24;      // magic, version, two counts
constexpr std::uint64_t kLeastKeyBytes = 14;   // length, a byte of key, type, a byte of value
constexpr std::uint64_t kLeastTensorBytes = 33;  // length, a byte of name, dimensions, an extent, type, offset

void check_version(std::uint32_t version, const std::string& where) {
  if (version == kGgufVersion) return;
  if (version != 0 && (version & 0xFFFF) == 0) {
    throw InvalidInput(fmt::format("{}its version {:#x} is that of a big-endian file, and only little-endian ones are "
                                   "read; convert it with gguf_convert_endian.py of the gguf package",
                                   where, version));
  }
  throw InvalidInput(fmt::format("{}it is GGUF version {}, and only version {} is read; write it anew with a current "
                                 "llama.cpp (`llama-quantize OLD NEW COPY`, or its converter)",
                                 where, version, kGgufVersion));
}

class Parser {
 public:
  Parser(const std::filesystem::path& file, int descriptor, std::uint64_t file_bytes)
      : file_(file), file_bytes_(file_bytes), cursor_(file, descriptor, file_bytes) {}

  GgufHeader parse() {
    begin();
    read_metadata();
    read_tensors();
    place_tensors();
    return std::move(header_);
  }

 private:
  std::string where() const { return cursor_.where(); }
  void begin();
  void read_metadata();
  GgufType read_type(std::string_view what);
  GgufValue read_value(GgufType type);
  bool read_boolean();
  GgufArray read_array();
  void read_tensors();
  GgufTensor read_tensor();
  void place_tensors();

  const std::filesystem::path& file_;
  std::uint64_t file_bytes_;
  GgufCursor cursor_;
  GgufHeader header_;
  std::uint64_t tensor_count_ = 0;
  std::uint64_t key_count_ = 0;
};

void Parser::begin() {
  std::array<char, 4> magic{};
  if (file_bytes_ < kFixedBytes) {
    throw InvalidInput(fmt::format("{}has {} bytes, fewer than the {} that a GGUF file begins with; it is none, or cut "
                                   "short",
                                   where(), file_bytes_, kFixedBytes));
  }
  cursor_.take(std::as_writable_bytes(std::span(magic)), "the magic");
  if (const std::string_view got(magic.data(), magic.size()); got != kGgufMagic) {
    throw InvalidInput(fmt::format("{}begins with '{}', expected '{}'; this is not a GGUF file", where(), ascii_only(got),
                                   kGgufMagic));
  }
  check_version(cursor_.number<std::uint32_t>("the version"), where());
  tensor_count_ = cursor_.number<std::uint64_t>("the number of tensors");
  key_count_ = cursor_.number<std::uint64_t>("the number of keys");
  cursor_.expect(key_count_, kLeastKeyBytes, "the list of keys");
  cursor_.expect(tensor_count_, kLeastTensorBytes, "the list of tensors");
}

void Parser::read_metadata() {
  std::vector<std::pair<std::string, GgufValue>> items;
  for (std::uint64_t i = 0; i < key_count_; ++i) {
    cursor_.set_place("");
    std::string key = cursor_.text("the key");
    check_gguf_key(key, where());
    cursor_.set_place("key " + in_quotes(key) + ": ");
    GgufValue value = read_value(read_type("its type"));
    items.emplace_back(std::move(key), std::move(value));
  }
  cursor_.set_place("");
  header_.metadata = GgufMetadata(std::move(items));
  check_gguf_distinct(header_.metadata, where());
  header_.alignment = gguf_alignment(header_.metadata, where());
}

GgufType Parser::read_type(std::string_view what) {
  const auto id = cursor_.number<std::uint32_t>(what);
  if (id >= kGgufTypes) {
    throw InvalidInput(fmt::format("{}{} is {} at byte {}, expected a number below {}", where(), what, id, cursor_.at() - 4,
                                   kGgufTypes));
  }
  return static_cast<GgufType>(id);
}

GgufValue Parser::read_value(GgufType type) {
  constexpr std::string_view kWhat = "its value";
  switch (type) {
    case GgufType::u8: return cursor_.number<std::uint8_t>(kWhat);
    case GgufType::i8: return cursor_.number<std::int8_t>(kWhat);
    case GgufType::u16: return cursor_.number<std::uint16_t>(kWhat);
    case GgufType::i16: return cursor_.number<std::int16_t>(kWhat);
    case GgufType::u32: return cursor_.number<std::uint32_t>(kWhat);
    case GgufType::i32: return cursor_.number<std::int32_t>(kWhat);
    case GgufType::f32: return cursor_.number<float>(kWhat);
    case GgufType::boolean: return read_boolean();
    case GgufType::string: return cursor_.text(kWhat);
    case GgufType::array: return read_array();
    case GgufType::u64: return cursor_.number<std::uint64_t>(kWhat);
    case GgufType::i64: return cursor_.number<std::int64_t>(kWhat);
    case GgufType::f64: return cursor_.number<double>(kWhat);
  }
  throw Error(where() + "a type that was checked is unknown");
}

bool Parser::read_boolean() {
  const auto value = cursor_.number<std::uint8_t>("its value");
  if (value > 1) throw InvalidInput(fmt::format("{}a boolean must be 0 or 1, got {}", where(), value));
  return value == 1;
}

GgufArray Parser::read_array() {
  GgufArray array{.of = read_type("the type of its array")};
  if (array.of == GgufType::array) throw InvalidInput(where() + "it is an array of arrays, which ggml does not read either");
  const auto count = cursor_.number<std::uint64_t>("the length of its array");
  const bool texts = array.of == GgufType::string;
  const std::size_t width = texts ? sizeof(std::uint64_t) : gguf_type_bytes(array.of);
  cursor_.expect(count, width, "its array");
  if (texts) {
    array.texts.reserve(static_cast<std::size_t>(count));
    for (std::uint64_t i = 0; i < count; ++i) array.texts.push_back(cursor_.text("a string of its array"));
    return array;
  }
  array.numbers.resize(static_cast<std::size_t>(count * width));
  cursor_.take(array.numbers, "its array");
  const bool booleans = array.of != GgufType::boolean ||
                        std::ranges::all_of(array.numbers, [](std::byte b) { return std::to_integer<unsigned>(b) <= 1; });
  if (!booleans) throw InvalidInput(where() + "the booleans of its array must be 0 or 1");
  return array;
}

void Parser::read_tensors() {
  cursor_.expect(tensor_count_, kLeastTensorBytes, "the list of tensors");
  header_.tensors.reserve(static_cast<std::size_t>(tensor_count_));
  for (std::uint64_t i = 0; i < tensor_count_; ++i) header_.tensors.push_back(read_tensor());
  cursor_.set_place("");
  std::vector<std::string_view> names;
  names.reserve(header_.tensors.size());
  for (const GgufTensor& tensor : header_.tensors) names.push_back(tensor.name);
  check_gguf_distinct(names, where());
}

GgufTensor Parser::read_tensor() {
  GgufTensor tensor;
  cursor_.set_place("");
  tensor.name = cursor_.text("the name of a tensor");
  check_gguf_name(tensor.name, where());
  cursor_.set_place("tensor " + in_quotes(tensor.name) + ": ");
  const auto dimensions = cursor_.number<std::uint32_t>("its number of dimensions");
  if (dimensions < 1 || dimensions > 4) {
    throw InvalidInput(fmt::format("{}it has {} dimensions, expected one to four", where(), dimensions));
  }
  for (std::uint32_t i = 0; i < dimensions; ++i) tensor.shape.push_back(cursor_.number<std::uint64_t>("its shape"));
  tensor.type = static_cast<GgmlType>(cursor_.number<std::uint32_t>("its type"));
  tensor.offset = cursor_.number<std::uint64_t>("its offset");
  tensor.size = gguf_bytes(tensor, where());
  return tensor;
}

void Parser::place_tensors() {
  const std::uint64_t data_begin = padded(cursor_.at(), header_.alignment);
  const std::uint64_t data_bytes = std::max(data_begin, file_bytes_) - data_begin;
  std::uint64_t expected = 0;
  for (GgufTensor& tensor : header_.tensors) {
    if (tensor.offset != expected) {
      throw InvalidInput(fmt::format("{}tensor {}: it begins at data byte {}, expected {}: tensors lie one behind the "
                                     "other, each padded to {} bytes",
                                     where(), in_quotes(tensor.name), tensor.offset, expected, header_.alignment));
    }
    if (expected > data_bytes || tensor.size > data_bytes - expected) {
      throw InvalidInput(fmt::format("{}tensor {}: its {} bytes begin at data byte {}, but the file has only {} bytes of "
                                     "data; it may be cut short",
                                     where(), in_quotes(tensor.name), tensor.size, expected, data_bytes));
    }
    expected = padded(expected + tensor.size, header_.alignment);
    tensor.offset += data_begin;
  }
  // The padding behind the last tensor may be missing: ggml writes it, and its loader does not ask for it.
  if (data_bytes > expected) {
    throw InvalidInput(fmt::format("{}its tensors end at byte {}, but the file goes on for {} more bytes", where(),
                                   data_begin + expected, data_bytes - expected));
  }
}

}  // namespace

GgufHeader parse_gguf_header(const std::filesystem::path& file, int descriptor, std::uint64_t file_bytes) {
  return Parser(file, descriptor, file_bytes).parse();
}

}  // namespace moetrim::checkpoint_detail
