// The weights of a layer: which bytes to read, in which order, and what they become.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "forward/numerics.h"
#include "forward/weight_stream.h"
#include "moetrim/family.h"

namespace moetrim {

/// Everything of a layer but its experts. Norm weights are f32, matrices have tile elements, absent ones are undefined.
struct LayerWeights {
  at::Tensor input_norm, mlp_norm;          // [H]
  at::Tensor query_key_value;               // [Q + 2 KV, H]
  at::Tensor query_key_value_bias;          // [Q + 2 KV]
  at::Tensor output, output_bias;           // [H, Q], [H]
  at::Tensor query_norm, key_norm;          // [D], or [Q] and [KV]
  at::Tensor dense_gate_up, dense_down;     // [2 M, H], [H, M]
  at::Tensor router;                        // [E, H]
  at::Tensor shared_gate_up, shared_down;   // [2 S, H], [H, S]
  at::Tensor shared_router;                 // [1, H]
};

/// One expert.
struct ExpertWeights {
  at::Tensor gate_up;   // [2 F, H]
  at::Tensor down;      // [H, F]
  WeightBuffer bytes = {};  // the memory under them where no conversion was needed: it is reused once this is gone
};

/// Bytes of a layer without its experts, as one group.
WeightGroup layer_group(const LayerTensors& layer);
/// Bytes of an expert, gate, up, down back to back, from either layout.
WeightGroup expert_group(const LayerTensors& layer, int expert);

/// Turns the bytes of layer_group() into weights.
LayerWeights load_layer(const LayerTensors& layer, const WeightBuffer& bytes, const Numerics& numerics,
                        const at::Device& device);
/// Turns the bytes of expert_group() into weights. Where no conversion is needed they share the buffer's memory.
ExpertWeights load_expert(const Model& model, const LayerTensors& layer, const WeightBuffer& bytes, const Numerics& numerics,
                          const at::Device& device);
/// What turns the last hidden states into logits: [H] f32 and [V, H] tile; the embedding serves where embeddings are tied.
struct HeadWeights {
  at::Tensor final_norm, head;
};

HeadWeights load_head(const Model& model, const Numerics& numerics, const at::Device& device);
/// One tensor of the checkpoint as it is needed: f32 for norms, tile elements for matrices.
at::Tensor load_tensor(const Tensor& tensor, const std::byte* bytes, at::ScalarType type, const Numerics& numerics,
                       const at::Device& device);

/// LibTorch's name of an element type. @throws InvalidInput naming the tensor when weights of that type cannot be computed with.
at::ScalarType scalar_type(const Tensor& tensor);

}  // namespace moetrim
