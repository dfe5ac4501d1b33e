// Weights at a few bits, by hand.
#include <ATen/ATen.h>

#include "testing.h"

#include "forward/quantise_weight.h"

using namespace moetrim;

namespace {

std::vector<float> row_of(const at::Tensor& values) {
  const float* data = values.const_data_ptr<float>();
  return {data, data + values.numel()};
}

}  // namespace

TEST_CASE("levels lie between the extremes and hold zero", "[forward][quantise]") {
  // Two bits: scale 4.5 / 3 = 1.5, zero round(1.5 / 1.5) = 1, levels -1.5, 0, 1.5, 3. 0.75 is a tie: to even, that is 0.
  CHECK(row_of(quantise_weight(at::tensor({-1.5F, -0.8F, 0.75F, 0.76F, 3.0F}).view({1, 5}), 2)) ==
        std::vector<float>{-1.5F, -1.5F, 0.0F, 1.5F, 3.0F});
  // All above zero: the levels begin at zero all the same.
  CHECK(row_of(quantise_weight(at::tensor({4.0F, 6.0F}).view({1, 2}), 2)) == std::vector<float>{4.0F, 6.0F});
  CHECK(row_of(quantise_weight(at::zeros({1, 3}), 4)) == std::vector<float>{0.0F, 0.0F, 0.0F});
}

TEST_CASE("one bit is sign times mean magnitude", "[forward][quantise]") {
  CHECK(row_of(quantise_weight(at::tensor({-1.0F, 0.0F, 5.0F}).view({1, 3}), 1)) == std::vector<float>{-2.0F, 0.0F, 2.0F});
}

TEST_CASE("every 128 columns of a row have a scale, and the type stays", "[forward][quantise]") {
  at::Tensor weight = at::ones({2, 130});
  weight.slice(1, 128).fill_(-8.0);
  weight[1].mul_(3.0);
  const at::Tensor bits = quantise_weight(weight.t().contiguous().t().to(at::kBFloat16), 1);
  CHECK(bits.scalar_type() == at::kBFloat16);
  CHECK(at::equal(bits, weight.to(at::kBFloat16)));
}
