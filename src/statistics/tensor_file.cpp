// Reads and writes the safetensors file of one layer, strictly.
#include "statistics/tensor_file.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <limits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

constexpr const char* kFormatKey = "moetrim_format";
constexpr const char* kLayerKey = "moetrim_layer";

template <class Value>
void read_values(const SafetensorsFile& file, const StatisticsField& field, std::span<Value> values) {
  file.read(*file.find(field.spec.name), 0, std::as_writable_bytes(values));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double value = values[i];
    if (!std::isfinite(value) || (value < 0 && !field.can_be_negative)) {
      fail(file, fmt::format("tensor {}, element {}: expected a finite number{}, got {}", field.spec.name, i,
                             field.can_be_negative ? "" : " that is not negative", value));
    }
  }
}

}  // namespace

void fail(const SafetensorsFile& file, const std::string& problem) {
  throw InvalidInput(file.path().string() + ": " + problem);
}

int read_layer_id(const SafetensorsFile& file, std::string_view format) {
  const auto& metadata = file.metadata();
  const auto written = metadata.find(kFormatKey);
  if (written == metadata.end()) fail(file, fmt::format("no {} in the metadata: not a statistics file", kFormatKey));
  if (written->second != format) {
    fail(file, fmt::format("metadata {} is {}, this program reads \"{}\"", kFormatKey, in_quotes(written->second), format));
  }
  const auto found = metadata.find(kLayerKey);
  const std::string text = found == metadata.end() ? "" : found->second;
  int layer = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layer);
  if (error != std::errc() || end != text.data() + text.size() || layer < 0) {
    fail(file, fmt::format("metadata {}: expected a layer id, got {}", kLayerKey, in_quotes(text)));
  }
  return layer;
}

std::vector<int> read_dimensions(const SafetensorsFile& file, std::string_view name, std::string_view what) {
  const Tensor* tensor = file.find(std::string(name));
  if (!tensor) fail(file, fmt::format("tensor {} is missing", name));
  const auto fits = [](std::int64_t size) { return size >= 1 && size <= std::numeric_limits<int>::max(); };
  if (tensor->shape.size() != 3 || !std::all_of(tensor->shape.begin(), tensor->shape.end(), fits)) {
    fail(file, fmt::format("tensor {}: expected shape {}, got {}", name, what, tensor->shape));
  }
  return {tensor->shape.begin(), tensor->shape.end()};
}

void check_fields(const SafetensorsFile& file, const std::vector<StatisticsField>& fields) {
  std::vector<std::string> known;
  for (const auto& field : fields) {
    const Tensor* tensor = file.find(field.spec.name);
    if (!tensor) fail(file, fmt::format("tensor {} is missing", field.spec.name));
    if (tensor->dtype != field.spec.dtype) {
      fail(file, fmt::format("tensor {}: expected {}, got {}", field.spec.name, dtype_name(field.spec.dtype), dtype_name(tensor->dtype)));
    }
    if (tensor->shape != field.spec.shape) {
      fail(file, fmt::format("tensor {}: expected shape {}, got {}", field.spec.name, field.spec.shape, tensor->shape));
    }
    known.push_back(field.spec.name);
  }
  for (const Tensor& tensor : file.tensors()) {
    if (std::find(known.begin(), known.end(), tensor.name) == known.end()) {
      fail(file, "unknown tensor " + in_quotes(tensor.name) + did_you_mean(tensor.name, known));
    }
  }
}

void read_fields(const SafetensorsFile& file, const std::vector<StatisticsField>& fields) {
  for (const auto& field : fields) {
    if (field.spec.dtype == Dtype::f32) {
      read_values(file, field, field.floats);
    } else {
      read_values(file, field, field.values);
    }
  }
}

void write_fields(const std::filesystem::path& file, std::string_view format, int layer,
                  const std::vector<StatisticsField>& fields) {
  std::vector<TensorSpec> specs;
  for (const auto& field : fields) specs.push_back(field.spec);
  SafetensorsWriter writer(file, specs, {{kFormatKey, std::string(format)}, {kLayerKey, std::to_string(layer)}});
  for (const auto& field : fields) {
    writer.write(field.spec.dtype == Dtype::f32 ? std::as_bytes(field.floats) : std::as_bytes(field.values));
  }
  writer.finish();
}

}  // namespace moetrim
