// What a GGUF file says of its experts, its keys held against its tensors.

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "gguf/rewrite/names.h"
#include "moetrim/error.h"
#include "moetrim/gguf_rewrite.h"
#include "moetrim/suggest.h"

namespace moetrim {

namespace {

using namespace gguf_detail;
using Report = std::function<void(std::string where, std::string what)>;

[[noreturn]] void refuse(const GgufModel& file, std::string_view where, std::string_view what) {
  throw InvalidInput(fmt::format("{}: {}: {}", file.files().front().path().string(), where, what));
}

/// What is a GGUF file and no model.
void check_kind(const GgufModel& file) {
  struct Kind {
    std::string_view type, what;
  };
  static constexpr std::array<Kind, 3> kKinds{{
      {"adapter", "is a LoRA adapter, which says nothing of the model's experts; apply it to the model first"},
      {"imatrix", "is an importance matrix, not a model; moetrim imatrix is for those"},
      {"mmproj", "is the projector of a multi-modal model, which has no experts; give the language model's file"},
  }};
  const auto& path = file.files().front().path();
  const std::string type = file.metadata().text("general.type", path).value_or("model");
  for (const Kind& kind : kKinds) {
    if (type == kind.type) refuse(file, "general.type", kind.what);
  }
  if (file.metadata().text("general.architecture", path) == "clip") refuse(file, "general.architecture", kKinds[2].what);
}

const GgufArchitecture& architecture_of(const GgufModel& file) {
  constexpr std::string_view kKey = "general.architecture";
  const auto name = file.metadata().text(kKey, file.files().front().path());
  if (!name) refuse(file, kKey, "is missing, so that nothing says what the tensors are");
  if (const GgufArchitecture* found = find_gguf_architecture(*name)) return *found;
  std::vector<std::string_view> known;
  for (const GgufArchitecture& architecture : gguf_architectures()) known.push_back(architecture.name);
  refuse(file, kKey, fmt::format("{} is none of the architectures with experts that moetrim knows: {}{}", in_quotes(*name),
                                 fmt::join(known, ", "), did_you_mean(*name, known)));
}

/// A key's whole number in [least, most].
int number(const GgufMoe& model, std::string_view name, std::int64_t least, std::int64_t most, std::optional<int> otherwise = {}) {
  const std::string key = model.key(name);
  const auto value = model.file->metadata().whole(key, model.path());
  if (!value && otherwise) return *otherwise;
  if (!value) refuse(*model.file, key, "is missing");
  if (*value < static_cast<std::uint64_t>(least) || *value > static_cast<std::uint64_t>(most)) {
    refuse(*model.file, key, fmt::format("is {}, expected {} to {}", *value, least, most));
  }
  return static_cast<int>(*value);
}

void read_keys(GgufMoe& model) {
  constexpr int kMostBlocks = 1 << 16, kMostExperts = 1 << 16;
  model.blocks = number(model, "block_count", 1, kMostBlocks);
  model.mtp_blocks = number(model, "nextn_predict_layers", 0, model.blocks - 1, 0);
  model.experts = number(model, "expert_count", 0, kMostExperts, 0);
  if (model.experts == 0) refuse(*model.file, model.key("expert_count"), "is missing or 0: the model has no experts");
  const GgufValue* used = model.file->metadata().find(model.key("expert_used_count"));
  if (used != nullptr && gguf_type_of(*used) == GgufType::array) {
    refuse(*model.file, model.key("expert_used_count"), "gives every layer a number of its own, which no family that moetrim knows has");
  }
  model.experts_per_token = number(model, "expert_used_count", 1, model.experts);
  const int groups = number(model, "expert_group_count", 0, model.experts, 0);
  if (groups <= 1) return;
  model.groups = RouterGroups{.count = groups, .chosen = number(model, "expert_group_used_count", 1, groups), .rule = "top2"};
  const std::string problem = router_groups_problem(*model.groups, model.experts, model.experts_per_token);
  if (!problem.empty()) refuse(*model.file, model.key("expert_group_count"), problem);
}

/// A tensor of an MoE block.
GgufPlace place_in_moe_block(const GgufMoe& model, const GgufTensor& tensor, const BlockTensor& name, const Report& report) {
  const GgufPlace place{.block = name.block, .by_expert = find_expert_tensor(name.name) != nullptr};
  const auto experts = static_cast<std::uint64_t>(model.experts);
  if (const ExpertTensor* known = find_expert_tensor(name.name)) {
    const std::size_t axis = expert_axis(*known);
    if (tensor.shape.size() <= axis || std::any_of(tensor.shape.begin() + known->extents, tensor.shape.end(), [](auto n) { return n != 1; })) {
      report(tensor.name, fmt::format("has {} extents, expected {}", tensor.shape.size(), known->extents));
    } else if (tensor.shape[axis] != experts) {
      report(tensor.name, fmt::format("has {} experts, and {} is {}", tensor.shape[axis], model.key("expert_count"), experts));
    } else if (known->extents == 1 && ggml_layout(tensor.type).block_elements != 1) {
      report(tensor.name, fmt::format("is packed as {} along the experts, so that no expert's part is bytes of its own",
                                      ggml_layout(tensor.type).name));
    }
  } else if (is_single_expert(name.name)) {
    report(tensor.name, "holds one expert alone, a layout of 2023 that llama.cpp gave up; convert the model again");
  } else if (tensor.shape.back() == experts && !is_known_without_experts(name.name)) {
    report(tensor.name, fmt::format("is no tensor that moetrim knows, and its last extent, {}, may count the experts", experts));
  }
  return place;
}

std::set<int> blocks_with_experts(const GgufMoe& model) {
  std::set<int> out;
  for (const GgufTensor& tensor : model.file->tensors()) {
    const auto name = block_tensor(tensor.name);
    if (name && name->block >= 0 && (find_expert_tensor(name->name) != nullptr || is_single_expert(name->name))) out.insert(name->block);
  }
  return out;
}

void check_blocks(const GgufMoe& model, const Report& report) {
  for (const int block : model.moe) {
    const auto has = [&](std::string_view name) { return model.file->find(fmt::format("blk.{}.{}", block, name)) != nullptr; };
    for (const std::string_view name : {kRouter, kDownExperts}) {
      if (!has(name)) report(fmt::format("blk.{}", block), fmt::format("has experts, but no {}", name));
    }
    if (!has(kUpExperts) && !has(kGateUpExperts)) {
      report(fmt::format("blk.{}", block), fmt::format("has experts, but neither {} nor {}", kUpExperts, kGateUpExperts));
    }
  }
  if (model.moe_layers(false).empty()) report(".", fmt::format("no block has experts, and {} is {}", model.key("expert_count"), model.experts));
}

void place_tensors(GgufMoe& model, const Report& report) {
  const std::set<int> moe = blocks_with_experts(model);
  for (const GgufTensor& tensor : model.file->tensors()) {
    GgufPlace place;
    if (const auto name = block_tensor(tensor.name)) {
      place.block = name->block;
      if (name->block < 0 || name->block >= model.blocks) {
        report(tensor.name, fmt::format("is of no block, {} is {}", model.key("block_count"), model.blocks));
      } else if (moe.contains(name->block)) {
        place = place_in_moe_block(model, tensor, *name, report);
      }
    }
    model.places.push_back(place);
  }
  model.moe.assign(moe.begin(), moe.end());
  check_blocks(model, report);
}

GgufMoe describe(const GgufModel& file, const Report& report) {
  check_kind(file);
  GgufMoe model{.file = &file, .architecture = &architecture_of(file)};
  read_keys(model);
  place_tensors(model, report);
  return model;
}

/// Blocks of which nothing is there, but for those of multi-token prediction, which files may leave out.
void check_numbering(const GgufMoe& model, const Report& report) {
  std::set<int> seen;
  for (const GgufPlace& place : model.places) seen.insert(place.block);
  std::vector<int> missing;
  for (int block = 0; block < model.layers(); ++block) {
    if (!seen.contains(block)) missing.push_back(block);
  }
  if (missing.empty()) return;
  const std::string others = missing.size() > 1 ? fmt::format(", nor have {} others", missing.size() - 1) : "";
  report(fmt::format("blk.{}", missing.front()), fmt::format("has no tensors{}, and {} is {}", others, model.key("block_count"), model.blocks));
}

}  // namespace

bool is_gguf_file(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return false;
  std::array<char, 4> magic{};
  std::ifstream stream(path, std::ios::binary);
  return stream.read(magic.data(), magic.size()) && std::string_view(magic.data(), magic.size()) == "GGUF";
}

std::string GgufMoe::key(std::string_view name) const { return fmt::format("{}.{}", architecture->name, name); }

std::vector<int> GgufMoe::moe_layers(bool with_mtp) const {
  std::vector<int> out;
  std::ranges::copy_if(moe, std::back_inserter(out), [&](int block) { return with_mtp || block < layers(); });
  return out;
}

GgufMoe describe_gguf(const GgufModel& file) {
  return describe(file, [&](const std::string& where, const std::string& what) { refuse(file, where, what); });
}

std::vector<GgufProblem> check_gguf(const GgufModel& file) {
  std::vector<GgufProblem> out;
  const Report report = [&](std::string where, std::string what) { out.push_back({std::move(where), std::move(what)}); };
  check_numbering(describe(file, report), report);
  return out;
}

}  // namespace moetrim
