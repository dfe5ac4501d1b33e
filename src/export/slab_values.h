// The values of a slab of the source: an expert's share of a tensor or weight, or all of one without an expert axis.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "moetrim/family.h"
#include "moetrim/quantised.h"
#include "rewrite/atom_layout.h"

namespace moetrim::export_detail {

/// What a tensor of the model's checkpoint is. Only for tensors with a rule.
const TensorPlace& place_of(const Model& model, const Tensor& tensor);

/// The weight of another expert that is stored like this one: the same where experts are fused, or have no share in it.
const Weight& weight_of(const Model& model, const TensorPlace& place, int expert);

/// Lengths of a slab as it is stored, without the expert axis.
std::vector<std::int64_t> slab_shape(const Model& model, const Weight& weight);
std::uint64_t slab_elements(const Model& model, const Weight& weight);

/// Where its atomic experts lie; nothing for slabs that have none.
std::optional<AtomRows> atom_rows_of(const Model& model, const Weight& weight);

/// Reads slabs as fp32, in the order of the source; keeps its buffer from one to the next.
class SlabReader {
 public:
  /// The source is the model's checkpoint. Both must outlive this.
  SlabReader(const Checkpoint& source, const Model& model) : source_(source), model_(model) {}

  /// @param expert  -1 for a slab without an expert axis
  /// @throws InvalidInput on a scale that cannot be meant.
  void read(const Weight& weight, int expert, std::vector<float>& values);
  /// The parts of a quantised weight, with their bytes; valid until the next call.
  void read_parts(const Weight& weight, int expert, PackedWeight& parts);

 private:
  const Checkpoint& source_;
  const Model& model_;
  std::vector<std::byte> raw_;
};

/// Rounds to the nearest number of the type, ties to even, once. Types: BF16, F16, F32.
/// @param tensor  for messages
/// @throws InvalidInput when a finite value is too large for the type.
void store_values(std::span<const double> values, Dtype dtype, std::string_view tensor, std::vector<std::byte>& out);

}  // namespace moetrim::export_detail
