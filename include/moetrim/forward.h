// The forward pass, layers outside and tokens inside: every layer is loaded once, all tokens of a batch pass through it, and
// it is let go. Peak memory is the tokens' hidden states and about two layers, whatever the model's size.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "moetrim/family.h"
#include "moetrim/run_options.h"

namespace moetrim {

struct VectorSums;

/// What activations are rounded to. Sums inside a matrix product are fp32 in the first two; fp64 is slow, for checking.
enum class Precision { fp32, bf16, fp64 };

struct ForwardOptions {
  Precision precision = Precision::fp32;
  std::string device = "cpu";        ///< "cpu" or "cuda:N"
  int threads = 0;                   ///< 0: all cores that the process may use
  std::uint64_t read_ahead_bytes = 256ULL << 20;  ///< weights read before they are needed
  bool drop_page_cache = false;      ///< tell the kernel not to keep weights that were read
  std::uint64_t hold_bytes = 0;      ///< of a block's experts, kept for its second run; see Forward::run_layer
  bool mtp = false;                  ///< run multi-token-prediction blocks after the layers
  ReadingTime* reading = nullptr;    ///< counts what reading takes, when given
};

/// Tokens of one sequence inside a batch; attention does not cross sequences.
struct Sequence {
  std::int64_t begin = 0;   ///< first token in the batch
  std::int64_t length = 0;
  int mask = -1;            ///< index into TokenBatch::masks; -1: all experts
  int task = 0;             ///< what Backward keeps sums apart by; ascending over a batch
};

/// A sequence that goes on from where another one of its batch stands.
struct Branch {
  std::size_t from = 0;     ///< index into TokenBatch::sequences
  int mask = -1;            ///< as in Sequence
};

/// Which experts of a layer may be routed to, and which of their atomic experts work.
struct LayerMask {
  std::vector<bool> kept;   ///< [experts]; empty: no restriction
  bool regroup = false;     ///< the router forgets its groups
  double gate_scale = 1.0;  ///< multiplies the gates: a correction of router drift
  std::vector<std::vector<bool>> atoms = {};   ///< [experts][F] which work; empty: all

  bool operator==(const LayerMask&) const = default;
};
/// Per layer: [layers].
using ExpertMask = std::vector<LayerMask>;

struct TokenBatch {
  std::vector<std::int32_t> ids;     ///< [T]
  std::vector<Sequence> sequences;   ///< cover the ids, in order
  std::vector<ExpertMask> masks;     ///< plans that are not yet written, see `evaluate`
};

/// What one MoE layer did with every token. K routed experts per token; slot i of token t is at t * K + i.
struct RoutedLayer {
  int layer = 0;
  std::int64_t tokens = 0;
  int experts = 0, experts_per_token = 0;
  std::vector<float> logits;          ///< [T, E] raw, before any selection bias
  std::vector<float> probabilities;   ///< [T, E] before selection
  std::vector<std::int32_t> ids;      ///< [T, K] best first
  std::vector<double> gates;          ///< [T, K] what really multiplies the expert's output
  std::vector<double> input_gates;    ///< [T, K] what multiplies its input instead, gates are 1 then; empty in other families
  std::vector<float> norms;           ///< [T, K] |f|2 of the expert's output before the gate
  std::vector<float> max_abs;         ///< [T, K] max |f| over channels
  std::vector<double> turns;          ///< [T] max(0, 1 - cos(h, h + r)): r is the routed experts' sum, h the residual before it

  /// The experts that tokens [begin, begin + count) chose.
  std::span<const std::int32_t> ids_of(std::int64_t begin, std::int64_t count) const {
    return std::span(ids).subspan(static_cast<std::size_t>(begin * experts_per_token), static_cast<std::size_t>(count * experts_per_token));
  }
};

/// What an MoE block is restricted to when it runs a second time, after what it did with all its experts was seen.
using ChooseExperts = std::function<LayerMask(const RoutedLayer& whole)>;

/// Runs a batch layer by layer. The model and its checkpoint must outlive it.
class Forward {
 public:
  Forward(const Model& model, const ForwardOptions& options);
  ~Forward();
  Forward(const Forward&) = delete;
  Forward& operator=(const Forward&) = delete;

  /// Embeds the batch and opens the weights from layer 0 on.
  /// @throws InvalidInput when a token id is outside the vocabulary.
  void begin(TokenBatch batch);
  /// As begin(), but the run ends at the router of MoE layer `layer`: of that layer only what comes before its experts is read
  /// and run. Its record then has logits, probabilities, ids and gates; norms, max_abs and turns are 0, and hidden() is what
  /// attention left.
  void begin_to_router(TokenBatch batch, int layer);
  /// Goes on with hidden states [T, H] that were taken before `layer`. @param end  the layer to stop before; -1: run them all.
  void resume(TokenBatch batch, int layer, const at::Tensor& hidden, int end = -1);

  /// Adds sequences to the batch before the next layer runs: each begins with what another one's tokens have become so far. They
  /// come after those that are there, in this order. So plans that agree on the first layers run them once.
  void fork(std::span<const Branch> branches);

  int next_layer() const;
  bool done() const;
  /// Runs the next layer. `routed` is filled for an MoE layer and left with tokens = 0 for a dense one.
  /// @param sums  of an MoE layer: what to sum besides, or null. Experts then run one by one, also on a device.
  /// @param choose  of an MoE layer, when given: its block runs with all experts, without effect on what comes after it; then
  ///                once more on the same input as the mask says, and that goes on. Attention, norms and shared experts run
  ///                once, and experts held by ForwardOptions::hold_bytes are read once. `routed` ends as the second run left
  ///                it. For batches without masks.
  /// @throws InvalidInput naming layer and tensor when a value becomes NaN or infinite.
  void run_layer(RoutedLayer& routed, VectorSums* sums = nullptr, const ChooseExperts& choose = {});

  /// [T, H] in the stored precision, on the device: the residual stream after the layers run so far. A multi-token-prediction
  /// block k sees at each position the token k + 1 places further on; the last k + 1 tokens of a sequence have none and are
  /// run with the last token instead, so that their records mean nothing.
  const at::Tensor& hidden() const;

  /// Logits [rows.size(), V] fp32 (fp64 in an fp64 run) for rows of a residual stream that has passed all layers.
  at::Tensor logits(const at::Tensor& hidden, std::span<const std::int64_t> rows);

  /// Bytes that a batch of that many tokens needs beside the weights.
  static std::uint64_t bytes_per_token(const Model& model, Precision precision);
  /// Bytes that the weights in work need.
  static std::uint64_t weight_bytes(const Model& model, const ForwardOptions& options);
  /// Multiply-adds times two of the matrix products of the layers from `first` on, for sequences of these lengths.
  static double operations(const Model& model, std::span<const std::int64_t> lengths, int first = 0);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// What this machine does with this checkpoint, measured in a tenth of a second.
struct MachineRates {
  double operations_per_second = 0;   ///< of matrix products, all threads together
  double bytes_per_second = 0;        ///< read from the checkpoint, as far as it is not in the page cache already

  /// Of a run: weights are read while others are used, so that the slower of the two counts.
  double seconds(double operations, std::uint64_t bytes) const;
};

/// @throws InvalidInput when the device cannot be used.
MachineRates measure_rates(const Model& model, const RunOptions& options);

/// A token that the loss is taken of: the logits of `row` against the token after it.
struct Prediction {
  std::int64_t row = 0;       ///< of the batch, ascending over predictions
  std::int32_t target = 0;    ///< token id
};

/// Sums over the tokens that ran, of one MoE layer; see AtomStatistics for what they mean.
struct AtomSums {
  std::vector<double> tokens;                            ///< [tasks, E]
  std::vector<double> activation, gradient, joint;       ///< [tasks, E, F]
  std::vector<double> down_squares, gate_up_squares;     ///< [E, F]; of the weights, filled when they are empty
};

/// Sums over batches of one MoE layer; see RowStatistics for what they mean.
struct RowSums {
  std::int64_t rank = 0;                   ///< of the factors; 0: nothing is summed
  std::vector<double> gate, up, down;      ///< [tasks, E, F], [tasks, E, F], [tasks, E, H]
};

/// What the reverse sweep finds in one MoE layer.
struct ReversedLayer {
  int layer = 0;
  std::int64_t tokens = 0;
  int experts = 0, experts_per_token = 0;
  std::vector<std::int32_t> ids;    ///< [T, K] as the forward sweep routed them
  std::vector<double> products;     ///< [T, K] gT o: the loss gradient at the block's output times the expert's gated output
  AtomSums sums;                    ///< added to; the caller sets the sizes
  RowSums rows = {};                ///< the same
};

/// The reverse sweep: layers from last to first, each recomputed from the hidden states before it and differentiated alone.
///
/// With y_t = sum of p o over the routed experts, added to the residual stream, the gradient at an expert's output is the
/// incoming gradient times p; so a layer's sums need no backward pass through that layer. HEAPr, arXiv 2509.22299.
/// Attention, norms, router, gates, shared experts and dense MLPs are differentiated by LibTorch in fp32 (fp64 in an fp64
/// run); routed experts by three matrix products each: gate_up again, gradient through down_proj, and back through gate_up.
class Backward {
 public:
  Backward(const Model& model, const ForwardOptions& options);
  ~Backward();
  Backward(const Backward&) = delete;
  Backward& operator=(const Backward&) = delete;

  /// Takes the loss, the sum of the cross entropy over the predictions, after the last layer.
  /// @param hidden  [T, H] residual stream after all layers
  /// @return the loss of every task, in nats: [tasks]
  std::vector<double> begin(TokenBatch batch, const at::Tensor& hidden, std::span<const Prediction> predictions);
  /// Goes on before `layer` is run, with the gradient [T, H] after it.
  void resume(TokenBatch batch, int layer, const at::Tensor& gradient);

  /// The layer that runs next; done() below the lowest MoE layer, since nothing is measured there.
  int next_layer() const;
  bool done() const;
  /// Runs next_layer() backwards. `reversed` is filled for an MoE layer and left alone for a dense one.
  /// @param hidden  [T, H] residual stream before the layer, as the forward sweep had it.
  /// @throws InvalidInput naming the layer when a gradient becomes NaN or infinite.
  void run_layer(const at::Tensor& hidden, ReversedLayer& reversed);

  /// [T, H] fp32 (fp64 in an fp64 run): of the loss by the residual stream before the layers run so far.
  const at::Tensor& gradient() const;

  /// Bytes that a batch of that many tokens needs beside the weights.
  static std::uint64_t bytes_per_token(const Model& model, Precision precision);
  /// Bytes that the values on tape of the longest sequence need, for each thread.
  static std::uint64_t tape_bytes(const Model& model, Precision precision, std::int64_t longest);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moetrim
