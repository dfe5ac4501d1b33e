// Parses the header of a safetensors file in one pass, so that memory stays bounded by the header's own size.
#include <algorithm>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "header.h"
#include "json_nesting.h"
#include "moetrim/error.h"
#include "quote.h"
#include "tensor_size.h"

namespace moetrim::checkpoint_detail {
namespace {

using nlohmann::json;

// The reference parser gives up at the same depth.
constexpr std::size_t kMaxDepth = 128;
constexpr std::string_view kMetadataKey = "__metadata__";

/// What the next value of the JSON text belongs to.
enum class Place { outside, names, metadata, metadata_entry, metadata_text, tensor, entry, dtype, shape, extents,
                   offsets, offset_pair, extra };

std::string_view expected_at(Place place) {
  switch (place) {
    case Place::outside: return "the header must be a JSON object";
    case Place::metadata: return "__metadata__ must be an object or null";
    case Place::metadata_text: return "the values of __metadata__ must be strings";
    case Place::tensor: return "its entry must be an object with dtype, shape and data_offsets";
    case Place::dtype: return "dtype must be a string";
    case Place::shape:
    case Place::extents: return "shape must be an array of non-negative integers";
    case Place::offsets:
    case Place::offset_pair: return "data_offsets must be an array of two non-negative integers";
    default: return "the header is malformed";
  }
}

class HeaderParser final : public nlohmann::json_sax<json> {
 public:
  HeaderParser(const std::filesystem::path& file, std::uint64_t data_bytes)
      : where_(file.string() + ": "), data_bytes_(data_bytes) {}

  Header take() { return std::move(header_); }

  bool null() override {
    if (place_ == Place::metadata) return go(Place::names);
    return scalar("null");
  }
  bool boolean(bool) override { return scalar("a boolean"); }
  // nlohmann calls this one for numbers with a minus sign only.
  bool number_integer(number_integer_t value) override { return scalar(fmt::format("the negative number {}", value)); }
  bool number_float(number_float_t, const string_t& text) override {
    return scalar("the number " + ascii_only(text));
  }
  bool binary(json::binary_t&) override { return scalar("binary data"); }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& text) override;
  bool start_object(std::size_t) override;
  bool start_array(std::size_t) override;
  bool key(string_t& name) override;
  bool end_object() override;
  bool end_array() override;
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override;

 private:
  bool go(Place place) {
    place_ = place;
    return true;
  }
  bool scalar(std::string_view got);
  bool begin_extra();
  bool end_extra();
  void enter();
  bool entry_key(const std::string& name);
  void finish_tensor();
  void place_tensor(std::uint64_t begin, std::uint64_t end);
  /// The place in the message: a tensor once one is being read.
  InvalidInput wrong(std::string_view what) const;

  std::string where_;
  std::uint64_t data_bytes_;
  Header header_;
  JsonNesting nesting_{kMaxDepth};
  Place place_ = Place::outside;
  std::size_t extra_depth_ = 0;
  std::uint64_t claimed_bytes_ = 0;
  std::string metadata_key_;
  Tensor tensor_;
  bool in_tensor_ = false;
  std::optional<Dtype> dtype_;
  bool has_shape_ = false;
  std::optional<std::vector<std::uint64_t>> offsets_;
};

InvalidInput HeaderParser::wrong(std::string_view what) const {
  if (!in_tensor_) return InvalidInput(fmt::format("{}{}", where_, what));
  return InvalidInput(fmt::format("{}tensor {}: {}", where_, in_quotes(tensor_.name), what));
}

bool HeaderParser::scalar(std::string_view got) {
  if (place_ != Place::extra) throw wrong(fmt::format("{}, got {}", expected_at(place_), got));
  return extra_depth_ > 0 || go(Place::entry);
}

bool HeaderParser::number_unsigned(number_unsigned_t value) {
  if (place_ == Place::extents) {
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      throw wrong(fmt::format("the extent {} of its shape does not fit into 63 bits", value));
    }
    tensor_.shape.push_back(static_cast<std::int64_t>(value));
    return true;
  }
  if (place_ == Place::offset_pair) {
    if (offsets_->size() == 2) throw wrong("data_offsets must be exactly two numbers, got more");
    offsets_->push_back(value);
    return true;
  }
  return scalar(fmt::format("the number {}", value));
}

bool HeaderParser::string(string_t& text) {
  if (place_ == Place::metadata_text) {
    header_.metadata.emplace(std::move(metadata_key_), std::move(text));
    return go(Place::metadata_entry);
  }
  if (place_ != Place::dtype) return scalar("the string " + in_quotes(text));
  dtype_ = dtype_from_name(text);
  if (!dtype_) throw wrong(fmt::format("its type {} is not one of the safetensors format", in_quotes(text)));
  return go(Place::entry);
}

void HeaderParser::enter() {
  if (!nesting_.open()) throw wrong(fmt::format("the header nests deeper than {} levels", nesting_.limit()));
}

bool HeaderParser::begin_extra() {
  ++extra_depth_;
  return true;
}

bool HeaderParser::end_extra() {
  return --extra_depth_ > 0 || go(Place::entry);
}

bool HeaderParser::start_object(std::size_t) {
  enter();
  switch (place_) {
    case Place::outside: return go(Place::names);
    case Place::metadata: return go(Place::metadata_entry);
    case Place::tensor: return go(Place::entry);
    case Place::extra: return begin_extra();
    default: throw wrong(fmt::format("{}, got an object", expected_at(place_)));
  }
}

bool HeaderParser::start_array(std::size_t) {
  enter();
  switch (place_) {
    case Place::shape: has_shape_ = true; return go(Place::extents);
    case Place::offsets: offsets_.emplace(); return go(Place::offset_pair);
    case Place::extra: return begin_extra();
    default: throw wrong(fmt::format("{}, got an array", expected_at(place_)));
  }
}

bool HeaderParser::key(string_t& name) {
  if (!nesting_.add_key(name)) {
    throw wrong(fmt::format("the header has the key {} twice in one object", in_quotes(name)));
  }
  if (place_ == Place::metadata_entry) {
    metadata_key_ = std::move(name);
    return go(Place::metadata_text);
  }
  if (place_ == Place::entry) return entry_key(name);
  if (place_ != Place::names) return true;
  if (name == kMetadataKey) return go(Place::metadata);
  if (has_control_character(name)) {
    throw wrong(fmt::format("the name of tensor {} has a control character", in_quotes(name)));
  }
  tensor_ = Tensor{};
  tensor_.name = std::move(name);
  in_tensor_ = true;
  return go(Place::tensor);
}

bool HeaderParser::entry_key(const std::string& name) {
  if (name == "dtype") return go(Place::dtype);
  if (name == "shape") return go(Place::shape);
  if (name == "data_offsets") return go(Place::offsets);
  return go(Place::extra);
}

bool HeaderParser::end_object() {
  nesting_.close();
  if (place_ == Place::extra) return end_extra();
  if (place_ == Place::names) return go(Place::outside);
  if (place_ == Place::entry) finish_tensor();
  return go(Place::names);
}

bool HeaderParser::end_array() {
  nesting_.close();
  return place_ == Place::extra ? end_extra() : go(Place::entry);
}

void HeaderParser::finish_tensor() {
  if (!dtype_) throw wrong("its entry lacks dtype");
  if (!has_shape_) throw wrong("its entry lacks shape");
  if (!offsets_) throw wrong("its entry lacks data_offsets");
  if (offsets_->size() != 2) throw wrong(fmt::format("data_offsets must be two numbers, got {}", offsets_->size()));
  place_tensor(offsets_->front(), offsets_->back());
  header_.tensors.push_back(std::move(tensor_));
  in_tensor_ = has_shape_ = false;
  dtype_.reset();
  offsets_.reset();
}

void HeaderParser::place_tensor(std::uint64_t begin, std::uint64_t end) {
  if (end < begin) throw wrong(fmt::format("it ends at data byte {}, before its begin at {}", end, begin));
  if (end > data_bytes_) {
    throw wrong(fmt::format("it ends at data byte {}, but the file has only {} bytes of data; it may be cut short", end,
                            data_bytes_));
  }
  tensor_.dtype = *dtype_;
  tensor_.offset = begin;
  tensor_.size = tensor_bytes(tensor_, where_);
  if (tensor_.size != end - begin) {
    throw wrong(fmt::format("{} of shape [{}] takes {} bytes, but data_offsets give it {}", dtype_name(tensor_.dtype),
                            shown_shape(tensor_.shape), tensor_.size, end - begin));
  }
  // Stops a header of millions of aliases early; check_tiling() names what remains. The sum cannot overflow: both
  // terms are at most data_bytes_, which is the size of a file.
  claimed_bytes_ += tensor_.size;
  if (claimed_bytes_ > data_bytes_) {
    throw wrong(fmt::format("it shares bytes with another tensor: the tensors so far claim {} bytes of {}",
                            claimed_bytes_, data_bytes_));
  }
}

bool HeaderParser::parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) {
  const std::string_view what = error.what();
  const std::size_t prose = what.find(": ");
  throw InvalidInput(fmt::format("{}the header is not valid JSON at byte {} of the file: {}", where_,
                                 kLengthBytes + position - std::min<std::size_t>(position, 1),
                                 ascii_only(prose == what.npos ? what : what.substr(prose + 2))));
}

}  // namespace

Header parse_header(const std::filesystem::path& file, const std::string& text, std::uint64_t data_bytes) {
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == text.npos || text[first] != '{') {
    throw InvalidInput(fmt::format("{}: the header must begin with '{{' at byte {}; this is not a safetensors file",
                                   file.string(), kLengthBytes));
  }
  // nlohmann takes a NUL for the end of the text and would not look behind it.
  if (const std::size_t nul = text.find('\0'); nul != text.npos) {
    throw InvalidInput(fmt::format("{}: the header has a NUL at byte {}", file.string(), kLengthBytes + nul));
  }
  HeaderParser parser(file, data_bytes);
  json::sax_parse(text, &parser);
  Header header = parser.take();
  // Stable: tensors without bytes keep the order of the header.
  std::ranges::stable_sort(header.tensors, {}, [](const Tensor& t) { return std::pair(t.offset, t.size); });
  check_tiling(file, header.tensors, data_bytes);
  for (Tensor& tensor : header.tensors) tensor.offset += kLengthBytes + text.size();
  return header;
}

}  // namespace moetrim::checkpoint_detail
