// Lists of module names in quantization_config that may name single experts.

#include "rewrite/module_lists.h"

#include <array>
#include <charconv>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim {

namespace {

/// compressed-tensors; transformers (FP8, AWQ, bitsandbytes); vLLM's name for FP8; Quark and ModelOpt.
constexpr std::array<std::string_view, 4> kLists = {"ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules"};
constexpr std::string_view kPattern = "re:";

std::vector<std::string> split(std::string_view name) {
  std::vector<std::string> parts(1);
  for (const char c : name) {
    if (c == '.') parts.emplace_back();
    else parts.back() += c;
  }
  return parts;
}

bool starts_with_digit(std::string_view text) { return !text.empty() && text[0] >= '0' && text[0] <= '9'; }

std::optional<int> whole_number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !starts_with_digit(text)) return std::nullopt;
  return value;
}

/// Position of the part that follows `name`, when it starts with a digit.
std::optional<std::size_t> number_after(const std::vector<std::string>& parts, std::string_view name) {
  for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
    if (parts[i] == name && starts_with_digit(parts[i + 1])) return i + 1;
  }
  return std::nullopt;
}

/// The absolute layer that a name speaks of; blocks that are counted apart follow the layers.
std::optional<int> layer_of(const std::vector<std::string>& parts, const Model& model) {
  const auto at = number_after(parts, "layers");
  const auto layer = at ? whole_number(parts[*at]) : std::nullopt;
  if (layer && parts[0] == "mtp") return static_cast<int>(model.layers) + *layer;
  return layer;
}

/// The entry under each of its new numbers; none when its expert is dropped.
std::vector<std::string> renumbered(const std::string& entry, std::string_view list, const Model& model,
                                      const Renumbering& numbers) {
  std::vector<std::string> parts = split(entry);
  const auto expert_at = number_after(parts, "experts");
  if (!expert_at) return {entry};
  const auto refuse = [&](std::string_view why) {
    throw InvalidInput(fmt::format("config.json: quantization_config: {}: entry {} {}", list, in_quotes(entry), why));
  };
  const auto layer = layer_of(parts, model);
  const auto expert = whole_number(parts[*expert_at]);
  if (!layer || !expert) refuse("names an expert without saying its layer and number plainly; spell it as layers.L.….experts.E");
  if (!numbers.covers(*layer)) return {entry};
  if (*expert >= model.experts) refuse(fmt::format("names expert {}, but there are {}", *expert, model.experts));
  std::vector<std::string> out;
  for (const int slot : numbers.slots_of(*layer, *expert)) {
    parts[*expert_at] = std::to_string(slot);
    out.push_back(fmt::format("{}", fmt::join(parts, ".")));
  }
  return out;
}

}  // namespace

bool names_mtp(std::string_view name, const Model& model) {
  const auto parts = split(name);
  const auto layer = layer_of(parts, model);
  return parts[0] == "mtp" || (layer && *layer >= model.layers);
}

void renumber_module_lists(nlohmann::ordered_json& quantization, const Model& model, const Renumbering& numbers, Mtp mtp) {
  if (!quantization.is_object()) return;
  for (const auto list : kLists) {
    const auto found = quantization.find(std::string(list));
    if (found == quantization.end() || !found->is_array()) continue;
    auto kept = nlohmann::ordered_json::array();
    for (const auto& entry : *found) {
      if (!entry.is_string() || entry.get_ref<const std::string&>().starts_with(kPattern)) {
        kept.push_back(entry);
        continue;
      }
      const auto& text = entry.get_ref<const std::string&>();
      if (mtp == Mtp::drop && model.mtp_layers > 0 && names_mtp(text, model)) continue;
      for (auto& name : renumbered(text, list, model, numbers)) kept.push_back(std::move(name));
    }
    *found = std::move(kept);
  }
}

std::vector<std::string> suspicious_patterns(const nlohmann::ordered_json& quantization) {
  std::vector<std::string> out;
  if (!quantization.is_object()) return out;
  for (const auto list : kLists) {
    const auto found = quantization.find(std::string(list));
    if (found == quantization.end() || !found->is_array()) continue;
    for (const auto& entry : *found) {
      if (!entry.is_string()) continue;
      const auto text = entry.get<std::string>();
      const auto at = text.find("experts");
      if (!text.starts_with(kPattern) || at == std::string::npos) continue;
      if (text.find_first_of("0123456789", at) != std::string::npos) out.push_back(text);
    }
  }
  return out;
}

}  // namespace moetrim
