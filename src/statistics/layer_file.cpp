// One MoE layer's statistics as a safetensors file: one F64 tensor per kind of number, nothing else.
#include "moetrim/statistics.h"

#include <bit>
#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

constexpr const char* kFormatKey = "moetrim_format";
constexpr const char* kFormat = "statistics-layer-1";  // name and version
constexpr const char* kLayerKey = "moetrim_layer";

using Shape = std::vector<std::int64_t>;

/// A tensor of the file and the vector that holds its values.
struct Field {
  TensorSpec spec;
  std::span<double> values;
  bool can_be_negative;
};

/// What the file holds, in the order of its bytes; the spans are empty when `layer` is null.
std::vector<Field> fields_of(int tasks, int experts, LayerStatistics* layer) {
  const Shape per_slice{tasks, kSlices, experts};
  const Shape pairs{tasks, experts, experts};
  std::vector<Field> fields;
  for (int i = 0; i < kStatCount; ++i) {
    const auto stat = static_cast<Stat>(i);
    fields.push_back({{std::string(stat_name(stat)), Dtype::f64, per_slice},
                      layer ? layer->values(stat) : std::span<double>(),
                      stat_can_be_negative(stat)});
  }
  const auto of = [&](std::vector<double> LayerStatistics::*member) {
    return layer ? std::span<double>(layer->*member) : std::span<double>();
  };
  fields.push_back({{"token_count", Dtype::f64, {tasks, kSlices}}, of(&LayerStatistics::token_count), false});
  fields.push_back({{"coactivation", Dtype::f64, pairs}, of(&LayerStatistics::coactivation), false});
  fields.push_back({{"transitions", Dtype::f64, pairs}, of(&LayerStatistics::transitions), false});
  return fields;
}

[[noreturn]] void fail(const SafetensorsFile& file, const std::string& problem) {
  throw InvalidInput(file.path().string() + ": " + problem);
}

int layer_id(const SafetensorsFile& file) {
  const auto& metadata = file.metadata();
  const auto format = metadata.find(kFormatKey);
  if (format == metadata.end()) fail(file, fmt::format("no {} in the metadata: not a statistics file", kFormatKey));
  if (format->second != kFormat) {
    fail(file, fmt::format("metadata {} is {}, this program reads \"{}\"", kFormatKey, in_quotes(format->second), kFormat));
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

/// Tasks and experts, from the shape of the first tensor.
std::pair<int, int> dimensions(const SafetensorsFile& file) {
  const std::string name(stat_name(Stat::routed_count));
  const Tensor* tensor = file.find(name);
  if (!tensor) fail(file, fmt::format("tensor {} is missing", name));
  const Shape& shape = tensor->shape;
  constexpr std::int64_t most = std::numeric_limits<int>::max();
  if (shape.size() != 3 || shape[1] != kSlices || shape[0] < 1 || shape[2] < 1 || shape[0] > most || shape[2] > most) {
    fail(file, fmt::format("tensor {}: expected shape [tasks, {}, experts], got {}", name, kSlices, shape));
  }
  return {static_cast<int>(shape[0]), static_cast<int>(shape[2])};
}

/// Before anything is allocated: a small file must not announce a large co-activation matrix.
void check_tensors(const SafetensorsFile& file, const std::vector<Field>& fields) {
  std::vector<std::string> known;
  for (const Field& field : fields) {
    const Tensor* tensor = file.find(field.spec.name);
    if (!tensor) fail(file, fmt::format("tensor {} is missing", field.spec.name));
    if (tensor->dtype != Dtype::f64) {
      fail(file, fmt::format("tensor {}: expected F64, got {}", field.spec.name, dtype_name(tensor->dtype)));
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

void read_field(const SafetensorsFile& file, const Field& field) {
  file.read(*file.find(field.spec.name), 0, std::as_writable_bytes(field.values));
  for (std::size_t i = 0; i < field.values.size(); ++i) {
    const double value = field.values[i];
    if (!std::isfinite(value) || (value < 0 && !field.can_be_negative)) {
      fail(file, fmt::format("tensor {}, element {}: expected a finite number{}, got {}", field.spec.name, i,
                             field.can_be_negative ? "" : " that is not negative", value));
    }
  }
}

void check_counts(const SafetensorsFile& file, const LayerStatistics& layer) {
  const auto routed = layer.values(Stat::routed_count);
  for (std::size_t i = 0; i < routed.size(); ++i) {
    const double tokens = layer.token_count[i / static_cast<std::size_t>(layer.experts)];
    if (routed[i] > tokens) {
      fail(file, fmt::format("tensor routed_count, element {}: {} tokens were routed to an expert, of {} in token_count", i,
                             routed[i], tokens));
    }
  }
}

}  // namespace

std::string layer_file_name(int layer) { return fmt::format("layer-{:05d}.safetensors", layer); }

void write_layer_statistics(const std::filesystem::path& file, const LayerStatistics& layer) {
  LayerStatistics copy = layer;  // fields_of() hands out writable spans
  const auto fields = fields_of(layer.tasks, layer.experts, &copy);
  std::vector<TensorSpec> specs;
  for (const Field& field : fields) specs.push_back(field.spec);
  SafetensorsWriter writer(file, specs, {{kFormatKey, kFormat}, {kLayerKey, std::to_string(layer.layer)}});
  for (const Field& field : fields) writer.write(std::as_bytes(field.values));
  writer.finish();
}

LayerStatistics read_layer_statistics(const std::filesystem::path& path) {
  const auto file = SafetensorsFile::open(path);
  const int layer = layer_id(file);
  const auto [tasks, experts] = dimensions(file);
  check_tensors(file, fields_of(tasks, experts, nullptr));
  LayerStatistics statistics(layer, tasks, experts);
  for (const Field& field : fields_of(tasks, experts, &statistics)) read_field(file, field);
  check_counts(file, statistics);
  return statistics;
}

}  // namespace moetrim
