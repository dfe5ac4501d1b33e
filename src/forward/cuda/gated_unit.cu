// What is between an MLP's two matrices, the gate of shared experts, and the residual step: one pass over the values.

#include "forward/cuda/row.cuh"

namespace moetrim::cuda {

namespace {

template <class E>
__device__ float silu_times(float gate, float up) {
  return rounded<E>(gate / (1.0F + expf(-gate))) * up;
}

template <class E>
__device__ float swiglu(float gate, float up, float limit, float alpha) {
  const float g = gate > limit ? limit : gate;
  const float u = up > limit ? limit : (up < -limit ? -limit : up);
  const float sigmoid = rounded<E>(1.0F / (1.0F + expf(-rounded<E>(g * alpha))));
  return rounded<E>(u + 1.0F) * rounded<E>(g * sigmoid);
}

template <class E, int V>
__global__ void unit(const E* gate_up, std::int64_t rows, std::int64_t width, float limit, float alpha, E* out) {
  const std::int64_t packs = width / V;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * packs; i += step) {
    const std::int64_t row = i / packs;
    const std::int64_t column = (i - row * packs) * V;
    const auto gate = load<V>(gate_up + row * 2 * width + column);
    const auto up = load<V>(gate_up + row * 2 * width + width + column);
    Pack<E, V> to;
    for (int j = 0; j < V; ++j) {
      const float g = widen(gate.at[j]);
      const float u = widen(up.at[j]);
      to.at[j] = narrow<E>(alpha == 0 ? silu_times<E>(g, u) : swiglu<E>(g, u, limit, alpha));
    }
    store<V>(out + row * width + column, to);
  }
}

template <class E>
__global__ void gate_all(const E* gate, const E* x, std::int64_t rows, std::int64_t width, E* out) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * width; i += step) {
    const float factor = rounded<E>(1.0F / (1.0F + expf(-widen(gate[i / width]))));
    out[i] = narrow<E>(factor * widen(x[i]));
  }
}

template <class E, int V>
__global__ void add(E* hidden, const E* delta, std::int64_t count, float scale) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count / V; i += step) {
    auto sum = load<V>(hidden + i * V);
    const auto more = load<V>(delta + i * V);
    for (int j = 0; j < V; ++j) {
      const float v = widen(more.at[j]);
      sum.at[j] = narrow<E>(widen(sum.at[j]) + (scale == 1.0F ? v : rounded<E>(v * scale)));
    }
    store<V>(hidden + i * V, sum);
  }
}

}  // namespace

void gated_unit(Element element, const void* gate_up, std::int64_t rows, std::int64_t width, float limit, float alpha, void* out,
                Stream stream) {
  if (rows == 0 || width == 0) return;
  with_element(element, [&](auto e) {
    using E = decltype(e);
    constexpr int V = 16 / sizeof(E);
    const bool packs = aligned16(gate_up, out) && width % V == 0;
    const auto kernel = packs ? unit<E, V> : unit<E, 1>;
    launch(kernel, blocks_for(rows * width / (packs ? V : 1)), kMaxThreads, 0, stream, static_cast<const E*>(gate_up), rows,
           width, limit, alpha, static_cast<E*>(out));
  });
}

void gate_rows(Element element, const void* gate, const void* x, std::int64_t rows, std::int64_t width, void* out,
               Stream stream) {
  if (rows == 0 || width == 0) return;
  with_element(element, [&](auto e) {
    using E = decltype(e);
    launch(gate_all<E>, blocks_for(rows * width), kMaxThreads, 0, stream, static_cast<const E*>(gate),
           static_cast<const E*>(x), rows, width, static_cast<E*>(out));
  });
}

void add_rows(Element element, void* hidden, const void* delta, std::int64_t count, float scale, Stream stream) {
  if (count == 0) return;
  with_element(element, [&](auto e) {
    using E = decltype(e);
    constexpr int V = 16 / sizeof(E);
    const bool packs = aligned16(hidden, delta) && count % V == 0;
    const auto kernel = packs ? add<E, V> : add<E, 1>;
    launch(kernel, blocks_for(count / (packs ? V : 1)), kMaxThreads, 0, stream, static_cast<E*>(hidden),
           static_cast<const E*>(delta), count, scale);
  });
}

}  // namespace moetrim::cuda
