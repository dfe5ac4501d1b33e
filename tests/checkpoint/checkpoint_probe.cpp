// Shows our reader and writer to the Python tests: `list FILE` prints a file as JSON, `copy FROM TO` writes it again.
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"

namespace {

using namespace moetrim;

std::string hex(const std::vector<std::byte>& bytes) {
  constexpr const char* kDigits = "0123456789abcdef";
  std::string out;
  for (const std::byte byte : bytes) {
    out += kDigits[std::to_integer<unsigned>(byte) >> 4];
    out += kDigits[std::to_integer<unsigned>(byte) & 15];
  }
  return out;
}

void list(const std::string& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  nlohmann::ordered_json out{{"metadata", file.metadata()}, {"tensors", nlohmann::ordered_json::array()}};
  for (const Tensor& tensor : file.tensors()) {
    out["tensors"].push_back({{"name", tensor.name},
                              {"dtype", dtype_name(tensor.dtype)},
                              {"shape", tensor.shape},
                              {"offset", tensor.offset},
                              {"bytes", hex(file.read(tensor))}});
  }
  std::cout << out.dump() << "\n";
}

void copy(const std::string& from, const std::string& to) {
  const SafetensorsFile file = SafetensorsFile::open(from);
  SafetensorsWriter writer(to, {file.tensors().begin(), file.tensors().end()}, file.metadata());
  for (const Tensor& tensor : file.tensors()) writer.write(file.read(tensor));
  writer.finish();
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  try {
    if (arguments.size() == 2 && arguments[0] == "list") return list(arguments[1]), 0;
    if (arguments.size() == 3 && arguments[0] == "copy") return copy(arguments[1], arguments[2]), 0;
    std::cerr << "usage: checkpoint_probe list FILE | copy FROM TO\n";
    return 2;
  } catch (const Error& error) {
    std::cerr << error.what() << "\n";
    return error.exit_code();
  }
}
