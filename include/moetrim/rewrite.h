// Rewrite: a checkpoint and a plan to the stream of tensors, and the config.json, of the new checkpoint.
// No weight is computed or even read here: dropping experts, or atomic experts of an expert, only moves bytes, so an output
// tensor is a list of byte ranges of the source, and FP8, GPTQ or AWQ weights stay what they are. The exception, FP8 blocks
// that the kept atomic experts do not fall on the borders of, is only described here (Computation); and of GPTQ the order of
// the columns is read, since not every order can be cut.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "moetrim/checkpoint.h"
#include "moetrim/family.h"
#include "moetrim/plan.h"
#include "moetrim/slab_recipe.h"

namespace moetrim {

/// The atomic experts of an expert that stay; the expert's tensors share it.
using SharedAtoms = std::shared_ptr<const AtomRanges>;

/// What stays of bytes that are rows of atomic experts. A row is a sequence of units of `step` atomic experts each, more
/// than one where neighbours share a code word or a scale.
///
/// gate [F, H] is one row whose units are H elements; down [H, F] is H rows with units of one element; gate_up [2F, H] is
/// two rows; [H, 2F] with gate and up taking turns is H rows with units of two elements.
struct AtomCut {
  SharedAtoms atoms;              ///< null: all bytes stay, and the rest says nothing
  std::int64_t step = 1;          ///< ranges begin on its multiples, and end on one or with the row
  std::uint64_t row_bytes = 0;    ///< from one row to the next
  std::uint64_t first_byte = 0;   ///< of a row: where its first unit begins
  std::uint64_t unit_bytes = 0;   ///< from one unit to the next
  std::uint64_t kept_bytes = 0;   ///< of a unit that stays; half of it where gate is taken out of gate and up in turns
  std::uint64_t zero_bytes = 0;   ///< of zeros that are added after every row

  /// Bytes of a row that stay, added zeros included.
  std::uint64_t row_bytes_after() const;
};

/// Bytes [begin, end) of a tensor of the source, which must outlive the piece, or what the cut leaves of them.
/// With a recipe the bytes are those of one slab, and values of the same type are computed in their place before the cut.
struct Piece {
  const Tensor* source = nullptr;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  AtomCut cut = {};
  std::shared_ptr<const SlabRecipe> recipe = {};

  /// What the piece adds to the new tensor.
  std::uint64_t bytes() const;
};

/// Values of a quantised weight that are computed from it, one matrix (of an expert) after another. The recipe of a matrix is
/// that of its piece.
struct Computation {
  enum class Result : std::uint8_t {
    bf16,       ///< the values, rounded, lying as the family's plain tensor does
    fp8,        ///< codes, quantised again, in the scheme and the order of rows and columns of the source
    fp8_scale,  ///< their scales
  };
  Result result = Result::bf16;
  const Weight* weight = nullptr;
  std::vector<int> experts;        ///< of a fused weight: ids in the source, in their new order
  std::vector<SharedAtoms> atoms;  ///< of every matrix; no list: all of them
  std::int64_t zeros = 0;          ///< atomic experts of zeros behind those; needs the list
};

/// A part of a matrix [out, in] of an expert that is stored as factors: left [out, rank] times right [rank, in], but for rows
/// that stay whole. Outputs come first, whichever way the source lies.
struct FactorPart {
  enum class Kind : std::uint8_t {
    left,     ///< in the type of the source, as are the next two
    right,
    rows,     ///< [n, in], those that stay whole
    row_ids,  ///< [n] I32, which they are
  };
  Kind kind = Kind::left;
  int layer = -1;          ///< absolute id
  int slot = -1;           ///< of the expert
  int matrix = 0;          ///< of the expert: gate, up, down
  std::size_t place = 0;   ///< of the matrices of the slab: up is the second one of a slab with gate and up
  /// Rows that stay whole, ascending. Null until all matrices were looked at (prepare_export); n is 0 until then.
  std::shared_ptr<const std::vector<std::int32_t>> rows = {};
};

/// A tensor of the new checkpoint. Its bytes are the pieces, joined, unless they are `literal` or computed from the pieces.
struct OutputTensor {
  TensorSpec spec;
  std::vector<Piece> pieces;
  std::string literal = {};                                ///< bytes that follow from the shapes: [N, K] of a packed weight
  std::shared_ptr<const Computation> computation = {};
  std::optional<FactorPart> factor = {};                   ///< of the one piece, whose slab has the matrix
};

/// What a plan may need beside the checkpoint.
struct RewriteSources {
  std::filesystem::path statistics = {};   ///< with vectors: for Alignment::activations and for constants; may be empty
  /// Of the matrices of the experts that the plan merges, or of all where it merges none. Null: they stay whole.
  std::shared_ptr<const LowRank> low_rank = {};
};

/// What becomes of multi-token-prediction blocks.
enum class Mtp : std::uint8_t {
  prune,  ///< as the plan says, which must cover them
  keep,   ///< copied with all their experts: for runtimes that take unequal counts
  drop,   ///< left out; config.json then counts none
};
/// "prune", "keep" or "drop". @throws UsageError
Mtp parse_mtp(std::string_view text);

/// Refuses a plan that does not belong to the model: family, expert count and width, MoE layers, ids, atomic experts,
/// experts per token, fingerprint.
/// @param fingerprint  of the model's checkpoint; empty: do not compare (the plan of another checkpoint is wanted).
/// @throws InvalidInput naming the layer or field, what was expected and what was found.
void check_plan(const Model& model, const Plan& plan, std::string_view fingerprint, Mtp mtp = Mtp::prune);

/// How the new checkpoint says how wide its experts are.
enum class WidthForm : std::uint8_t {
  whole,    ///< nothing changed
  config,   ///< one number in config.json, which every runtime reads
  listed,   ///< a number per expert in config.json's "moetrim_slim", which our own modelling code reads; also where that
            ///< says which expert a row of the router means, or matrices are stored as factors
};

/// What becomes of the experts' widths.
struct Slimming {
  WidthForm form = WidthForm::whole;
  std::int64_t width = 0;         ///< form `config`: of every expert
  std::int64_t shared_width = 0;  ///< form `config`: of the shared expert, 0 for none; larger where zeros are added
  bool input_first = false;       ///< form `listed`: matrices are stored [H, width] and [width, H]
  /// Layers keep different numbers of experts: "moetrim_slim" lists them, whatever the form of the widths is.
  bool by_layer = false;
  std::string architecture;       ///< where anything is listed: the class of transformers that our code extends
  std::string why;                ///< likewise: a clause, for the reader

  /// Whether our own modelling code has to read the checkpoint.
  bool listed() const { return form == WidthForm::listed || by_layer; }
};

/// Widths that differ are listed, and all of a plan that maps the router's rows to merged experts, or where matrices are stored
/// as factors. Equal ones are a number in
/// config.json, unless the same key also sizes the shared expert.
/// Where config.json says how many of that width lie side by side, the count is changed, and a shared expert that is no
/// multiple grows to the next one by atomic experts of zeros, which changes no output; where it does not, the widths are
/// listed too. Expects a plan that check_plan accepts.
/// @throws InvalidInput when anything must be listed and the family has no class in transformers that could read the list,
///         or weights are quantised; or when multi-token-prediction blocks would keep a width that config.json no longer
///         says.
Slimming slimming_of(const Model& model, const Plan& plan, Mtp mtp = Mtp::prune, const RewriteSources& sources = {});

/// The widths, or numbers of experts, of a checkpoint that lists them: at least one of the first two has entries.
struct SlimWidths {
  std::map<int, std::int64_t> experts;              ///< by absolute id of the MoE layer; empty: config.json's number
  std::map<int, std::vector<std::int64_t>> widths;  ///< likewise, of every expert; empty: as the family says
  std::map<int, std::vector<std::int64_t>> map;     ///< likewise, of every row of the router its expert; empty: row i is expert i
  bool input_first = false;
  std::int64_t rank = 0;  ///< of matrices that are stored as factors; 0: there are none
  /// By layer, of every expert the numbers of rows of gate, up and down that stay whole; nothing for one with whole matrices.
  std::map<int, std::vector<std::optional<std::array<std::int64_t, 3>>>> rows;
};
/// What config.json's "moetrim_slim" says, or nothing when it is not there.
/// @param where  put before messages
/// @throws InvalidInput when it cannot be meant.
std::optional<SlimWidths> read_slim_widths(const nlohmann::ordered_json& config, std::string_view where);

/// Name of the tensor that holds a part of expert `expert` where widths are listed: `….experts.slim_gate.5`.
/// @param tensor  name of a tensor of the experts' block, fused or not
/// @param part    "gate", "up", "down", or one of these with "_bias", "_left", "_right", "_rows" or "_row_ids"
std::string slim_name(std::string_view tensor, std::string_view part, int expert);

/// The tensors of the new checkpoint, in reading order of the source, so that reading stays sequential.
/// Experts are numbered by their slots in PlanLayer::keep, in the layout (one by one, or fused) that was read;
/// where widths are listed, every expert has tensors of its own. Expects a plan that check_plan accepts.
/// Slots whose values change are described, not computed: see SlabRecipe and Piece.
/// @throws InvalidInput when a row of a packed tensor does not end on a byte, slimming_of refuses, values of such a format
///         cannot be computed, or a source is missing.
std::vector<OutputTensor> plan_tensors(const Model& model, const Plan& plan, Mtp mtp = Mtp::prune,
                                       const RewriteSources& sources = {});

/// config.json of the new checkpoint: every key that counts experts is edited where it is present (also inside
/// `text_config`), none is added, and lists of modules in `quantization_config` follow the new expert numbers.
/// A plan with `regroup` sets the group counts to 1, a plan with `correct_drift` the routed scaling factor, and dropped
/// multi-token-prediction blocks their count to 0. Where layers keep different numbers of experts, those keys have the
/// largest. Numbers and widths that are listed go to "moetrim_slim", and "auto_map" names the class that reads them
/// (kSlimFile); other entries of "auto_map" would bring a config of another class, and go. Key order and all other values
/// stay. Expects a plan that check_plan accepts.
/// @throws InvalidInput when a list names single experts in a way that cannot be renumbered.
inline constexpr std::string_view kSlimFile = "modeling_moetrim.py";
nlohmann::ordered_json rewrite_config(const Model& model, const Plan& plan, Mtp mtp = Mtp::prune, const RewriteSources& sources = {});

/// What the user should know about the result, one sentence each: router drift where gates are not normalised, and
/// patterns in `quantization_config` that look as if they named single experts.
std::vector<std::string> rewrite_warnings(const Model& model, const Plan& plan, Mtp mtp = Mtp::prune, const RewriteSources& sources = {});

}  // namespace moetrim
