// Rows of a matrix, picked: a copy of bytes, 16 at a time where rows allow it.

#include "forward/cuda/row.cuh"

namespace moetrim::cuda {

namespace {

/// What a thread moves at once.
struct alignas(16) Chunk {
  std::uint32_t words[4];
};

template <class Unit>
__global__ void gather(const Unit* x, const std::int32_t* rows, std::int64_t count, std::int64_t units, Unit* out) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count * units; i += step) {
    const std::int64_t row = i / units;
    out[i] = x[rows[row] * units + (i - row * units)];
  }
}

template <class Unit>
void gather_units(const void* x, const std::int32_t* rows, std::int64_t count, std::int64_t row_bytes, void* out, Stream stream) {
  const std::int64_t units = row_bytes / static_cast<std::int64_t>(sizeof(Unit));
  launch(gather<Unit>, blocks_for(count * units), kMaxThreads, 0, stream, static_cast<const Unit*>(x), rows, count, units,
         static_cast<Unit*>(out));
}

}  // namespace

void gather_rows(const void* x, const std::int32_t* rows, std::int64_t count, std::int64_t row_bytes, void* out,
                 Stream stream) {
  if (count == 0 || row_bytes == 0) return;
  const bool packs = aligned16(x, out) && row_bytes % 16 == 0;
  (packs ? gather_units<Chunk> : gather_units<std::uint16_t>)(x, rows, count, row_bytes, out, stream);
}

}  // namespace moetrim::cuda
