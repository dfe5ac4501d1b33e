// Greedy generation with a KV cache. The whole model lies in memory; prompts are decoded in batches.

#include <algorithm>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "evaluate/plan_mask.h"
#include "forward/attention.h"
#include "forward/experts.h"
#include "forward/kernels.h"
#include "forward/linear.h"
#include "forward/memory_plan.h"
#include "forward/router.h"
#include "moetrim/error.h"
#include "moetrim/evaluate.h"
#include "moetrim/machine.h"

namespace moetrim {

namespace {

/// A layer's weights, experts included.
struct ResidentLayer {
  LayerWeights weights;
  std::vector<ExpertWeights> experts;
};

/// Keys and values of one sequence in one layer, [capacity, kv heads, D].
struct Cache {
  at::Tensor keys, values;
};

/// One prompt being answered.
struct Answer {
  std::size_t prompt = 0;
  std::int64_t length = 0;         ///< tokens in the cache
  std::int32_t next = 0;           ///< token to feed
  std::vector<Cache> caches;       ///< [layers]
};

/// Tokens that go through the layers together: a prompt each, or one token each.
struct Step {
  std::vector<Answer*> answers;
  std::vector<std::int64_t> lengths;
  at::Tensor hidden;  // [n, H] stored
};

class Generator {
 public:
  Generator(const Model& model, const GenerateOptions& options)
      : model_(model),
        options_(options),
        forward_options_(forward_options(model, options)),
        device_(forward_options_.device),
        numerics_(Numerics::choose(forward_options_.precision, device_)),
        rotary_(model.rope, numerics_, device_),
        pool_(device_.is_cpu() ? (options.threads > 0 ? options.threads : usable_cores()) : 1),
        scratch_(static_cast<std::size_t>(pool_.size())),
        context_{model_, numerics_, device_, rotary_} {
    if (options.plan != nullptr) mask_ = mask_of(model, *options.plan);
    check_memory();
    load();
  }

  std::vector<std::vector<std::int32_t>> run(const std::vector<std::vector<std::int32_t>>& prompts) {
    const c10::InferenceMode no_autograd;
    std::vector<std::vector<std::int32_t>> answers(prompts.size());
    for (std::size_t first = 0; first < prompts.size(); first += static_cast<std::size_t>(options_.batch)) {
      const std::size_t last = std::min(prompts.size(), first + static_cast<std::size_t>(options_.batch));
      run_batch(prompts, first, last, answers);
      if (options_.progress) options_.progress(static_cast<std::int64_t>(last), static_cast<std::int64_t>(prompts.size()));
      if (options_.stop != nullptr && *options_.stop) throw Interrupted("stopped while generating answers");
    }
    return answers;
  }

 private:
  void check_memory() const {
    const std::uint64_t element = numerics_.tile() == at::kFloat ? 4 : 2;
    std::uint64_t elements = 0;
    for (const Tensor& tensor : model_.checkpoint->tensors()) {
      std::uint64_t count = 1;
      for (const auto length : tensor.shape) count *= static_cast<std::uint64_t>(length);
      elements += count;
    }
    const std::uint64_t budget = options_.max_memory > 0 ? options_.max_memory : available_memory();
    if (elements * element > budget) {
      throw OutOfResources(fmt::format("{}: generating holds the whole model in memory, {:.2f} GiB, the budget is {:.2f} GiB; "
                                       "use loss and KL for a model of this size, or a smaller checkpoint",
                                       model_.checkpoint->folder().string(), static_cast<double>(elements * element) / (1 << 30),
                                       static_cast<double>(budget) / (1 << 30)));
    }
  }

  WeightBuffer read(const WeightGroup& group) const {
    std::size_t bytes = 0;
    for (const auto& range : group) bytes += range.size;
    WeightBuffer buffer(new std::byte[bytes], [](const std::byte* p) { delete[] p; });
    std::size_t at = 0;
    for (const auto& range : group) {
      model_.checkpoint->read(*range.tensor, range.begin, {buffer.get() + at, static_cast<std::size_t>(range.size)});
      at += range.size;
    }
    return buffer;
  }

  void load() {
    const c10::InferenceMode no_autograd;
    for (const LayerTensors& tensors : model_.layer) {
      ResidentLayer& layer = layers_.emplace_back();
      layer.weights = load_layer(tensors, read(layer_group(tensors)), numerics_, device_);
      for (int e = 0; tensors.sparse && e < model_.experts; ++e) {
        const WeightBuffer bytes = read(expert_group(tensors, e));
        ExpertWeights expert = load_expert(model_, tensors, bytes, numerics_, device_);
        // Weights that need no conversion share the buffer; they outlive it here.
        layer.experts.push_back({expert.gate_up.clone(), expert.down.clone()});
      }
    }
    const Tensor& table = *model_.global[static_cast<std::size_t>(Role::embedding)];
    embedding_ = load_tensor(table, model_.checkpoint->read(table).data(), numerics_.stored(), numerics_, device_);
    head_ = load_head(model_, numerics_, device_);
  }

  void run_batch(const std::vector<std::vector<std::int32_t>>& prompts, std::size_t first, std::size_t last,
                 std::vector<std::vector<std::int32_t>>& out) {
    std::vector<Answer> answers(last - first);
    std::vector<std::int32_t> ids;
    Step step;
    for (std::size_t i = first; i < last; ++i) {
      Answer& answer = answers[i - first];
      const auto capacity = static_cast<std::int64_t>(prompts[i].size()) + options_.max_new_tokens;
      rotary_.prepare(capacity);
      answer.prompt = i;
      for (std::int64_t l = 0; l < model_.layers; ++l) {
        const auto options = at::TensorOptions().dtype(numerics_.tile()).device(device_);
        answer.caches.push_back({at::empty({capacity, model_.key_value_heads, model_.head_dim}, options),
                                 at::empty({capacity, model_.key_value_heads, model_.head_dim}, options)});
      }
      step.answers.push_back(&answer);
      step.lengths.push_back(static_cast<std::int64_t>(prompts[i].size()));
      ids.insert(ids.end(), prompts[i].begin(), prompts[i].end());
    }
    for (std::int64_t produced = 0; produced < options_.max_new_tokens && !step.answers.empty(); ++produced) {
      step.hidden = embed(ids);
      for (std::size_t l = 0; l < layers_.size(); ++l) run_layer(l, step);
      choose(step, out);
      ids.clear();
      step.lengths.assign(step.answers.size(), 1);
      for (const Answer* answer : step.answers) ids.push_back(answer->next);
    }
  }

  at::Tensor embed(const std::vector<std::int32_t>& ids) const {
    for (const auto id : ids) {
      if (id < 0 || id >= model_.vocabulary) {
        throw InvalidInput(fmt::format("token id {} is outside the vocabulary of {}", id, model_.vocabulary));
      }
    }
    return embedding_.index_select(0, at::tensor(ids, at::kInt).to(device_));
  }

  void run_layer(std::size_t index, Step& step) {
    const LayerTensors& tensors = model_.layer[index];
    const ResidentLayer& layer = layers_[index];
    TileScratch& own = scratch_[0];
    attend_cached(index, step);
    const auto rows = step.hidden.size(0);
    at::Tensor normed = at::empty({rows, model_.hidden}, step.hidden.options().dtype(numerics_.tile()));
    kernels::norm_rows(numerics_, step.hidden, layer.weights.mlp_norm, model_.norm_epsilon, normed);
    if (!tensors.sparse) {
      kernels::add_rows(numerics_, step.hidden,
                        gated_mlp(context_, normed, layer.weights.dense_gate_up, layer.weights.dense_down, own));
      return;
    }
    at::Tensor sum = at::zeros({rows, model_.hidden}, step.hidden.options().dtype(at::kFloat));
    run_routed(index, normed, sum);
    at::Tensor shared;
    if (layer.weights.shared_down.defined()) {
      const at::Tensor product = gated_mlp(context_, normed, layer.weights.shared_gate_up, layer.weights.shared_down, own);
      shared = at::empty_like(normed);
      kernels::gate_rows(numerics_, linear(normed, layer.weights.shared_router, {}, own.router_logits), product, shared);
    }
    at::Tensor turns = at::empty({rows}, step.hidden.options().dtype(at::kDouble));
    kernels::finish_rows(numerics_, step.hidden, sum, shared, turns);
  }

  void attend_cached(std::size_t index, Step& step) {
    const LayerTensors& tensors = model_.layer[index];
    const LayerWeights& weights = layers_[index].weights;
    const auto rows = step.hidden.size(0);
    const auto queries = model_.heads * model_.head_dim;
    const auto keys = model_.key_value_heads * model_.head_dim;
    at::Tensor normed = at::empty({rows, model_.hidden}, step.hidden.options().dtype(numerics_.tile()));
    kernels::norm_rows(numerics_, step.hidden, weights.input_norm, model_.norm_epsilon, normed);
    TileScratch& own = scratch_[0];
    at::Tensor qkv = linear(normed, weights.query_key_value, weights.query_key_value_bias, own.qkv);
    at::Tensor attended = at::empty({rows, queries}, normed.options());
    const auto layout = head_layout(model_, weights);
    std::vector<std::int64_t> begins;
    std::int64_t at = 0;
    for (const auto length : step.lengths) {
      begins.push_back(at);
      at += length;
    }
    pool_.run(static_cast<std::int64_t>(step.answers.size()), [&](std::int64_t i, int) {
      Answer& answer = *step.answers[static_cast<std::size_t>(i)];
      const auto length = step.lengths[static_cast<std::size_t>(i)];
      at::Tensor part = qkv.narrow(0, begins[static_cast<std::size_t>(i)], length);
      const auto seen = answer.length + length;
      const auto [cosine, sine] = rotary_.rows(seen);
      kernels::rotate_rows(numerics_, part, layout, cosine.slice(0, answer.length), sine.slice(0, answer.length));
      const auto heads = [&](std::int64_t from, std::int64_t width) {
        return part.narrow(1, from, width).view({length, -1, model_.head_dim});
      };
      Cache& cache = answer.caches[index];
      cache.keys.narrow(0, answer.length, length).copy_(heads(queries, keys));
      cache.values.narrow(0, answer.length, length).copy_(heads(queries + keys, keys));
      attended.narrow(0, begins[static_cast<std::size_t>(i)], length)
          .copy_(attention_of(heads(0, queries), cache.keys.narrow(0, 0, seen), cache.values.narrow(0, 0, seen),
                              tensors.window));
    });
    kernels::round_product(numerics_, attended);
    kernels::add_rows(numerics_, step.hidden, linear(attended, weights.output, weights.output_bias, own.projected));
  }

  void run_routed(std::size_t index, const at::Tensor& normed, at::Tensor& sum) {
    const ResidentLayer& layer = layers_[index];
    RoutedLayer routed;
    prepare_record(model_, static_cast<int>(index), normed.size(0), routed);
    const std::vector<bool>* kept = mask_.empty() || mask_[index].empty() ? nullptr : &mask_[index];
    route_tile(context_, layer.weights.router, normed, 0, [kept](std::int64_t) { return kept; }, routed, scratch_[0]);
    std::size_t expert = 0;
    const at::Tensor stored = normed.to(numerics_.stored());
    run_experts(context_, [&] { return layer.experts[expert++]; }, stored, routed, sum, pool_, scratch_);
  }

  /// Takes the most probable token of every answer; drops the answers that are complete.
  void choose(Step& step, std::vector<std::vector<std::int32_t>>& out) {
    std::vector<std::int64_t> last;
    std::int64_t at = -1;
    for (const auto length : step.lengths) last.push_back(at += length);
    const at::Tensor rows = step.hidden.index_select(0, at::tensor(last, at::kLong).to(device_));
    at::Tensor normed = at::empty(rows.sizes(), rows.options().dtype(numerics_.tile()));
    kernels::norm_rows(numerics_, rows, head_.final_norm, model_.norm_epsilon, normed);
    at::Tensor logits = at::mm(normed, head_.head.t());
    kernels::round_product(numerics_, logits);
    const at::Tensor best = logits.argmax(-1).cpu();
    std::vector<Answer*> going_on;
    for (std::size_t i = 0; i < step.answers.size(); ++i) {
      Answer& answer = *step.answers[i];
      answer.length += step.lengths[i];
      answer.next = static_cast<std::int32_t>(best.const_data_ptr<std::int64_t>()[i]);
      const auto& stops = options_.stop_tokens;
      if (std::find(stops.begin(), stops.end(), answer.next) != stops.end()) {
        answer.caches.clear();
        continue;
      }
      out[answer.prompt].push_back(answer.next);
      going_on.push_back(&answer);
    }
    step.answers = std::move(going_on);
  }

  const Model& model_;
  const GenerateOptions& options_;
  const ForwardOptions forward_options_;
  const at::Device device_;
  const Numerics numerics_;
  RotaryTable rotary_;
  ThreadPool pool_;
  std::vector<TileScratch> scratch_;
  const TileContext context_;
  std::vector<ResidentLayer> layers_;
  at::Tensor embedding_;  // [V, H] stored
  HeadWeights head_;
  ExpertMask mask_;
};

}  // namespace

std::vector<std::vector<std::int32_t>> generate(const Model& model, const std::vector<std::vector<std::int32_t>>& prompts,
                                                const GenerateOptions& options) {
  if (options.max_new_tokens < 1 || options.batch < 1) throw UsageError("tokens to generate and batch must be at least 1");
  return Generator(model, options).run(prompts);
}

}  // namespace moetrim
