// One MoE layer's statistics on request as a safetensors file: F64 tensors, and the sampled activations in F32.
#include "moetrim/vectors.h"

#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "statistics/check.h"
#include "statistics/tensor_file.h"

namespace moetrim {
namespace {

constexpr std::string_view kFormat = "statistics-vectors-1";  // name and version
constexpr double kMostKey = 9007199254740992.0;               // 2^53
constexpr int kMostSamples = 1 << 20;

/// What the file holds, in the order of its bytes.
std::vector<StatisticsField> fields_of(ExpertVectors& vectors, int samples) {
  const std::int64_t tasks = vectors.tasks, experts = vectors.experts, width = vectors.width, hidden = vectors.hidden;
  std::vector<StatisticsField> fields;
  const auto add = [&](const char* name, std::vector<std::int64_t> shape, std::vector<double> ExpertVectors::*member,
                       bool can_be_negative = false) {
    fields.push_back({{name, Dtype::f64, std::move(shape)}, vectors.*member, can_be_negative});
  };
  add("logit_gram", {tasks, experts, experts}, &ExpertVectors::logit_gram, true);
  add("routed_activation", {tasks, experts, width}, &ExpertVectors::routed_activation, true);
  add("routed_output", {tasks, experts, hidden}, &ExpertVectors::routed_output, true);
  add("output_square", {tasks, experts}, &ExpertVectors::output_square);
  add("input_max", {tasks, experts, hidden}, &ExpertVectors::input_max);
  add("router_input_max", {tasks, hidden}, &ExpertVectors::router_input_max);
  add("weight_max", {hidden}, &ExpertVectors::weight_max);
  if (vectors.markers > 0) {
    add("marker_count", {tasks, vectors.markers, experts}, &ExpertVectors::marker_count);
    add("marker_tokens", {tasks, vectors.markers}, &ExpertVectors::marker_tokens);
  }
  if (vectors.all_experts) {
    add("all_tokens", {tasks}, &ExpertVectors::all_tokens);
    add("activation", {tasks, experts, width}, &ExpertVectors::activation, true);
    add("output", {tasks, experts, hidden}, &ExpertVectors::output, true);
  }
  if (vectors.quantisation) add("quantisation_error", {tasks, experts, kQuantisationBits}, &ExpertVectors::quantisation_error);
  if (samples > 0) {
    add("sample_key", {samples}, &ExpertVectors::sample_key);
    fields.push_back({{"sample_activations", Dtype::f32, {experts, samples, width}}, {}, true, vectors.sample_activations});
  }
  return fields;
}

/// How many samples there are, before anything is allocated for them.
int read_sample_count(const SafetensorsFile& file, const ExpertVectors& vectors) {
  if (file.find("sample_activations") == nullptr && file.find("sample_key") == nullptr) return 0;
  const int count = read_dimensions(file, "sample_activations", "[experts, samples, width]")[1];
  const int most = std::min(vectors.sample_limit, kMostSamples);
  if (count > most) fail(file, fmt::format("tensor sample_activations: {} samples, the manifest says {} at most", count, most));
  return count;
}

void check_at_most(const SafetensorsFile& file, const char* name, double value, double most, const std::string& of) {
  if (value > most) fail(file, fmt::format("tensor {}: {} tokens, of {} {}", name, value, most, of));
}

/// Counts can be no larger than those they are part of.
void check_counts(const SafetensorsFile& file, const ExpertVectors& vectors, const StatisticsManifest& manifest) {
  const auto experts = static_cast<std::size_t>(vectors.experts);
  for (std::size_t t = 0; t < manifest.tasks.size(); ++t) {
    const auto counted = static_cast<double>(manifest.tasks[t].counted_tokens);
    const std::string of = "counted tokens of task " + manifest.tasks[t].name;
    if (vectors.all_experts) check_at_most(file, "all_tokens", vectors.all_tokens[t], counted, of);
    for (std::size_t m = 0; m < static_cast<std::size_t>(vectors.markers); ++m) {
      const std::size_t marker = t * static_cast<std::size_t>(vectors.markers) + m;
      check_at_most(file, "marker_tokens", vectors.marker_tokens[marker], counted, of);
      for (std::size_t e = 0; e < experts; ++e) {
        check_at_most(file, "marker_count", vectors.marker_count[marker * experts + e], vectors.marker_tokens[marker],
                      "in marker_tokens");
      }
    }
  }
  for (std::size_t i = 0; i < vectors.sample_key.size(); ++i) {
    const double key = vectors.sample_key[i];
    if (key < kMostKey && (i == 0 || key >= vectors.sample_key[i - 1])) continue;
    fail(file, fmt::format("tensor sample_key, element {}: expected ascending numbers below 2^53, got {}", i, key));
  }
}

[[noreturn]] void fail_without(const std::string& what, const std::string& statistics) {
  throw InvalidInput(fmt::format("{}: the statistics lack what it needs; calibrate with --statistics {}", what, statistics));
}

}  // namespace

std::string vector_file_name(int layer) { return fmt::format("vectors-{:05d}.safetensors", layer); }

void write_vectors_file(const std::filesystem::path& file, const ExpertVectors& vectors) {
  auto& writable = const_cast<ExpertVectors&>(vectors);  // fields_of() hands out writable spans; nothing is written through them
  write_fields(file, kFormat, vectors.layer, fields_of(writable, vectors.samples()));
}

ExpertVectors read_vectors_file(const std::filesystem::path& path, const StatisticsManifest& manifest) {
  if (!manifest.vectors) throw InvalidInput(path.string() + ": the manifest lists no vectors");
  const auto file = SafetensorsFile::open(path);
  const int layer = read_layer_id(file, kFormat);
  const auto known = std::find(manifest.moe_layers.begin(), manifest.moe_layers.end(), layer);
  if (known == manifest.moe_layers.end()) fail(file, fmt::format("layer {} is not among those of the manifest", layer));
  // The sizes are the manifest's own claim, so the file's shapes come first.
  ExpertVectors shapes;
  shapes.layer = layer;
  shapes.tasks = static_cast<int>(manifest.tasks.size());
  shapes.experts = manifest.experts;
  shapes.width = manifest.vectors->width;
  shapes.hidden = manifest.vectors->hidden;
  shapes.markers = static_cast<int>(manifest.vectors->markers.size());
  shapes.all_experts = manifest.vectors->all_experts;
  shapes.quantisation = manifest.vectors->quantisation;
  shapes.sample_limit = manifest.vectors->activation_samples;
  const int samples = read_sample_count(file, shapes);
  check_fields(file, fields_of(shapes, samples));
  ExpertVectors vectors(layer, shapes.tasks, shapes.experts, *manifest.vectors);
  vectors.sample_key.resize(static_cast<std::size_t>(samples));
  vectors.sample_activations.resize(static_cast<std::size_t>(samples) * static_cast<std::size_t>(shapes.experts) *
                                    static_cast<std::size_t>(shapes.width));
  read_fields(file, fields_of(vectors, samples));
  check_counts(file, vectors, manifest);
  return vectors;
}

ExpertVectors read_vectors(const std::filesystem::path& folder, int layer) {
  return read_vectors(folder, read_statistics_manifest(folder), layer);
}

ExpertVectors read_vectors(const std::filesystem::path& folder, const StatisticsManifest& manifest, int layer) {
  if (!manifest.vectors) fail_without(folder.string(), "vectors");
  const auto file = folder / vector_file_name(layer);
  ExpertVectors vectors = read_vectors_file(file, manifest);
  if (vectors.layer == layer) return vectors;
  throw InvalidInput(fmt::format("{}: is of layer {}; the file belongs to another place", file.string(), vectors.layer));
}

void require_all_experts(const StatisticsManifest& manifest, const std::string& what) {
  if (!manifest.vectors || !manifest.vectors->all_experts) fail_without(what, "all-experts");
}

void require_quantisation(const StatisticsManifest& manifest, const std::string& what) {
  if (!manifest.vectors || !manifest.vectors->quantisation) fail_without(what, "quantisation");
}

}  // namespace moetrim
