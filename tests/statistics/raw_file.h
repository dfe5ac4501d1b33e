// A statistics file taken apart, so that tests can damage it.
#pragma once

#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "moetrim/checkpoint.h"

namespace moetrim::given {

/// For files that the library's own writers never write.
struct RawFile {
  struct RawTensor {
    TensorSpec spec;
    std::vector<std::byte> bytes;
  };
  std::vector<RawTensor> tensors;
  std::map<std::string, std::string> metadata;

  static RawFile read(const std::filesystem::path& path) {
    const auto file = SafetensorsFile::open(path);
    RawFile raw;
    for (const auto& tensor : file.tensors()) raw.tensors.push_back({tensor, file.read(tensor)});
    raw.metadata = file.metadata();
    raw.metadata.erase("format");  // the writer adds it
    return raw;
  }

  void write(const std::filesystem::path& path) const {
    std::vector<TensorSpec> specs;
    for (const auto& tensor : tensors) specs.push_back(tensor.spec);
    SafetensorsWriter writer(path, specs, metadata);
    for (const auto& tensor : tensors) writer.write(tensor.bytes);
    writer.finish();
  }

  RawTensor& at(const std::string& name) {
    for (auto& tensor : tensors) {
      if (tensor.spec.name == name) return tensor;
    }
    throw std::runtime_error("no tensor " + name);
  }
  void set(const std::string& name, std::size_t element, double value) {
    std::memcpy(at(name).bytes.data() + element * sizeof value, &value, sizeof value);
  }
  void reshape(const std::string& name, std::vector<std::int64_t> shape) {
    at(name).spec.shape = std::move(shape);
    at(name).bytes.resize(at(name).spec.bytes());
  }
};

struct BrokenFile {
  const char* name;
  std::function<void(RawFile&)> damage;
  const char* expected;
};

}  // namespace moetrim::given
