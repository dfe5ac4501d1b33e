// Importance matrices cut to a plan's experts, and added up.

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/imatrix.h"

namespace moetrim {

namespace {

/// One imatrix of several, and an entry of it.
struct Place {
  std::size_t matrix = 0, entry = 0;
};

void check_sliceable(const Plan& plan, Mtp mtp) {
  if (mtp == Mtp::keep) {
    throw UsageError("--mtp keep: llama.cpp has one expert count for all blocks; choose prune or drop");
  }
  if (changes_values(plan) || plan.width > 0 || plan.counts != LayerCounts::equal) {
    throw InvalidInput(
        "the plan does more than choose whole experts, as many in every layer: what the matrices of the new model read "
        "is not in this imatrix; calibrate the new model with --statistics inputs and write one from that");
  }
}

const PlanLayer* layer_of(const Plan& plan, int block) {
  const auto found = std::ranges::find(plan.layers, block, &PlanLayer::layer);
  return found == plan.layers.end() ? nullptr : &*found;
}

/// Blocks that have what only multi-token-prediction has, or experts behind all layers that the plan knows.
std::set<int> mtp_blocks(const Imatrix& matrix, const Plan& plan) {
  std::set<int> blocks;
  const int last = plan.layers.empty() ? -1 : plan.layers.back().layer;
  for (const ImatrixEntry& entry : matrix.entries) {
    if (entry.name.find(".nextn.") != std::string::npos || (entry.of_experts() && entry.block() > last)) blocks.insert(entry.block());
  }
  return blocks;
}

const std::vector<int>& slots_of(const ImatrixEntry& entry, const Plan& plan) {
  const PlanLayer* layer = layer_of(plan, entry.block());
  if (layer == nullptr) {
    throw InvalidInput(
        fmt::format("tensor {}: the plan says nothing of the experts of layer {}; where that is a multi-token-prediction "
                    "block, --mtp drop leaves it out",
                    entry.name, entry.block()));
  }
  if (entry.matrices != static_cast<std::uint64_t>(plan.experts)) {
    throw InvalidInput(
        fmt::format("tensor {}: the imatrix is of {} experts, the plan of {}", entry.name, entry.matrices, plan.experts));
  }
  return layer->keep;
}

ImatrixValues chosen(const ImatrixValues& all, std::uint64_t inputs, const std::vector<int>& slots) {
  ImatrixValues out;
  out.sums.reserve(slots.size() * inputs);
  for (const int slot : slots) {
    const auto begin = all.sums.begin() + static_cast<std::ptrdiff_t>(static_cast<std::uint64_t>(slot) * inputs);
    out.sums.insert(out.sums.end(), begin, begin + static_cast<std::ptrdiff_t>(inputs));
    out.counts.push_back(all.counts[static_cast<std::size_t>(slot)]);
  }
  return out;
}

/// A plan that was written for another model than it says must not read beyond an entry.
void check_ids(const Plan& plan) {
  for (const PlanLayer& layer : plan.layers) {
    for (const int id : layer.keep) {
      if (id < 0 || id >= plan.experts) {
        throw InvalidInput(fmt::format("the plan keeps expert {} of layer {}, of {}", id, layer.layer, plan.experts));
      }
    }
  }
}

void add(std::vector<double>& to, const std::vector<float>& from) {
  to.resize(from.size());
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += from[i];
}

std::vector<float> rounded(const std::vector<double>& sums, const std::string& tensor) {
  for (const double sum : sums) {
    if (sum > std::numeric_limits<float>::max()) throw InvalidInput(fmt::format("tensor {}: the sums are too large to be added", tensor));
  }
  return {sums.begin(), sums.end()};
}

}  // namespace

Imatrix slice_imatrix(Imatrix matrix, const Plan& plan, Mtp mtp) {
  check_sliceable(plan, mtp);
  check_ids(plan);
  const std::set<int> mtp_ids = mtp_blocks(matrix, plan);
  Imatrix out{.datasets = matrix.datasets,
              .chunk_count = matrix.chunk_count,
              .chunk_size = matrix.chunk_size,
              .entries = {},
              .values = {},
              .notes = matrix.notes};
  std::vector<std::size_t> from;
  std::vector<std::vector<int>> slots;  // of experts; empty: the entry stays
  std::size_t sliced = 0;
  for (std::size_t i = 0; i < matrix.entries.size(); ++i) {
    ImatrixEntry entry = matrix.entries[i];
    if (mtp == Mtp::drop && mtp_ids.contains(entry.block())) continue;
    from.push_back(i);
    slots.push_back(entry.of_experts() ? slots_of(entry, plan) : std::vector<int>());
    if (entry.of_experts()) entry.matrices = slots.back().size(), ++sliced;
    out.entries.push_back(std::move(entry));
  }
  if (sliced == 0) {
    throw InvalidInput("the imatrix has no experts' tensors (ffn_..._exps.weight), so that a plan changes nothing in it");
  }
  out.values = [matrix = std::make_shared<const Imatrix>(std::move(matrix)), from = std::move(from),
                slots = std::move(slots)](std::size_t i) {
    ImatrixValues values = matrix->values(from[i]);
    return slots[i].empty() ? values : chosen(values, matrix->entries[from[i]].inputs, slots[i]);
  };
  return out;
}

Imatrix merge_imatrices(std::vector<Imatrix> matrices, const std::vector<std::string>& names) {
  if (matrices.empty()) throw UsageError("nothing to merge: no imatrix was given");
  Imatrix out{.datasets = {}, .chunk_count = 0, .chunk_size = matrices.front().chunk_size, .entries = {}, .values = {}};
  std::map<std::string, std::vector<Place>> places;
  std::uint64_t chunks = 0;
  for (std::size_t m = 0; m < matrices.size(); ++m) {
    const Imatrix& matrix = matrices[m];
    if (matrix.chunk_size != out.chunk_size) {
      throw InvalidInput(fmt::format("{}: chunks of {} tokens, those of {} have {}", names.at(m), matrix.chunk_size,
                                     names.front(), out.chunk_size));
    }
    out.datasets.insert(out.datasets.end(), matrix.datasets.begin(), matrix.datasets.end());
    chunks += matrix.chunk_count;
    for (std::size_t e = 0; e < matrix.entries.size(); ++e) places[matrix.entries[e].name].push_back({m, e});
  }
  out.chunk_count = static_cast<std::uint32_t>(std::min<std::uint64_t>(chunks, std::numeric_limits<std::uint32_t>::max()));
  std::vector<std::vector<Place>> of_entry;
  for (auto& [name, list] : places) {
    const ImatrixEntry& first = matrices[list.front().matrix].entries[list.front().entry];
    for (const Place& place : list) {
      const ImatrixEntry& other = matrices[place.matrix].entries[place.entry];
      if (other.inputs == first.inputs && other.matrices == first.matrices) continue;
      throw InvalidInput(fmt::format("{}: tensor {} is [{}, {}], in {} it is [{}, {}]; they are of different models",
                                     names.at(place.matrix), name, other.inputs, other.matrices,
                                     names.at(list.front().matrix), first.inputs, first.matrices));
    }
    out.entries.push_back(first);
    of_entry.push_back(std::move(list));
  }
  out.values = [matrices = std::make_shared<const std::vector<Imatrix>>(std::move(matrices)),
                of_entry = std::move(of_entry)](std::size_t i) {
    std::vector<double> sums, counts;
    for (const Place& place : of_entry[i]) {
      const ImatrixValues values = (*matrices)[place.matrix].values(place.entry);
      add(sums, values.sums);
      add(counts, values.counts);
    }
    const Place& first = of_entry[i].front();
    const std::string& name = (*matrices)[first.matrix].entries[first.entry].name;
    return ImatrixValues{.sums = rounded(sums, name), .counts = rounded(counts, name)};
  };
  return out;
}

}  // namespace moetrim
