// The folder of a calibration in work.

#include "calibrate/partial_run.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "moetrim/checkpoint.h"
#include "moetrim/error.h"

namespace moetrim {

namespace fs = std::filesystem;

namespace {

constexpr const char* kKeyFile = "run.json";
constexpr const char* kStateFile = "state.json";
constexpr const char* kHidden = "hidden";
constexpr const char* kPreviousIds = "previous_ids";

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

Dtype stored_as(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kFloat ? Dtype::f32 : tensor.scalar_type() == at::kDouble ? Dtype::f64 : Dtype::bf16;
}

at::ScalarType scalar_type(Dtype dtype) {
  return dtype == Dtype::f32 ? at::kFloat : dtype == Dtype::f64 ? at::kDouble : at::kBFloat16;
}

void write_hidden(const fs::path& file, const at::Tensor& values, const std::vector<std::int32_t>& previous_ids) {
  const at::Tensor hidden = values.cpu().contiguous();
  std::vector<TensorSpec> specs{{.name = kHidden, .dtype = stored_as(hidden), .shape = hidden.sizes().vec()}};
  if (!previous_ids.empty()) {
    specs.push_back({kPreviousIds, Dtype::i32, {static_cast<std::int64_t>(previous_ids.size())}});
  }
  SafetensorsWriter writer(file, specs);
  writer.write(bytes_of(hidden));
  writer.write(std::as_bytes(std::span(previous_ids)));
  writer.finish();
}

at::Tensor read_hidden(const SafetensorsFile& file) {
  const Tensor* hidden = file.find(kHidden);
  if (hidden == nullptr || hidden->shape.size() != 2) {
    throw InvalidInput(fmt::format("{}: not a saved state; remove {} and start again", file.path().string(),
                                   file.path().parent_path().string()));
  }
  at::Tensor out = at::empty(hidden->shape, scalar_type(hidden->dtype));
  file.read(*hidden, 0, {static_cast<std::byte*>(out.mutable_data_ptr()), out.nbytes()});
  return out;
}

nlohmann::ordered_json cut_to_json(const RunCut& cut) {
  return {{"group_tokens", cut.group_tokens}, {"boundary_first", cut.boundaries.first}, {"boundary_step", cut.boundaries.step}};
}

}  // namespace

PartialRun::PartialRun(fs::path output, const nlohmann::ordered_json& key, const RunCut& cut)
    : output_(std::move(output)), cut_(cut) {
  if (!output_.has_filename()) output_ = output_.parent_path();
  folder_ = output_;
  folder_ += ".partial";
  if (fs::exists(output_)) {
    throw InvalidInput(fmt::format("{} exists already; remove it or choose another -o", output_.string()));
  }
  const fs::path key_file = folder_ / kKeyFile;
  if (fs::exists(key_file)) {
    const auto found = read_json_file(key_file);
    if (!found.contains("key") || found.at("key") != key || !found.contains("cut")) {
      throw InvalidInput(fmt::format("{} holds an unfinished calibration with another checkpoint, tasks or options; remove it, "
                                     "or repeat the command that began it (see {})", folder_.string(), key_file.string()));
    }
    const auto& kept = found.at("cut");
    cut_.group_tokens = kept.at("group_tokens").get<std::int64_t>();
    cut_.boundaries.first = kept.at("boundary_first").get<int>();
    cut_.boundaries.step = kept.at("boundary_step").get<int>();
    return;
  }
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) throw InvalidInput(fmt::format("cannot create {}: {}", folder_.string(), error.message()));
  const nlohmann::ordered_json json{{"key", key}, {"cut", cut_to_json(cut)}};
  write_file_atomically(key_file, json.dump(1) + "\n");
}

std::optional<RunState> PartialRun::load_state() const {
  if (!fs::exists(folder_ / kStateFile)) return std::nullopt;
  const auto json = read_json_file(folder_ / kStateFile);
  RunState state;
  state.group = json.at("group").get<int>();
  state.sweep = json.at("sweep").get<std::string>() == "reverse" ? Sweep::reverse : Sweep::forward;
  state.layer = json.at("layer").get<int>();
  state.previous_layer = json.at("previous_layer").get<int>();
  state.loss = json.at("loss").get<std::vector<double>>();
  if (state.sweep == Sweep::reverse) {
    state.hidden = read_hidden(SafetensorsFile::open(gradient_file(state.group, state.layer)));
    return state;
  }
  if (state.layer == 0) return state;
  const auto file = SafetensorsFile::open(boundary_file(state.group, state.layer));
  state.hidden = read_hidden(file);
  if (const Tensor* ids = file.find(kPreviousIds)) {
    state.previous_ids.resize(ids->size / sizeof(std::int32_t));
    file.read(*ids, 0, std::as_writable_bytes(std::span(state.previous_ids)));
  }
  return state;
}

void PartialRun::write_state(const RunState& state) const {
  const nlohmann::ordered_json json{{"group", state.group},
                                    {"sweep", state.sweep == Sweep::reverse ? "reverse" : "forward"},
                                    {"layer", state.layer},
                                    {"previous_layer", state.previous_layer},
                                    {"loss", state.loss}};
  write_file_atomically(folder_ / kStateFile, json.dump(1) + "\n");
}

void PartialRun::save_state(const RunState& state) {
  if (state.sweep == Sweep::reverse) {
    write_hidden(gradient_file(state.group, state.layer), state.hidden, {});
  } else {
    write_hidden(boundary_file(state.group, state.layer), state.hidden, state.previous_ids);
  }
  write_state(state);
  remove_stale(state);
  if (state.sweep == Sweep::forward) remove_earlier_vectors(state.group, state.layer);
}

void PartialRun::finish_group(const RunState& state) {
  const RunState next{.group = state.group + 1, .layer = 0, .loss = state.loss};
  write_state(next);
  remove_stale(next);
  remove_earlier_vectors(state.group, state.layer);
}

/// A group's sums hold those of the groups before it. They are large, so that those are not kept.
void PartialRun::remove_earlier_vectors(int group, int layers) const {
  for (int layer = 0; group > 0 && layer < layers; ++layer) {
    fs::remove(group_file(group - 1, vector_file_name(layer)));
    fs::remove(group_file(group - 1, input_file_name(layer)));
  }
}

/// Removes what neither a resumed run nor the rest of the reverse sweep needs.
void PartialRun::remove_stale(const RunState& state) const {
  const auto needed = [&](const fs::path& file) {
    if (state.sweep == Sweep::reverse && file == gradient_file(state.group, state.layer)) return true;
    if (state.sweep == Sweep::forward && file == boundary_file(state.group, state.layer)) return true;
    if (cut_.boundaries.step == 0) return false;
    // Those of a segment that is computed again are read before their layer is run, and are stale after it.
    for (int layer = cut_.boundaries.first; layer <= state.layer; ++layer) {
      if ((state.sweep == Sweep::reverse || cut_.boundaries.keeps(layer)) && file == boundary_file(state.group, layer)) return true;
    }
    return false;
  };
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    if ((name.starts_with("boundary-") || name.starts_with("gradient-")) && !needed(entry.path())) fs::remove(entry.path());
  }
}

std::optional<at::Tensor> PartialRun::load_boundary(int group, int layer) const {
  const fs::path file = boundary_file(group, layer);
  if (!fs::exists(file)) return std::nullopt;
  return read_hidden(SafetensorsFile::open(file));
}

void PartialRun::save_boundary(int group, int layer, const at::Tensor& hidden) const {
  write_hidden(boundary_file(group, layer), hidden, {});
}

fs::path PartialRun::group_file(int group, const std::string& name) const {
  return folder_ / fmt::format("group-{:05}-{}", group, name);
}

fs::path PartialRun::boundary_file(int group, int layer) const {
  return folder_ / fmt::format("boundary-{:05}-{:05}.safetensors", group, layer);
}

fs::path PartialRun::gradient_file(int group, int layer) const {
  return folder_ / fmt::format("gradient-{:05}-{:05}.safetensors", group, layer);
}

void PartialRun::write_layer(int group, const LayerStatistics& layer) const {
  write_layer_statistics(group_file(group, layer_file_name(layer.layer)), layer);
}

LayerStatistics PartialRun::read_layer(int group, int layer) const {
  return read_layer_statistics(group_file(group, layer_file_name(layer)));
}

void PartialRun::write_atoms(int group, const AtomStatistics& atoms) const {
  write_atom_statistics(group_file(group, atom_file_name(atoms.layer)), atoms);
}

AtomStatistics PartialRun::read_atoms(int group, int layer) const {
  return read_atom_statistics(group_file(group, atom_file_name(layer)));
}

void PartialRun::write_vectors(int group, const ExpertVectors& vectors) const {
  write_vectors_file(group_file(group, vector_file_name(vectors.layer)), vectors);
}

ExpertVectors PartialRun::read_vectors(int group, int layer, const StatisticsManifest& manifest) const {
  return read_vectors_file(group_file(group, vector_file_name(layer)), manifest);
}

void PartialRun::write_inputs(int group, const LinearInputs& inputs) const {
  write_input_statistics(group_file(group, input_file_name(inputs.layer)), inputs);
}

LinearInputs PartialRun::read_inputs(int group, int layer, const StatisticsManifest& manifest) const {
  return read_input_statistics(group_file(group, input_file_name(layer)), manifest);
}

void PartialRun::write_rows(int group, const RowStatistics& rows) const {
  write_row_statistics(group_file(group, row_file_name(rows.layer)), rows);
}

RowStatistics PartialRun::read_rows(int group, int layer, const StatisticsManifest& manifest) const {
  return read_row_statistics(group_file(group, row_file_name(layer)), manifest);
}

void PartialRun::finish(const StatisticsManifest& manifest, int groups) {
  for (const int layer : manifest.moe_layers) {
    for (const std::string& name :
         {layer_file_name(layer), atom_file_name(layer), vector_file_name(layer), row_file_name(layer)}) {
      const fs::path last = group_file(groups - 1, name);
      if (fs::exists(last)) fs::rename(last, folder_ / name);
    }
  }
  for (const int layer : input_layers(manifest)) {
    const std::string name = input_file_name(layer);
    fs::rename(group_file(groups - 1, name), folder_ / name);
  }
  write_file_atomically(folder_ / "manifest.json", manifest_to_json(manifest).dump(2) + "\n");
  for (const auto& entry : fs::directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("group-") || name.starts_with("boundary-") || name.starts_with("gradient-")) fs::remove(entry.path());
  }
  fs::rename(folder_, output_);
  fs::remove(output_ / kStateFile);
  fs::remove(output_ / kKeyFile);
}

}  // namespace moetrim
