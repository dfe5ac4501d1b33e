// Cosines and sines of the rotary embedding.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include <ATen/core/Tensor.h>

#include "forward/kernels.h"
#include "forward/numerics.h"
#include "moetrim/family.h"

namespace moetrim {

/// Tables for every sequence length of a batch, made once. Lookups are safe from several threads.
class RotaryTable {
 public:
  RotaryTable(const Model& model, const Numerics& numerics, const at::Device& device);

  /// Makes the tables that a sequence of that many tokens needs.
  void prepare(std::int64_t length);
  /// For the positions [past, past + length) of a sequence.
  kernels::Rotation rows(std::int64_t past, std::int64_t length) const;

 private:
  /// `dynamic` scaling has other frequencies for every length beyond the trained one, `longrope` once for all of them.
  std::int64_t key(std::int64_t length) const;

  const Rope rope_;
  const RopePairs pairs_;
  const bool in_fp32_;
  const Numerics numerics_;
  const at::Device device_;
  std::map<std::int64_t, std::pair<at::Tensor, at::Tensor>> tables_;
};

}  // namespace moetrim
