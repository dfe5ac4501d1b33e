// Which atomic expert of a merged expert belongs to which of the expert that it merges into.

#include "export/alignments.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "export/slab_values.h"
#include "moetrim/error.h"
#include "moetrim/matrix.h"
#include "moetrim/vectors.h"

namespace moetrim::export_detail {

namespace {

/// The weights that atomic experts of an expert lie in.
std::vector<const Weight*> weights_of(const Model& model, int layer, int expert) {
  const LayerTensors& tensors = model.layer.at(static_cast<std::size_t>(layer));
  std::vector<const Weight*> out;
  if (tensors.fused()) {
    for (const Role role : {Role::fused_gate_up, Role::fused_gate_up_bias, Role::fused_down}) {
      if (tensors[role]) out.push_back(&tensors[role]);
    }
    return out;
  }
  for (const Weight& weight : tensors.experts.at(static_cast<std::size_t>(expert))) out.push_back(&weight);
  return out;
}

/// The numbers of every atomic expert in one weight, side by side: [halves, F, length], where gate and up are two halves.
struct Lines {
  std::vector<float> values;
  std::size_t halves = 1, atoms = 0, length = 0;

  std::span<const float> half(std::size_t index) const {
    return std::span(values).subspan(index * atoms * length, atoms * length);
  }
};

Lines lines_of(const Model& model, const Weight& weight, const std::vector<float>& slab) {
  const AtomRows rows = *atom_rows_of(model, weight);
  const auto shape = slab_shape(model, weight);
  const auto columns = static_cast<std::size_t>(shape.size() == 2 ? shape[1] : 1);
  Lines out;
  out.halves = static_cast<std::size_t>(rows.runs * rows.entries);
  out.atoms = static_cast<std::size_t>(rows.width);
  out.length = slab.size() / (out.halves * out.atoms);
  out.values.resize(slab.size());
  float* to = out.values.data();
  for (std::size_t half = 0; half < out.halves; ++half) {
    for (std::size_t atom = 0; atom < out.atoms; ++atom) {
      const std::size_t line = rows.paired ? 2 * atom + half : half * out.atoms + atom;
      for (std::size_t i = 0; i < out.length; ++i) {
        *to++ = rows.dim == 0 ? slab[line * columns + i] : slab[i * columns + line];
      }
    }
  }
  return out;
}

/// Of a group's permutations.
std::uint64_t kept_bytes(const Model& model, const AlignedGroup& group) {
  return group.group.members.size() * static_cast<std::uint64_t>(model.expert_width) * sizeof(std::int32_t);
}

std::vector<std::int32_t> best(std::span<const float> gains, std::size_t atoms, int layer, int reference, int member) {
  const std::vector<double> values(gains.begin(), gains.end());
  try {
    return optimal_assignment(values, atoms, Optimum::greatest);
  } catch (const InvalidInput& problem) {
    throw InvalidInput(fmt::format("layer {}: expert {} cannot be aligned with expert {}: {}", layer, member, reference,
                                   problem.what()));
  }
}

}  // namespace

struct Alignments::Entry {
  std::mutex mutex;
  std::shared_ptr<const Permutations> permutations;
  std::shared_ptr<const AlignedGroup> group;  ///< so that its address stays its own
};

/// Centred and scaled to length 1: their products are correlations.
struct Alignments::Samples {
  int layer = -1;
  std::size_t tokens = 0, atoms = 0;
  std::vector<float> values;  ///< [E, F, N]

  std::span<const float> of(int expert) const {
    return std::span(values).subspan(static_cast<std::size_t>(expert) * atoms * tokens, atoms * tokens);
  }
};

Alignments::Alignments(const Checkpoint& source, const Model& model, std::filesystem::path statistics)
    : source_(source), model_(model), statistics_(std::move(statistics)) {}

Alignments::~Alignments() = default;

std::shared_ptr<const Permutations> Alignments::of(const std::shared_ptr<const AlignedGroup>& group) {
  std::shared_ptr<Entry> entry;
  {
    const std::lock_guard lock(mutex_);
    auto& found = entries_[group.get()];
    if (!found) {
      for (kept_bytes_ += kept_bytes(model_, *group); kept_bytes_ > kKeptBytes && !order_.empty(); order_.pop_front()) {
        const auto oldest = entries_.find(order_.front());
        kept_bytes_ -= kept_bytes(model_, *oldest->second->group);
        entries_.erase(oldest);
      }
      found = std::make_shared<Entry>();
      found->group = group;
      order_.push_back(group.get());
    }
    entry = found;
  }
  const std::lock_guard lock(entry->mutex);
  if (!entry->permutations) entry->permutations = std::make_shared<const Permutations>(find(*group));
  return entry->permutations;
}

Permutations Alignments::find(const AlignedGroup& group) {
  const auto& members = group.group.members;
  Permutations out(members.size());
  if (group.by == Alignment::none) return out;
  const auto samples = group.by == Alignment::activations ? samples_of(group.layer) : nullptr;
  if (samples && samples->tokens < 2) return out;  // nothing varies
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (members[i] == group.group.into) continue;
    out[i] = samples ? by_activations(*samples, group.group.into, members[i])
                     : by_weights(group.layer, group.group.into, members[i]);
  }
  return out;
}

std::vector<std::int32_t> Alignments::by_weights(int layer, int reference, int member) {
  const auto atoms = static_cast<std::size_t>(model_.expert_width);
  const auto of_reference = weights_of(model_, layer, reference), of_member = weights_of(model_, layer, member);
  std::vector<float> gains(atoms * atoms), slab;
  SlabReader reader(source_, model_);
  for (std::size_t i = 0; i < of_reference.size(); ++i) {
    reader.read(*of_reference[i], reference, slab);
    const Lines here = lines_of(model_, *of_reference[i], slab);
    reader.read(*of_member[i], member, slab);
    const Lines there = lines_of(model_, *of_member[i], slab);
    for (std::size_t half = 0; half < here.halves; ++half) {
      add_product(here.half(half), there.half(half), gains, {.rows = atoms, .columns = atoms, .depth = here.length});
    }
  }
  return best(gains, atoms, layer, reference, member);
}

std::vector<std::int32_t> Alignments::by_activations(const Samples& samples, int reference, int member) const {
  std::vector<float> gains(samples.atoms * samples.atoms);
  add_product(samples.of(reference), samples.of(member), gains,
              {.rows = samples.atoms, .columns = samples.atoms, .depth = samples.tokens});
  return best(gains, samples.atoms, samples.layer, reference, member);
}

std::shared_ptr<const Alignments::Samples> Alignments::samples_of(int layer) {
  const std::lock_guard lock(samples_mutex_);
  if (samples_ && samples_->layer == layer) return samples_;
  samples_.reset();
  const ExpertVectors vectors = read_vectors(statistics_, layer);
  if (vectors.experts != model_.experts || vectors.width != model_.expert_width || vectors.sample_activations.empty()) {
    throw InvalidInput(fmt::format("{}: holds no sampled activations of {} experts of width {} for layer {}; calibrate this "
                                   "checkpoint with --statistics all-experts", statistics_.string(), model_.experts,
                                   model_.expert_width, layer));
  }
  auto made = std::make_shared<Samples>();
  made->layer = layer;
  made->tokens = static_cast<std::size_t>(vectors.samples());
  made->atoms = static_cast<std::size_t>(vectors.width);
  made->values.resize(vectors.sample_activations.size());
  for (std::size_t expert = 0; expert < static_cast<std::size_t>(vectors.experts); ++expert) {
    for (std::size_t atom = 0; atom < made->atoms; ++atom) {
      const std::size_t first = expert * made->tokens * made->atoms + atom;
      double mean = 0, square = 0;
      for (std::size_t n = 0; n < made->tokens; ++n) mean += vectors.sample_activations[first + n * made->atoms];
      mean /= static_cast<double>(made->tokens);
      for (std::size_t n = 0; n < made->tokens; ++n) {
        const double off = vectors.sample_activations[first + n * made->atoms] - mean;
        square += off * off;
      }
      const double scale = square > 0 ? 1 / std::sqrt(square) : 0;
      float* to = made->values.data() + (expert * made->atoms + atom) * made->tokens;
      for (std::size_t n = 0; n < made->tokens; ++n) {
        to[n] = static_cast<float>((vectors.sample_activations[first + n * made->atoms] - mean) * scale);
      }
    }
  }
  return samples_ = std::move(made);
}

std::uint64_t Alignments::work_bytes(const Model& model, const AlignedGroup& group) {
  if (group.by == Alignment::none) return 0;
  const auto atoms = static_cast<std::uint64_t>(model.expert_width);
  std::uint64_t bytes = atoms * atoms * (sizeof(float) + sizeof(double)), largest = 0;
  if (group.by == Alignment::activations) return bytes;
  for (const Weight* weight : weights_of(model, group.layer, group.group.into)) {
    largest = std::max(largest, slab_elements(model, *weight));
  }
  return bytes + largest * 4 * sizeof(float);  // bytes of the file, values, and the lines of two experts
}

}  // namespace moetrim::export_detail
