// Scores as a safetensors file and as JSON.
#include <bit>
#include <cstdint>

#include "moetrim/checkpoint.h"
#include "moetrim/score.h"

namespace moetrim {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

void write_scores(const std::filesystem::path& file, const Scores& scores) {
  const auto layers = static_cast<std::int64_t>(scores.layers.size());
  const auto experts = static_cast<std::int64_t>(scores.values.empty() ? 0 : scores.values.front().size());
  SafetensorsWriter writer(
      file, {{"scores", Dtype::f64, {layers, experts}}, {"layers", Dtype::i64, {layers}}},
      {{"moetrim_format", "scores-1"}, {"method", scores.method}, {"variant", scores.variant}, {"source", scores.source.dump()}});
  for (const auto& values : scores.values) writer.write(std::as_bytes(std::span(values)));
  const std::vector<std::int64_t> ids(scores.layers.begin(), scores.layers.end());
  writer.write(std::as_bytes(std::span(ids)));
  writer.finish();
}

nlohmann::ordered_json scores_to_json(const Scores& scores) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < scores.layers.size(); ++i) {
    layers.push_back({{"layer", scores.layers[i]}, {"scores", scores.values[i]}});
  }
  return {{"method", scores.method}, {"variant", scores.variant}, {"layers", std::move(layers)}, {"source", scores.source}};
}

}  // namespace moetrim
