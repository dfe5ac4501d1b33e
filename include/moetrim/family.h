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
#include "moetrim/quantised.h"

namespace moetrim {

/// What one dimension of a tensor counts. `F2` is gate and up stacked, gate first; `one` is a dimension of length 1.
enum class Axis : std::uint8_t {
  E, F, F2, H, V, Q, KV, D, S, M, one,
  heads,        ///< query heads
  Q2,           ///< 2 Q: per head its query, then its output gate
  H2,           ///< 2 H: what an MTP block joins
  // Latent attention (DeepSeek-V2, arXiv 2405.04434 section 2.1).
  query_rank,   ///< q_lora_rank
  latent,       ///< kv_lora_rank
  latent_rope,  ///< kv_lora_rank + qk_rope_head_dim
  QN,           ///< heads x (qk_nope_head_dim + qk_rope_head_dim)
  KVN,          ///< heads x (qk_nope_head_dim + v_head_dim)
  VH,           ///< heads x v_head_dim
  // Gated delta net (arXiv 2412.06464): N key heads of D_k, P value heads of D_v.
  delta_values,   ///< P D_v
  delta_conv,     ///< 2 N D_k + P D_v
  delta_qkvz,     ///< 2 N D_k + 2 P D_v
  delta_heads,    ///< P
  delta_heads2,   ///< 2 P
  delta_head_dim, ///< D_v
  delta_kernel,   ///< width of the causal convolution
};

/// What a tensor is for.
enum class Role : std::uint8_t {
  embedding, final_norm, final_norm_bias, head, head_bias,
  input_norm, input_norm_bias, mlp_norm, mlp_norm_bias,
  query, key, value, output, query_bias, key_bias, value_bias, output_bias, query_norm, key_norm, sinks,
  query_down, query_down_bias, query_down_norm, query_up,                          // latent attention
  key_value_down, key_value_down_bias, key_value_norm, key_value_up,
  delta_qkvz, delta_ba, delta_qkv, delta_z, delta_b, delta_a,                      // gated delta net, either grouping
  delta_conv, delta_time_bias, delta_decay, delta_norm, delta_output,
  dense_gate, dense_up, dense_down,
  router, router_bias, selection_bias, router_scale,
  shared_gate, shared_up, shared_down, shared_router,
  expert_gate, expert_up, expert_down,                                             ///< one weight per expert
  fused_gate_up, fused_gate_up_bias, fused_down, fused_down_bias,                  ///< all experts of a layer in one weight
  mtp_embedding_norm, mtp_hidden_norm, mtp_projection, mtp_final_norm, mtp_embedding, mtp_head,
  count_,
};
inline constexpr std::size_t kRoleCount = static_cast<std::size_t>(Role::count_);

/// Which layers have a role.
enum class Where : std::uint8_t { model, every_layer, attention, delta_net, dense, moe, experts, mtp };
Where where_of(Role role);

/// Name pattern, axes and role of a tensor. `{layer}` and `{expert}` stand for decimal numbers, `{mtp}` for the number of a
/// multi-token-prediction block that is counted apart from the layers. A weight that is stored quantised has the same rule:
/// its tensors are named after the module, see moetrim/quantised.h.
struct TensorRule {
  Role role;
  std::string name;
  std::vector<Axis> axes;
  bool optional = false;  ///< may be absent, for example a bias

  /// Fused experts whose matrices are stored [K, N], the other way round than torch.nn.Linear.
  bool input_first() const;
};

/// How router logits become probabilities before selection.
enum class RouterScore : std::uint8_t {
  softmax,      ///< over all experts
  sigmoid,      ///< each expert by itself
  sparsemixer,  ///< softmax for soft mass; the two gates come from SparseMixer-v2 (Phi-3.5-MoE, arXiv 2409.12136)
};

/// How experts in groups of neighbours restrict the choice.
enum class GroupRule : std::uint8_t {
  none,
  max,   ///< the groups with the best expert (DeepSeek-V2 `group_limited_greedy`)
  top2,  ///< the groups with the best sum of two experts (DeepSeek-V3)
  each,  ///< the same number of experts in every group (Pangu Pro, MoGE, arXiv 2505.21411)
};
/// Spelling in files: "none", "max", "top2", "each".
std::string_view group_rule_name(GroupRule rule);

/// Whether the gates of a token are divided by their sum.
enum class NormaliseGates : std::uint8_t { always, never, by_config };

struct RouterTraits {
  RouterScore score = RouterScore::softmax;
  NormaliseGates normalise = NormaliseGates::always;
  bool normalise_default = false;          ///< where config has no `norm_topk_prob`
  bool logits_in_fp32 = false;             ///< the product itself, whatever the activations' dtype
  bool gates_in_activation_dtype = false;  ///< gates are rounded to the activations' dtype before use
  bool scaled = false;                     ///< gates are multiplied by `routed_scaling_factor`
  GroupRule groups = GroupRule::none;      ///< with `n_group` and `topk_group` (each: as many groups as experts per token)
  bool gate_on_input = false;              ///< the gate multiplies the expert's input (Llama-4); its output has the factor 1
};

enum class QueryKeyNorm : std::uint8_t {
  none,
  per_head,             ///< over each head's D values
  full,                 ///< over all Q (or KV) values of a token
  per_head_after_rope,
  unit_after_rope,      ///< per head, without a weight, in layers that rotate (Llama-4)
};

/// Which values of a head are rotated together.
enum class RopePairs : std::uint8_t {
  halves,      ///< i and i + R / 2
  neighbours,  ///< 2 i and 2 i + 1
};

/// Which layers look back only `sliding_window` tokens.
enum class WindowRule : std::uint8_t {
  none,
  all_layers,                ///< whenever config has a window
  when_enabled,              ///< all layers, if config.use_sliding_window
  layer_types_when_enabled,  ///< layers that config.layer_types names, if config.use_sliding_window
  alternating_layer_types,   ///< config.layer_types, else layers 0, 2, 4, … (gpt-oss)
  late_layer_types,          ///< config.layer_types, else layers from max_window_layers on (dots1)
  chunks,                    ///< layers that rotate see their chunk of attention_chunk_size tokens (Llama-4)
};

struct AttentionTraits {
  bool latent = false;                 ///< multi-head latent attention
  bool delta_net = false;              ///< layers that config.layer_types calls linear_attention are gated delta nets
  QueryKeyNorm query_key_norm = QueryKeyNorm::none;
  std::string_view query_key_norm_key = {}; ///< config key that turns it on; empty: always on
  bool output_gate = false;            ///< queries come with a sigmoid gate for the attention's output
  std::string_view clip_key = {};           ///< config key that clamps q, k, v; empty: none
  WindowRule window = WindowRule::none;
  RopePairs pairs = RopePairs::halves;
  bool rope_in_fp32 = false;           ///< angles and rotation are not rounded to the activations' dtype
  bool rope_by_layer = false;          ///< config.no_rope_layers; layers without rope have temperature tuning (Llama-4)
  double rope_theta = 10000.0;         ///< where config names none
  double rotated_part = 1.0;           ///< partial_rotary_factor where config names none
};

/// Which layers are MoE.
enum class MoeLayers : std::uint8_t {
  all,
  sparse_step_and_list,  ///< decoder_sparse_step and mlp_only_layers (Qwen)
  after_dense,           ///< from first_k_dense_replace on, every moe_layer_freq-th (DeepSeek)
  interval,              ///< moe_layer_start_index, moe_layer_end_index, moe_layer_interval (Ernie)
  interleaved,           ///< moe_layers, else every interleave_moe_layer_step-th (Llama-4)
};

enum class NormKind : std::uint8_t {
  rms,
  rms_fp32,       ///< the weight is applied before rounding
  rms_one_plus,   ///< 1 + weight, applied before rounding
  layer,          ///< mean and variance, with a bias
};

enum class Activation : std::uint8_t {
  silu,           ///< silu(gate) * up
  clamped_swiglu, ///< gate <= limit, |up| <= limit, gate sigmoid(alpha gate) (up + 1) (gpt-oss)
};

/// One architecture.
struct Family {
  std::string_view name;                            ///< model_type
  std::vector<std::string_view> aliases = {};       ///< other model_types with the same tensors and arithmetic
  std::string_view covers;                          ///< models, for docs/families.md
  std::string_view source;                          ///< what the description was read from
  std::vector<std::string_view> architectures;      ///< the first is compared with in the tests
  std::vector<std::string_view> expert_count_keys;  ///< every config key that counts experts
  std::vector<std::string_view> experts_per_token_keys = {"num_experts_per_tok"};
  std::string_view expert_width_key;
  std::string_view shared_width_key = {};           ///< width of a shared expert; empty: no shared expert
  std::string_view shared_count_key = {};           ///< how many of them lie side by side; empty: one
  std::string_view dense_width_key = {};            ///< empty: no dense layers
  MoeLayers moe_layers = MoeLayers::all;
  RouterTraits router = {};
  AttentionTraits attention = {};
  NormKind norm = NormKind::rms;
  Activation activation = Activation::silu;
  bool fused_interleaved = false;                   ///< fused gate and up take turns along their axis instead of following one another
  std::string_view mtp_count_key = {};              ///< config key that counts multi-token-prediction blocks; empty: none known
  std::vector<std::string_view> untouched = {};     ///< prefixes of towers that are copied as they are
  std::vector<TensorRule> tensors;

  /// Whether a tensor belongs to a tower that is copied as it is.
  bool leaves_untouched(std::string_view tensor) const;
  /// Whether any of its checkpoints can have such a tensor.
  bool has(Role role) const;
};

/// Every family, in the order of `families.def`.
std::span<const Family* const> families();
/// The family of a model_type, or nullptr.
const Family* find_family(std::string_view model_type);

enum class RopeKind : std::uint8_t { standard, linear, dynamic, yarn, llama3, longrope };

/// Rotary position embedding, both config spellings resolved.
struct Rope {
  RopeKind kind = RopeKind::standard;
  double theta = 10000.0;
  std::int64_t dimensions = 0;              ///< rotated values of a head
  double factor = 1.0;
  std::int64_t max_positions = 0;           ///< config.max_position_embeddings
  std::int64_t original_max_positions = 0;
  double attention_factor = 1.0;            ///< multiplies cos and sin (yarn, longrope up to the original length)
  double long_attention_factor = 1.0;       ///< longrope beyond it
  double beta_fast = 32.0, beta_slow = 1.0; ///< yarn
  bool truncate = true;                     ///< yarn: correction range in whole dimensions
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  ///< llama3
  std::vector<double> short_factors, long_factors;       ///< longrope: divisors up to the original length and beyond it
};

/// Inverse frequencies, [dimensions / 2], for a sequence of that many tokens (only `dynamic` and `longrope` depend on it).
std::vector<float> inverse_frequencies(const Rope& rope, std::int64_t sequence_length);
/// What multiplies cosine and sine for a sequence of that many tokens.
double rope_attention_factor(const Rope& rope, std::int64_t sequence_length);

/// What a tensor of the checkpoint is: the rule it matches and the numbers in its name, -1 where it has none.
struct TensorPlace {
  const TensorRule* rule = nullptr;  ///< null: unknown to the family, and without an expert axis
  int layer = -1;                    ///< absolute; multi-token-prediction blocks follow the layers
  int expert = -1;
  Part part = Part::values;          ///< of a quantised weight
};

/// The tensors that together hold one weight: `values` alone unless it is quantised.
struct Weight {
  const TensorRule* rule = nullptr;
  int layer = -1;
  std::array<const Tensor*, kPartCount> parts{};

  explicit operator bool() const { return values() != nullptr; }
  const Tensor* values() const { return parts[static_cast<std::size_t>(Part::values)]; }
  /// True when the first axis counts experts and each has a matrix of its own behind it.
  bool fused() const { return rule->axes.size() == 3 && rule->axes[0] == Axis::E; }
  /// True unless it is one tensor of F64, F32, BF16 or F16 values.
  bool packed() const;
};

/// Weights of one decoder layer; empty where the layer has none.
struct LayerTensors {
  std::array<Weight, kRoleCount> by_role{};
  /// Per-expert layout only: gate, up, down of expert e.
  std::vector<std::array<Weight, 3>> experts;
  bool sparse = false;          ///< an MoE layer
  bool delta_net = false;       ///< a gated delta net instead of attention
  bool mtp = false;             ///< a multi-token-prediction block
  bool rotates = true;          ///< has rotary embedding
  std::int64_t window = 0;      ///< sliding window in tokens; 0: none
  std::int64_t chunk = 0;       ///< chunked attention; 0: none

  const Weight& operator[](Role role) const { return by_role[static_cast<std::size_t>(role)]; }
  bool fused() const { return static_cast<bool>((*this)[Role::fused_gate_up]); }
};

/// Sizes of multi-head latent attention; all 0 elsewhere.
struct LatentSizes {
  std::int64_t query_rank = 0;  ///< 0: queries are projected directly
  std::int64_t rank = 0;        ///< kv_lora_rank
  std::int64_t plain = 0;       ///< qk_nope_head_dim
  std::int64_t rotated = 0;     ///< qk_rope_head_dim
  std::int64_t value = 0;       ///< v_head_dim
};

/// Sizes of gated delta nets; all 0 elsewhere.
struct DeltaSizes {
  std::int64_t key_heads = 0, value_heads = 0, key_dim = 0, value_dim = 0, kernel = 0;
};

/// A checkpoint understood: sizes, rules and every tensor's place. Points into the checkpoint, which must outlive it.
struct Model {
  const Family* family = nullptr;
  const Checkpoint* checkpoint = nullptr;
  bool nested_config = false;   ///< the language model's keys are in config.text_config
  std::int64_t layers = 0;      ///< decoder layers, without multi-token-prediction blocks
  std::int64_t mtp_layers = 0;  ///< blocks of which the checkpoint has tensors
  std::int64_t hidden = 0, vocabulary = 0;
  std::int64_t heads = 0, key_value_heads = 0, head_dim = 0;
  LatentSizes latent;
  DeltaSizes delta;
  std::int64_t mtp_experts = 0; ///< experts in each of them, by their routers; a pruned model may have kept its blocks whole
  std::int64_t experts = 0, experts_per_token = 0, expert_width = 0, shared_width = 0, dense_width = 0;
  bool normalise_gates = false;
  double routed_scale = 1.0;
  GroupRule group_rule = GroupRule::none;
  std::int64_t groups = 1, groups_chosen = 1;
  double jitter = 0.01;         ///< sparsemixer: router_jitter_noise
  QueryKeyNorm query_key_norm = QueryKeyNorm::none;
  RopePairs rope_pairs = RopePairs::halves;
  bool tied_embeddings = false;
  double norm_epsilon = 1e-6;
  double clip = 0.0;            ///< clamps q, k, v to [-clip, clip]; 0: no clamp
  double swiglu_limit = 7.0, swiglu_alpha = 1.702;
  double attention_scale = 0.0; ///< multiplies query-key products
  double embedding_scale = 1.0, residual_scale = 1.0, logit_scale = 1.0;
  bool temperature_tuning = false;  ///< layers without rope scale queries by their position (Llama-4)
  double temperature_floor = 8192, temperature_scale = 0.1;
  Rope rope;
  Quantisation quantisation;
  std::array<Weight, kRoleCount> global{};         ///< embedding, final_norm, head (empty when tied)
  std::vector<LayerTensors> layer;                 ///< [layers + mtp_layers]
  std::vector<TensorPlace> places;                 ///< parallel to checkpoint->tensors()

  const Weight& operator[](Role role) const { return global[static_cast<std::size_t>(role)]; }
  /// Absolute ids of the MoE layers; multi-token-prediction blocks are left out unless asked for.
  std::vector<int> moe_layers(bool with_mtp = false) const;
  /// True when the router picks the K largest logits and weighs them by a score of each: no selection bias, no groups, no
  /// SparseMixer.
  bool selects_by_logit() const;
  /// Length of an axis in this model; `one` is 1.
  std::int64_t length(Axis axis) const;
  /// The shape that a rule's tensor has in a layer (or in none, for -1).
  std::vector<std::int64_t> shape(const TensorRule& rule, int layer) const;
  /// Experts of a layer.
  std::int64_t experts_in(int layer) const { return layer >= layers ? mtp_experts : experts; }
};

/// How a matrix of a weight (of one expert, where it is fused) is stored.
struct StoredMatrix {
  Packing packing;          ///< with the sizes as stored
  PackedWeight parts;       ///< without bytes; shapes of one matrix
  bool transposed = false;  ///< stored input first: [K, N] instead of [N, K]
};
/// @throws InvalidInput naming the tensor when a part has another type or shape than its packing has.
StoredMatrix stored_matrix(const Model& model, const Weight& weight);

/// Resolves family, sizes and tensors, and checks every shape.
/// @throws InvalidInput for an unknown family (lists the known ones), a missing, extra or misshapen tensor, an
///         unsupported config value, or an unknown tensor that has an expert axis.
Model describe(const Checkpoint& checkpoint);

}  // namespace moetrim
