// One layer's sums of squares of linear inputs: in memory, and as a safetensors file of F64 tensors.
#include "moetrim/input_statistics.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "statistics/task_block.h"
#include "statistics/tensor_file.h"

namespace moetrim {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFormat = "statistics-inputs-1";  // name and version
constexpr const char* kSetting = "inputs";
constexpr int kMostLayers = 1 << 16;  // a manifest's word must not make a list of any length

bool is_moe(const StatisticsManifest& manifest, int layer) {
  return std::binary_search(manifest.moe_layers.begin(), manifest.moe_layers.end(), layer);
}

std::int64_t blocks_of(const LinearInputs& inputs, LinearInput kind) {
  return static_cast<std::int64_t>(inputs.tasks) * (is_of_experts(kind) ? inputs.experts : 1);
}

/// What the file holds, in the order of its bytes. @param widths  by LinearInput; 0: not there
std::vector<StatisticsField> fields_of(LinearInputs& inputs, const std::array<std::int64_t, kLinearInputs>& widths) {
  std::vector<StatisticsField> fields{{{"tokens", Dtype::f64, {inputs.tasks}}, inputs.tokens}};
  if (inputs.experts > 0) fields.push_back({{"routed", Dtype::f64, {inputs.tasks, inputs.experts}}, inputs.routed});
  for (std::size_t i = 0; i < kLinearInputs; ++i) {
    if (widths[i] == 0) continue;
    const auto kind = static_cast<LinearInput>(i);
    std::vector<std::int64_t> shape{inputs.tasks, widths[i]};
    if (is_of_experts(kind)) shape.insert(shape.begin() + 1, inputs.experts);
    fields.push_back({{std::string(linear_input_name(kind)), Dtype::f64, std::move(shape)}, inputs.squares[i]});
  }
  return fields;
}

std::array<std::int64_t, kLinearInputs> widths_of(const LinearInputs& inputs) {
  std::array<std::int64_t, kLinearInputs> widths{};
  for (std::size_t i = 0; i < kLinearInputs; ++i) {
    if (!inputs.squares[i].empty()) {
      widths[i] = static_cast<std::int64_t>(inputs.squares[i].size()) / blocks_of(inputs, static_cast<LinearInput>(i));
    }
  }
  return widths;
}

/// The width of an input is what its tensor says; check_fields() holds the other axes against the manifest.
std::array<std::int64_t, kLinearInputs> widths_of(const SafetensorsFile& file, const LinearInputs& shapes) {
  std::array<std::int64_t, kLinearInputs> widths{};
  for (std::size_t i = 0; i < kLinearInputs; ++i) {
    const auto kind = static_cast<LinearInput>(i);
    const Tensor* tensor = file.find(std::string(linear_input_name(kind)));
    if (tensor == nullptr) continue;
    if (is_of_experts(kind) && shapes.experts == 0) {
      fail(file, fmt::format("tensor {}: the layer has no experts", tensor->name));
    }
    if (tensor->shape.empty() || tensor->shape.back() < 1) {
      fail(file, fmt::format("tensor {}: expected [tasks, width], got a tensor without values", tensor->name));
    }
    widths[i] = tensor->shape.back();
  }
  return widths;
}

void check_count(const SafetensorsFile& file, std::string_view tensor, double count, double most) {
  if (count <= most && count == static_cast<double>(static_cast<std::int64_t>(count))) return;
  fail(file, fmt::format("tensor {}: expected a whole number of at most {} tokens, got {}", tensor, most, count));
}

void check_counts(const SafetensorsFile& file, const LinearInputs& inputs, const StatisticsManifest& manifest) {
  for (std::size_t t = 0; t < manifest.tasks.size(); ++t) {
    check_count(file, "tokens", inputs.tokens[t], static_cast<double>(manifest.tasks[t].tokens));
    const auto experts = static_cast<std::size_t>(inputs.experts);
    for (std::size_t e = 0; e < experts; ++e) check_count(file, "routed", inputs.routed[t * experts + e], inputs.tokens[t]);
  }
}

/// A share that comes first among the demonstrations is added first.
std::vector<std::size_t> order_of(const std::vector<StatisticsManifest>& parts) {
  std::vector<std::size_t> order(parts.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto first_share = [&](std::size_t i) { return parts[i].part ? parts[i].part->shares.front() : 0; };
  std::ranges::stable_sort(order, {}, first_share);
  return order;
}

int place_of(const StatisticsManifest& sum, const std::string& task) {
  const auto found = std::ranges::find(sum.tasks, task, &StatisticsManifest::TaskFacts::name);
  if (found == sum.tasks.end()) throw Error("a part of a sum has a task that the sum has not");
  return static_cast<int>(found - sum.tasks.begin());
}

}  // namespace

bool has_inputs(const StatisticsManifest& manifest) {
  const auto found = manifest.settings.find(kSetting);
  return found != manifest.settings.end() && found->is_boolean() && found->get<bool>();
}

void announce_inputs(StatisticsManifest& manifest) { manifest.settings[kSetting] = true; }

void forget_inputs(StatisticsManifest& manifest) {
  if (manifest.settings.is_object()) manifest.settings.erase(kSetting);
}

std::vector<int> input_layers(const StatisticsManifest& manifest) {
  if (!has_inputs(manifest)) return {};
  if (manifest.layers > kMostLayers || manifest.mtp_layers > kMostLayers) {
    throw InvalidInput(fmt::format("the manifest speaks of {} layers, which no model has", manifest.layers));
  }
  std::vector<int> layers(static_cast<std::size_t>(manifest.layers + manifest.mtp_layers));
  std::iota(layers.begin(), layers.end(), 0);
  return layers;
}

LinearInputs empty_inputs(const StatisticsManifest& manifest, int layer) {
  LinearInputs inputs{.layer = layer,
                      .tasks = static_cast<int>(manifest.tasks.size()),
                      .experts = is_moe(manifest, layer) ? manifest.experts : 0,
                      .tokens = {},
                      .routed = {},
                      .squares = {}};
  inputs.tokens.assign(static_cast<std::size_t>(inputs.tasks), 0.0);
  inputs.routed.assign(inputs.tokens.size() * static_cast<std::size_t>(inputs.experts), 0.0);
  return inputs;
}

void add_inputs(LinearInputs& to, int task, const LinearInputs& from, int from_task) {
  if (to.layer != from.layer || to.experts != from.experts) {
    throw InvalidInput(fmt::format("cannot add the inputs of layer {} with {} experts to those of layer {} with {}",
                                   from.layer, from.experts, to.layer, to.experts));
  }
  add_block(to.tokens, task, from.tokens, from_task, 1);
  add_block(to.routed, task, from.routed, from_task, static_cast<std::size_t>(to.experts));
  for (std::size_t i = 0; i < kLinearInputs; ++i) {
    if (from.squares[i].empty()) continue;
    const std::size_t length = from.squares[i].size() / static_cast<std::size_t>(from.tasks);
    std::vector<double>& sum = to.squares[i];
    if (sum.empty()) sum.assign(length * static_cast<std::size_t>(to.tasks), 0.0);
    if (sum.size() != length * static_cast<std::size_t>(to.tasks)) {
      throw InvalidInput(fmt::format("layer {}: cannot add inputs {} of {} values a task to those of {}", to.layer,
                                     linear_input_name(static_cast<LinearInput>(i)), length,
                                     sum.size() / static_cast<std::size_t>(to.tasks)));
    }
    add_block(sum, task, from.squares[i], from_task, length);
  }
}

std::string input_file_name(int layer) { return fmt::format("inputs-{:05d}.safetensors", layer); }

void write_input_statistics(const fs::path& file, const LinearInputs& inputs) {
  auto& writable =
      const_cast<LinearInputs&>(inputs);  // fields_of() hands out writable spans; nothing is written through them
  write_fields(file, kFormat, inputs.layer, fields_of(writable, widths_of(inputs)));
}

LinearInputs read_input_statistics(const fs::path& path, const StatisticsManifest& manifest) {
  const std::vector<int> layers = input_layers(manifest);
  if (layers.empty()) throw InvalidInput(path.string() + ": the manifest lists no inputs");
  const auto file = SafetensorsFile::open(path);
  const int layer = read_layer_id(file, kFormat);
  if (layer > layers.back()) fail(file, fmt::format("layer {} is not among those of the manifest", layer));
  // The sizes are the manifest's own claim, so the file's shapes come first.
  LinearInputs inputs{.layer = layer,
                      .tasks = static_cast<int>(manifest.tasks.size()),
                      .experts = is_moe(manifest, layer) ? manifest.experts : 0,
                      .tokens = {},
                      .routed = {},
                      .squares = {}};
  const auto widths = widths_of(file, inputs);
  check_fields(file, fields_of(inputs, widths));
  inputs = empty_inputs(manifest, layer);
  for (std::size_t i = 0; i < kLinearInputs; ++i) {
    inputs.squares[i].resize(static_cast<std::size_t>(blocks_of(inputs, static_cast<LinearInput>(i)) * widths[i]));
  }
  read_fields(file, fields_of(inputs, widths));
  check_counts(file, inputs, manifest);
  return inputs;
}

LinearInputs read_input_statistics(const fs::path& folder, const StatisticsManifest& manifest, int layer) {
  if (!has_inputs(manifest)) {
    throw InvalidInput(fmt::format("{}: the statistics hold no inputs of linear layers; calibrate with --statistics inputs",
                                   folder.string()));
  }
  const fs::path file = folder / input_file_name(layer);
  LinearInputs inputs = read_input_statistics(file, manifest);
  if (inputs.layer == layer) return inputs;
  throw InvalidInput(fmt::format("{}: is of layer {}; the file belongs to another place", file.string(), inputs.layer));
}

LinearInputs merge_inputs(const StatisticsManifest& sum, const InputParts& parts, int layer) {
  LinearInputs out = empty_inputs(sum, layer);
  for (const std::size_t part : order_of(parts.manifests)) {
    const LinearInputs inputs = parts.read(part, layer);
    const auto& tasks = parts.manifests[part].tasks;
    for (std::size_t task = 0; task < tasks.size(); ++task) {
      add_inputs(out, place_of(sum, tasks[task].name), inputs, static_cast<int>(task));
    }
  }
  return out;
}

InputParts read_input_parts(const std::vector<fs::path>& folders) {
  InputParts parts;
  for (const fs::path& folder : folders) parts.manifests.push_back(read_statistics_manifest(folder));
  parts.read = [folders, manifests = parts.manifests](std::size_t part, int layer) {
    return read_input_statistics(folders[part], manifests[part], layer);
  };
  return parts;
}

}  // namespace moetrim
