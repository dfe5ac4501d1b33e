// Slabs whose values a recipe says: means of experts, factors, noise, given values.

#include "export/computed_slab.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include <fmt/format.h>

#include "export/piece_reader.h"
#include "moetrim/error.h"
#include "moetrim/split_mix.h"

namespace moetrim::export_detail {

namespace {

/// The next number in (0, 1], whose logarithm is finite.
double next_above_zero(SplitMix64& numbers) { return unit_interval(numbers.next()) + 0x1p-53; }

/// From one entry of the hidden axis to the next, in elements; 0 where there is none.
std::size_t hidden_step(const Model& model, const Weight& weight) {
  std::size_t step = 1, found = 0;
  const auto& axes = weight.rule->axes;
  for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
    if (*axis == Axis::E) continue;
    if (*axis == Axis::H) found = step;
    step *= static_cast<std::size_t>(model.length(*axis));
  }
  return found;
}

}  // namespace

std::uint64_t slab_bytes(const Model& model, const Piece& piece) {
  const TensorPlace& place = place_of(model, *piece.source);
  const std::uint64_t elements = slab_elements(model, weight_of(model, place, place.expert));
  const std::uint64_t stored = piece.end - piece.begin;
  const std::uint64_t own = elements * (sizeof(double) + sizeof(float)) + 3 * stored;  // read, made and cut
  return own + (piece.recipe->group ? Alignments::work_bytes(model, *piece.recipe->group) : 0);
}

std::span<const double> ComputedSlab::values(const Piece& piece) {
  mix(piece);
  if (piece.recipe->low_rank) factor(piece, nullptr);
  return sum_;
}

std::vector<RowImportance> ComputedSlab::row_importance(const Piece& piece) {
  std::vector<RowImportance> out;
  mix(piece);
  factor(piece, &out);
  return out;
}

void ComputedSlab::factor(const Piece& piece, std::vector<RowImportance>* importance) {
  const TensorPlace& place = place_of(model_, *piece.source);
  try {
    const LowRank& low_rank = *piece.recipe->low_rank;
    std::vector<RowImportance> measured;
    if (!low_rank.measured.empty()) measured = measured_rows(model_, low_rank, piece);
    factor_slab(sum_, matrices_of(model_, weight_of(model_, place, place.expert)), low_rank, importance, measured);
  } catch (const InvalidInput& problem) {
    throw InvalidInput(fmt::format("tensor {}: {}", piece.source->name, problem.what()));
  }
}

void ComputedSlab::mix(const Piece& piece) {
  const SlabRecipe& recipe = *piece.recipe;
  const TensorPlace& place = place_of(model_, *piece.source);
  const Weight& weight = weight_of(model_, place, place.expert);
  sum_.assign(static_cast<std::size_t>(slab_elements(model_, weight)), 0.0);
  if (recipe.values) {
    if (recipe.values->size() != sum_.size()) {
      throw Error(fmt::format("tensor {}: {} values were given for {}", piece.source->name, recipe.values->size(),
                              sum_.size()));
    }
    std::copy(recipe.values->begin(), recipe.values->end(), sum_.begin());
    return;
  }
  const auto permutations = recipe.group ? alignments_.of(recipe.group) : nullptr;
  for (std::size_t i = 0; i < recipe.parts.size(); ++i) {
    std::span<const std::int32_t> permutation;
    if (permutations) permutation = (*permutations)[i];
    add(place, recipe.parts[i], permutation);
  }
  multiply(recipe, weight);
  add_noise(recipe);
}

void ComputedSlab::add(const TensorPlace& place, const Contribution& part, std::span<const std::int32_t> permutation) {
  if (part.weight == 0) return;
  const Weight& weight = weight_of(model_, place, part.expert);
  reader_.read(weight, part.expert, part_);
  const auto rows = permutation.empty() ? std::nullopt : atom_rows_of(model_, weight);
  if (!rows) {
    for (std::size_t i = 0; i < sum_.size(); ++i) sum_[i] += part.weight * part_[i];
    return;
  }
  const auto shape = slab_shape(model_, weight);
  const auto columns = static_cast<std::size_t>(shape.size() == 2 ? shape[1] : 1);
  const auto atoms = static_cast<std::size_t>(rows->width);
  std::vector<std::size_t> lines(atoms * static_cast<std::size_t>(rows->runs * rows->entries));  // where each comes from
  for (std::size_t line = 0; line < lines.size(); ++line) {
    const std::size_t atom = rows->paired ? line / 2 : line % atoms;
    const auto from = static_cast<std::size_t>(permutation[atom]);
    lines[line] = rows->paired ? 2 * from + line % 2 : line - atom + from;
  }
  for (std::size_t row = 0; row < sum_.size() / columns; ++row) {
    const std::size_t from = (rows->dim == 0 ? lines[row] : row) * columns;
    double* to = sum_.data() + row * columns;
    for (std::size_t i = 0; i < columns; ++i) to[i] += part.weight * part_[from + (rows->dim == 0 ? i : lines[i])];
  }
}

void ComputedSlab::multiply(const SlabRecipe& recipe, const Weight& weight) {
  if (recipe.factor != 1) {
    for (double& value : sum_) value *= recipe.factor;
  }
  if (!recipe.along_hidden) return;
  const std::size_t step = hidden_step(model_, weight);
  const auto& factors = *recipe.along_hidden;
  if (step == 0) throw Error(fmt::format("tensor {}: has no hidden axis to be multiplied along", weight.values()->name));
  for (std::size_t i = 0; i < sum_.size(); ++i) {
    const double factor = factors[i / step % factors.size()];
    sum_[i] = recipe.divides ? (sum_[i] + recipe.norm_offset) / factor - recipe.norm_offset : sum_[i] * factor;
  }
}

/// Box and Muller's transform.
void ComputedSlab::add_noise(const SlabRecipe& recipe) {
  if (recipe.noise == 0 || sum_.empty()) return;
  double square = 0;
  for (const double value : sum_) square += value * value;
  const double deviation = recipe.noise * std::sqrt(square / static_cast<double>(sum_.size()));
  SplitMix64 numbers(recipe.noise_seed);
  for (std::size_t i = 0; i < sum_.size(); i += 2) {
    const double radius = deviation * std::sqrt(-2 * std::log(next_above_zero(numbers)));
    const double angle = 2 * std::numbers::pi * next_above_zero(numbers);
    sum_[i] += radius * std::cos(angle);
    if (i + 1 < sum_.size()) sum_[i + 1] += radius * std::sin(angle);
  }
}

std::span<const std::byte> ComputedSlab::bytes(const Piece& piece) {
  if (recipe_ != piece.recipe || source_ != piece.source) {
    recipe_.reset();  // should it fail
    store_values(values(piece), piece.source->dtype, piece.source->name, stored_);
    recipe_ = piece.recipe;
    source_ = piece.source;
  }
  if (!piece.cut.atoms) return stored_;
  cut_rows(stored_, piece.cut, cut_);
  return cut_;
}

}  // namespace moetrim::export_detail
