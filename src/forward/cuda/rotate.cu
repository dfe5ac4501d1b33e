// Clamps, normalises and rotates heads in place: a warp holds one head in shared memory.

#include "forward/cuda/row.cuh"

namespace moetrim::cuda {

namespace {

constexpr int kHeadsPerBlock = 4;

template <class E>
__device__ void normalise(float* head, const NormArguments& norm, std::int64_t width, int lane) {
  float squares = 0;
  for (std::int64_t i = lane; i < width; i += 32) squares += head[i] * head[i];
  const float scale = 1.0F / sqrtf(warp_sum(squares) / static_cast<float>(width) + norm.epsilon);
  for (std::int64_t i = lane; i < width; i += 32) {
    const float scaled = head[i] * scale;
    const float before = norm.weight_in_fp32 ? scaled : rounded<E>(scaled);
    head[i] = rounded<E>(norm.weight == nullptr ? scaled : norm.weight[i] * before);
  }
  __syncwarp();
}

template <class E>
__device__ void rotate(float* head, const HeadSteps& steps, std::int64_t token, int lane) {
  const float* cosine = steps.cosine + token * steps.half;
  const float* sine = steps.sine + token * steps.half;
  const std::int64_t apart = steps.neighbours ? 1 : steps.half;
  for (std::int64_t i = lane; i < steps.half; i += 32) {
    float* low = head + (steps.neighbours ? 2 * i : i);
    const float a = low[0];
    const float b = low[apart];
    const auto step = [&](float v) { return steps.in_fp32 ? v : rounded<E>(v); };
    low[0] = rounded<E>(step(a * cosine[i]) - step(b * sine[i]));
    low[apart] = rounded<E>(step(b * cosine[i]) + step(a * sine[i]));
  }
  __syncwarp();
}

template <class E>
__global__ void turn(E* x, Heads heads, HeadSteps steps) {
  float* scratch = shared_floats();
  const int lane = static_cast<int>(threadIdx.x % 32);
  const std::int64_t warp = threadIdx.x / 32;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kHeadsPerBlock + warp;
  if (index >= heads.tokens * heads.heads) return;
  const std::int64_t token = index / heads.heads;
  E* own = x + token * heads.token_stride + index % heads.heads * heads.head_stride;
  float* head = scratch + warp * heads.width;
  for (std::int64_t i = lane; i < heads.width; i += 32) {
    const float v = widen(own[i]);
    // A comparison, not fmin: NaN stays NaN.
    head[i] = steps.clip > 0 ? rounded<E>(v > steps.clip ? steps.clip : (v < -steps.clip ? -steps.clip : v)) : v;
  }
  __syncwarp();
  if (steps.norm_before) normalise<E>(head, steps.norm, heads.width, lane);
  if (steps.cosine != nullptr) rotate<E>(head, steps, token, lane);
  if (steps.norm_after) normalise<E>(head, steps.norm, heads.width, lane);
  for (std::int64_t i = lane; i < heads.width; i += 32) own[i] = narrow<E>(head[i]);
}

}  // namespace

void rotate_heads(Element element, void* x, const Heads& heads, const HeadSteps& steps, Stream stream) {
  const std::int64_t count = heads.tokens * heads.heads;
  if (count == 0) return;
  const auto blocks = static_cast<unsigned>((count + kHeadsPerBlock - 1) / kHeadsPerBlock);
  const auto scratch_bytes = static_cast<std::size_t>(kHeadsPerBlock * heads.width) * sizeof(float);
  with_element(element, [&](auto e) {
    using E = decltype(e);
    launch(turn<E>, blocks, 32 * kHeadsPerBlock, scratch_bytes, stream, static_cast<E*>(x), heads, steps);
  });
}

}  // namespace moetrim::cuda
