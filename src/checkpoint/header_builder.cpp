// Builds the header of a safetensors file: same input, same bytes.
#include <set>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "header.h"
#include "moetrim/error.h"
#include "quote.h"
#include "tensor_size.h"

namespace moetrim::checkpoint_detail {
namespace {

std::string json_text(const std::filesystem::path& file, const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::type_error&) {
    throw InvalidInput(fmt::format("{}: the text '{}' is to be written to its header, but is not UTF-8", file.string(),
                                   ascii_only(text)));
  }
}

void check_name(const std::filesystem::path& file, const std::string& name) {
  if (name == "__metadata__") {
    throw InvalidInput(fmt::format("{}: a tensor cannot be named '__metadata__'", file.string()));
  }
  if (has_control_character(name)) {
    throw InvalidInput(
        fmt::format("{}: the name of tensor {} has a control character", file.string(), in_quotes(name)));
  }
}

std::string tensor_entries(const std::filesystem::path& file, const std::vector<TensorSpec>& tensors) {
  const std::string where = file.string() + ": ";
  std::set<std::string_view> names;
  std::string out;
  std::uint64_t begin = 0;
  for (const TensorSpec& tensor : tensors) {
    check_name(file, tensor.name);
    if (!names.insert(tensor.name).second) {
      throw InvalidInput(fmt::format("{}tensor {} is given twice", where, in_quotes(tensor.name)));
    }
    std::uint64_t end = 0;
    if (__builtin_add_overflow(begin, tensor_bytes(tensor, where), &end)) {
      throw InvalidInput(fmt::format("{}tensor {}: the file would be larger than 64 bits can count", where,
                                     in_quotes(tensor.name)));
    }
    out += fmt::format(",{}:{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}", json_text(file, tensor.name),
                       dtype_name(tensor.dtype), fmt::join(tensor.shape, ","), begin, end);
    begin = end;
  }
  return out;
}

std::string little_endian(std::uint64_t value) {
  std::string out(kLengthBytes, '\0');
  for (std::size_t i = 0; i < kLengthBytes; ++i) out[i] = static_cast<char>((value >> (8 * i)) & 0xFF);
  return out;
}

}  // namespace

std::string build_header(const std::filesystem::path& file, const std::vector<TensorSpec>& tensors,
                         std::map<std::string, std::string> metadata) {
  metadata["format"] = "pt";  // older loaders refuse a file without it
  std::string text = "{\"__metadata__\":{";
  for (const auto& [key, value] : metadata) {
    if (text.back() != '{') text += ',';
    text += json_text(file, key) + ':' + json_text(file, value);
  }
  text += '}' + tensor_entries(file, tensors) + '}';
  const std::uint64_t past = (kLengthBytes + text.size()) % kDataAlignment;
  if (past != 0) text.append(kDataAlignment - past, ' ');
  if (text.size() > kMaxHeaderBytes) {
    throw InvalidInput(fmt::format("{}: its header would have {} bytes, more than the {} that the format allows; write "
                                   "the {} tensors to several files",
                                   file.string(), text.size(), kMaxHeaderBytes, tensors.size()));
  }
  return little_endian(text.size()) + text;
}

}  // namespace moetrim::checkpoint_detail
