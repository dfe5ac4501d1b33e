// The experts of an MoE layer on a device: as many at a time as there is room for, each group's weights brought by a stream of
// their own while the group before is computed.
#pragma once

#include <cstdint>

#include "forward/cuda/table.h"
#include "forward/experts.h"

namespace moetrim {

/// What bounds the memory that a layer's experts take on the device.
struct GroupLimits {
  std::int64_t experts = 1;   ///< whose weights are there at a time, twice: one group computes while the other comes
  std::int64_t rows = 1;      ///< of a matrix product
  bool one_product = false;   ///< a group is one at::_grouped_mm, else a matrix product an expert
};

/// What a device has room for.
/// @throws OutOfResources when not even two experts fit.
GroupLimits plan_groups(const Model& model, const Numerics& numerics, const cuda::Memory& memory, bool multiplies_groups);

/// As run_experts, and with its order of sums, (expert, token). For fp32 and bf16, without masks of atomic experts.
/// @param copies  brings the weights; null: on the CPU, for tests
void run_expert_groups(const TileContext& context, const FetchExpert& fetch, cuda::CopyStream* copies, const GroupLimits& limits,
                       const at::Tensor& x, RoutedLayer& routed, at::Tensor& sum);

}  // namespace moetrim
