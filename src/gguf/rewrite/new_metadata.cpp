// Metadata of a pruned GGUF file.

#include "gguf/rewrite/new_metadata.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <utility>

#include <fmt/format.h>

#include "checkpoint/digest.h"
#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim::gguf_detail {

namespace {

/// Keys of which a list has an entry per block (llama.cpp's get_key_or_arr with the number of all layers), and lists that are
/// something else whatever their length.
constexpr std::array<std::string_view, 9> kByBlock = {
    "feed_forward_length",   "expert_feed_forward_length", "expert_used_count",
    "attention.head_count",  "attention.head_count_kv",    "attention.sliding_window_pattern",
    "attention.recurrent_layers", "swiglu_clamp_exp",      "swiglu_clamp_shexp"};
constexpr std::array<std::string_view, 1> kNotByBlock = {"rope.dimension_sections"};

/// The number in the type that the value has.
GgufValue like(const GgufValue& before, std::uint64_t number) {
  return std::visit([&]<class T>(const T&) -> GgufValue {
    if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) {
      if (std::in_range<T>(number)) return static_cast<T>(number);
    }
    return static_cast<std::uint32_t>(number);
  }, before);
}

void set_where_present(GgufMetadata& metadata, std::string_view key, std::uint64_t number) {
  if (const GgufValue* before = metadata.find(key)) metadata.set(key, like(*before, number));
}

/// The first `blocks` entries.
GgufArray cut(const GgufArray& list, std::size_t blocks) {
  GgufArray out = list;
  if (list.of == GgufType::string) out.texts.resize(blocks);
  else out.numbers.resize(blocks * gguf_type_bytes(list.of));
  return out;
}

/// Lists with an entry per block lose those of blocks that go.
void cut_lists(GgufMetadata& metadata, const GgufMoe& model) {
  const std::string start = model.key("");
  std::vector<std::pair<std::string, GgufArray>> shorter;
  for (const auto& [key, value] : metadata.items()) {
    const auto* list = std::get_if<GgufArray>(&value);
    if (list == nullptr || !key.starts_with(start) || list->size() != static_cast<std::size_t>(model.blocks)) continue;
    const std::string_view name = std::string_view(key).substr(start.size());
    if (std::ranges::find(kNotByBlock, name) != kNotByBlock.end()) continue;
    if (std::ranges::find(kByBlock, name) == kByBlock.end()) {
      throw InvalidInput(fmt::format("{}: {}: a list of {} entries, which may be one per block, and moetrim does not know the key; "
                                     "multi-token-prediction blocks of such a file cannot be dropped", model.path().string(), in_quotes(key),
                                     list->size()));
    }
    shorter.emplace_back(key, cut(*list, static_cast<std::size_t>(model.layers())));
  }
  for (auto& [key, list] : shorter) metadata.set(key, std::move(list));
}

/// "Qwen3-30B-A3B 64 experts"; the same again where the name says a number of experts already.
std::string name_with_experts(std::string name, int experts) {
  constexpr std::string_view kEnd = " experts";
  if (name.ends_with(kEnd)) {
    const auto digits = name.find_last_not_of("0123456789", name.size() - kEnd.size() - 1);
    const bool counts = digits != std::string::npos && name[digits] == ' ' && digits + 1 < name.size() - kEnd.size();
    if (counts) name.resize(digits);
  }
  return fmt::format("{} {}{}", name, experts, kEnd);
}

void edit_counts(GgufMetadata& metadata, const GgufMoe& model, const Plan& plan, Mtp mtp) {
  set_where_present(metadata, model.key("expert_count"), static_cast<std::uint64_t>(plan.keep));
  if (plan.experts_per_token_after > 0) {
    set_where_present(metadata, model.key("expert_used_count"), static_cast<std::uint64_t>(plan.experts_per_token_after));
  }
  if (plan.regroup) {
    for (const auto key : {"expert_group_count", "expert_group_used_count"}) set_where_present(metadata, model.key(key), 1);
  }
  if (mtp != Mtp::drop || model.mtp_blocks == 0) return;
  cut_lists(metadata, model);
  set_where_present(metadata, model.key("block_count"), static_cast<std::uint64_t>(model.layers()));
  set_where_present(metadata, model.key("nextn_predict_layers"), 0);
}

/// Gates that are shares of a softmax over all experts grow when experts go: the factor of all gates takes that back.
void correct_drift(GgufMetadata& metadata, const GgufMoe& model, const Plan& plan) {
  const std::string key = model.key("expert_weights_scale");
  const double stored = metadata.real(key, model.path()).value_or(0);
  const double scale = (stored == 0 ? 1 : stored) * router_drift(plan)->mean_mass;  // llama.cpp takes 0 for 1
  metadata.set(key, static_cast<float>(scale));
}

bool has_weights_scale(const GgufMetadata& metadata, const GgufMoe& model) {
  return metadata.find(model.key("expert_weights_scale")) != nullptr;
}

}  // namespace

std::string digest_of(const Plan& plan) {
  checkpoint_detail::Digest digest;
  digest.add_text(plan_to_json(plan).dump());
  return digest.hex();
}

void edit_metadata(std::vector<GgufOutputFile>& files, const GgufMoe& model, const Plan& plan, Mtp mtp) {
  std::uint64_t tensors = 0;
  for (const GgufOutputFile& file : files) tensors += file.tensors.size();
  const int chosen = plan.experts_per_token_after > 0 ? plan.experts_per_token_after : model.experts_per_token;
  for (GgufOutputFile& file : files) {
    GgufMetadata& metadata = file.metadata;
    edit_counts(metadata, model, plan, mtp);
    set_where_present(metadata, "split.tensors.count", tensors);
    if (const auto name = metadata.text("general.name", model.path())) metadata.set("general.name", name_with_experts(*name, plan.keep));
    if (const auto label = metadata.text("general.size_label", model.path())) {
      metadata.set("general.size_label", gguf_size_label(*label, files, plan.keep, chosen, chosen != model.experts_per_token));
    }
    metadata.erase(kGgufSourceKey);
    metadata.erase(kGgufPlanKey);
    if (plan.correct_drift && (&file == &files.front() || has_weights_scale(metadata, model))) correct_drift(metadata, model, plan);
  }
  files.front().metadata.set(kGgufPlanKey, digest_of(plan));
}

}  // namespace moetrim::gguf_detail
