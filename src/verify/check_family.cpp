// config.json against the tensors, and the numbering of experts.

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/family.h"
#include "verify/checks.h"

namespace moetrim::verify_detail {

namespace {

constexpr std::string_view kExperts = ".experts.";

struct ExpertName {
  std::string block;   ///< "model.layers.3.mlp.experts"
  std::string rest;    ///< "down_proj.weight"
  int expert = 0;
};

std::optional<ExpertName> expert_name(std::string_view name) {
  const auto at = name.find(kExperts);
  if (at == std::string_view::npos) return std::nullopt;
  const std::string_view tail = name.substr(at + kExperts.size());
  int expert = 0;
  const auto [end, error] = std::from_chars(tail.data(), tail.data() + tail.size(), expert);
  if (error != std::errc{} || expert < 0) return std::nullopt;
  const auto digits = static_cast<std::size_t>(end - tail.data());
  return ExpertName{std::string(name.substr(0, at + kExperts.size() - 1)), std::string(tail.substr(digits)), expert};
}

/// The first number that is missing below the largest one, or the size when there is no hole.
int first_missing(const std::set<int>& numbers) {
  int expected = 0;
  for (const int number : numbers) {
    if (number != expected) return expected;
    ++expected;
  }
  return expected;
}

}  // namespace

void check_expert_numbers(const Checkpoint& checkpoint, Findings& findings) {
  std::map<std::string, std::map<std::string, std::set<int>>> blocks;
  for (const Tensor& tensor : checkpoint.tensors()) {
    if (auto name = expert_name(tensor.name)) blocks[name->block][name->rest].insert(name->expert);
  }
  for (const auto& [block, parts] : blocks) {
    for (const auto& [part, numbers] : parts) {
      const int missing = first_missing(numbers);
      if (missing == static_cast<int>(numbers.size())) continue;
      add_error(findings, block, fmt::format("has a hole in its numbering: expert {} is missing ({}), expert {} is there; "
                                             "loaders stack experts by order and would not notice", missing,
                                             part.starts_with('.') ? part.substr(1) : part, *numbers.rbegin()));
      break;
    }
  }
}

void check_family(const Checkpoint& checkpoint, Findings& findings) {
  const auto type = checkpoint.config().find("model_type");
  const bool is_known = type != checkpoint.config().end() && type->is_string() &&
                        find_family(type->get_ref<const std::string&>()) != nullptr;
  if (!is_known && type != checkpoint.config().end() && type->is_string()) {
    add_warning(findings, "config.json", fmt::format("model_type {} is not a family that moetrim knows; only the files were "
                                                     "checked", type->dump().substr(0, 80)));
    return;
  }
  try {
    const Model model = describe(checkpoint);
    if (model.mtp_layers > 0 && model.mtp_experts != model.experts) {
      add_warning(findings, "config.json", fmt::format("the multi-token-prediction block has {} experts beside {} in the layers; runtimes "
                                                       "with one expert count for both cannot load it", model.mtp_experts, model.experts));
    }
  } catch (const InvalidInput& problem) {
    add_error(findings, "config.json", problem.what());
  }
}

}  // namespace moetrim::verify_detail
