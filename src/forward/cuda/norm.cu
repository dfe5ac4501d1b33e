// Normalised rows: a block reads its row twice, the second time from cache.

#include "forward/cuda/row.cuh"

namespace moetrim::cuda {

namespace {

template <class E, int V>
__global__ void normalise(const E* x, std::int64_t x_stride, NormArguments norm, std::int64_t width, E* out, std::int64_t out_stride) {
  const E* from = x + static_cast<std::int64_t>(blockIdx.x) * x_stride;
  E* to = out + static_cast<std::int64_t>(blockIdx.x) * out_stride;
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * V;
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * V;
  float mean = 0;
  if (norm.bias != nullptr) {
    float sum = 0;
    for (std::int64_t i = first; i < width; i += step) {
      const auto pack = load<V>(from + i);
      for (int j = 0; j < V; ++j) sum += widen(pack.at[j]);
    }
    mean = block_sum(sum) / static_cast<float>(width);
  }
  float squares = 0;
  for (std::int64_t i = first; i < width; i += step) {
    const auto pack = load<V>(from + i);
    for (int j = 0; j < V; ++j) {
      const float v = widen(pack.at[j]) - mean;
      squares += v * v;
    }
  }
  const float scale = 1.0F / sqrtf(block_sum(squares) / static_cast<float>(width) + norm.epsilon);
  for (std::int64_t i = first; i < width; i += step) {
    auto pack = load<V>(from + i);
    for (int j = 0; j < V; ++j) {
      const float scaled = (widen(pack.at[j]) - mean) * scale;
      const float before = norm.weight_in_fp32 ? scaled : rounded<E>(scaled);
      const float weighed = norm.weight == nullptr ? scaled : norm.weight[i + j] * before;
      pack.at[j] = narrow<E>(norm.bias == nullptr ? weighed : weighed + norm.bias[i + j]);
    }
    store<V>(to + i, pack);
  }
}

}  // namespace

void norm_rows(Element element, const void* x, std::int64_t x_stride, NormArguments norm, std::int64_t rows, std::int64_t width,
               void* out, std::int64_t out_stride, Stream stream) {
  if (rows == 0 || width == 0) return;
  with_element(element, [&](auto e) {
    using E = decltype(e);
    constexpr int V = 16 / sizeof(E);
    const bool packs = aligned16(x, out) && width % V == 0 && x_stride % V == 0 && out_stride % V == 0;
    const auto kernel = packs ? normalise<E, V> : normalise<E, 1>;
    launch(kernel, rows, threads_for(width / (packs ? V : 1)), 0, stream, static_cast<const E*>(x), x_stride,
           norm, width, static_cast<E*>(out), out_stride);
  });
}

}  // namespace moetrim::cuda
