// Model families: config.json to a typed description of what every tensor is, along which axes, and how the router
// chooses. A family is data (src/family/families/NAME.cpp); this header is what all of them are made of.
//
// Axes, in code, docs and messages: L layers, E experts, K experts per token, T tokens, H hidden, F expert width,
// V vocabulary, Q = heads x head_dim, KV = key-value heads x head_dim, D head_dim, S shared-expert width, M dense MLP width.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moetrim/checkpoint.h"

namespace moetrim {

/// What one dimension of a tensor counts. `F2` is gate and up stacked, gate first; `one` is a dimension of length 1.
enum class Axis : std::uint8_t { E, F, F2, H, V, Q, KV, D, S, M, one };

/// What a tensor is for.
enum class Role : std::uint8_t {
  embedding, final_norm, head,
  input_norm, query, key, value, output, query_bias, key_bias, value_bias, output_bias, query_norm, key_norm,
  mlp_norm, dense_gate, dense_up, dense_down,
  router, shared_gate, shared_up, shared_down, shared_router,
  expert_gate, expert_up, expert_down,   ///< one tensor per expert
  fused_gate_up, fused_down,             ///< all experts of a layer in one tensor
  count_,
};
inline constexpr std::size_t kRoleCount = static_cast<std::size_t>(Role::count_);

/// Name pattern, axes and role of a tensor. `{layer}` and `{expert}` stand for decimal numbers.
struct TensorRule {
  Role role;
  std::string_view name;
  std::vector<Axis> axes;
  bool optional = false;  ///< may be absent, for example a bias
};

/// How router logits become probabilities before selection.
enum class RouterScore : std::uint8_t { softmax };

/// Normalisation of queries and keys.
enum class QueryKeyNorm : std::uint8_t {
  none,
  per_head,  ///< over each head's D values
  full,      ///< over all Q (or KV) values of a token
};

/// Which layers look back only `sliding_window` tokens.
enum class WindowRule : std::uint8_t {
  none,
  all_layers,                  ///< whenever config has a window
  when_enabled,                ///< all layers, if config.use_sliding_window
  layer_types_when_enabled,    ///< layers that config.layer_types names, if config.use_sliding_window
};

/// One architecture. Every field is given, so that a forgotten one is a compiler warning and an error here.
struct Family {
  std::string_view name;                          ///< model_type
  std::string_view source;                        ///< what the description was read from
  std::vector<std::string_view> architectures;
  std::vector<std::string_view> expert_count_keys;  ///< every config key that counts experts
  std::string_view expert_width_key;
  std::string_view shared_width_key;              ///< empty: no shared expert
  std::string_view dense_width_key;               ///< empty: no dense layers
  bool sparse_step_and_list;                      ///< decoder_sparse_step and mlp_only_layers say which layers are MoE
  RouterScore router_score;
  std::string_view normalise_key;                 ///< config key "gates sum to one"; empty: always
  bool gates_in_activation_dtype;                 ///< gates are rounded to the activations' dtype before use
  QueryKeyNorm query_key_norm;
  std::string_view clip_key;                      ///< config key that clamps q, k, v; empty: none
  WindowRule window;
  double rope_theta;                              ///< where config names none
  std::vector<TensorRule> tensors;
};

/// Every family, in the order of `families.def`.
std::span<const Family* const> families();

enum class RopeKind : std::uint8_t { standard, linear, dynamic, yarn, llama3 };

/// Rotary position embedding, both config spellings resolved.
struct Rope {
  RopeKind kind = RopeKind::standard;
  double theta = 10000.0;
  std::int64_t dimensions = 0;              ///< rotated values of a head
  double factor = 1.0;
  std::int64_t max_positions = 0;           ///< config.max_position_embeddings
  std::int64_t original_max_positions = 0;
  double attention_factor = 1.0;            ///< multiplies cos and sin (yarn)
  double beta_fast = 32.0, beta_slow = 1.0; ///< yarn
  bool truncate = true;                     ///< yarn: correction range in whole dimensions
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  ///< llama3
};

/// Inverse frequencies, [dimensions / 2], for a sequence of that many tokens (only `dynamic` depends on it).
std::vector<float> inverse_frequencies(const Rope& rope, std::int64_t sequence_length);

/// What a tensor of the checkpoint is: the rule it matches and the numbers in its name, -1 where it has none.
struct TensorPlace {
  const TensorRule* rule = nullptr;  ///< null: unknown to the family, and without an expert axis
  int layer = -1;
  int expert = -1;
};

/// Tensors of one decoder layer; null where the layer has none.
struct LayerTensors {
  std::array<const Tensor*, kRoleCount> by_role{};
  /// Per-expert layout only: gate, up, down of expert e.
  std::vector<std::array<const Tensor*, 3>> experts;
  bool sparse = false;          ///< an MoE layer
  std::int64_t window = 0;      ///< sliding window in tokens; 0: none

  const Tensor* operator[](Role role) const { return by_role[static_cast<std::size_t>(role)]; }
  bool fused() const { return (*this)[Role::fused_gate_up] != nullptr; }
};

/// A checkpoint understood: sizes, rules and every tensor's place. Points into the checkpoint, which must outlive it.
struct Model {
  const Family* family = nullptr;
  const Checkpoint* checkpoint = nullptr;
  std::int64_t layers = 0, hidden = 0, vocabulary = 0;
  std::int64_t heads = 0, key_value_heads = 0, head_dim = 0;
  std::int64_t experts = 0, experts_per_token = 0, expert_width = 0, shared_width = 0, dense_width = 0;
  bool normalise_gates = false;
  bool tied_embeddings = false;
  double norm_epsilon = 1e-6;
  double clip = 0.0;            ///< clamps q, k, v to [-clip, clip]; 0: no clamp
  Rope rope;
  std::array<const Tensor*, kRoleCount> global{};  ///< embedding, final_norm, head (null when tied)
  std::vector<LayerTensors> layer;                 ///< [layers]
  std::vector<TensorPlace> places;                 ///< parallel to checkpoint->tensors()

  std::vector<int> moe_layers() const;
  /// Length of an axis in this model; `one` is 1.
  std::int64_t length(Axis axis) const;
};

/// Resolves family, sizes and tensors, and checks every shape.
/// @throws InvalidInput for an unknown family (lists the known ones), a missing, extra or misshapen tensor, an
///         unsupported config value, or an unknown tensor that has an expert axis.
Model describe(const Checkpoint& checkpoint);

}  // namespace moetrim
