// Which experts change places between two plans, and where their bytes lie.
#include "moetrim/expert_delta.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "family/expert_slabs.h"
#include "moetrim/error.h"

namespace moetrim {
namespace {

void check_plan_for_delta(const Model& model, const Plan& plan, const std::string& fingerprint, const char* which) {
  const auto refuse = [&](const std::string& why) {
    throw InvalidInput(
        fmt::format("the plan {}: {}; experts can be exchanged between plans that only drop whole experts of this "
                    "checkpoint",
                    which, why));
  };
  if (plan.family != model.family->name || plan.experts != model.experts) refuse("it is of another model");
  if (plan.checkpoint_fingerprint != fingerprint) refuse("it is of another checkpoint");
  if (plan.width > 0) refuse("it keeps parts of experts");
  if (changes_values(plan)) refuse("it changes values");
  if (plan.correct_drift) refuse("it scales gates by a factor of its own");
  if (plan.order != SlotOrder::ascending) refuse("its slots are not in the order of the experts");
  const auto moe_layers = model.moe_layers(/*with_mtp=*/true);
  for (const PlanLayer& layer : plan.layers) {
    if (std::binary_search(moe_layers.begin(), moe_layers.end(), layer.layer)) continue;
    refuse(fmt::format("layer {} is no MoE layer", layer.layer));
  }
}

LayerDelta layer_delta(const PlanLayer& from, const PlanLayer& to) {
  if (from.layer != to.layer) {
    throw InvalidInput(fmt::format("the plans cover other layers: {} and {}", from.layer, to.layer));
  }
  if (from.keep.size() != to.keep.size()) {
    throw InvalidInput(
        fmt::format("layer {}: the plans keep {} and {} experts; slots can only be filled again where the numbers are equal",
                    from.layer, from.keep.size(), to.keep.size()));
  }
  LayerDelta out{.layer = from.layer, .changes = {}, .slots = from.keep};
  std::vector<int> come;
  std::set_difference(to.keep.begin(), to.keep.end(), from.keep.begin(), from.keep.end(), std::back_inserter(come));
  auto next = come.begin();
  for (std::size_t slot = 0; slot < from.keep.size(); ++slot) {
    if (std::binary_search(to.keep.begin(), to.keep.end(), from.keep[slot])) continue;
    out.changes.push_back({.slot = static_cast<int>(slot), .drop = from.keep[slot], .load = *next, .bytes = {}});
    out.slots[slot] = *next++;
  }
  return out;
}

std::vector<DeltaRead> coalesced(std::vector<DeltaRead> reads) {
  std::sort(reads.begin(), reads.end(), [](const DeltaRead& a, const DeltaRead& b) {
    return std::pair(a.file, a.offset) < std::pair(b.file, b.offset);
  });
  std::vector<DeltaRead> out;
  for (const DeltaRead& read : reads) {
    if (!out.empty() && out.back().file == read.file && out.back().offset + out.back().size == read.offset) {
      out.back().size += read.size;
    } else {
      out.push_back(read);
    }
  }
  return out;
}

/// The tensors that may hold bytes of experts, by layer: a walk over all of them for every expert would be quadratic.
using TensorsOfLayer = std::map<int, std::vector<std::size_t>>;

TensorsOfLayer tensors_by_layer(const Model& model) {
  TensorsOfLayer out;
  for (std::size_t i = 0; i < model.places.size(); ++i) {
    if (model.places[i].rule != nullptr && model.places[i].layer >= 0) out[model.places[i].layer].push_back(i);
  }
  return out;
}

using BytesOfExpert = std::map<int, std::vector<ExpertBytes>>;

/// What the experts of a layer that are among `experts` have in these tensors.
BytesOfExpert bytes_of(const Model& model, const std::vector<std::size_t>& tensors, const std::set<int>& experts) {
  BytesOfExpert out;
  for (const std::size_t i : tensors) {
    const Tensor& tensor = model.checkpoint->tensors()[i];
    const TensorPlace& place = model.places[i];
    if (place.expert >= 0) {
      if (experts.contains(place.expert)) out[place.expert].push_back({&tensor, 0, tensor.size});
      continue;
    }
    const auto axis = expert_axis(tensor, place);
    if (!axis || experts.empty()) continue;
    const ExpertSlabs slabs = expert_slabs(tensor, *axis, "loaded by itself");
    for (const int expert : experts) {
      for (std::uint64_t block = 0; block < slabs.outer; ++block) {
        out[expert].push_back({&tensor, slabs.begin(block, expert), slabs.bytes});
      }
    }
  }
  return out;
}

DeltaRead read_of(const ExpertBytes& bytes) {
  return {.file = bytes.tensor->file, .offset = bytes.tensor->offset + bytes.begin, .size = bytes.size};
}

std::set<int> experts_of(const LayerDelta& layer, int SlotChange::*which) {
  std::set<int> out;
  for (const SlotChange& change : layer.changes) out.insert(change.*which);
  return out;
}

nlohmann::ordered_json bytes_to_json(const Model& model, const ExpertBytes& bytes) {
  const DeltaRead read = read_of(bytes);
  return {{"tensor", bytes.tensor->name},
          {"dtype", dtype_name(bytes.tensor->dtype)},
          {"file", model.checkpoint->files()[read.file].path().filename().string()},
          {"offset", read.offset},
          {"bytes", read.size},
          {"tensor_offset", bytes.begin}};
}

}  // namespace

ExpertDelta expert_delta(const Model& model, const Plan& from, const Plan& to) {
  const std::string fingerprint = model.checkpoint->fingerprint();
  check_plan_for_delta(model, from, fingerprint, "to go from");
  check_plan_for_delta(model, to, fingerprint, "to go to");
  if (from.regroup != to.regroup) {
    throw InvalidInput("one of the plans makes one group of the router's groups, the other does not");
  }
  if (from.experts_per_token_after != to.experts_per_token_after) {
    throw InvalidInput("the plans change the experts per token differently");
  }
  if (from.layers.size() != to.layers.size()) throw InvalidInput("the plans cover other layers");
  auto tensors = tensors_by_layer(model);
  ExpertDelta out;
  std::vector<DeltaRead> reads;
  for (std::size_t l = 0; l < from.layers.size(); ++l) {
    LayerDelta layer = layer_delta(from.layers[l], to.layers[l]);
    out.changes += std::ssize(layer.changes);
    auto load = bytes_of(model, tensors[layer.layer], experts_of(layer, &SlotChange::load));
    for (SlotChange& change : layer.changes) {
      change.bytes = std::move(load[change.load]);
      for (const ExpertBytes& bytes : change.bytes) {
        out.load_bytes += bytes.size;
        reads.push_back(read_of(bytes));
      }
    }
    for (const auto& [expert, ranges] : bytes_of(model, tensors[layer.layer], experts_of(layer, &SlotChange::drop))) {
      for (const ExpertBytes& bytes : ranges) out.drop_bytes += bytes.size;
    }
    out.layers.push_back(std::move(layer));
  }
  out.reads = coalesced(std::move(reads));
  return out;
}

nlohmann::ordered_json delta_to_json(const Model& model, const ExpertDelta& delta) {
  auto layers = nlohmann::ordered_json::array();
  for (const LayerDelta& layer : delta.layers) {
    auto load = nlohmann::ordered_json::array();
    for (const SlotChange& change : layer.changes) {
      auto bytes = nlohmann::ordered_json::array();
      for (const ExpertBytes& range : change.bytes) bytes.push_back(bytes_to_json(model, range));
      load.push_back({{"expert", change.load}, {"slot", change.slot}, {"replaces", change.drop}, {"bytes", bytes}});
    }
    layers.push_back(
        {{"layer", layer.layer}, {"slots", layer.slots}, {"drop", experts_of(layer, &SlotChange::drop)}, {"load", load}});
  }
  auto reads = nlohmann::ordered_json::array();
  for (const DeltaRead& read : delta.reads) {
    reads.push_back({{"file", model.checkpoint->files()[read.file].path().filename().string()},
                     {"offset", read.offset},
                     {"bytes", read.size}});
  }
  return {{"experts", delta.changes},
          {"load_bytes", delta.load_bytes},
          {"drop_bytes", delta.drop_bytes},
          {"layers", layers},
          {"reads", reads}};
}

}  // namespace moetrim
