// Checks what is to be exported, and decides keys and tensors.

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "gguf/export/mapping.h"
#include "gguf/export/metadata.h"
#include "gguf/export/plan_tensors.h"
#include "gguf/rewrite/new_metadata.h"
#include "moetrim/error.h"
#include "moetrim/gguf_architecture.h"
#include "moetrim/gguf_export.h"
#include "moetrim/gguf_rewrite.h"
#include "moetrim/gguf_tokenizer.h"
#include "moetrim/suggest.h"
#include "moetrim/whole_experts.h"

namespace moetrim {

namespace {

using gguf_detail::GgufKeys;
using gguf_detail::GgufLiteral;
using gguf_detail::GgufMapping;
using gguf_detail::GgufSource;

const GgufMapping& mapping_of(const Model& model) {
  const GgufArchitecture* architecture = gguf_architecture_of(model.family->name);
  const GgufMapping* mapping = architecture == nullptr ? nullptr : gguf_detail::find_mapping(architecture->name);
  if (mapping != nullptr) return *mapping;
  std::vector<std::string_view> names;
  for (const Family* family : families()) {
    const GgufArchitecture* known = gguf_architecture_of(family->name);
    if (known != nullptr && gguf_detail::find_mapping(known->name) != nullptr) names.push_back(family->name);
  }
  throw InvalidInput(fmt::format("{}: family {} is not written as GGUF{}; those that are: {}",
                                 model.checkpoint->folder().string(), model.family->name,
                                 architecture == nullptr ? ", since llama.cpp does not have it" : "", fmt::join(names, ", ")));
}

void check_source(const Model& model) {
  const auto& config = model.checkpoint->config();
  if (config.contains("moetrim_slim")) {
    throw InvalidInput(fmt::format("{}: \"moetrim_slim\" lists experts of different widths or numbers; llama.cpp has one "
                                   "number for all layers. Write the checkpoint again from a plan with a uniform number and width",
                                   (model.checkpoint->folder() / "config.json").string()));
  }
}

void check_export_plan(const Model& model, const GgufExportOptions& options) {
  const Plan& plan = *options.plan;
  check_plan(model, plan, options.allow_other_checkpoint ? std::string() : model.checkpoint->fingerprint(), options.mtp);
  if (plan.counts == LayerCounts::listed) {
    throw InvalidInput("the plan keeps different numbers of experts in different layers; llama.cpp has one number for all. "
                       "Make a plan with the same number in every layer (plan --keep)");
  }
  const std::string_view beyond = beyond_whole_experts(plan);
  if (beyond.empty()) return;
  throw InvalidInput(fmt::format("the plan {}, which export does not do on the way; write the checkpoint with moetrim rewrite, "
                                 "and export that without --plan", beyond));
}

/// Keys of the language model beside the outer ones, which they replace.
nlohmann::ordered_json flat_config(nlohmann::ordered_json config) {
  const auto text = config.find("text_config");
  if (text == config.end() || !text->is_object()) return config;
  const nlohmann::ordered_json inner = *text;
  for (const auto& [key, value] : inner.items()) config[key] = value;
  return config;
}

double routed_scale(const GgufSource& source) {
  const Model& model = *source.model;
  if (source.plan == nullptr || !source.plan->correct_drift) return model.routed_scale;
  return model.routed_scale * router_drift(*source.plan)->mean_mass;
}

GgufSource source_of(const Model& model, const GgufExportOptions& options) {
  GgufSource source;
  source.model = &model;
  source.plan = options.plan;
  source.mtp = options.plan == nullptr && options.mtp == Mtp::prune ? Mtp::keep : options.mtp;
  source.config = flat_config(options.plan == nullptr ? model.checkpoint->config()
                                                      : rewrite_config(model, *options.plan, options.mtp));
  source.experts = options.plan == nullptr ? model.experts : options.plan->keep;
  const bool other_top = options.plan != nullptr && options.plan->experts_per_token_after > 0;
  source.experts_per_token = other_top ? options.plan->experts_per_token_after : model.experts_per_token;
  const bool regroups = options.plan != nullptr && options.plan->regroup;
  source.groups = regroups ? 1 : model.groups;
  source.groups_chosen = regroups ? 1 : model.groups_chosen;
  source.routed_scale = routed_scale(source);
  return source;
}

/// llama.cpp has one number of experts for all blocks.
void check_mtp(const GgufSource& source, const GgufMapping& mapping) {
  const Model& model = *source.model;
  if (source.mtp_layers() == 0) return;
  const auto& rules = mapping.tensors;
  if (std::ranges::find(rules, Role::mtp_projection, &gguf_detail::GgufTensorRule::role) == rules.end()) {
    throw InvalidInput(fmt::format("{}: llama.cpp's {} has no multi-token prediction; leave the {} block(s) out with --mtp "
                                   "drop", model.checkpoint->folder().string(), mapping.architecture, model.mtp_layers));
  }
  for (int layer = static_cast<int>(model.layers); layer < source.blocks(); ++layer) {
    const auto slots = source.slots(layer);
    const std::int64_t experts = slots.empty() ? model.experts_in(layer) : static_cast<std::int64_t>(slots.size());
    if (!model.layer[static_cast<std::size_t>(layer)].sparse || experts == source.experts) continue;
    throw InvalidInput(fmt::format("{}: the multi-token-prediction block, layer {}, would have {} experts beside {} in the "
                                   "layers; llama.cpp has one number for all. Prune it too, or leave it out with --mtp drop",
                                   model.checkpoint->folder().string(), layer, experts, source.experts));
  }
}

void add_literals(std::vector<GgufLiteral> literals, std::vector<GgufPlannedTensor>& tensors) {
  for (GgufLiteral& literal : literals) {
    GgufPlannedTensor tensor;
    tensor.spec = {.name = std::move(literal.name), .type = GgmlType::f32, .shape = {literal.values.size()}};
    tensor.values = std::move(literal.values);
    tensors.push_back(std::move(tensor));
  }
}

void add_tokenizer(const Model& model, const GgufExportOptions& options, GgufExport& out) {
  if (!options.tokenizer) return out.metadata.set("tokenizer.ggml.model", std::string("none"));
  GgufTokenizer tokenizer;
  try {
    tokenizer = gguf_tokenizer(*model.checkpoint, model.vocabulary, options.pretokenizer);
  } catch (const InvalidInput& error) {
    throw InvalidInput(fmt::format("{}; --no-tokenizer leaves it out, for a file that takes token ids only", error.what()));
  }
  for (auto& [key, value] : tokenizer.keys.items()) out.metadata.set(key, value);
  out.notes.insert(out.notes.end(), tokenizer.notes.begin(), tokenizer.notes.end());
}

std::vector<std::string> notes_of(const GgufSource& source) {
  std::vector<std::string> notes;
  const auto& untouched = source.model->family->untouched;
  const auto of_tower = [&](const Tensor& tensor) { return source.model->family->leaves_untouched(tensor.name); };
  if (!untouched.empty() && std::ranges::any_of(source.model->checkpoint->tensors(), of_tower)) {
    notes.emplace_back("Only the language model is written; of the vision tower llama.cpp wants a file of its own (mmproj).");
  }
  if (source.plan != nullptr) {
    for (auto& warning : rewrite_warnings(*source.model, *source.plan, source.mtp)) notes.push_back(std::move(warning));
  }
  return notes;
}

}  // namespace

GgmlType parse_gguf_dtype(std::string_view text) {
  for (const GgmlType type : {GgmlType::f32, GgmlType::f16, GgmlType::bf16, GgmlType::q8_0}) {
    if (ggml_type_from_name(text) == type) return type;
  }
  throw UsageError(fmt::format("--dtype {}: expected f32, f16, bf16 or q8_0", in_quotes(text)));
}

GgufExport prepare_gguf_export(const Model& model, const GgufExportOptions& options) {
  check_source(model);
  const GgufMapping& mapping = mapping_of(model);
  if (options.plan != nullptr) check_export_plan(model, options);
  const GgufSource source = source_of(model, options);
  check_mtp(source, mapping);

  GgufExport out;
  out.model = &model;
  out.tensors = gguf_detail::plan_gguf_tensors(source, mapping, options.type);
  out.metadata.set("general.architecture", std::string(mapping.architecture));
  gguf_detail::add_general_keys(source, out.tensors, options.type, out.metadata);
  GgufKeys keys(mapping.architecture, out.metadata);
  gguf_detail::add_model_keys(source, mapping, keys);
  add_literals(std::move(keys.tensors), out.tensors);
  if (options.plan == nullptr) out.metadata.set(kGgufSourceKey, model.checkpoint->fingerprint());
  else out.metadata.set(kGgufPlanKey, gguf_detail::digest_of(*options.plan));
  out.notes = notes_of(source);
  out.notes.insert(out.notes.end(), keys.notes.begin(), keys.notes.end());
  add_tokenizer(model, options, out);
  return out;
}

}  // namespace moetrim
