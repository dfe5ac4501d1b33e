// Experts whose widths config.json lists: every tensor that the list asks for, in its shape, and no other.

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <map>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/family.h"
#include "verify/checks.h"

namespace moetrim::verify_detail {

namespace {

using Shape = std::vector<std::int64_t>;

const nlohmann::ordered_json& language_model(const nlohmann::ordered_json& config) {
  const auto text = config.find("text_config");
  return text != config.end() && text->is_object() ? *text : config;
}

std::int64_t whole_number(const nlohmann::ordered_json& object, std::string_view key) {
  const auto found = object.find(std::string(key));
  return found != object.end() && found->is_number_integer() ? found->get<std::int64_t>() : -1;
}

/// "model.layers.3.mlp.experts.slim_gate.5" taken apart.
struct SlimName {
  int layer = -1;
  std::string part;  ///< "gate", "down_bias"
  int expert = -1;
};

/// The number at the front of the text, -1 when there is none.
int number_at(std::string_view text) {
  int number = -1;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

std::optional<SlimName> slim_name(std::string_view name, std::int64_t layers) {
  constexpr std::string_view kSlim = ".experts.slim_", kLayers = "layers.";
  const auto at = name.find(kSlim);
  const auto layer_at = name.find(kLayers);
  if (at == std::string_view::npos || layer_at == std::string_view::npos) return std::nullopt;
  const std::string_view rest = name.substr(at + kSlim.size());
  SlimName out;
  out.layer = number_at(name.substr(layer_at + kLayers.size()));
  if (out.layer >= 0 && name.starts_with("mtp.")) out.layer += static_cast<int>(layers);
  out.part = std::string(rest.substr(0, rest.find('.')));
  out.expert = number_at(rest.substr(std::min(rest.size(), out.part.size() + 1)));
  return out;
}

/// Lengths that a part of an expert must have; empty for a part that there is not.
Shape shape_of(std::string_view part, std::int64_t width, std::int64_t hidden, bool input_first) {
  if (part == "gate" || part == "up") return input_first ? Shape{hidden, width} : Shape{width, hidden};
  if (part == "down") return input_first ? Shape{width, hidden} : Shape{hidden, width};
  if (part == "gate_bias" || part == "up_bias") return {width};
  if (part == "down_bias") return {hidden};
  return {};
}

/// The matrix of an expert that a part belongs to, and which tensor of its factors: "down_row_ids". -1 for other parts.
struct FactorPartName {
  int matrix = -1;
  std::string_view kind;
};

constexpr std::array<std::string_view, 3> kMatrices = {"gate", "up", "down"};
constexpr std::array<std::string_view, 4> kFactorParts = {"left", "right", "rows", "row_ids"};

FactorPartName factor_part(std::string_view part) {
  const auto at = part.find('_');
  if (at == std::string_view::npos) return {};
  const auto matrix = std::find(kMatrices.begin(), kMatrices.end(), part.substr(0, at));
  const auto kind = std::find(kFactorParts.begin(), kFactorParts.end(), part.substr(at + 1));
  if (matrix == kMatrices.end() || kind == kFactorParts.end()) return {};
  return {static_cast<int>(matrix - kMatrices.begin()), *kind};
}

/// Whether moetrim_slim says that the expert's matrices are factors; its numbers of rows.
const std::array<std::int64_t, 3>* rows_of(const SlimWidths& slim, int layer, int expert) {
  const auto found = slim.rows.find(layer);
  if (found == slim.rows.end() || static_cast<std::size_t>(expert) >= found->second.size()) return nullptr;
  const auto& rows = found->second[static_cast<std::size_t>(expert)];
  return rows ? &*rows : nullptr;
}

/// Lengths of one of the four tensors of a matrix, outputs first.
Shape factor_shape(const FactorPartName& part, const std::array<std::int64_t, 3>& rows, std::int64_t rank, std::int64_t width,
                   std::int64_t hidden) {
  const bool down = part.matrix == 2;
  const std::int64_t outputs = down ? hidden : width, inputs = down ? width : hidden;
  const std::int64_t count = rows[static_cast<std::size_t>(part.matrix)];
  if (part.kind == "left") return {outputs, rank};
  if (part.kind == "right") return {rank, inputs};
  return part.kind == "rows" ? Shape{count, inputs} : Shape{count};
}

/// Rows of the matrix, ascending.
void check_row_ids(const Checkpoint& checkpoint, const Tensor& tensor, std::int64_t outputs, Findings& findings) {
  if (tensor.dtype != Dtype::i32) {
    return add_error(findings, tensor.name, fmt::format("is {}, expected I32: numbers of rows", dtype_name(tensor.dtype)));
  }
  const auto bytes = checkpoint.read(tensor);
  std::vector<std::int32_t> ids(bytes.size() / sizeof(std::int32_t));
  std::memcpy(ids.data(), bytes.data(), ids.size() * sizeof(std::int32_t));
  std::int64_t last = -1;
  for (const std::int32_t id : ids) {
    if (id <= last || id >= outputs) {
      return add_error(findings, tensor.name, fmt::format("has row {} after {}, expected ascending numbers below {}", id, last, outputs));
    }
    last = id;
  }
}

/// Lists of rows against the lists of widths.
void check_rows(const SlimWidths& slim, std::int64_t hidden, Findings& findings) {
  for (const auto& [layer, experts] : slim.rows) {
    const auto widths = slim.widths.find(layer);
    if (widths == slim.widths.end() || widths->second.size() != experts.size()) {
      const std::size_t listed = widths == slim.widths.end() ? 0 : widths->second.size();
      add_error(findings, "config.json", fmt::format("moetrim_slim: low_rank lists {} experts of layer {}, widths {}",
                                                     experts.size(), layer, listed));
      continue;
    }
    for (std::size_t expert = 0; expert < experts.size(); ++expert) {
      const std::int64_t width = widths->second[expert];
      if (!experts[expert]) continue;
      const auto [gate, up, down] = *experts[expert];
      if (slim.rank < std::min(width, hidden) && gate <= width && up <= width && down <= hidden) continue;
      add_error(findings, "config.json", fmt::format("moetrim_slim: low_rank of layer {}, expert {}: rank {} and {}, {} and {} "
                                                     "rows are more than matrices of {} and {} have", layer, expert, slim.rank,
                                                     gate, up, down, width, hidden));
    }
  }
}

/// What the folder must have beside the tensors.
void check_class(const Checkpoint& checkpoint, Findings& findings) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(checkpoint.folder() / kSlimFile, ignored)) {
    add_error(findings, std::string(kSlimFile), "is missing; transformers reads experts of different widths or numbers with it");
  }
  const auto classes = checkpoint.config().find("auto_map");
  if (classes == checkpoint.config().end() || !classes->is_object() || !classes->contains("AutoModelForCausalLM")) {
    add_error(findings, "config.json", "auto_map names no class for AutoModelForCausalLM, so that transformers would load "
                                       "another one");
  }
}

void check_largest(const Checkpoint& checkpoint, const SlimWidths& slim, Findings& findings) {
  const auto& text = language_model(checkpoint.config());
  const auto type = checkpoint.config().find("model_type");
  if (type == checkpoint.config().end() || !type->is_string()) {
    return add_error(findings, "config.json", "has no model_type");
  }
  const Family* family = find_family(type->get_ref<const std::string&>());
  if (family == nullptr) return;
  std::int64_t largest = 0;
  for (const auto& [layer, experts] : slim.experts) largest = std::max(largest, experts);
  for (const auto key : family->expert_count_keys) {
    const std::int64_t experts = whole_number(text, key);
    if (!slim.experts.empty()) {
      if (experts < 0 || experts == largest) continue;
      add_error(findings, "config.json", fmt::format("moetrim_slim lists up to {} experts a layer, and {} is {}", largest, key,
                                                     experts));
      continue;
    }
    for (const auto& [layer, rows] : slim.map.empty() ? slim.widths : slim.map) {
      if (experts < 0 || experts == static_cast<std::int64_t>(rows.size())) continue;
      add_error(findings, "config.json", fmt::format("moetrim_slim lists {} {} for layer {}, and {} is {}", rows.size(),
                                                     slim.map.empty() ? "experts" : "rows of the router", layer, key, experts));
    }
  }
}

/// Rows of the router that share experts.
void check_map(const SlimWidths& slim, Findings& findings) {
  if (slim.map.empty()) return;
  for (const auto& [layer, widths] : slim.widths) {
    const auto found = slim.map.find(layer);
    if (found == slim.map.end()) {
      add_error(findings, "config.json", fmt::format("moetrim_slim maps no rows of layer {}", layer));
      continue;
    }
    std::set<std::int64_t> used(found->second.begin(), found->second.end());
    const auto experts = static_cast<std::int64_t>(widths.size());
    if (*used.rbegin() >= experts) {
      add_error(findings, "config.json", fmt::format("moetrim_slim maps a row of layer {} to expert {} of {}", layer, *used.rbegin(), experts));
    } else if (static_cast<std::int64_t>(used.size()) < experts) {
      add_error(findings, "config.json", fmt::format("moetrim_slim maps no row of layer {} to some of its {} experts", layer, experts));
    }
  }
  for (const auto& [layer, rows] : slim.map) {
    if (!slim.widths.contains(layer)) add_error(findings, "config.json", fmt::format("moetrim_slim maps rows of layer {} without widths", layer));
  }
}

}  // namespace

void check_slim(const Checkpoint& checkpoint, const SlimWidths& slim, Findings& findings) {
  const auto& text = language_model(checkpoint.config());
  const std::int64_t hidden = whole_number(text, "hidden_size"), layers = whole_number(text, "num_hidden_layers");
  check_class(checkpoint, findings);
  check_largest(checkpoint, slim, findings);
  if (!slim.experts.empty()) check_counts(checkpoint, slim, findings);
  check_map(slim, findings);
  check_rows(slim, hidden, findings);
  std::map<int, std::map<std::string, std::set<int>>> seen;
  for (const Tensor& tensor : checkpoint.tensors()) {
    const auto name = slim_name(tensor.name, layers);
    if (!name) continue;
    const auto widths = slim.widths.find(name->layer);
    if (widths == slim.widths.end() || name->expert < 0 || name->expert >= static_cast<int>(widths->second.size())) {
      add_error(findings, tensor.name, "is of a layer or an expert that moetrim_slim does not list");
      continue;
    }
    const std::int64_t width = widths->second[static_cast<std::size_t>(name->expert)];
    const FactorPartName factor = factor_part(name->part);
    const auto* rows = rows_of(slim, name->layer, name->expert);
    const bool matrix = factor.matrix >= 0 || std::find(kMatrices.begin(), kMatrices.end(), name->part) != kMatrices.end();
    if (matrix && (factor.matrix >= 0) != (rows != nullptr)) {
      add_error(findings, tensor.name, fmt::format("is of an expert whose matrices are {} by moetrim_slim", rows ? "factors" : "whole"));
      continue;
    }
    const Shape expected = factor.matrix >= 0 ? factor_shape(factor, *rows, slim.rank, width, hidden)
                                              : shape_of(name->part, width, hidden, slim.input_first);
    if (expected.empty()) {
      add_error(findings, tensor.name, "is no part of an expert");
    } else if (tensor.shape != expected) {
      add_error(findings, tensor.name, fmt::format("has shape [{}], expected [{}] by moetrim_slim",
                                                   fmt::join(tensor.shape, ", "), fmt::join(expected, ", ")));
    }
    if (factor.kind == "row_ids" && tensor.shape == expected) {
      check_row_ids(checkpoint, tensor, factor.matrix == 2 ? hidden : width, findings);
    }
    seen[name->layer][name->part].insert(name->expert);
  }
  for (const auto& [layer, widths] : slim.widths) {
    auto& parts = seen[layer];
    std::size_t factored = 0;
    for (std::size_t expert = 0; expert < widths.size(); ++expert) {
      factored += rows_of(slim, layer, static_cast<int>(expert)) != nullptr;
    }
    for (const auto part : kMatrices) {
      parts[std::string(part)];
      for (const auto kind : kFactorParts) parts[fmt::format("{}_{}", part, kind)];
    }
    for (const auto& [part, experts] : parts) {
      const bool whole = std::find(kMatrices.begin(), kMatrices.end(), part) != kMatrices.end();
      const std::size_t listed = factor_part(part).matrix >= 0 ? factored : whole ? widths.size() - factored : widths.size();
      if (experts.size() == listed) continue;
      add_error(findings, fmt::format("layer {}", layer),
                fmt::format("has slim_{} of {} experts, moetrim_slim lists {}", part, experts.size(), listed));
    }
  }
}

}  // namespace moetrim::verify_detail
