// Attention against the formula written out, over lengths around the block size, windows, and a cache.

#include <ATen/ATen.h>

#include "testing.h"

#include "forward/attention.h"

using namespace moetrim;

namespace {

/// softmax(q kT / sqrt(D)) v with one explicit mask, in fp64.
at::Tensor by_formula(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t window) {
  const auto length = q.size(0);
  const auto seen = k.size(0);
  const auto repeat = q.size(1) / k.size(1);
  const at::Tensor i = (at::arange(length) + (seen - length)).unsqueeze(1);
  const at::Tensor j = at::arange(seen).unsqueeze(0);
  at::Tensor hidden = j > i;
  if (window > 0) hidden = hidden.logical_or(j <= i - window);
  at::Tensor out = at::empty({length, q.size(1), q.size(2)}, at::kDouble);
  for (std::int64_t head = 0; head < q.size(1); ++head) {
    const at::Tensor scores = at::mm(q.select(1, head).to(at::kDouble), k.select(1, head / repeat).to(at::kDouble).t()) /
                              std::sqrt(static_cast<double>(q.size(2)));
    out.select(1, head).copy_(at::mm(scores.masked_fill(hidden, -INFINITY).softmax(-1), v.select(1, head / repeat).to(at::kDouble)));
  }
  return out.view({length, -1});
}

}  // namespace

TEST_CASE("attention equals the formula", "[forward][attention]") {
  at::manual_seed(5);
  const auto length = GENERATE(1, 2, 127, 128, 129, 300);
  const auto cached = GENERATE(0, 37);
  const auto window = GENERATE(0, 1, 50, 1000);
  CAPTURE(length, cached, window);
  const at::Tensor q = at::randn({length, 6, 10});
  const at::Tensor k = at::randn({length + cached, 3, 10});
  const at::Tensor v = at::randn({length + cached, 3, 10});
  const AttentionRule rule{.scale = 1 / std::sqrt(10.0), .window = window};
  CHECK(at::allclose(attention_of(q, k, v, rule).to(at::kDouble), by_formula(q, k, v, window), 1e-4, 1e-5));
}

TEST_CASE("sinks, chunks and values of another width", "[forward][attention]") {
  at::manual_seed(6);
  const auto length = GENERATE(1, 3, 130, 300);
  const auto cached = GENERATE(0, 37);
  const auto chunk = GENERATE(0, 16);
  const bool with_sinks = GENERATE(false, true);
  CAPTURE(length, cached, chunk, with_sinks);
  const at::Tensor q = at::randn({length, 6, 10});
  const at::Tensor k = at::randn({length + cached, 3, 10});
  const at::Tensor v = at::randn({length + cached, 3, 7});
  AttentionRule rule{.scale = 0.3, .chunk = chunk};
  if (with_sinks) rule.sinks = at::randn({6});
  at::Tensor expected = at::empty({length, 6, 7}, at::kDouble);
  const at::Tensor i = (at::arange(length) + cached).unsqueeze(1);
  const at::Tensor j = at::arange(length + cached).unsqueeze(0);
  at::Tensor hidden = j > i;
  if (chunk > 0) hidden = hidden.logical_or(j.div(chunk, "floor") != i.div(chunk, "floor"));
  for (std::int64_t head = 0; head < 6; ++head) {
    at::Tensor scores = at::mm(q.select(1, head).to(at::kDouble), k.select(1, head / 2).to(at::kDouble).t()) * 0.3;
    scores = scores.masked_fill(hidden, -INFINITY);
    if (with_sinks) scores = at::cat({scores, rule.sinks[head].to(at::kDouble).expand({length, 1})}, 1);
    const at::Tensor shares = scores.softmax(-1).slice(1, 0, length + cached);
    expected.select(1, head).copy_(at::mm(shares, v.select(1, head / 2).to(at::kDouble)));
  }
  CHECK(at::allclose(attention_of(q, k, v, rule).to(at::kDouble), expected.view({length, -1}), 1e-4, 1e-5));
  // The form for other devices and element types, here in fp64, which the blocks do not take.
  const at::Tensor other = attention_of(q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble), rule);
  CHECK(at::allclose(other, expected.view({length, -1}), 1e-4, 1e-5));
}
