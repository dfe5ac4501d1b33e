// What runtimes would serve of a GGUF file: see served_gguf.h.
#include "cli/served_gguf.h"

#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/family.h"
#include "moetrim/gguf_export.h"
#include "moetrim/whole_experts.h"

namespace moetrim::cli {

ServedModel served_model(const GgufMoe& model) {
  ServedModel out;
  out.family = find_family(model.architecture->families.front());
  if (out.family == nullptr) {
    throw Error(fmt::format("{}: no family is called {}", model.path().string(), model.architecture->families.front()));
  }
  out.router = {.experts = model.experts,
                .experts_per_token = model.experts_per_token,
                .groups = model.groups.value_or(RouterGroups{})};
  out.experts_before = model.experts;
  // [F, H, E]
  if (const GgufTensor* down = model.file->find(fmt::format("blk.{}.ffn_down_exps.weight", model.moe.front()))) {
    out.width = out.width_before = static_cast<std::int64_t>(down->shape.front());
  }
  out.mtp_layers = model.mtp_blocks;
  out.mtp_experts = model.mtp_blocks > 0 ? model.experts : 0;
  out.mtp_follows = out.gguf_file = true;
  out.quant = ServedQuantisation{.name = "as stored"};
  return out;
}

ServedModel served_model(const GgufMoe& model, const Plan& plan, Mtp mtp) {
  if (plan.experts != model.experts || plan.experts_per_token != model.experts_per_token) {
    throw InvalidInput(fmt::format("the plan does not fit {}: it was made for {} experts per layer, {} per token; the file has {}, {}",
                                   model.path().string(), plan.experts, plan.experts_per_token, model.experts,
                                   model.experts_per_token));
  }
  ServedModel out = served_model(model);
  out.experts_before = std::max(model.experts, plan.keep);
  out.mtp_follows = mtp == Mtp::prune;
  if (mtp == Mtp::drop) out.mtp_layers = out.mtp_experts = 0;
  out.listed_counts = plan.counts == LayerCounts::listed;
  if (plan.regroup) out.router.groups = {.count = 1, .chosen = 1, .rule = out.router.groups.rule};
  return with_keep(std::move(out), plan.keep);
}

void check_targets_of_gguf(const std::vector<RuntimeTarget>& targets, const std::filesystem::path& file) {
  for (const RuntimeTarget& target : targets) {
    if (target.runtime() == "llama.cpp") continue;
    throw UsageError(
        fmt::format("--runtime {}: {} is a GGUF file, whose rules are those of llama.cpp; for others give the folder that "
                    "it was made from",
                    target.text, file.string()));
  }
}

void check_export(RuntimeCheck& check, const Model& model, const Plan* plan, Mtp mtp) {
  if (check.target.runtime() != "llama.cpp" || check.refused()) return;
  const bool moves = plan != nullptr && beyond_whole_experts(*plan).empty();
  try {
    prepare_gguf_export(model, {.plan = moves ? plan : nullptr, .mtp = mtp, .allow_other_checkpoint = true, .tokenizer = false});
  } catch (const InvalidInput& problem) {
    check.findings.insert(check.findings.begin(), {.rule = "llama.cpp.export", .text = problem.what(), .why = "moetrim export refuses it",
                                                   .source = "docs/gguf.md", .nearest = {}});
  }
}

}  // namespace moetrim::cli
