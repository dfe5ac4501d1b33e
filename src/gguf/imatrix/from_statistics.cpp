// An importance matrix from our own statistics.

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/gguf_export.h"
#include "moetrim/imatrix.h"
#include "moetrim/input_statistics.h"
#include "moetrim/suggest.h"

namespace moetrim {

namespace {

/// The chunks that llama.cpp's own program takes unless told otherwise. Ours are whole demonstrations, so that this only
/// says how many of those chunks the tokens would fill; quantisers print it.
constexpr std::uint32_t kChunkTokens = 512;
constexpr std::string_view kHead = "output.weight";

/// What the linear layer of a tensor reads; nothing for tensors that no matrix product reads with.
std::optional<LinearInput> input_of(Role role, const GgufPlannedTensor& tensor) {
  switch (role) {
    case Role::query:
    case Role::key:
    case Role::value:
    case Role::query_down:
    case Role::key_value_down:
    case Role::delta_qkvz:
    case Role::delta_ba:
    case Role::delta_qkv:
    case Role::delta_z:
    case Role::delta_b:
    case Role::delta_a:
      return LinearInput::attention;
    case Role::query_up:
      return LinearInput::query_latent;
    case Role::key_value_up:
      if (tensor.spec.shape.size() < 3) return LinearInput::key_value_latent;
      return tensor.transposed_rows > 0 ? LinearInput::query_heads : LinearInput::attended_latent;
    case Role::output:
    case Role::delta_output:
      return LinearInput::attention_output;
    case Role::router:
    case Role::dense_gate:
    case Role::dense_up:
    case Role::shared_gate:
    case Role::shared_up:
    case Role::shared_router:
      return LinearInput::mlp;
    case Role::dense_down:
    case Role::shared_down:
      return LinearInput::mlp_down;
    case Role::expert_gate:
    case Role::expert_up:
    case Role::fused_gate_up:
      return LinearInput::expert;
    case Role::expert_down:
    case Role::fused_down:
      return LinearInput::expert_down;
    case Role::mtp_projection:
      return LinearInput::joined;
    default:
      return std::nullopt;
  }
}

using Columns = std::shared_ptr<const std::vector<std::uint32_t>>;

/// Where an entry's values come from.
struct Source {
  int layer = 0;
  LinearInput input = LinearInput::attention;
  Columns columns;  ///< in the order of the file; null: as they were measured
};

/// The statistics of the layer in work: entries come layer by layer.
class LayerReader {
 public:
  LayerReader(std::filesystem::path folder, StatisticsManifest manifest)
      : folder_(std::move(folder)), manifest_(std::move(manifest)) {}

  const LinearInputs& layer(int id) {
    if (!held_ || held_->layer != id) held_ = read_input_statistics(folder_, manifest_, id);
    return *held_;
  }
  const StatisticsManifest& manifest() const { return manifest_; }

 private:
  std::filesystem::path folder_;
  StatisticsManifest manifest_;
  std::optional<LinearInputs> held_;
};

std::vector<std::size_t> tasks_of(const StatisticsManifest& manifest, const std::vector<std::string>& names) {
  std::vector<std::string> known;
  for (const auto& task : manifest.tasks) known.push_back(task.name);
  std::vector<std::size_t> ids;
  for (std::size_t t = 0; t < known.size(); ++t) {
    if (names.empty() || std::ranges::find(names, known[t]) != names.end()) ids.push_back(t);
  }
  for (const std::string& name : names) {
    if (std::ranges::find(known, name) != known.end()) continue;
    throw InvalidInput(fmt::format("no task {} in the statistics{}; there are: {}", in_quotes(name),
                                   did_you_mean(name, known), fmt::join(known, ", ")));
  }
  return ids;
}

float single(double sum, const std::string& tensor) {
  const auto value = static_cast<float>(sum);
  if (std::isfinite(value)) return value;
  throw InvalidInput(fmt::format("tensor {}: a sum of {} is too large for the file's F32", tensor, sum));
}

/// The tasks' values added. @param counted  tokens [tasks, counts] that the squares [tasks, counts, inputs] are sums over
ImatrixValues values_of(const ImatrixEntry& entry, const std::vector<double>& squares, const std::vector<double>& counted,
                        std::size_t all_tasks, const std::vector<std::size_t>& tasks) {
  const std::size_t size = entry.inputs * entry.matrices;
  if (squares.size() != all_tasks * size || counted.size() != all_tasks * entry.matrices) {
    throw InvalidInput(fmt::format("tensor {}: the statistics hold {} sums for [{}, {}]", entry.name,
                                   squares.size() / all_tasks, entry.inputs, entry.matrices));
  }
  ImatrixValues out;
  const auto total = [&](const std::vector<double>& values, std::size_t length, std::size_t i) {
    double sum = 0;
    for (const std::size_t task : tasks) sum += values[task * length + i];
    return single(sum, entry.name);
  };
  for (std::size_t i = 0; i < size; ++i) out.sums.push_back(total(squares, size, i));
  for (std::size_t i = 0; i < entry.matrices; ++i) out.counts.push_back(total(counted, entry.matrices, i));
  return out;
}

/// Matrices, as far as a product reads them with hidden states: no norm, embedding or convolution.
bool is_quantised(const GgufPlannedTensor& tensor) {
  const std::string& name = tensor.spec.name;
  const auto says = [&](std::string_view part) { return name.find(part) != std::string::npos; };
  return tensor.spec.shape.size() > 1 && name.ends_with(".weight") && !says("_norm") && !says("token_embd") &&
         !says("embed_tokens") && !says("conv1d");
}

ImatrixEntry entry_of(const GgufPlannedTensor& tensor, LinearInput input) {
  const auto& shape = tensor.spec.shape;
  ImatrixEntry entry{.name = tensor.spec.name, .inputs = shape.front(), .matrices = is_of_experts(input) ? shape.back() : 1};
  // Heads that a matrix each belongs to share a count.
  if (!is_of_experts(input) && shape.size() > 2) entry.inputs *= shape[2];
  return entry;
}

/// The sums of a matrix whose columns are written in another order.
void reorder(std::vector<float>& sums, const Columns& columns, const std::string& tensor) {
  if (columns == nullptr) return;
  if (columns->size() != sums.size()) throw Error("columns of stacked matrices were to be reordered: " + tensor);
  std::vector<float> ordered;
  for (const std::uint32_t column : *columns) ordered.push_back(sums.at(column));
  sums = std::move(ordered);
}

void check_checkpoint(const Model& model, const ImatrixRequest& request, const StatisticsManifest& manifest) {
  if (manifest.checkpoint_fingerprint != model.checkpoint->fingerprint()) {
    throw InvalidInput(fmt::format("{}: measured on another checkpoint than {}", request.statistics.string(),
                                   model.checkpoint->folder().string()));
  }
  if (has_inputs(manifest)) return;
  throw InvalidInput(fmt::format("{}: the statistics hold no inputs of linear layers; calibrate with --statistics inputs",
                                 request.statistics.string()));
}

}  // namespace

Imatrix imatrix_of_statistics(const Model& model, const ImatrixRequest& request) {
  auto reader = std::make_shared<LayerReader>(request.statistics, read_statistics_manifest(request.statistics));
  const StatisticsManifest& manifest = reader->manifest();
  check_checkpoint(model, request, manifest);
  const auto tasks = tasks_of(manifest, request.tasks);
  const GgufExport exported = prepare_gguf_export(model, {.type = GgmlType::f32, .mtp = request.mtp, .tokenizer = false});
  const int measured = manifest.layers + manifest.mtp_layers;

  std::map<std::string, std::pair<ImatrixEntry, Source>> found;
  std::vector<std::string> missing;
  for (const GgufPlannedTensor& tensor : exported.tensors) {
    if (tensor.slabs.empty() || tensor.slabs.front().weight == nullptr) continue;
    const Weight& weight = *tensor.slabs.front().weight;
    const bool head = tensor.spec.name == kHead;
    if (head && !request.output_head) continue;
    const auto input = head ? LinearInput::head : input_of(weight.rule->role, tensor);
    const int layer = head ? manifest.layers - 1 : weight.layer;
    if (!input || layer < 0 || layer >= measured || reader->layer(layer).of(*input).empty()) {
      if (is_quantised(tensor)) missing.push_back(tensor.spec.name);
      continue;
    }
    found.emplace(tensor.spec.name, std::pair{entry_of(tensor, *input), Source{layer, *input, tensor.columns}});
  }

  Imatrix out{.datasets = {}, .chunk_count = 0, .chunk_size = kChunkTokens, .entries = {}, .values = {}};
  double tokens = 0;
  for (const std::size_t task : tasks) {
    out.datasets.push_back(manifest.tasks[task].name);
    tokens += static_cast<double>(manifest.tasks[task].tokens);
  }
  out.chunk_count = static_cast<std::uint32_t>(std::clamp(std::floor(tokens / kChunkTokens), 1.0, 4294967295.0));
  if (!missing.empty()) {
    out.notes.push_back(fmt::format("nothing was measured of what {} tensor(s) read, they will be quantised without: {}",
                                    missing.size(), fmt::join(missing, ", ")));
  }
  std::vector<Source> sources;
  for (auto& [name, entry] : found) {
    out.entries.push_back(std::move(entry.first));
    sources.push_back(entry.second);
  }
  out.values = [reader, tasks, sources = std::move(sources), entries = out.entries](std::size_t i) {
    const LinearInputs& layer = reader->layer(sources[i].layer);
    const bool of_experts = is_of_experts(sources[i].input);
    ImatrixValues values = values_of(entries[i], layer.of(sources[i].input), of_experts ? layer.routed : layer.tokens,
                                     static_cast<std::size_t>(layer.tasks), tasks);
    reorder(values.sums, sources[i].columns, entries[i].name);
    return values;
  };
  return out;
}

}  // namespace moetrim
