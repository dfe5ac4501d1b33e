// Builds the header of a GGUF file, byte for byte as ggml would: see gguf_header.h.
#include <algorithm>
#include <limits>
#include <type_traits>

#include <fmt/format.h>

#include "gguf_header.h"
#include "moetrim/error.h"
#include "quote.h"

namespace moetrim::checkpoint_detail {
namespace {

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void put_text(std::string& out, std::string_view text) {
  put(out, std::uint64_t{text.size()});
  out += text;
}

void put_array(std::string& out, const GgufArray& array, const std::string& where) {
  const std::size_t width = array.of == GgufType::array ? 0 : gguf_type_bytes(array.of);
  const bool texts = array.of == GgufType::string;
  if ((!texts && (width == 0 || array.numbers.size() % width != 0 || !array.texts.empty())) ||
      (texts && !array.numbers.empty())) {
    throw InvalidInput(where + "its array holds something else than its type says");
  }
  const bool booleans = array.of != GgufType::boolean ||
                        std::ranges::all_of(array.numbers, [](std::byte b) { return std::to_integer<unsigned>(b) <= 1; });
  if (!booleans) throw InvalidInput(where + "the booleans of its array must be 0 or 1");
  put(out, static_cast<std::uint32_t>(array.of));
  put(out, std::uint64_t{array.size()});
  out.append(reinterpret_cast<const char*>(array.numbers.data()), array.numbers.size());
  for (const std::string& text : array.texts) put_text(out, text);
}

void put_value(std::string& out, const GgufValue& value, const std::string& where) {
  put(out, static_cast<std::uint32_t>(gguf_type_of(value)));
  std::visit(
      [&](const auto& held) {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<Held, std::string>) {
          put_text(out, held);
        } else if constexpr (std::is_same_v<Held, GgufArray>) {
          put_array(out, held, where);
        } else if constexpr (std::is_same_v<Held, bool>) {
          put(out, static_cast<std::uint8_t>(held ? 1 : 0));
        } else {
          put(out, held);
        }
      },
      value);
}

void put_tensor(std::string& out, const GgufTensorSpec& tensor, std::uint64_t offset) {
  put_text(out, tensor.name);
  put(out, static_cast<std::uint32_t>(tensor.shape.size()));
  for (const std::uint64_t extent : tensor.shape) put(out, extent);
  put(out, static_cast<std::uint32_t>(tensor.type));
  put(out, offset);
}

void check_names(const std::vector<GgufTensorSpec>& tensors, const std::string& where) {
  std::vector<std::string_view> names;
  for (const GgufTensorSpec& tensor : tensors) {
    check_gguf_name(tensor.name, where);
    names.push_back(tensor.name);
  }
  check_gguf_distinct(names, where);
}

}  // namespace

BuiltGgufHeader build_gguf_header(const std::filesystem::path& file, const GgufMetadata& metadata,
                                  const std::vector<GgufTensorSpec>& tensors) {
  const std::string where = file.string() + ": ";
  check_gguf_distinct(metadata, where);
  check_names(tensors, where);
  const std::uint64_t alignment = gguf_alignment(metadata, where);
  BuiltGgufHeader built;
  built.bytes = kGgufMagic;
  put(built.bytes, kGgufVersion);
  put(built.bytes, std::uint64_t{tensors.size()});
  put(built.bytes, std::uint64_t{metadata.items().size()});
  for (const auto& [key, value] : metadata.items()) {
    check_gguf_key(key, where);
    put_text(built.bytes, key);
    put_value(built.bytes, value, fmt::format("{}key {}: ", where, in_quotes(key)));
  }
  std::uint64_t data_bytes = 0;
  for (const GgufTensorSpec& tensor : tensors) {
    const std::string place = fmt::format("{}tensor {}: ", where, in_quotes(tensor.name));
    const std::uint64_t bytes = gguf_bytes(tensor, place);
    put_tensor(built.bytes, tensor, data_bytes);
    built.offsets.push_back(data_bytes);
    if (bytes > std::numeric_limits<std::int64_t>::max() / 2 - data_bytes) {
      throw InvalidInput(place + "up to it the tensors have more bytes than a file can hold");
    }
    data_bytes = padded(data_bytes + bytes, alignment);
  }
  if (built.bytes.size() > kMaxGgufHeaderBytes) {
    throw InvalidInput(fmt::format("{}its header would have {} bytes, more than the {} that moetrim reads", where,
                                   built.bytes.size(), kMaxGgufHeaderBytes));
  }
  const std::uint64_t data_begin = padded(built.bytes.size(), alignment);
  for (std::uint64_t& offset : built.offsets) offset += data_begin;
  built.file_bytes = data_begin + data_bytes;
  return built;
}

}  // namespace moetrim::checkpoint_detail
