// The boundary between the program and libmoetrim_cuda.so: everything that needs LibTorch's CUDA libraries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include <ATen/core/Tensor.h>

#include "forward/cuda/types.h"
#include "forward/kernels.h"

namespace moetrim::cuda {

/// The kernels of forward/kernels.h that have a CUDA form, for fp32 and bf16 runs. Tensors lie on one device; work is queued on
/// its current stream.
struct Kernels {
  void (*norm_rows)(const Numerics& numerics, const at::Tensor& x, const Norm& norm, at::Tensor& out);
  void (*norm_product)(const Numerics& numerics, const at::Tensor& x, const Norm& norm, at::Tensor& out);
  void (*rotate_rows)(const Numerics& numerics, at::Tensor& qkv, const kernels::HeadLayout& layout,
                      const kernels::Rotation& rotation);
  void (*rotate_heads)(const Numerics& numerics, at::Tensor& x, const kernels::Rotation& rotation);
  void (*add_rows)(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& delta, double scale);
  void (*gather_rows)(const Numerics& numerics, const at::Tensor& x, const at::Tensor& rows, at::Tensor& out);
  void (*gated_silu)(const Numerics& numerics, const at::Tensor& gate_up, at::Tensor& out);
  void (*clamped_swiglu)(const Numerics& numerics, const at::Tensor& gate_up, double limit, double alpha, at::Tensor& out);
  void (*scatter_rows)(const Numerics& numerics, const at::Tensor& f, const at::Tensor& rows, const at::Tensor& gates,
                       at::Tensor& sum, at::Tensor& norms, at::Tensor& max_abs);
  void (*scatter_pairs)(const Numerics& numerics, const at::Tensor& f, const kernels::LayerPairs& pairs, std::int64_t first,
                        at::Tensor& sum, at::Tensor& norms, at::Tensor& max_abs);
  void (*finish_rows)(const Numerics& numerics, at::Tensor& hidden, const at::Tensor& routed, const at::Tensor& shared,
                      at::Tensor& turns, double scale);
  void (*gate_rows)(const Numerics& numerics, const at::Tensor& gate, const at::Tensor& x, at::Tensor& out);
};

/// out = bf16(code * scale).  codes u8 [N, K] or [N, K / 2] for e2m1, low nibble first; scales f32 with one number for every
/// scale_rows x scale_cols values; out [N, K] bf16.
using Dequantise = void (*)(Code code, const at::Tensor& codes, const at::Tensor& scales, std::int64_t scale_rows,
                            std::int64_t scale_cols, at::Tensor& out);

/// A second stream of a device, which brings weights while the current stream computes.
class CopyStream {
 public:
  /// A place in the work that the computing stream was given.
  using Mark = std::shared_ptr<const void>;

  virtual ~CopyStream() = default;
  /// Calls `body` with this stream as the current one.
  virtual void run(const std::function<void()>& body) = 0;
  /// Where the computing stream's work ends now.
  virtual Mark mark_compute() = 0;
  /// What this stream is given from now on waits for that place.
  virtual void wait_for(const Mark& mark) = 0;
  /// The computing stream waits for what this stream was given so far.
  virtual void hold_compute() = 0;
  /// Keeps memory of the host until what this stream was given so far is done. Waits when that are more than a few.
  virtual void keep(std::shared_ptr<const void> memory) = 0;
};

struct Memory {
  std::uint64_t free_bytes = 0, total_bytes = 0;
};

/// Functions of the library.
struct Table {
  std::uint64_t size = sizeof(Table);  ///< library and program were built together when this is the same in both

  /// Why the device cannot be used; empty when it can.
  std::string (*problem)(int device);
  /// What the device has, counting what LibTorch's allocator holds in reserve as free.
  Memory (*memory)(int device);
  /// Whether at::_grouped_mm has a kernel of its own for the device; else it is a loop that waits for the device.
  bool (*multiplies_groups)(int device);
  /// Host memory that the device reads at full speed, and on its own. Null when there is none.
  std::byte* (*allocate_pinned)(std::size_t size);
  void (*free_pinned)(std::byte* memory);
  std::unique_ptr<CopyStream> (*open_copy_stream)(int device);

  Kernels kernels;
  Dequantise dequantise;
};

}  // namespace moetrim::cuda

/// The one symbol that the program looks up.
extern "C" const moetrim::cuda::Table* moetrim_cuda_table();
