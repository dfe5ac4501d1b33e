// Scores as a safetensors file and as JSON.
#include <bit>
#include <cstdint>

#include "moetrim/checkpoint.h"
#include "moetrim/score.h"

namespace moetrim {

using Json = nlohmann::ordered_json;

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

namespace {

Json by_expert(const std::vector<double>& scores, int width) {
  Json experts = Json::array();
  for (auto begin = scores.begin(); begin != scores.end(); begin += width) {
    experts.push_back(std::vector<double>(begin, begin + width));
  }
  return experts;
}

/// [layers, experts] in one tensor; of atomic experts one tensor a layer.
std::vector<TensorSpec> score_tensors(const Scores& scores) {
  const auto layers = static_cast<std::int64_t>(scores.layers.size());
  const auto size = static_cast<std::int64_t>(scores.values.empty() ? 0 : scores.values.front().size());
  if (scores.grain == Grain::expert) return {{"scores", Dtype::f64, {layers, size}}};
  std::vector<TensorSpec> tensors;
  for (const int layer : scores.layers) {
    tensors.push_back({"scores." + std::to_string(layer), Dtype::f64, {size / scores.width, scores.width}});
  }
  return tensors;
}

}  // namespace

void write_scores(const std::filesystem::path& file, const Scores& scores) {
  auto tensors = score_tensors(scores);
  tensors.push_back({"layers", Dtype::i64, {static_cast<std::int64_t>(scores.layers.size())}});
  SafetensorsWriter writer(
      file, tensors,
      {{"moetrim_format", "scores-1"}, {"method", scores.method}, {"variant", scores.variant}, {"source", scores.source.dump()}});
  for (const auto& values : scores.values) writer.write(std::as_bytes(std::span(values)));
  const std::vector<std::int64_t> ids(scores.layers.begin(), scores.layers.end());
  writer.write(std::as_bytes(std::span(ids)));
  writer.finish();
}

Json scores_to_json(const Scores& scores) {
  Json json = {{"method", scores.method}, {"variant", scores.variant}};
  if (scores.grain == Grain::atom) json["grain"] = grain_name(scores.grain);
  Json& layers = json["layers"] = Json::array();
  for (std::size_t i = 0; i < scores.layers.size(); ++i) {
    const auto& values = scores.values[i];
    layers.push_back({{"layer", scores.layers[i]},
                      {"scores", scores.grain == Grain::atom ? by_expert(values, scores.width) : Json(values)}});
  }
  json["source"] = scores.source;
  return json;
}

}  // namespace moetrim
