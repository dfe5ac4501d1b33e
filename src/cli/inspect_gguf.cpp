// moetrim inspect MODEL.gguf: what a GGUF file holds.

#include <algorithm>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/gguf_commands.h"
#include "moetrim/gguf_rewrite.h"
#include "moetrim/suggest.h"

namespace moetrim::cli {

namespace {

using Json = nlohmann::ordered_json;

/// The part of a model that a tensor belongs to, by its name.
std::string_view part_of(std::string_view name, const GgufPlace& place) {
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  if (has(".ffn_gate_inp.") || has(".exp_probs_b")) return "routers";
  if (place.by_expert) return "experts";
  if (has(".attn_") || has(".ssm_")) return "attention";
  if (name.starts_with("token_embd.") || name.starts_with("output.")) return "embeddings";
  return "rest";
}

struct Contents {
  std::vector<std::pair<std::string, std::uint64_t>> types;  ///< by bytes, the most first
  std::map<std::string_view, std::uint64_t> parts;
};

Contents contents_of(const GgufModel& file, const std::vector<GgufPlace>& places) {
  Contents out{.types = {}, .parts = {{"experts", 0}, {"attention", 0}, {"embeddings", 0}, {"routers", 0}, {"rest", 0}}};
  std::map<std::string, std::uint64_t> types;
  for (std::size_t i = 0; i < file.tensors().size(); ++i) {
    const GgufTensor& tensor = file.tensors()[i];
    types[std::string(ggml_layout(tensor.type).name)] += tensor.size;
    out.parts[part_of(tensor.name, places.empty() ? GgufPlace{} : places[i])] += tensor.size;
  }
  out.types.assign(types.begin(), types.end());
  std::ranges::stable_sort(out.types, std::greater{}, [](const auto& type) { return type.second; });
  return out;
}

std::string text_or(const GgufModel& file, std::string_view key, std::string otherwise) {
  return file.metadata().text(key, file.files().front().path()).value_or(std::move(otherwise));
}

/// The fields that any GGUF file has.
Json common_fields(const GgufModel& file, const Contents& contents) {
  const auto& path = file.files().front().path();
  Json json{{"format", "gguf"}, {"tensors", file.tensors().size()}, {"total_bytes", file.total_bytes()}};
  for (const auto& [type, bytes] : contents.types) json["bytes_by_type"][type] = bytes;
  json["files"] = file.files().size();
  for (const auto& [field, key] : {std::pair{"name", std::string_view("general.name")}, {"size_label", "general.size_label"},
                                   {"fingerprint", kGgufSourceKey}, {"plan", kGgufPlanKey}}) {
    if (const auto value = file.metadata().text(key, path)) json[field] = *value;
  }
  return json;
}

std::string types_text(const Contents& contents) {
  std::string out;
  for (const auto& [type, bytes] : contents.types) out += fmt::format("  {:<10}  {}\n", type, human_bytes(bytes));
  return out;
}

void inspect_unknown(const Session& session, const GgufModel& file, const std::string& why) {
  const Contents contents = contents_of(file, {});
  Json json{{"family", nullptr}, {"architecture", text_or(file, "general.architecture", "")}};
  json.update(common_fields(file, contents));
  session.print(json, fmt::format("family      none: {}\nsize        {} in {} tensors, {} file(s)\n{}", why, human_bytes(file.total_bytes()),
                                  file.tensors().size(), file.files().size(), types_text(contents)));
}

std::uint64_t whole(const GgufMoe& model, std::string_view key) {
  return model.file->metadata().whole(model.key(key), model.path()).value_or(0);
}

/// Of an expert: inputs of its down projection.
std::uint64_t expert_width(const GgufMoe& model) {
  const GgufTensor* down = model.file->find(fmt::format("blk.{}.ffn_down_exps.weight", model.moe.front()));
  return down == nullptr ? 0 : down->shape.front();
}

std::uint64_t vocabulary(const GgufMoe& model) {
  const GgufTensor* embedding = model.file->find("token_embd.weight");
  return embedding == nullptr ? 0 : embedding->shape.back();
}

/// The lines that only some models have.
std::string special(const GgufMoe& model) {
  std::string out;
  if (model.groups) {
    out += fmt::format("groups      {} of {} experts, {} per token\n", model.groups->count, model.experts / model.groups->count,
                       model.groups->chosen);
  }
  if (model.mtp_blocks > 0) out += fmt::format("MTP         {} block(s) after the layers\n", model.mtp_blocks);
  return out;
}

}  // namespace

void inspect_gguf(const Session& session, const std::filesystem::path& path) {
  const GgufModel file = GgufModel::open(path);
  const std::string architecture = text_or(file, "general.architecture", "");
  if (text_or(file, "general.type", "model") == "model") {
    if (find_gguf_architecture(architecture) == nullptr) {
      return inspect_unknown(session, file, fmt::format("moetrim does not know the architecture {}", in_quotes(architecture)));
    }
    if (file.metadata().whole(architecture + ".expert_count", path).value_or(0) == 0) {
      return inspect_unknown(session, file, fmt::format("a model of architecture {} without experts", architecture));
    }
  }
  const GgufMoe model = describe_gguf(file);
  const Contents contents = contents_of(file, model.places);
  const auto& families = model.architecture->families;
  const std::size_t moe_layers = model.moe_layers(false).size();
  Json json{{"family", families.size() == 1 ? Json(families.front()) : Json(families)},
            {"architecture", model.architecture->name},
            {"layers", model.layers()},
            {"moe_layers", moe_layers},
            {"experts", model.experts},
            {"experts_per_token", model.experts_per_token},
            {"expert_width", expert_width(model)},
            {"hidden", whole(model, "embedding_length")},
            {"vocabulary", vocabulary(model)},
            {"groups", model.groups ? model.groups->count : 1},
            {"groups_per_token", model.groups ? model.groups->chosen : 1},
            {"mtp_layers", model.mtp_blocks},
            {"bytes", contents.parts}};
  json.update(common_fields(file, contents));
  const std::uint64_t one = contents.parts.at("experts") / static_cast<std::uint64_t>(model.experts);
  std::string parts;
  for (const std::string_view part : {"experts", "attention", "embeddings", "routers", "rest"}) {
    parts += fmt::format("  {:<10}  {}\n", part, human_bytes(contents.parts.at(part)));
  }
  session.print(json, fmt::format("family      {} (GGUF architecture {})\nlayers      {} ({} MoE)\n"
                                  "experts     {} of width {}, {} per token\n{}hidden      {}, vocabulary {}\n"
                                  "size        {} in {} file(s)\n{}types\n{}an expert in every layer less saves {}\n",
                                  fmt::join(families, " or "), architecture, model.layers(), moe_layers, model.experts, expert_width(model),
                                  model.experts_per_token, special(model), whole(model, "embedding_length"), vocabulary(model),
                                  human_bytes(file.total_bytes()), file.files().size(), parts, types_text(contents), human_bytes(one)));
}

}  // namespace moetrim::cli
