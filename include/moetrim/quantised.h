// Weight matrices that a checkpoint stores quantised: which tensors belong together, what they mean, and their values.
// Nothing here needs LibTorch, and nothing here looks at the name of a model.
//
// A weight W [N, K] is `torch.nn.Linear.weight`: N outputs (rows), K inputs (cols), row-major. A group is a run of
// `group` neighbours along K that share a scale; G = K / group.
//
//   kind        values                             scale              others
//   plain       F64 F32 F16 BF16 [N, K]            –                  –
//   fp8         F8_E4M3 F8_E5M2 [N, K]             one, row, block, G –
//   int8        I8 [N, K]                          one, row, G        zeros: I8, shaped like the scale, or none
//   mxfp4       U8 I8 [N, K/32, 16] or [N, K/2]    [N, K/32]          –
//   nvfp4       U8 [N, K/2]                        F8_E4M3 [N, K/16]  global_scale: F32, one
//   gptq        I32 [K·bits/32, N], 2 3 4 8 bits   [G, N]             zeros: I32 [G, ceil(N·bits/32)]; order: I32 [K] or none
//   awq         I32 [K, N/8], 4 bits               [G, N]             zeros: I32 [G, N/8]
//   packed_int  I32 [N, ceil(K·bits/32)], 2 4 8    one, row, G        zeros: I32 [ceil(N·bits/32), G] or none;
//                                                                     order: I32 [K] or none; shape: I64 I32 [2] or none
//
// Scales: "one" is [], [1] or [1, 1]; "row" is [N] or [N, 1]; "G" is [N, G]; "block" is [ceil(N/bn), ceil(K/bk)] with
// bn x bk of config.json, where the last blocks may end early. Their types are F32, F16 or BF16 unless the table says
// another; those of fp8 may also be F8_E8M0 or U8, those of mxfp4 are F8_E8M0 or U8: both mean 2^(byte - 127). Two
// values of 4 bits lie in a byte low nibble first. Codes in words lie low bits first, awq's in the order 0 2 4 6 1 3 5 7.
//
// Sources: transformers 5.23 (fp8, mxfp4), compressed-tensors 0.20 (int8, packed_int, nvfp4, mxfp4), gptqmodel 7.7
// (gptq), AutoAWQ (awq), OCP Microscaling Formats 1.0.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/checkpoint.h"

namespace moetrim {

/// What a tensor is to the weight that it belongs to.
enum class Part : std::uint8_t {
  values,        ///< the numbers, or their codes
  scale,         ///< what codes are multiplied by
  global_scale,  ///< one more scale for the whole matrix
  input_scale,   ///< of activations; never needed for the weight's values
  zeros,         ///< the codes that mean 0
  shape,         ///< [N, K] as a tensor
  order,         ///< the group of every column
};
inline constexpr std::size_t kPartCount = 7;
std::string_view part_name(Part part);

/// A tensor's name taken apart. The views point into the name.
struct PartName {
  std::string_view module;  ///< "model.layers.0.mlp.experts.3.up_proj"
  Part part = Part::values;
  std::string_view suffix;  ///< the rest, with its separator: ".weight_scale_inv", "_blocks"
};

/// Takes the name of a tensor apart, or returns nothing when it does not end like a part of a weight. Biases are not
/// parts. A fused parameter without suffix ("experts.gate_up_proj") has no ending to know it by; the caller does.
/// `X.weight` is the values of X whether X is quantised or not.
std::optional<PartName> split_part(std::string_view tensor_name);

/// The weights of one entry of `config_groups` in the compressed-tensors format.
struct QuantisationGroup {
  int bits = 0;
  std::string type;             ///< "int" or "float"
  std::string strategy;         ///< "tensor", "channel", "group", "block", ...; empty when not said
  std::int64_t group_size = 0;  ///< neighbours along K; 0: not said, -1: all of K
  bool symmetric = true;
  std::int64_t block_rows = 0;  ///< 0: no blocks
  std::int64_t block_cols = 0;
};

/// What config.json says about how the weights are stored.
struct Quantisation {
  std::string where;   ///< put before messages, for example "config.json: quantization_config"
  std::string method;  ///< `quant_method`; empty when the model is not quantised. May be one that nothing here knows.
  std::string format;  ///< `checkpoint_format` (gptq), `version` (awq), `format` (compressed-tensors), `quant_algo`
  int bits = 0;                 ///< 0: not said
  std::int64_t group_size = 0;  ///< as in QuantisationGroup
  bool zeros_minus_one = false;  ///< gptq v1 stores zeros less 1, gptq v2 stores them as they are
  bool varies = false;           ///< gptq's `dynamic`: bits and group size differ between modules
  std::int64_t block_rows = 0;   ///< `weight_block_size`; 0: no blocks
  std::int64_t block_cols = 0;
  std::vector<QuantisationGroup> groups;
  std::string obstacle;  ///< why values cannot be computed although the method is known; empty when they can
};

/// Reads `quantization_config` of a config.json: at the top, in `text_config`, or under its old name
/// `compression_config`. A method that nothing here knows is no error: such weights can be copied, not computed.
/// @param where  put before messages, for example "MODEL/config.json"
/// @throws InvalidInput on a field of a known method that has the wrong type or is out of range, and on two
///   configurations that differ.
Quantisation read_quantisation(const nlohmann::ordered_json& config, std::string where);

/// The methods whose values can be computed.
std::span<const std::string_view> known_quantisation_methods();

/// One tensor of a weight. `shape` is that of ONE matrix: without the expert axis of a fused tensor.
struct StoredPart {
  std::string name;  ///< the tensor's full name, for messages; its ending tells both kinds of global scale apart
  Dtype dtype = Dtype::u8;
  std::vector<std::int64_t> shape;
  const std::byte* bytes = nullptr;  ///< little-endian, any alignment; may be null for packing_of()
};

/// The tensors of one weight, by part.
class PackedWeight {
 public:
  std::optional<StoredPart>& operator[](Part part) { return parts_[static_cast<std::size_t>(part)]; }
  const std::optional<StoredPart>& operator[](Part part) const { return parts_[static_cast<std::size_t>(part)]; }
  bool has(Part part) const { return (*this)[part].has_value(); }

 private:
  std::array<std::optional<StoredPart>, kPartCount> parts_;
};

enum class PackingKind : std::uint8_t { plain, fp8, int8, mxfp4, nvfp4, gptq, awq, packed_int };
std::string_view packing_name(PackingKind kind);

/// How one weight is packed; all that dequantise() must know. The experts of a layer usually share one.
struct Packing {
  PackingKind kind = PackingKind::plain;
  std::int64_t rows = 0;        ///< N
  std::int64_t cols = 0;        ///< K
  int bits = 0;                 ///< of one stored value
  std::int64_t scale_rows = 0;  ///< neighbours along N that share a scale; 0 for plain
  std::int64_t scale_cols = 0;  ///< neighbours along K that share a scale, unless there is an order; 0 for plain
  bool zeros_minus_one = false;  ///< gptq v1
  friend bool operator==(const Packing&, const Packing&) = default;
};

/// Finds how a weight [rows, cols] is packed, from its parts, their types and shapes, and config.json; checks them all.
///
/// Needs no bytes. Fails closed: codes without scale, a scale without codes, a scale beside plain values, a shape or
/// type that the format does not have, a group size that does not divide or is not the one of config.json.
/// @throws InvalidInput naming the tensor, or the method when nothing here knows it.
Packing packing_of(const PackedWeight& weight, const Quantisation& quantisation, std::int64_t rows, std::int64_t cols);

/// Writes the weight as float [rows, cols].
///
/// Codes become numbers exactly, then there is one IEEE multiplication by the scale in fp32. That is exact where the
/// scale is F16, BF16 or a power of two, with results in the range of normal numbers; a F32 scale rounds once. nvfp4
/// rounds once more: its scale and global scale become one fp32 number first (compressed-tensors divides by
/// `weight_global_scale`, modelopt multiplies by `weight_scale_2`). F64 values round once. Nothing is ever computed in
/// F16 or BF16, so a reference must get its scales as fp32 to give the same bits.
///
/// NaN among the values stays NaN. A scale that is not finite is refused, 255 of F8_E8M0 (its NaN) too, although
/// transformers would go on with infinity: it would spoil a whole block.
///
/// Zeros of gptq v1 in 2, 4 and 8 bits get 1 added per 32-bit word with carry, those in 3 bits per value without,
/// like gptqmodel does; the difference shows only where a stored zero is all ones.
///
/// @param out  rows · cols values
/// @throws InvalidInput when the weight is not packed like that, a scale is not finite, or an order or shape tensor
///   holds numbers that do not fit; Error when bytes are missing or `out` has another size.
void dequantise(const PackedWeight& weight, const Packing& packing, std::span<float> out);
/// The same, rounded to the nearest bfloat16 (ties to even). BF16 values are copied.
void dequantise_bf16(const PackedWeight& weight, const Packing& packing, std::span<std::uint16_t> out);
/// What the codes of an fp8, mxfp4 or nvfp4 weight are multiplied by, for those who decode them elsewhere:
/// [ceil(N / scale_rows), G] fp32. Of the values' bytes nothing is read.
/// @throws like dequantise()
std::vector<float> dequantise_scales(const PackedWeight& weight, const Packing& packing);

}  // namespace moetrim
