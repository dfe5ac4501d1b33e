// How numbers are held while a layer runs.

#include "forward/numerics.h"

namespace moetrim {

namespace {

bool cpu_multiplies_bf16() {
#ifdef __x86_64__
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace

Numerics Numerics::choose(Precision precision, const at::Device& device) {
  const bool slow_bf16 = device.is_cpu() && !cpu_multiplies_bf16();
  return {.precision = precision, .bf16_in_fp32 = precision == Precision::bf16 && slow_bf16};
}

std::uint64_t matrix_element_bytes(Precision precision) {
  return precision == Precision::fp64 ? 8 : precision == Precision::fp32 ? 4 : 2;
}

}  // namespace moetrim
