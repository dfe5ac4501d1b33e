// One MoE layer's statistics as a safetensors file: one F64 tensor per kind of number, nothing else.
#include "moetrim/statistics.h"

#include <fmt/format.h>

#include "statistics/tensor_file.h"

namespace moetrim {
namespace {

constexpr std::string_view kFormat = "statistics-layer-1";  // name and version
constexpr std::string_view kPromptCount = "prompt_count";

/// What the file holds, in the order of its bytes; the spans are empty when `layer` is null.
std::vector<StatisticsField> fields_of(int tasks, int experts, bool prompts, LayerStatistics* layer) {
  const std::vector<std::int64_t> per_slice{tasks, kSlices, experts};
  const std::vector<std::int64_t> pairs{tasks, experts, experts};
  std::vector<StatisticsField> fields;
  for (int i = 0; i < kStatCount; ++i) {
    const auto stat = static_cast<Stat>(i);
    fields.push_back({{std::string(stat_name(stat)), Dtype::f64, per_slice},
                      layer ? layer->values(stat) : std::span<double>(),
                      stat_can_be_negative(stat)});
  }
  const auto of = [&](std::vector<double> LayerStatistics::*member) {
    return layer ? std::span<double>(layer->*member) : std::span<double>();
  };
  fields.push_back({{"token_count", Dtype::f64, {tasks, kSlices}}, of(&LayerStatistics::token_count)});
  fields.push_back({{"coactivation", Dtype::f64, pairs}, of(&LayerStatistics::coactivation)});
  fields.push_back({{"transitions", Dtype::f64, pairs}, of(&LayerStatistics::transitions)});
  if (!prompts) return fields;
  fields.push_back({{"prompt_routing", Dtype::f64, pairs}, of(&LayerStatistics::prompt_routing)});
  fields.push_back({{std::string(kPromptCount), Dtype::f64, {tasks, experts}}, of(&LayerStatistics::prompt_count)});
  return fields;
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
  write_fields(file, kFormat, layer.layer, fields_of(layer.tasks, layer.experts, !layer.prompt_count.empty(), &copy));
}

LayerStatistics read_layer_statistics(const std::filesystem::path& path) {
  const auto file = SafetensorsFile::open(path);
  const int layer = read_layer_id(file, kFormat);
  const auto size = read_dimensions(file, stat_name(Stat::routed_count), fmt::format("[tasks, {}, experts]", kSlices));
  const bool prompts = file.find(kPromptCount) != nullptr;
  check_fields(file, fields_of(size[0], size[2], prompts, nullptr));
  LayerStatistics statistics(layer, size[0], size[2]);
  if (prompts) statistics.keep_prompts();
  read_fields(file, fields_of(size[0], size[2], prompts, &statistics));
  check_counts(file, statistics);
  return statistics;
}

}  // namespace moetrim
