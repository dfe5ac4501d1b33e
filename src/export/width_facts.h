// How wide experts were and are, for the record, the card and the warnings.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "moetrim/export.h"

namespace moetrim::export_detail {

struct WidthFacts {
  Slimming slimming;
  std::int64_t before = 0;                ///< atomic experts of an expert
  std::int64_t least = 0, most = 0;       ///< after
  std::int64_t atoms = 0, kept_atoms = 0; ///< of all MoE layers, dropped experts included
  std::int64_t kept_experts = 0;
  std::size_t quantised_again = 0;        ///< weights whose FP8 blocks were parted
  std::int64_t block = 0;                 ///< neighbouring atomic experts of such a block; 0 when gate and up share one

  double removed_percent() const { return 100.0 * static_cast<double>(atoms - kept_atoms) / static_cast<double>(atoms); }
  /// "512", or "0 to 768, mean 512.3".
  std::string widths() const;
};

/// Whether the tensor holds values that no tensor of the source holds.
bool has_recipe(const OutputTensor& tensor);

/// @param tensors  of the new checkpoint
/// @return nothing when experts keep their width
std::optional<WidthFacts> width_facts(const Model& model, const Plan& plan, std::span<const OutputTensor> tensors, Mtp mtp);

}  // namespace moetrim::export_detail
