// Rewrite: a checkpoint and a plan to the stream of tensors, and the config.json, of the new checkpoint.
// No tensor is computed or even read here: dropping experts only moves bytes, so an output tensor is a list of byte
// ranges of the source, and FP8, GPTQ or AWQ weights stay what they are.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/checkpoint.h"
#include "moetrim/family.h"
#include "moetrim/plan.h"

namespace moetrim {

/// Bytes [begin, end) of a tensor of the source, which must outlive the piece.
struct Piece {
  const Tensor* source = nullptr;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// A tensor of the new checkpoint. Its bytes are the pieces, joined.
struct OutputTensor {
  TensorSpec spec;
  std::vector<Piece> pieces;
};

/// What becomes of multi-token-prediction blocks.
enum class Mtp : std::uint8_t {
  prune,  ///< as the plan says, which must cover them
  keep,   ///< copied with all their experts: for runtimes that take unequal counts
  drop,   ///< left out; config.json then counts none
};
/// "prune", "keep" or "drop". @throws UsageError
Mtp parse_mtp(std::string_view text);

/// Refuses a plan that does not belong to the model: family, expert count, MoE layers, ids, experts per token, fingerprint.
/// @param fingerprint  of the model's checkpoint; empty: do not compare (the plan of another checkpoint is wanted).
/// @throws InvalidInput naming the layer or field, what was expected and what was found.
void check_plan(const Model& model, const Plan& plan, std::string_view fingerprint, Mtp mtp = Mtp::prune);

/// The tensors of the new checkpoint, in reading order of the source, so that reading stays sequential.
/// Kept experts are numbered densely in the order of PlanLayer::keep, in the layout (one by one, or fused) that was read.
/// Expects a plan that check_plan accepts.
/// @throws InvalidInput when a row of a packed tensor does not end on a byte.
std::vector<OutputTensor> plan_tensors(const Model& model, const Plan& plan, Mtp mtp = Mtp::prune);

/// config.json of the new checkpoint: every key that counts experts is edited where it is present (also inside
/// `text_config`), none is added, and lists of modules in `quantization_config` follow the new expert numbers.
/// A plan with `regroup` sets the group counts to 1, a plan with `correct_drift` the routed scaling factor, and dropped
/// multi-token-prediction blocks their count to 0. Key order and all other values stay. Expects a plan that check_plan accepts.
/// @throws InvalidInput when a list names single experts in a way that cannot be renumbered.
nlohmann::ordered_json rewrite_config(const Model& model, const Plan& plan, Mtp mtp = Mtp::prune);

/// What the user should know about the result, one sentence each: router drift where gates are not normalised, and
/// patterns in `quantization_config` that look as if they named single experts.
std::vector<std::string> rewrite_warnings(const Model& model, const Plan& plan, Mtp mtp = Mtp::prune);

}  // namespace moetrim
