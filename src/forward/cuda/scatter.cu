// Experts' outputs, taken in one pass: added to their tokens' sums with the gate weights, and their norms and largest magnitudes
// reduced. One block has one sum to itself and adds in the order of experts: no atomics, one order of sums.

#include "forward/cuda/row.cuh"

namespace moetrim::cuda {

namespace {

/// Adds a pack of values of one row to a pack of sums, and reduces over the warp. All lanes take part.
template <class E, int V>
__device__ void take(const Pack<E, V>& values, float gate, Pack<float, V>& sum, float& squares, float& largest) {
  squares = 0;
  largest = 0;
  for (int j = 0; j < V; ++j) {
    const float v = widen(values.at[j]);
    squares += v * v;
    largest = fmaxf(largest, fabsf(v));
    sum.at[j] += gate * v;
  }
  squares = warp_sum(squares);
  largest = warp_max(largest);
}

/// The rows of one sum: `count` numbers of rows of f, ascending, less `first`; gates and statistics have all rows' numbers.
template <class E, int V>
__device__ void add_rows_to(const E* f, std::int64_t first, const std::int32_t* numbers, int count, const float* gates,
                            std::int64_t width, float* sum, float* norms, float* max_abs) {
  float* parts = shared_floats();  // [count, warps] squares, then largest magnitudes
  const int warps = static_cast<int>(blockDim.x / 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  float* of_squares = parts;
  float* of_largest = parts + count * warps;
  for (int i = static_cast<int>(threadIdx.x); i < 2 * count * warps; i += static_cast<int>(blockDim.x)) parts[i] = 0;
  __syncthreads();
  // Every lane goes through every block of columns, since the sums over a warp need all of them.
  for (std::int64_t begin = 0; begin < width; begin += static_cast<std::int64_t>(blockDim.x) * V) {
    const std::int64_t column = begin + static_cast<std::int64_t>(threadIdx.x) * V;
    const bool inside = column < width;
    Pack<float, V> total{};
    if (inside) total = load<V>(sum + column);
    for (int i = 0; i < count; ++i) {
      Pack<E, V> values;
      for (int j = 0; j < V; ++j) values.at[j] = narrow<E>(0.0F);
      if (inside) values = load<V>(f + (numbers[i] - first) * width + column);
      float squares, largest;
      take(values, gates[numbers[i]], total, squares, largest);
      if (threadIdx.x % 32 != 0) continue;
      of_squares[i * warps + warp] += squares;
      of_largest[i * warps + warp] = fmaxf(of_largest[i * warps + warp], largest);
    }
    if (inside) store<V>(sum + column, total);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    float squares = 0;
    float largest = 0;
    for (int w = 0; w < warps; ++w) {
      squares += of_squares[i * warps + w];
      largest = fmaxf(largest, of_largest[i * warps + w]);
    }
    norms[numbers[i]] = sqrtf(squares);
    max_abs[numbers[i]] = largest;
  }
}

template <class E, int V>
__global__ void scatter_one(const E* f, const std::int32_t* rows, const float* gates, std::int64_t width, float* sum,
                            float* norms, float* max_abs) {
  __shared__ std::int32_t number;
  if (threadIdx.x == 0) number = static_cast<std::int32_t>(blockIdx.x);
  __syncthreads();
  add_rows_to<E, V>(f, 0, &number, 1, gates, width, sum + rows[number] * width, norms, max_abs);
}

template <class E, int V>
__global__ void scatter_slots(const E* f, PairRows pairs, std::int64_t width, float* sum, float* norms, float* max_abs) {
  const std::int32_t* places = pairs.places + blockIdx.x * pairs.slots;
  int begin = 0;
  while (begin < pairs.slots && places[begin] < pairs.first) ++begin;
  int end = begin;
  while (end < pairs.slots && places[end] < pairs.first + pairs.count) ++end;
  if (begin == end) return;
  add_rows_to<E, V>(f, pairs.first, places + begin, end - begin, pairs.gates, width, sum + blockIdx.x * width, norms, max_abs);
}

template <class E>
bool packs_fit(const void* f, const float* sum, std::int64_t width) {
  return aligned16(f, sum) && width % (16 / static_cast<std::int64_t>(sizeof(E))) == 0;
}

}  // namespace

void scatter_rows(Element element, const void* f, const std::int32_t* rows, const float* gates, std::int64_t count,
                  std::int64_t width, float* sum, float* norms, float* max_abs, Stream stream) {
  if (count == 0) return;
  with_element(element, [&](auto e) {
    using E = decltype(e);
    constexpr int V = 16 / sizeof(E);
    const bool packs = packs_fit<E>(f, sum, width);
    const unsigned threads = threads_for(width / (packs ? V : 1));
    const auto kernel = packs ? scatter_one<E, V> : scatter_one<E, 1>;
    launch(kernel, count, threads, 2 * threads / 32 * sizeof(float), stream, static_cast<const E*>(f), rows, gates,
           width, sum, norms, max_abs);
  });
}

void scatter_pairs(Element element, const void* f, const PairRows& pairs, std::int64_t width, float* sum, float* norms,
                   float* max_abs, Stream stream) {
  if (pairs.count == 0) return;
  with_element(element, [&](auto e) {
    using E = decltype(e);
    constexpr int V = 16 / sizeof(E);
    const bool packs = packs_fit<E>(f, sum, width);
    const unsigned threads = threads_for(width / (packs ? V : 1));
    const auto parts_bytes = 2 * static_cast<std::size_t>(pairs.slots) * (threads / 32) * sizeof(float);
    const auto kernel = packs ? scatter_slots<E, V> : scatter_slots<E, 1>;
    launch(kernel, pairs.tokens, threads, parts_bytes, stream, static_cast<const E*>(f), pairs, width, sum, norms,
           max_abs);
  });
}

}  // namespace moetrim::cuda
