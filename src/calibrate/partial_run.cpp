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

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

fs::path state_tensors(const fs::path& folder, int group, int layer) {
  return folder / fmt::format("state-{:05}-{:05}.safetensors", group, layer);
}

void remove_stale_states(const fs::path& folder, const fs::path& current) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("state-") && entry.path() != current) fs::remove(entry.path());
  }
}

}  // namespace

PartialRun::PartialRun(fs::path output, const nlohmann::ordered_json& key, std::int64_t group_tokens)
    : output_(std::move(output)), group_tokens_(group_tokens) {
  if (!output_.has_filename()) output_ = output_.parent_path();
  folder_ = output_;
  folder_ += ".partial";
  if (fs::exists(output_)) {
    throw InvalidInput(fmt::format("{} exists already; remove it or choose another -o", output_.string()));
  }
  const fs::path key_file = folder_ / kKeyFile;
  if (fs::exists(key_file)) {
    const auto found = read_json_file(key_file);
    if (!found.contains("key") || found.at("key") != key || !found.contains("group_tokens")) {
      throw InvalidInput(fmt::format("{} holds an unfinished calibration with another checkpoint, tasks or options; remove it, "
                                     "or repeat the command that began it (see {})", folder_.string(), key_file.string()));
    }
    group_tokens_ = found.at("group_tokens").get<std::int64_t>();
    return;
  }
  std::error_code error;
  fs::create_directories(folder_, error);
  if (error) throw InvalidInput(fmt::format("cannot create {}: {}", folder_.string(), error.message()));
  const nlohmann::ordered_json json{{"key", key}, {"group_tokens", group_tokens}};
  write_file_atomically(key_file, json.dump(1) + "\n");
}

std::optional<RunState> PartialRun::load_state() const {
  if (!fs::exists(folder_ / kStateFile)) return std::nullopt;
  const auto json = read_json_file(folder_ / kStateFile);
  RunState state;
  state.group = json.at("group").get<int>();
  state.layer = json.at("layer").get<int>();
  state.previous_layer = json.at("previous_layer").get<int>();
  if (state.layer == 0) return state;
  const auto file = SafetensorsFile::open(state_tensors(folder_, state.group, state.layer));
  const Tensor* hidden = file.find("hidden");
  if (hidden == nullptr || hidden->shape.size() != 2) {
    throw InvalidInput(fmt::format("{}: not a saved state; remove {} and start again", file.path().string(), folder_.string()));
  }
  state.hidden = at::empty(hidden->shape, hidden->dtype == Dtype::f32 ? at::kFloat : at::kBFloat16);
  file.read(*hidden, 0, {static_cast<std::byte*>(state.hidden.mutable_data_ptr()), state.hidden.nbytes()});
  if (const Tensor* ids = file.find("previous_ids")) {
    state.previous_ids.resize(ids->size / sizeof(std::int32_t));
    file.read(*ids, 0, std::as_writable_bytes(std::span(state.previous_ids)));
  }
  return state;
}

void PartialRun::save_state(const RunState& state) {
  const fs::path file = state_tensors(folder_, state.group, state.layer);
  const at::Tensor hidden = state.hidden.cpu().contiguous();
  std::vector<TensorSpec> specs{{.name = "hidden",
                                 .dtype = hidden.scalar_type() == at::kFloat ? Dtype::f32 : Dtype::bf16,
                                 .shape = hidden.sizes().vec()}};
  if (!state.previous_ids.empty()) {
    specs.push_back({"previous_ids", Dtype::i32, {static_cast<std::int64_t>(state.previous_ids.size())}});
  }
  SafetensorsWriter writer(file, specs);
  writer.write(bytes_of(hidden));
  writer.write(std::as_bytes(std::span(state.previous_ids)));
  writer.finish();
  const nlohmann::ordered_json json{
      {"group", state.group}, {"layer", state.layer}, {"previous_layer", state.previous_layer}};
  write_file_atomically(folder_ / kStateFile, json.dump(1) + "\n");
  remove_stale_states(folder_, file);
}

void PartialRun::finish_group(int group) {
  const nlohmann::ordered_json json{{"group", group + 1}, {"layer", 0}, {"previous_layer", -1}};
  write_file_atomically(folder_ / kStateFile, json.dump(1) + "\n");
  remove_stale_states(folder_, {});
}

fs::path PartialRun::layer_file(int group, int layer) const {
  return folder_ / fmt::format("group-{:05}-{}", group, layer_file_name(layer));
}

void PartialRun::write_layer(int group, const LayerStatistics& layer) const {
  write_layer_statistics(layer_file(group, layer.layer), layer);
}

LayerStatistics PartialRun::read_layer(int group, int layer) const {
  return read_layer_statistics(layer_file(group, layer));
}

void PartialRun::finish(const StatisticsManifest& manifest, int groups) {
  for (const int layer : manifest.moe_layers) {
    const fs::path last = layer_file(groups - 1, layer);
    if (fs::exists(last)) fs::rename(last, folder_ / layer_file_name(layer));
  }
  write_file_atomically(folder_ / "manifest.json", manifest_to_json(manifest).dump(2) + "\n");
  for (const auto& entry : fs::directory_iterator(folder_)) {
    if (entry.path().filename().string().starts_with("group-")) fs::remove(entry.path());
  }
  remove_stale_states(folder_, {});
  fs::rename(folder_, output_);
  fs::remove(output_ / kStateFile);
  fs::remove(output_ / kKeyFile);
}

}  // namespace moetrim
