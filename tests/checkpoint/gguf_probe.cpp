// Shows our GGUF reader and writer to the Python tests: `list FILE` prints a model as JSON, in one file or several;
// `copy FROM TO` writes one file again; `open FILE` only opens it.
#include <cstdio>
#include <iostream>
#include <string>
#include <type_traits>
#include <vector>

#include "moetrim/error.h"
#include "moetrim/gguf_file.h"

#include <nlohmann/json.hpp>

namespace {

using namespace moetrim;
using nlohmann::ordered_json;

std::string hex(std::span<const std::byte> bytes) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string out;
  for (const std::byte byte : bytes) {
    out += kDigits[std::to_integer<unsigned>(byte) >> 4];
    out += kDigits[std::to_integer<unsigned>(byte) & 15];
  }
  return out;
}

std::string hex(const std::string& text) { return hex(std::as_bytes(std::span(text))); }

/// Strings and arrays as the bytes of their values, numbers as they are.
ordered_json shown(const GgufValue& value) {
  return std::visit(
      [](const auto& held) -> ordered_json {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<Held, std::string>) {
          return hex(held);
        } else if constexpr (std::is_same_v<Held, GgufArray>) {
          if (held.of != GgufType::string) return {{"of", gguf_type_name(held.of)}, {"bytes", hex(held.numbers)}};
          ordered_json texts = ordered_json::array();
          for (const std::string& text : held.texts) texts.push_back(hex(text));
          return {{"of", "string"}, {"texts", texts}};
        } else {
          return held;
        }
      },
      value);
}

void list(const std::string& path) {
  const GgufModel model = GgufModel::open(path);
  ordered_json out{{"files", model.files().size()}, {"metadata", ordered_json::array()}, {"tensors", ordered_json::array()}};
  for (const auto& [key, value] : model.metadata().items()) {
    out["metadata"].push_back({key, gguf_type_name(gguf_type_of(value)), shown(value)});
  }
  for (const GgufTensor& tensor : model.tensors()) {
    std::vector<std::byte> bytes(tensor.size);
    model.read(*model.find(tensor.name), 0, bytes);
    out["tensors"].push_back({{"name", tensor.name}, {"type", ggml_layout(tensor.type).name}, {"shape", tensor.shape},
                              {"row_bytes", tensor.row_bytes()}, {"file", tensor.file}, {"bytes", hex(bytes)}});
  }
  std::cout << out.dump() << "\n";
}

/// Every second tensor by the kernel, the others through memory and in halves, the last half first.
void copy(const std::string& from, const std::string& to) {
  const GgufFile file = GgufFile::open(from);
  GgufWriter writer(to, file.metadata(), {file.tensors().begin(), file.tensors().end()});
  for (std::size_t i = 0; i < file.tensors().size(); ++i) {
    const GgufTensor& tensor = file.tensors()[i];
    if (i % 2 == 0) {
      writer.copy_at(i, 0, file, tensor.offset, tensor.size);
      continue;
    }
    const std::vector<std::byte> bytes = file.read(tensor);
    const std::size_t half = bytes.size() / 2;
    writer.write_at(i, half, std::span(bytes).subspan(half));
    writer.write_at(i, 0, std::span(bytes).first(half));
  }
  writer.finish();
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    if (arguments.size() == 2 && arguments[0] == "list") return list(arguments[1]), 0;
    if (arguments.size() == 2 && arguments[0] == "open") return GgufModel::open(arguments[1]), 0;
    if (arguments.size() == 3 && arguments[0] == "copy") return copy(arguments[1], arguments[2]), 0;
    std::cerr << "usage: gguf_probe list FILE | open FILE | copy FROM TO\n";
    return 2;
  } catch (const Error& error) {
    std::cerr << error.what() << "\n";
    return error.exit_code();
  }
}
