// How a family's checkpoint is written as an architecture of llama.cpp: tensor names and what is done to the values, keys
// from config.json, and what that architecture can express. One file per architecture, architectures/NAME.cpp, says so.
//
// Source of all of them: llama.cpp release v0.5.0, conversion/*.py for names, keys and values, src/models/*.cpp for what is
// computed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moetrim/family.h"
#include "moetrim/gguf_file.h"
#include "moetrim/plan.h"
#include "moetrim/rewrite.h"

namespace moetrim::gguf_detail {

/// What is done to a weight's matrix [N, K] (N outputs) before it is written.
enum class GgufOperation : std::uint8_t {
  as_it_is,
  squeezed,             ///< dimensions of length 1 go
  gate_half, up_half,   ///< of fused gate and up, however they lie
  rotary_pairs,         ///< rows of every head: those that are rotated together become neighbours
  plus_one,             ///< norms that store weight - 1
  negated_exponential,  ///< -exp(x): of a logarithm of decay
  latent_key,           ///< of kv_b_proj: the keys' rows of every head, transposed
  latent_value,         ///< the values' rows of every head
  // Of a gated delta net's grouped projection: the rows of all heads' queries, then keys, then values; and of z.
  delta_qkv, delta_z,
  // Value heads of a gated delta net that share a key head are neighbours; here they go round the key heads in turn.
  tiled_rows, tiled_decay,  ///< as they are, and as -exp(x)
  tiled_qkv,                ///< behind the rows of queries and keys; dimensions of length 1 go
  tiled_columns,
};

struct GgufTensorRule {
  Role role;
  std::string_view name;  ///< "blk.{}.attn_q.weight"; {} stands for the layer
  GgufOperation operation = GgufOperation::as_it_is;
};

/// A key with the value of the first of some keys of config.json; left out where config.json has none of them.
struct GgufKeyRule {
  std::string_view key;                   ///< without the architecture in front
  std::vector<std::string_view> config;
  GgufType type = GgufType::u32;          ///< u32, f32 or boolean
};

/// What is written: a model, as a plan leaves it.
struct GgufSource {
  const Model* model = nullptr;
  const Plan* plan = nullptr;         ///< null: as it is
  Mtp mtp = Mtp::keep;
  nlohmann::ordered_json config;      ///< of the language model, after the plan: keys of `text_config` beside the outer ones
  std::int64_t experts = 0, experts_per_token = 0, groups = 1, groups_chosen = 1;
  double routed_scale = 1.0;

  /// Multi-token-prediction blocks that are written.
  std::int64_t mtp_layers() const { return mtp == Mtp::drop ? 0 : model->mtp_layers; }
  std::int64_t blocks() const { return model->layers + mtp_layers(); }
  /// Experts of a layer in their new order; empty: all, as they are.
  std::span<const int> slots(int layer) const;
  /// Null when config.json has none of the keys, or null.
  const nlohmann::ordered_json* find(std::span<const std::string_view> keys) const;
  /// @throws InvalidInput: "config.json: WHAT", with what to do about it.
  [[noreturn]] void refuse(const std::string& what) const;
};

/// A tensor that the checkpoint does not have.
struct GgufLiteral {
  std::string name;
  std::vector<float> values;
};

/// Keys of the architecture, and what else follows from the config.
class GgufKeys {
 public:
  GgufKeys(std::string_view architecture, GgufMetadata& metadata)
      : prefix_(std::string(architecture) + "."), metadata_(metadata) {}
  void whole(std::string_view key, std::int64_t value);
  void real(std::string_view key, double value);
  void flag(std::string_view key, bool value);
  void text(std::string_view key, std::string value);
  void wholes(std::string_view key, std::span<const std::int32_t> values);
  void flags(std::string_view key, const std::vector<bool>& values);

  std::vector<GgufLiteral> tensors;
  std::vector<std::string> notes;  ///< for the user, one sentence each

 private:
  std::string prefix_;
  GgufMetadata& metadata_;
};

struct GgufMapping {
  std::string_view architecture;         ///< GgufArchitecture::name
  std::vector<GgufTensorRule> tensors;   ///< of a role that is not here the architecture has no tensor
  std::vector<GgufKeyRule> keys = {};
  // What llama.cpp computes whatever the file says; a checkpoint that needs another thing is refused.
  std::optional<bool> normalises_gates = {};  ///< nothing: the key expert_weights_norm says so
  bool scales_gates = false;                  ///< by the key expert_weights_scale
  bool dense_layers = false;                  ///< there may be layers without experts
  bool partial_rotary = false;                ///< by the key rope.dimension_count
  bool windows = false;                       ///< `more` writes which layers look back only so far
  bool needs_head = false;                    ///< tied embeddings are written twice
  bool square_queries = false;                ///< heads x head_dim must be the hidden size
  std::vector<RopeKind> ropes = {RopeKind::standard, RopeKind::linear, RopeKind::yarn};
  /// Keys and tensors that are computed, and what else has to be refused.
  void (*more)(const GgufSource& source, GgufKeys& keys) = nullptr;
};

/// @return null for an architecture that nothing is written for
const GgufMapping* find_mapping(std::string_view architecture);

}  // namespace moetrim::gguf_detail
