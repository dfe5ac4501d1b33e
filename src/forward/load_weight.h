// One weight: its bytes to a tensor, dequantised where it is packed.
#pragma once

#include <array>
#include <optional>

#include <ATen/core/Tensor.h>

#include "forward/cuda/table.h"
#include "forward/kernels.h"
#include "forward/numerics.h"
#include "forward/weight_stream.h"
#include "moetrim/family.h"

namespace moetrim {

/// Where the parts of a weight lie in memory; null where it has none.
using PartBytes = std::array<const std::byte*, kPartCount>;

/// The ranges of a weight's parts, in the order of `Part`; of one expert where the weight is fused and `expert` >= 0.
void append_ranges(const Weight& weight, int expert, WeightGroup& group);
/// Goes through a group that append_ranges() made: takes the weight's parts from the front of `bytes`.
PartBytes take_parts(const Weight& weight, int expert, const std::byte*& bytes);

/// The bytes of a group on the device, laid out as on the host: packed weights travel packed.
struct DeviceCopy {
  const std::byte* host = nullptr;
  at::Tensor bytes;                         ///< u8
  cuda::Dequantise dequantise = nullptr;    ///< decodes them there

  /// Copies a group; nothing when its parts do not all begin at multiples of 16 bytes, as a device wants them.
  /// @param queued  do not wait for the copy: the caller keeps `buffer` until the device has come so far
  static std::optional<DeviceCopy> make(const WeightGroup& group, const WeightBuffer& buffer, const at::Device& device, bool queued);
  /// The bytes that lie at `from` on the host.
  at::Tensor at(const std::byte* from, std::int64_t size) const { return bytes.narrow(0, from - host, size); }
};

/// To the device without waiting for what it does, by way of pinned memory that LibTorch keeps until it was read.
at::Tensor queue_to(const at::Device& device, const at::Tensor& values);

/// How a value becomes one of the run: in a bf16 run it is rounded to bf16 first, unless it is wanted `exact`.
struct Conversion {
  at::ScalarType type;
  const Numerics& numerics;
  const at::Device& device;
  bool exact = false;
  bool matrix = false;  ///< only kernels::multiply() reads it, which takes bf16 beside fp32: no conversion on the CPU
  const DeviceCopy* copy = nullptr;  ///< where the bytes are on `device` too
};

/// A matrix [N, K] (of one expert where the weight is fused), or a vector or convolution in its own shape. Shares the memory
/// of the bytes where nothing had to be converted; may be a transposed view.
at::Tensor load_weight(const Model& model, const Weight& weight, const PartBytes& bytes, const Conversion& conversion);

/// A norm of the family's kind; weight and bias f32, undefined where there is none.
Norm make_norm(const Model& model, at::Tensor weight, at::Tensor bias = {});

/// The values, contiguous and in memory of their own: the buffer under a view goes back to its stream.
at::Tensor owned(const at::Tensor& values, const PartBytes& bytes);

/// Rows of two matrices below one another, without a copy more than conversion needs.
at::Tensor load_stacked(const Model& model, const Weight& first, const PartBytes& first_bytes, const Weight& second,
                        const PartBytes& second_bytes, const Conversion& conversion);

}  // namespace moetrim
