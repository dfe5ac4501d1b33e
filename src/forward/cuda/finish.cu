// Ends an MoE block: how far a token's residual turns (in fp64, where 1 - cos is a difference of near numbers), and the residual
// step with shared experts, over a row that is in cache.

#include "forward/cuda/row.cuh"

namespace moetrim::cuda {

namespace {

template <class E, int V>
__global__ void finish(E* hidden, const float* routed, const E* shared, std::int64_t width, double* turns, float scale) {
  const std::int64_t row = blockIdx.x;
  E* h = hidden + row * width;
  const float* r = routed + row * width;
  const E* s = shared == nullptr ? nullptr : shared + row * width;
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * V;
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * V;
  double before = 0, after = 0, product = 0;
  for (std::int64_t i = first; i < width; i += step) {
    auto values = load<V>(h + i);
    const auto added = load<V>(r + i);
    Pack<E, V> more{};
    if (s != nullptr) more = load<V>(s + i);
    for (int j = 0; j < V; ++j) {
      const float a = widen(values.at[j]);
      const float b = a + scale * added.at[j];
      before += static_cast<double>(a) * a;
      after += static_cast<double>(b) * b;
      product += static_cast<double>(a) * b;
      float block = rounded<E>(added.at[j]);
      if (s != nullptr) block = rounded<E>(block + widen(more.at[j]));
      if (scale != 1.0F) block = rounded<E>(block * scale);
      values.at[j] = narrow<E>(a + block);
    }
    store<V>(h + i, values);
  }
  before = block_sum(before);
  after = block_sum(after);
  product = block_sum(product);
  if (threadIdx.x != 0) return;
  const double lengths = sqrt(before) * sqrt(after);
  const double turn = lengths == 0 ? 0.0 : 1.0 - product / lengths;
  turns[row] = turn < 0 ? 0.0 : turn;  // NaN stays NaN and is reported
}

}  // namespace

void finish_rows(Element element, void* hidden, const float* routed, const void* shared, std::int64_t rows, std::int64_t width,
                 double* turns, float scale, Stream stream) {
  if (rows == 0) return;
  with_element(element, [&](auto e) {
    using E = decltype(e);
    constexpr int V = 16 / sizeof(E);
    const bool packs = aligned16(hidden, routed, shared) && width % V == 0;
    const auto kernel = packs ? finish<E, V> : finish<E, 1>;
    launch(kernel, rows, threads_for(width / (packs ? V : 1)), 0, stream, static_cast<E*>(hidden), routed,
           static_cast<const E*>(shared), width, turns, scale);
  });
}

}  // namespace moetrim::cuda
