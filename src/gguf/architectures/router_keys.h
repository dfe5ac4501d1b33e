// Keys about routers and about which layers have experts, that several architectures have.
#pragma once

#include <algorithm>

#include <fmt/format.h>

#include "gguf/architectures/tensor_names.h"

namespace moetrim::gguf_list {

/// How router logits become gates. Without it llama.cpp takes a default of each architecture's own.
inline void add_gating(const GgufSource& source, GgufKeys& keys) {
  constexpr std::int64_t kSoftmax = 1, kSigmoid = 2;
  keys.whole("expert_gating_func", source.model->family->router.score == RouterScore::sigmoid ? kSigmoid : kSoftmax);
}

/// Groups of experts. A choice of all groups is none, and llama.cpp refuses it.
inline void add_groups(const GgufSource& source, GgufKeys& keys) {
  const bool restricted = source.groups_chosen < source.groups;
  if (restricted && source.model->group_rule == GroupRule::max) {
    source.refuse("topk_method group_limited_greedy rates a group of experts by its best one, llama.cpp by the sum of its "
                  "two best; it would route to others");
  }
  keys.whole("expert_group_count", restricted ? source.groups : 1);
  keys.whole("expert_group_used_count", restricted ? source.groups_chosen : 1);
}

/// The first layer with experts; all after it must have some, too.
inline void add_leading_dense(const GgufSource& source, GgufKeys& keys) {
  const auto& layers = source.model->layer;
  const auto first = std::ranges::find(layers, true, &LayerTensors::sparse);
  const auto dense = std::find_if(first, layers.end(), [](const LayerTensors& layer) { return !layer.sparse; });
  if (dense != layers.end()) {
    source.refuse(fmt::format("layer {} has no experts, but layer {} before it has; in llama.cpp all layers have some from "
                              "the first one on that has", dense - layers.begin(), first - layers.begin()));
  }
  keys.whole("leading_dense_block_count", first - layers.begin());
}

/// For architectures that always add the shared experts' output.
inline void check_shared_experts(const GgufSource& source, std::string_view architecture) {
  if (source.model->shared_width > 0) return;
  source.refuse(fmt::format("there are no shared experts (n_shared_experts); llama.cpp's {} has some", architecture));
}

/// The blocks that predict one token further, which follow the layers.
inline void add_mtp(const GgufSource& source, GgufKeys& keys) {
  if (source.mtp_layers() > 0) keys.whole("nextn_predict_layers", source.mtp_layers());
}

}  // namespace moetrim::gguf_list
