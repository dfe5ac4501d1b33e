// From one plan to another on the same checkpoint, without leaving the memory: which experts go, which come, in whose slots,
// and which bytes of the checkpoint that takes.
#pragma once

#include <cstdint>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/checkpoint.h"
#include "moetrim/family.h"
#include "moetrim/plan.h"

namespace moetrim {

/// Bytes of one tensor that an expert has, or one of its router's.
struct ExpertBytes {
  const Tensor* tensor = nullptr;
  std::uint64_t begin = 0;  ///< in the tensor
  std::uint64_t size = 0;
};

struct SlotChange {
  int slot = 0;  ///< from 0, of the layer's experts as the first plan wrote them
  int drop = 0;  ///< original id of the expert that was in it
  int load = 0;  ///< of the one that comes
  /// All that is the coming expert's: its matrices with biases and scales, its router row, its selection bias. In the order of the
  /// checkpoint's tensors; several ranges of a tensor whose expert axis is not the first. Scales that all experts share are
  /// nobody's.
  std::vector<ExpertBytes> bytes;
};

struct LayerDelta {
  int layer = 0;                     ///< absolute id
  std::vector<SlotChange> changes;   ///< by slot, ascending, and by the expert that comes
  std::vector<int> slots;            ///< original id of the expert in every slot afterwards
};

/// Neighbouring bytes of a file, to be read at once.
struct DeltaRead {
  std::uint32_t file = 0;            ///< index into Checkpoint::files()
  std::uint64_t offset = 0;          ///< from the start of the file
  std::uint64_t size = 0;
};

struct ExpertDelta {
  std::vector<LayerDelta> layers;    ///< every layer of the plans, ascending
  std::vector<DeltaRead> reads;      ///< by file, then offset
  std::uint64_t load_bytes = 0, drop_bytes = 0;
  std::int64_t changes = 0;          ///< experts that come
};

/// An expert that both plans keep stays in its slot; the slots of those that go are filled in ascending order, by experts in
/// ascending order of their ids. So an expert comes into the slots of its own group, where the router has groups: both plans
/// keep as many of each.
/// @throws InvalidInput when a plan is not of the model, keeps parts of experts, changes values or the scale of gates, repeats
///         experts, or when the plans differ in what becomes of groups, or in the number of experts of a layer; or when the part
///         of one expert does not end on a byte.
ExpertDelta expert_delta(const Model& model, const Plan& from, const Plan& to);

/// {"layers": [{"layer", "slots", "drop", "load": [{"expert", "slot", "bytes": [{"tensor", "file", "offset", "bytes", …}]}]}],
/// "reads", …}, with files by name.
nlohmann::ordered_json delta_to_json(const Model& model, const ExpertDelta& delta);

}  // namespace moetrim
