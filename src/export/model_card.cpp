// The model card: what was removed, why, how to load the result, and what to expect of it.

#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "export/base_model.h"
#include "export/follow_ups.h"
#include "export/plain_text.h"
#include "export/width_facts.h"
#include "moetrim/export.h"

namespace moetrim {

namespace {

using Json = nlohmann::ordered_json;
using export_detail::plain;
using export_detail::WidthFacts;
using export_detail::width_facts;

struct Size {
  std::uint64_t bytes = 0;
  std::uint64_t parameters = 0;

  void add(const TensorSpec& spec) {
    std::uint64_t count = 1;
    for (const auto length : spec.shape) count *= static_cast<std::uint64_t>(length);
    bytes += spec.bytes();
    parameters += count;
  }
};

std::string short_count(std::uint64_t count) {
  const auto value = static_cast<double>(count);
  if (count >= 1'000'000'000) return fmt::format("{:.2f} B", value / 1e9);
  if (count >= 1'000'000) return fmt::format("{:.2f} M", value / 1e6);
  return std::to_string(count);
}

std::string short_bytes(std::uint64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= 1'000'000'000) return fmt::format("{:.2f} GB", value / 1e9);
  if (bytes >= 1'000'000) return fmt::format("{:.2f} MB", value / 1e6);
  return fmt::format("{} bytes", bytes);
}

std::string front_matter(const Model& model) {
  std::string out = "---\n";
  out += fmt::format("base_model: {}\n", export_detail::base_model(*model.checkpoint));
  out += export_detail::licence_lines(*model.checkpoint);
  return out + "library_name: transformers\npipeline_tag: text-generation\ntags:\n- moe\n- pruned\n- moetrim\n---\n\n";
}

/// "16", or "12 to 20" where layers differ: because they keep other numbers, or rows of the router share experts.
std::string stored_experts(const Plan& plan) {
  if (!merges(plan) || plan.router != MergedRouter::map) return keep_text(plan);
  const auto fewer = [](const PlanLayer& a, const PlanLayer& b) { return a.keep.size() < b.keep.size(); };
  const auto [least, most] = std::minmax_element(plan.layers.begin(), plan.layers.end(), fewer);
  return least->keep.size() == most->keep.size() ? std::to_string(most->keep.size())
                                                 : fmt::format("{} to {}", least->keep.size(), most->keep.size());
}

std::string size_table(const Model& model, const Plan& plan, std::span<const OutputTensor> tensors,
                       const std::optional<WidthFacts>& widths) {
  Size before, after;
  for (const Tensor& tensor : model.checkpoint->tensors()) before.add(tensor);
  for (const OutputTensor& tensor : tensors) after.add(tensor.spec);
  const double share = 100.0 * static_cast<double>(after.bytes) / static_cast<double>(std::max<std::uint64_t>(before.bytes, 1));
  std::string out = "| | before | after |\n|---|---:|---:|\n";
  out += fmt::format("| experts per MoE layer | {} | {} |\n", plan.experts, stored_experts(plan));
  if (widths) {
    out += fmt::format("| width of an expert | {} | {} |\n", widths->before, widths->widths());
    out += fmt::format("| atomic experts | {} | {} ({:.1f} % removed) |\n", widths->atoms, widths->kept_atoms,
                       widths->removed_percent());
  }
  const std::int64_t chosen = plan.experts_per_token_after > 0 ? plan.experts_per_token_after : model.experts_per_token;
  out += fmt::format("| experts per token | {} | {} |\n", model.experts_per_token, chosen);
  out += fmt::format("| MoE layers | {0} of {1} | {0} of {1} |\n", plan.layers.size(), model.layers);
  out += fmt::format("| parameters | {} | {} |\n", short_count(before.parameters), short_count(after.parameters));
  out += fmt::format("| tensor bytes | {} | {} ({:.1f} %) |\n\n", short_bytes(before.bytes), short_bytes(after.bytes), share);
  return out;
}

/// One entry of plan.source.tasks, which is for the reader and may be a name or an object.
std::string task_line(const Json& task) {
  if (task.is_string()) return fmt::format("- {}\n", plain(task.get<std::string>()));
  if (!task.is_object()) return "";
  const auto name = task.find("name");
  std::string out = fmt::format("- {}", name != task.end() && name->is_string() ? plain(name->get<std::string>()) : "task");
  constexpr std::pair<const char*, const char*> kFacts[] = {
      {"demonstrations", "demonstrations"}, {"tokens", "tokens"}, {"counted_tokens", "counted tokens"}, {"weight", "weight"}};
  for (const auto& [key, label] : kFacts) {
    const auto fact = task.find(key);
    if (fact != task.end() && fact->is_number()) out += fmt::format(", {}: {}", label, fact->dump());
  }
  return out + "\n";
}

/// What another tool has decided.
std::string chosen_elsewhere(const Json& from) {
  const auto text = [&](const char* name) {
    const auto found = from.is_object() ? from.find(name) : from.end();
    return found != from.end() && found->is_string() ? plain(found->get<std::string>()) : std::string("unknown");
  };
  return fmt::format("They were chosen elsewhere: the plan was made from the file {} of form {} (digest {}).\n\n", text("file"), text("form"),
                     text("digest"));
}

std::string experts_chosen(const Plan& plan) {
  if (const auto from = plan.source.find("imported"); from != plan.source.end()) return chosen_elsewhere(*from);
  std::string out = fmt::format("Method: {} ({} routing).", plain(plan.method), plain(plan.variant));
  const auto tasks = plan.source.find("tasks");
  if (tasks != plan.source.end() && tasks->is_array() && !tasks->empty()) {
    out += " Experts were measured on these tasks:\n\n";
    for (const auto& task : *tasks) out += task_line(task);
    out += "\n";
  } else {
    out += "\n\n";
  }
  int unseen = 0, unseen_kept = 0;
  for (const PlanLayer& layer : plan.layers) {
    unseen += layer.unseen;
    unseen_kept += layer.unseen_kept;
  }
  out += fmt::format("{} of {} experts were reached by no measured token; {} of them are kept all the same.\n\n", unseen,
                     static_cast<std::size_t>(plan.experts) * plan.layers.size(), unseen_kept);
  if (plan.protect.empty()) return out + "No experts were protected.\n\n";
  std::map<std::string, int> reasons;
  for (const ProtectedExpert& expert : plan.protect) ++reasons[expert.why];
  std::vector<std::string> parts;
  for (const auto& [why, count] : reasons) parts.push_back(fmt::format("{} ({})", count, plain(why)));
  return out + fmt::format("Protected experts: {}.\n\n", fmt::join(parts, ", "));
}

constexpr std::string_view kOrdinary = "The folder is an ordinary checkpoint; nothing has to be patched. FOLDER is where it lies.";
constexpr std::string_view kListed =
    "`config.json` lists the experts' widths, their number in every layer, or which rows of the router share an expert, and "
    "`modeling_moetrim.py`, in this folder, reads the list. transformers 5 loads it when it may run that file; other runtimes do not "
    "know the architecture. FOLDER is where it lies.";
constexpr std::string_view kForeign =
    "transformers has no class for this architecture, and runs the Python code that came with the source and is in this folder. FOLDER is "
    "where it lies.";

std::string loading(const export_detail::FollowUps& next) {
  constexpr std::string_view kTrust = ", trust_remote_code=True";
  return fmt::format("## Loading\n\n{}\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
                     "model = AutoModelForCausalLM.from_pretrained(\"FOLDER\"{}, dtype=\"auto\", device_map=\"auto\")\n"
                     "tokenizer = AutoTokenizer.from_pretrained(\"FOLDER\"{})\n```\n\n",
                     next.listed ? kListed : next.runs_code() ? kForeign : kOrdinary, next.runs_code() ? kTrust : "",
                     next.tokenizer.own_code ? kTrust : "");
}

/// What was done to weights that stay.
std::string unchanged(const Plan& plan, const std::optional<WidthFacts>& widths, std::string_view dequantised_to) {
  if (!dequantised_to.empty()) {
    return fmt::format("The weights that remain have the values that the quantised model computes with, rounded to {}: what "
                       "quantisation lost is not back, and nothing was trained.", dequantised_to);
  }
  if (changes_values(plan)) {
    return "Weights that the plan changes were computed from the source's and rounded once; all others are unchanged. Nothing was "
           "trained.";
  }
  if (widths && widths->quantised_again > 0) {
    return fmt::format("Nothing was trained after removal. {} weights were quantised again, as the last lines say; all "
                       "others are unchanged.", widths->quantised_again);
  }
  return "The weights that remain are unchanged: nothing was trained or quantised after removal.";
}

bool drops(const Plan& plan) { return plan.keep < plan.experts || plan.counts == LayerCounts::listed; }

/// Whether experts, or what they compute, are gone.
bool leaves_out(const Plan& plan) {
  if (drops(plan) || merges(plan)) return true;
  return std::any_of(plan.layers.begin(), plan.layers.end(), [](const PlanLayer& layer) {
    return !layer.constant.empty() || !layer.silence.empty();
  });
}

std::string limits(const Plan& plan, std::span<const std::string> warnings, const std::optional<WidthFacts>& widths,
                   std::string_view dequantised_to) {
  std::string out = "## Limits\n\n";
  if (widths || leaves_out(plan)) {
    out += "- Experts were chosen for the tasks above. Ability outside of them is expected to fall; measure it before use.\n";
  }
  if (plan.keep > plan.experts && plan.experts_per_token_after == 0) {
    out += "- Copies of an expert have the same router row and compete for a token's experts, so this model does not compute what its "
           "source does: it is meant to be trained further.\n";
  }
  out += fmt::format("- {}\n", unchanged(plan, widths, dequantised_to));
  for (const auto& warning : warnings) out += fmt::format("- {}\n", warning);
  return out;
}

/// Sums over the MoE layers of a plan that merges.
std::string what_was_merged(const Plan& plan) {
  std::size_t groups = 0, members = 0, gone = 0;
  for (const PlanLayer& layer : plan.layers) {
    std::set<int> left(layer.keep.begin(), layer.keep.end());
    for (const MergeGroup& group : layer.merge) {
      ++groups;
      members += group.members.size();
      left.insert(group.members.begin(), group.members.end());
    }
    gone += static_cast<std::size_t>(plan.experts) - left.size();
  }
  std::string out = fmt::format("In its {} MoE layers {} experts were merged into {}: their weighted means", plan.layers.size(),
                                members, groups);
  if (plan.align == Alignment::weights) out += ", with their atomic experts in the order that fits the weights best";
  if (plan.align == Alignment::activations) out += ", with their atomic experts in the order that fits their activations best";
  if (gone > 0) out += fmt::format("; {} experts were removed", gone);
  return out + fmt::format(". The router's form is `{}`. ", merged_router_name(plan.router));
}

/// What was done to single experts or channels, a sentence each.
std::string what_was_changed(const Plan& plan) {
  std::size_t scaled = 0, silenced = 0, constants = 0, smoothed = 0;
  for (const PlanLayer& layer : plan.layers) {
    scaled += layer.scale.size();
    silenced += layer.silence.size();
    constants += layer.constant.size();
    smoothed += layer.smooth.empty() ? 0 : 1;
  }
  std::string out;
  if (scaled > 0) out += fmt::format("The outputs of {} experts are multiplied by a factor. ", scaled);
  if (silenced > 0) out += fmt::format("{} experts are never chosen: their selection bias is very negative. ", silenced);
  if (constants > 0) out += fmt::format("{} experts put out their mean output whatever the token. ", constants);
  if (smoothed > 0) {
    out += fmt::format("In {} layers scales moved from the inputs of the experts and routers to their weights, which leaves the "
                       "function as it was. ", smoothed);
  }
  return out;
}

std::string what_was_removed(const Plan& plan, const std::optional<WidthFacts>& widths) {
  std::string out;
  if (merges(plan)) {
    out = what_was_merged(plan);
  } else if (plan.keep > plan.experts) {
    out = fmt::format("Experts of every MoE layer were repeated, with their router rows: {} of {}. ", plan.keep, plan.experts);
  } else if (plan.counts == LayerCounts::listed) {
    const std::int64_t before = static_cast<std::int64_t>(plan.layers.size()) * plan.experts;
    out = fmt::format("{} of {} experts of all MoE layers together were removed, and the router's rows with them; {} stay in a "
                      "layer. ", before - kept_experts(plan), before, keep_text(plan));
  } else if (plan.keep < plan.experts || (!widths && !changes_values(plan))) {
    out = fmt::format("{} of {} experts of every MoE layer were removed, and the router's rows with them. ",
                      plan.experts - plan.keep, plan.experts);
  }
  out += what_was_changed(plan);
  if (!widths) return out + "`moetrim.json` lists the kept experts.";
  out += fmt::format("Experts lost atomic experts (columns of down_proj with the same rows of gate_proj and up_proj): "
                     "{:.1f} % of all of them are gone{}. `moetrim.json` lists what was kept.", widths->removed_percent(),
                     drops(plan) ? ", those of the removed experts included" : "");
  return out;
}

/// Which checkpoint a twin belongs to.
std::string twin_line(const Model& model, const Plan& plan, const std::string& base, std::string_view dequantised_to) {
  const std::string& method = model.quantisation.method;
  return fmt::format("This is the {0} twin of the pruned checkpoint: {1} is stored quantised{2}, and so is its version with {3} of "
                     "{4} experts. Here every quantised weight of that version is dequantised to {0}, and all other tensors are "
                     "the same.\n\n", dequantised_to, base, method.empty() ? "" : fmt::format(" ({})", plain(method)), plan.keep,
                     plan.experts);
}

}  // namespace

std::string model_card(const Model& model, const Plan& plan, std::span<const OutputTensor> tensors,
                       std::span<const std::string> warnings, std::string_view tool_version,
                       std::string_view dequantised_to, Mtp mtp) {
  const std::string base = export_detail::base_model(*model.checkpoint);
  const auto widths = width_facts(model, plan, tensors, mtp);
  const bool factored = std::any_of(tensors.begin(), tensors.end(), [](const OutputTensor& tensor) { return tensor.factor.has_value(); });
  const bool listed = factored || slimming_of(model, plan, mtp).listed();
  std::string out = front_matter(model);
  const std::string of = plan.keep > plan.experts ? fmt::format("for {}", plan.experts) : fmt::format("of {}", plan.experts);
  out += fmt::format("# {} with {} {} experts{}{}\n\n", base, keep_text(plan), of, merges(plan) ? ", merged" : "",
                     widths ? ", slimmer" : "");
  out += fmt::format("Made from {} by moetrim {}: {}\n\n", base, tool_version, what_was_removed(plan, widths));
  if (!dequantised_to.empty()) out += twin_line(model, plan, base, dequantised_to);
  out += size_table(model, plan, tensors, widths);
  out += "## How the experts were chosen\n\n" + experts_chosen(plan);
  const export_detail::FollowUps next{.model = model, .plan = plan, .tokenizer = export_detail::tokenizer_facts(*model.checkpoint), .mtp = mtp,
                                      .listed = listed, .dequantised = !dequantised_to.empty()};
  out += loading(next) + next.text();
  return out + limits(plan, warnings, widths, dequantised_to);
}

}  // namespace moetrim
