// Greedy generation with a KV cache. The whole model lies in memory; prompts are decoded in batches.

#include <algorithm>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "evaluate/plan_mask.h"
#include "forward/attention.h"
#include "forward/experts.h"
#include "forward/kernels.h"
#include "forward/memory_plan.h"
#include "forward/output_head.h"
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

/// One prompt being answered.
struct Answer {
  std::size_t prompt = 0;
  std::int64_t length = 0;         ///< tokens in the cache
  std::int32_t next = 0;           ///< token to feed
  std::vector<LayerCache> caches;  ///< [layers]
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
        rotary_(model, numerics_, device_),
        pool_(device_.is_cpu() ? (options.threads > 0 ? options.threads : usable_cores()) : 1),
        embeddings_(*model.checkpoint, PageCache::use),
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
    const std::uint64_t element = at::elementSize(numerics_.tile());
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
    for (std::int64_t l = 0; l < model_.layers; ++l) {
      const LayerTensors& tensors = model_.layer[static_cast<std::size_t>(l)];
      ResidentLayer& layer = layers_.emplace_back();
      layer.weights = load_layer(model_, tensors, read(layer_group(tensors)), numerics_, device_);
      for (int e = 0; tensors.sparse && e < model_.experts; ++e) {
        const WeightBuffer bytes = read(expert_group(tensors, e));
        ExpertWeights expert = load_expert(model_, tensors, e, bytes, numerics_, device_);
        // Weights that need no conversion share the buffer; they outlive it here.
        for (at::Tensor* values : {&expert.gate_up, &expert.gate_up_bias, &expert.down, &expert.down_bias}) {
          if (values->defined()) *values = values->clone();
        }
        expert.bytes.reset();
        layer.experts.push_back(std::move(expert));
      }
    }
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
      for (std::int64_t l = 0; l < model_.layers; ++l) answer.caches.push_back(empty_cache(capacity));
      step.answers.push_back(&answer);
      step.lengths.push_back(static_cast<std::int64_t>(prompts[i].size()));
      ids.insert(ids.end(), prompts[i].begin(), prompts[i].end());
    }
    for (std::int64_t produced = 0; produced < options_.max_new_tokens && !step.answers.empty(); ++produced) {
      step.hidden = embed(model_, ids, numerics_, embeddings_).to(device_);
      for (std::size_t l = 0; l < layers_.size(); ++l) run_layer(l, step);
      choose(step, out);
      ids.clear();
      step.lengths.assign(step.answers.size(), 1);
      for (const Answer* answer : step.answers) ids.push_back(answer->next);
    }
  }

  /// Latent attention keeps whole keys and values: generating is for models that fit in memory many times over.
  LayerCache empty_cache(std::int64_t capacity) const {
    const auto options = at::TensorOptions().dtype(numerics_.tile()).device(device_);
    const auto value_dim = model_.latent.value > 0 ? model_.latent.value : model_.head_dim;
    return {.keys = at::empty({capacity, model_.key_value_heads, model_.head_dim}, options),
            .values = at::empty({capacity, model_.key_value_heads, value_dim}, options),
            .convolution = {},
            .state = {}};
  }

  void run_layer(std::size_t index, Step& step) {
    const LayerTensors& tensors = model_.layer[index];
    const ResidentLayer& layer = layers_[index];
    TileScratch& own = scratch_[0];
    std::vector<SequencePart> parts;
    for (std::size_t i = 0; i < step.answers.size(); ++i) {
      parts.push_back({step.lengths[i], step.answers[i]->length, &step.answers[i]->caches[index]});
    }
    const auto in_parallel = [this](std::int64_t count, const auto& body) {
      pool_.run(count, [&](std::int64_t i, int) { body(i); });
    };
    // A clone: shared experts use the scratch that it is in.
    const at::Tensor normed = attend_and_norm(context_, tensors, layer.weights, parts, step.hidden, own, in_parallel).clone();
    const auto rows = step.hidden.size(0);
    if (!tensors.sparse) {
      kernels::add_rows(numerics_, step.hidden,
                        gated_mlp(context_, normed, layer.weights.dense_gate_up, layer.weights.dense_down, own),
                        model_.residual_scale);
      return;
    }
    at::Tensor sum = at::zeros({rows, model_.hidden}, step.hidden.options().dtype(numerics_.wide()));
    run_routed(index, normed, sum);
    const at::Tensor shared = shared_output(context_, layer.weights, normed, own);
    at::Tensor turns = at::empty({rows}, step.hidden.options().dtype(at::kDouble));
    kernels::finish_rows(numerics_, step.hidden, sum, shared, turns, model_.residual_scale);
  }

  void run_routed(std::size_t index, const at::Tensor& normed, at::Tensor& sum) {
    const ResidentLayer& layer = layers_[index];
    RoutedLayer routed;
    prepare_record(model_, static_cast<int>(index), normed.size(0), routed);
    const LayerMask* mask = mask_.empty() || mask_[index].kept.empty() ? nullptr : &mask_[index];
    route_tile(context_, layer.weights, normed, 0, [mask](std::int64_t) { return mask; }, routed, scratch_[0]);
    const at::Tensor stored = normed.to(numerics_.stored());
    const FetchExpert fetch = [&](int expert) -> ExpertLoader {
      return [&weights = layer.experts[static_cast<std::size_t>(expert)]] { return weights; };
    };
    MaskOfToken of_all;
    if (mask != nullptr) of_all = [mask](std::int64_t) { return mask; };
    run_experts(context_, fetch, stored, of_all, routed, sum, pool_, scratch_);
  }

  /// Takes the most probable token of every answer; drops the answers that are complete.
  void choose(Step& step, std::vector<std::vector<std::int32_t>>& out) {
    std::vector<std::int64_t> last;
    std::int64_t at = -1;
    for (const auto length : step.lengths) last.push_back(at += length);
    const at::Tensor rows = step.hidden.index_select(0, at::tensor(last, at::kLong).to(device_));
    const at::Tensor best = project_to_vocabulary(model_, numerics_, head_, rows, pool_).argmax(-1).cpu();
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
  BlockReader embeddings_;
  std::vector<TileScratch> scratch_;
  const TileContext context_;
  std::vector<ResidentLayer> layers_;
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
