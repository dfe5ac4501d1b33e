// What a forward or backward pass works with.

#include "forward/workplace.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "family/place_tensors.h"
#include "forward/cuda_library.h"
#include "moetrim/error.h"
#include "moetrim/machine.h"

namespace moetrim {

namespace {

void check_all_known(const Model& model) {
  const auto& tensors = model.checkpoint->tensors();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::string& name = tensors[i].name;
    const bool of_layer = name.find("layers.") != std::string::npos && !is_derived(name);
    if (model.places[i].rule != nullptr || !of_layer || model.family->leaves_untouched(name)) continue;
    throw InvalidInput(fmt::format("{}: tensor {} is unknown to family {}, so that the model cannot be computed; it can be pruned with "
                                   "a plan that was made elsewhere", model.checkpoint->folder().string(), name, model.family->name));
  }
}

/// Read straight into what the device copies from.
BufferMemory pinned_memory() {
  const cuda::Table& library = cuda::library();
  return {.allocate = library.allocate_pinned, .release = library.free_pinned};
}

}  // namespace

Workplace::Workplace(const Model& m, const ForwardOptions& o)
    : model(m),
      options(o),
      device(cuda::open_device(o.device)),
      numerics(Numerics::choose(o.precision, device)),
      rotary(m, numerics, device),
      pool(device.is_cpu() ? (o.threads > 0 ? o.threads : usable_cores()) : 1),
      scratch(static_cast<std::size_t>(pool.size())),
      context{model, numerics, device, rotary} {
  check_all_known(model);
}

std::unique_ptr<WeightStream> Workplace::open_weights(const std::vector<int>& layers, LayerPart last) const {
  std::vector<LayerGroups> groups;
  for (const int layer : layers) {
    const LayerTensors& tensors = model.layer[static_cast<std::size_t>(layer)];
    const LayerPart part = groups.size() + 1 == layers.size() ? last : LayerPart::whole;
    groups.push_back({.always = layer_group(tensors, part), .experts = {}});
    if (part == LayerPart::to_router || !tensors.sparse) continue;
    for (int e = 0; e < model.experts; ++e) groups.back().experts.push_back(expert_group(tensors, e));
  }
  const WeightStreamOptions reading{.ahead_bytes = options.read_ahead_bytes,
                                    .cache = options.drop_page_cache ? PageCache::bypass : PageCache::use,
                                    .time = options.reading,
                                    .memory = device.is_cpu() ? BufferMemory{} : pinned_memory()};
  return std::make_unique<WeightStream>(*model.checkpoint, std::move(groups), reading);
}

std::vector<Tile> cut_tiles(const std::vector<Sequence>& sequences, std::int64_t most_tokens) {
  std::vector<Tile> tiles;
  for (const Sequence& sequence : sequences) {
    if (tiles.empty() || tiles.back().tokens + sequence.length > most_tokens) {
      tiles.push_back({.begin = sequence.begin, .tokens = 0, .parts = {}});
    }
    tiles.back().tokens += sequence.length;
    tiles.back().parts.push_back({.length = sequence.length});
  }
  return tiles;
}

}  // namespace moetrim
