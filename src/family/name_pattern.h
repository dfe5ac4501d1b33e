// Tensor name patterns: "model.layers.{layer}.mlp.experts.{expert}.up_proj.weight".
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace moetrim {

/// The numbers found where the pattern has a placeholder, -1 where it has none.
struct NameNumbers {
  int layer = -1;
  int expert = -1;
  int mtp = -1;
};

/// Matches the whole name. Numbers are plain decimals without leading zeros, so that a name has one spelling.
std::optional<NameNumbers> match_name(std::string_view pattern, std::string_view name);
/// The name for these numbers.
std::string expand_name(std::string_view pattern, int layer, int expert);
/// `name` with another expert number. Its front must match the pattern up to that number; what follows stays as it is.
std::string with_expert(std::string_view pattern, std::string_view name, int expert);

}  // namespace moetrim
