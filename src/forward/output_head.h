// Both ends of the model: the embedding table and the output head.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "forward/kernels.h"
#include "forward/numerics.h"
#include "forward/thread_pool.h"
#include "moetrim/family.h"

namespace moetrim {

/// What turns the last hidden states into logits; the embedding serves where embeddings are tied.
struct HeadWeights {
  Norm final_norm;        // [H]
  at::Tensor head, bias;  // [V, H] tile; [V]
};

/// The norm alone.
Norm load_final_norm(const Model& model, const Numerics& numerics, const at::Device& device);
HeadWeights load_head(const Model& model, const Numerics& numerics, const at::Device& device);

/// Hidden states [n, H] stored that have passed all layers to logits [n, V] tile. Threads share the vocabulary, so that few rows
/// keep all of them busy too.
at::Tensor project_to_vocabulary(const Model& model, const Numerics& numerics, const HeadWeights& head, const at::Tensor& hidden,
                                 ThreadPool& pool);

/// Rows of the embedding table for these tokens, [T, H] stored, scaled. Reads only rows that occur, in the order of the file.
/// @param reader  of the model's checkpoint, with nothing asked for
/// @throws InvalidInput when a token id is outside the vocabulary.
at::Tensor embed(const Model& model, const std::vector<std::int32_t>& ids, const Numerics& numerics, BlockReader& reader);

}  // namespace moetrim
