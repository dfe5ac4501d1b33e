// Scores of experts, read from their file.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include <fmt/format.h>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"
#include "moetrim/scores_file.h"

namespace moetrim {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

namespace {

[[noreturn]] void refuse(const std::filesystem::path& file, const std::string& why) {
  throw InvalidInput(fmt::format("{}: {}", file.string(), why));
}

template <typename T>
std::vector<T> values_of(const SafetensorsFile& file, const char* name, std::size_t dimensions) {
  constexpr Dtype kType = std::is_same_v<T, double> ? Dtype::f64 : Dtype::i64;
  const Tensor* tensor = file.find(name);
  if (tensor == nullptr) refuse(file.path(), fmt::format("tensor {} is missing", name));
  if (tensor->dtype != kType || tensor->shape.size() != dimensions) {
    refuse(file.path(), fmt::format("tensor {} is {} with {} axes, expected {} with {}", name, dtype_name(tensor->dtype),
                                    tensor->shape.size(), dtype_name(kType), dimensions));
  }
  const std::vector<std::byte> bytes = file.read(*tensor);
  std::vector<T> out(bytes.size() / sizeof(T));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

std::vector<int> layers_of(const SafetensorsFile& file) {
  std::vector<int> layers;
  for (const std::int64_t layer : values_of<std::int64_t>(file, "layers", 1)) {
    if (layer < 0 || layer > std::numeric_limits<int>::max() || (!layers.empty() && layer <= layers.back())) {
      refuse(file.path(), fmt::format("layers[{}] is {}, expected ascending layer ids", layers.size(), layer));
    }
    layers.push_back(static_cast<int>(layer));
  }
  return layers;
}

std::string metadata_of(const SafetensorsFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) refuse(file.path(), fmt::format("its metadata has no {}; expected a file of moetrim score", key));
  return found->second;
}

nlohmann::ordered_json source_of(const SafetensorsFile& file) {
  auto source = nlohmann::ordered_json::parse(metadata_of(file, "source"), nullptr, /*allow_exceptions=*/false);
  if (!source.is_object()) refuse(file.path(), "source in its metadata is no JSON object");
  return source;
}

}  // namespace

Scores read_expert_scores(const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  if (metadata_of(file, "moetrim_format") != "scores-1") refuse(path, "moetrim_format in its metadata is not scores-1");
  Scores scores;
  scores.method = metadata_of(file, "method");
  scores.variant = metadata_of(file, "variant");
  scores.source = source_of(file);
  scores.layers = layers_of(file);
  if (file.find("scores") == nullptr) refuse(path, "it has scores of atomic experts, and scores of whole experts are needed; score with another method");
  const auto values = values_of<double>(file, "scores", 2);
  const auto& shape = file.find("scores")->shape;
  if (shape[0] != std::ssize(scores.layers) || shape[1] < 1) {
    refuse(path, fmt::format("scores is [{}, {}], expected a row of experts for each of {} layers", shape[0], shape[1], scores.layers.size()));
  }
  for (auto row = values.begin(); row != values.end(); row += shape[1]) {
    const int layer = scores.layers[scores.values.size()];
    scores.values.emplace_back(row, row + shape[1]);
    for (const double value : scores.values.back()) {
      if (!std::isfinite(value)) refuse(path, fmt::format("a score of layer {} is not finite", layer));
    }
  }
  return scores;
}

}  // namespace moetrim
