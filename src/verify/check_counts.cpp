// Layers that keep different numbers of experts: every tensor with an expert axis, and every expert that is a tensor of its
// own, as config.json lists them.

#include <algorithm>
#include <map>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "family/name_pattern.h"
#include "moetrim/family.h"
#include "verify/checks.h"

namespace moetrim::verify_detail {

namespace {

/// What the tensors of a layer say.
struct LayerExperts {
  bool router = false;
  std::map<Role, std::set<int>> numbered;  ///< experts that are tensors of their own
  bool fused = false;
};

class Counts {
 public:
  Counts(const Checkpoint& checkpoint, const SlimWidths& slim, const Family& family, int layers, Findings& findings)
      : slim_(slim), family_(family), layers_(layers), findings_(findings) {
    for (const Tensor& tensor : checkpoint.tensors()) add(tensor);
  }

  void check_complete() {
    for (const auto& [layer, experts] : slim_.experts) check_layer(layer, experts, found_[layer]);
    for (const auto& [layer, widths] : slim_.widths) {
      const auto listed = slim_.experts.find(layer);
      if (listed != slim_.experts.end() && listed->second == std::ssize(widths)) continue;
      const std::int64_t experts = listed == slim_.experts.end() ? 0 : listed->second;
      add_error(findings_, "config.json", fmt::format("moetrim_slim lists {} widths for layer {}, and {} experts",
                                                      widths.size(), layer, experts));
    }
  }

 private:
  /// Several rules may have one name; all of them have the same expert axis.
  void add(const Tensor& tensor) {
    for (const TensorRule& rule : family_.tensors) {
      const auto numbers = match_name(rule.name, tensor.name);
      if (!numbers) continue;
      const int layer = numbers->mtp >= 0 ? layers_ + numbers->mtp : numbers->layer;
      const auto axis = std::find(rule.axes.begin(), rule.axes.end(), Axis::E);
      if (layer < 0 || (numbers->expert < 0 && axis == rule.axes.end())) return;
      const auto listed = slim_.experts.find(layer);
      if (listed == slim_.experts.end()) {
        if (layer < layers_) add_error(findings_, tensor.name, "is of a layer that moetrim_slim does not list");
      } else if (numbers->expert >= 0) {
        found_[layer].numbered[rule.role].insert(numbers->expert);
      } else {
        check_length(tensor, static_cast<std::size_t>(axis - rule.axes.begin()), listed->second);
        found_[layer].router = found_[layer].router || rule.role == Role::router;
        found_[layer].fused = found_[layer].fused || rule.role == Role::fused_gate_up;
      }
      return;
    }
  }

  void check_length(const Tensor& tensor, std::size_t axis, std::int64_t experts) {
    if (axis < tensor.shape.size() && tensor.shape[axis] == experts) return;
    add_error(findings_, tensor.name, fmt::format("has shape [{}], expected {} experts by moetrim_slim",
                                                  fmt::join(tensor.shape, ", "), experts));
  }

  void check_layer(int layer, std::int64_t experts, const LayerExperts& found) {
    const std::string where = fmt::format("layer {}", layer);
    if (!found.router) add_error(findings_, where, "has no router, and moetrim_slim lists its experts");
    if (slim_.widths.contains(layer) || found.fused) return;
    if (found.numbered.empty()) add_error(findings_, where, "has no experts, and moetrim_slim lists some");
    for (const auto& [role, numbers] : found.numbered) {
      if (std::ssize(numbers) == experts && *numbers.rbegin() == experts - 1) continue;
      add_error(findings_, where, fmt::format("has {} experts up to number {}, moetrim_slim lists {}", numbers.size(),
                                              *numbers.rbegin(), experts));
      return;
    }
  }

  const SlimWidths& slim_;
  const Family& family_;
  const int layers_;
  Findings& findings_;
  std::map<int, LayerExperts> found_;
};

}  // namespace

void check_counts(const Checkpoint& checkpoint, const SlimWidths& slim, Findings& findings) {
  const auto& config = checkpoint.config();
  const auto type = config.find("model_type");
  const bool named = type != config.end() && type->is_string();
  const Family* family = named ? find_family(type->get_ref<const std::string&>()) : nullptr;
  if (family == nullptr) {
    return add_error(findings, "config.json", "lists experts by layer for a family that moetrim does not know");
  }
  const auto nested = config.find("text_config");
  const auto& text = nested != config.end() && nested->is_object() ? *nested : config;
  const auto layers = text.find("num_hidden_layers");
  const bool counts = layers != text.end() && layers->is_number_unsigned() && layers->get<std::uint64_t>() <= 1'000'000;
  if (!counts) return add_error(findings, "config.json", "has no number of layers (num_hidden_layers)");
  Counts(checkpoint, slim, *family, layers->get<int>(), findings).check_complete();
}

}  // namespace moetrim::verify_detail
