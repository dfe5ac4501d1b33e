// moetrim list: what the program knows.

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/command.h"
#include "moetrim/family.h"
#include "moetrim/merging.h"

namespace moetrim::cli {

namespace {

using Words = std::vector<std::string>;

void list_methods(const Session& session) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  std::string text = fmt::format("{:<20} {:<7} {:<13} {}\n", "method", "scores", "statistics", "source");
  for (const ScoringMethod* method : scoring_methods()) {
    const std::string_view needs = method->second_order ? "second-order" : "default";
    list.push_back({{"name", method->name},
                    {"grain", grain_name(method->grain)},
                    {"statistics", needs},
                    {"source", method->source},
                    {"unit", method->unit},
                    {"official", method->official}});
    if (method->grain == Grain::atom) list.back()["expert_method"] = method->expert_method;
    text += fmt::format("{:<20} {:<7} {:<13} {}\n", method->name, grain_name(method->grain), needs, method->source);
  }
  session.print({{"methods", list}},
                text + "methods that score the same things can be added up: easy-ep+reap, easy-ep:0.7+reap:0.3\n");
}

void list_merging(const Session& session) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  std::string text = fmt::format("{:<10} {:<12} {:<10} {:<25} {}\n", "merge", "statistics", "align", "weights", "source");
  for (const MergingMethod* method : merging_methods()) {
    const std::string_view needs = needs_all_experts({.method = std::string(method->name)}) ? "all-experts" : "vectors";
    list.push_back({{"name", method->name},
                    {"statistics", needs},
                    {"align", alignment_name(method->align)},
                    {"weights", method->weights},
                    {"source", method->source}});
    text += fmt::format("{:<10} {:<12} {:<10} {:<25} {}\n", method->name, needs, alignment_name(method->align),
                        method->weights, method->source);
  }
  session.print({{"merging", list}}, text);
}

bool has_role(const Family& family, Role role) {
  return std::any_of(family.tensors.begin(), family.tensors.end(), [&](const TensorRule& rule) { return rule.role == role; });
}

Words attention_words(const Family& family) {
  const AttentionTraits& traits = family.attention;
  Words out;
  const std::string_view whole = traits.latent ? "latent (MLA)" : "grouped-query";
  out.push_back(fmt::format("{}{}", traits.delta_net ? "gated delta net + " : "", whole));
  if (traits.query_key_norm != QueryKeyNorm::none) out.emplace_back("qk-norm");
  if (traits.output_gate) out.emplace_back("output gate");
  if (has_role(family, Role::sinks)) out.emplace_back("sinks");
  if (traits.window == WindowRule::chunks) {
    out.emplace_back("chunked");
  } else if (traits.window != WindowRule::none) {
    out.emplace_back("sliding window");
  }
  return out;
}

std::string_view score_words(RouterScore score) {
  switch (score) {
    case RouterScore::softmax: return "softmax";
    case RouterScore::sigmoid: return "sigmoid";
    case RouterScore::sparsemixer: return "SparseMixer";
  }
  return "";
}

std::string_view normalise_words(NormaliseGates normalise) {
  switch (normalise) {
    case NormaliseGates::always: return "gates normalised";
    case NormaliseGates::never: return "gates never normalised";
    case NormaliseGates::by_config: return "gates normalised by config";
  }
  return "";
}

std::string_view group_words(GroupRule rule) {
  switch (rule) {
    case GroupRule::none: return "";
    case GroupRule::max: return "groups by best expert";
    case GroupRule::top2: return "groups by two best experts";
    case GroupRule::each: return "every group alike (MoGE)";
  }
  return "";
}

Words router_words(const Family& family) {
  const RouterTraits& traits = family.router;
  Words out{std::string(score_words(traits.score))};
  if (has_role(family, Role::selection_bias)) out[0] += " + selection bias";
  if (traits.groups != GroupRule::none) out.emplace_back(group_words(traits.groups));
  // SparseMixer's two gates are what they are.
  if (traits.score != RouterScore::sparsemixer) out.emplace_back(normalise_words(traits.normalise));
  if (traits.scaled) out.emplace_back("scaled");
  if (has_role(family, Role::router_scale)) out.emplace_back("factor per expert");
  if (traits.gate_on_input) out.emplace_back("gate on input");
  return out;
}

/// How the experts of a family are met on disk, as its rules say.
Words layout_words(const Family& family) {
  using enum Axis;
  const auto fused_as = [&](const std::vector<Axis>& axes) {
    return std::any_of(family.tensors.begin(), family.tensors.end(),
                       [&](const TensorRule& rule) { return rule.role == Role::fused_gate_up && rule.axes == axes; });
  };
  Words out;
  if (has_role(family, Role::expert_gate)) out.emplace_back("per-expert");
  if (fused_as({E, F2, H})) out.emplace_back("fused");
  if (fused_as({E, H, F2})) out.emplace_back("fused transposed");
  if (family.fused_interleaved) out.emplace_back("interleaved");
  return out;
}

void list_families(const Session& session) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  std::string text;
  for (const Family* family : families()) {
    const Words router = router_words(*family);
    list.push_back({{"name", family->name},
                    {"aliases", family->aliases},
                    {"covers", family->covers},
                    {"architectures", family->architectures},
                    {"attention", attention_words(*family)},
                    {"router", router},
                    {"layouts", layout_words(*family)},
                    {"mtp", has_role(*family, Role::mtp_projection)},
                    {"source", family->source}});
    text += fmt::format("{:<16} {}\n{:<16} router: {}\n", family->name, family->covers, "", fmt::join(router, ", "));
  }
  session.print({{"families", list}}, text);
}

}  // namespace

void add_list(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "list", "List scoring methods, merging methods or model families",
                                  "moetrim list methods");
  auto what = std::make_shared<std::string>();
  command->add_option("what", *what, "methods, merging or families")
      ->required()->check(CLI::IsMember({"methods", "merging", "families"}));
  command->callback([&session, what] {
    session.run = [&session, what] {
      *what == "methods" ? list_methods(session) : *what == "merging" ? list_merging(session) : list_families(session);
    };
  });
}

}  // namespace moetrim::cli
