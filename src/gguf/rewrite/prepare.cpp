// Which bytes of a GGUF model make up the one that a plan describes.

#include <map>

#include <fmt/format.h>

#include "gguf/rewrite/check_plan.h"
#include "gguf/rewrite/names.h"
#include "gguf/rewrite/new_metadata.h"

namespace moetrim {

namespace {

using namespace gguf_detail;

/// The experts' parts in the order of the slots; neighbours in the source are one range.
std::vector<GgufRange> slabs(const GgufTensor& tensor, int experts, const std::vector<int>& keep) {
  const std::uint64_t slab = tensor.size / static_cast<std::uint64_t>(experts);
  std::vector<GgufRange> out;
  for (const int expert : keep) {
    const std::uint64_t begin = slab * static_cast<std::uint64_t>(expert);
    if (!out.empty() && out.back().offset + out.back().size == begin) out.back().size += slab;
    else out.push_back({begin, slab});
  }
  return out;
}

GgufOutputTensor output_tensor(const GgufMoe& model, const GgufTensor& tensor, const std::vector<int>* keep) {
  GgufOutputTensor out{.spec = tensor, .source = &tensor, .ranges = {{0, tensor.size}}};
  if (keep == nullptr) return out;
  out.spec.shape[expert_axis(*find_expert_tensor(block_tensor(tensor.name)->name))] = keep->size();
  out.ranges = slabs(tensor, model.experts, *keep);
  return out;
}

std::vector<GgufOutputFile> output_files(const GgufMoe& model, const Plan& plan, Mtp mtp) {
  std::map<int, const std::vector<int>*> keep;
  for (const PlanLayer& layer : plan.layers) keep[layer.layer] = &layer.keep;
  std::vector<GgufOutputFile> out;
  for (const GgufFile& file : model.file->files()) out.push_back({.metadata = file.metadata(), .tensors = {}});
  const auto& tensors = model.file->tensors();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const GgufPlace& place = model.places[i];
    if (mtp == Mtp::drop && place.block >= model.layers()) continue;
    out[tensors[i].file].tensors.push_back(output_tensor(model, tensors[i], place.by_expert ? keep.at(place.block) : nullptr));
  }
  return out;
}

std::vector<std::string> notes_on(const GgufMoe& model, const Plan& plan, bool other) {
  std::vector<std::string> out;
  const auto& metadata = model.file->metadata();
  if (!other && metadata.find(kGgufSourceKey) == nullptr) {
    out.push_back("The file does not say which checkpoint it was made from: that family, layers, experts, experts per token and groups are "
                  "those of the plan is all that could be compared.");
  }
  if (!model.groups && plan.groups.count > 1) {
    out.push_back(fmt::format("The file names no groups of experts, so llama.cpp lets every token choose among all of them; the plan was made "
                              "for {} groups.", plan.groups.count));
  }
  if (plan.regroup && model.groups) {
    out.push_back(fmt::format("The router's {} groups became one: a token may now be routed to any experts, which the original would not "
                              "have allowed.", model.groups->count));
  }
  const auto drift = router_drift(plan);
  if (drift && plan.keep < plan.experts) {
    const std::string done = plan.correct_drift ? fmt::format("expert_weights_scale was multiplied by {:.6g}, the mean share of the kept experts",
                                                              drift->mean_mass)
                                                : "nothing takes that back";
    out.push_back(fmt::format("Router drift: with {} instead of {} experts the kept gate weights grow by about {:.3g}; {}.", plan.keep,
                              plan.experts, 1 / drift->mean_mass, done));
  }
  return out;
}

}  // namespace

GgufRewrite prepare_gguf_rewrite(const GgufMoe& model, const Plan& plan, Mtp mtp, bool other) {
  check_gguf_plan(model, plan, mtp, other);
  GgufRewrite out{.source = model.file, .files = output_files(model, plan, mtp), .notes = notes_on(model, plan, other)};
  edit_metadata(out.files, model, plan, mtp);
  return out;
}

}  // namespace moetrim
