// The weights of a layer: which bytes to read, in which order, and what they become.
#pragma once

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "forward/kernels.h"
#include "forward/numerics.h"
#include "forward/weight_stream.h"
#include "moetrim/family.h"

namespace moetrim {

/// Grouped-query attention.
struct AttentionWeights {
  at::Tensor query_key_value;       // [Q + 2 KV, H], and Q rows more for an output gate
  at::Tensor query_key_value_bias;
  Norm query_norm, key_norm;        // [D], or [Q] and [KV]
  at::Tensor sinks;                 // [heads] wide
};

/// Multi-head latent attention.
struct LatentWeights {
  at::Tensor down, down_bias;       // [query_rank or QN, then latent_rope; H]: what both begin with
  Norm query_norm, key_value_norm;  // [query_rank], [latent]
  at::Tensor query_up;              // [QN, query_rank]; undefined without a query rank
  at::Tensor key_value_up;          // [KVN, latent]
};

/// Gated delta net. Rows of `input`: queries, keys, values, z, then beta and decay logits.
struct DeltaWeights {
  at::Tensor input;                 // [delta_qkvz + delta_heads2, H]
  at::Tensor convolution;           // [delta_conv, delta_kernel]
  at::Tensor time_bias, decay;      // [delta_heads] wide
  Norm norm;                        // [delta_head_dim]
};

/// What joins the residual stream and the next token's embedding before a multi-token-prediction block.
struct MtpWeights {
  Norm embedding_norm, hidden_norm, final_norm;
  at::Tensor projection;            // [H, 2 H]
};

/// Everything of a layer but its experts. Norm weights are wide, matrices have tile elements, absent ones are undefined.
struct LayerWeights {
  Norm input_norm, mlp_norm;                // [H]
  AttentionWeights attention;
  LatentWeights latent;
  DeltaWeights delta;
  at::Tensor output, output_bias;           // [H, Q], [H, VH] or [H, delta_values]; [H]
  at::Tensor dense_gate_up, dense_down;     // [2 M, H], [H, M]
  at::Tensor router, router_bias;           // [E, H], [E]; wide where the router's product is
  at::Tensor selection_bias, router_scale;  // [E] f32 on the CPU
  at::Tensor shared_gate_up, shared_down;   // [2 S, H], [H, S]
  at::Tensor shared_router;                 // [1, H]
  MtpWeights mtp;
};

/// One expert.
struct ExpertWeights {
  at::Tensor gate_up, gate_up_bias;  // [2 F, H], gate first; [2 F]
  at::Tensor down, down_bias;        // [H, F]; [H]
  WeightBuffer bytes = {};  // the memory under them where no conversion was needed: it is reused once this is gone
  at::Tensor gate_up_rest = {}, down_rest = {};  // as row_importance.h makes them: what factors of low rank would leave
};

/// How much of a layer is wanted, its experts aside.
enum class LayerPart : std::uint8_t {
  whole,
  to_router,  ///< what an MoE layer's router sees and is: attention, norms, router
};

/// Bytes of a layer without its experts, as one group.
WeightGroup layer_group(const LayerTensors& layer, LayerPart part = LayerPart::whole);
/// Bytes of an expert, from either layout.
WeightGroup expert_group(const LayerTensors& layer, int expert);

/// Turns the bytes of layer_group() into weights; those beyond the part are undefined.
LayerWeights load_layer(const Model& model, const LayerTensors& layer, const WeightBuffer& bytes, const Numerics& numerics,
                        const at::Device& device, LayerPart part = LayerPart::whole);
/// Turns the bytes of expert_group() into weights. Where no conversion is needed they share the buffer's memory.
/// @param queued  on a device: do not wait for the copy; the caller keeps `bytes` until the device has come so far
ExpertWeights load_expert(const Model& model, const LayerTensors& layer, int expert, const WeightBuffer& bytes,
                          const Numerics& numerics, const at::Device& device, bool queued = false);
/// Elements of a weight that is no expert's, whatever it is packed in.
std::int64_t element_count(const Model& model, const Weight& weight);

struct Conversion;
/// The same, with the conversion given.
ExpertWeights load_expert(const Model& model, const LayerTensors& layer, int expert, const WeightBuffer& bytes,
                          const Conversion& conversion);

}  // namespace moetrim
