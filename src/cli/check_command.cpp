// moetrim check: what a runtime would refuse of a checkpoint, or of what a plan makes of it.

#include <algorithm>
#include <map>
#include <optional>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/command.h"
#include "cli/served_gguf.h"
#include "moetrim/error.h"
#include "moetrim/family.h"
#include "moetrim/runtimes.h"

namespace moetrim::cli {

namespace {

using Json = nlohmann::ordered_json;

struct Flags {
  std::string checkpoint, plan, keep, width, mtp = "prune", list_rules;
  std::vector<std::string> runtimes;
};

/// "8, 16, 32", with runs in equal steps shortened: "8 to 128 in steps of 8".
template <class Number>
std::string describe_numbers(const std::vector<Number>& numbers) {
  std::vector<std::string> parts;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t end = i + 1;
    while (end + 1 < numbers.size() && numbers[end + 1] - numbers[end] == numbers[i + 1] - numbers[i]) ++end;
    if (end >= i + 3 && end < numbers.size()) {
      const auto step = numbers[i + 1] - numbers[i];
      parts.push_back(fmt::format("{} to {}", numbers[i], numbers[end]) +
                      (step == 1 ? "" : fmt::format(" in steps of {}", step)));
      i = end + 1;
    } else {
      parts.push_back(fmt::format("{}", numbers[i++]));
    }
  }
  return parts.empty() ? "none" : fmt::format("{}", fmt::join(parts, ", "));
}

std::string describe_finding(const RuntimeFinding& found) {
  std::string text =
      fmt::format("  {:<8} {}: {}; {}\n", rule_severity_name(found.severity), found.rule, found.text, found.why);
  if (!found.nearest.empty()) {
    text += fmt::format("           nearest {}: {}\n", found.nearest_widths ? "widths" : "numbers of experts",
                        fmt::join(found.nearest, " and "));
  }
  return text;
}

std::string describe_check(const RuntimeCheck& check) {
  std::string text = fmt::format("{}: {} (rules of {} {})\n", check.target.text, check.refused() ? "refused" : "accepted",
                                 check.target.runtime(), check.target.version());
  for (const RuntimeFinding& found : check.findings) text += describe_finding(found);
  if (!check.unchecked.empty()) {
    text += fmt::format("  not checked, for want of numbers: {}\n", fmt::join(check.unchecked, ", "));
  }
  return text;
}

/// Rows of tp, columns of ep. @return empty for a runtime without ranks
std::string describe_parallel(const std::vector<ParallelChoice>& choices) {
  std::map<std::int64_t, std::map<std::int64_t, bool>> table;
  for (const ParallelChoice& choice : choices) table[choice.target.tp][choice.target.ep] = choice.refused_by.empty();
  std::string text;
  for (const auto& [tp, row] : table) {
    if (text.empty()) {
      text = "  tp \\ ep";
      for (const auto& [ep, legal] : row) text += fmt::format("{:>5}", ep);
      text += "\n";
    }
    text += fmt::format("  {:>7}", tp);
    for (const auto& [ep, legal] : row) text += fmt::format("{:>5}", legal ? "yes" : "-");
    text += "\n";
  }
  return text;
}

Json parallel_json(const std::vector<ParallelChoice>& choices) {
  Json list = Json::array();
  for (const ParallelChoice& choice : choices) {
    list.push_back({{"runtime", choice.target.text}, {"legal", choice.refused_by.empty()}});
    if (!choice.refused_by.empty()) list.back()["refused_by"] = choice.refused_by;
  }
  return list;
}

void list_rules(const Session& session, const std::string& runtime) {
  Json json = Json::array();
  std::string text;
  for (const RuntimeTarget& target : parse_runtimes(std::vector{runtime})) {
    Json rules = Json::array();
    text += fmt::format("{}{} {}: {}\n", text.empty() ? "" : "\n", target.runtime(), target.version(),
                        runtime_package(*target.rules));
    for (const RuleText& rule : describe_rules(*target.rules)) {
      rules.push_back({{"id", rule.id}, {"severity", rule_severity_name(rule.severity)}, {"demand", rule.demand},
                       {"applies", rule.applies}, {"why", rule.why}, {"source", rule.source}});
      text += fmt::format("  {:<8} {}: {}{}\n           {} [{}]\n", rule_severity_name(rule.severity), rule.id, rule.demand,
                          rule.applies.empty() ? "" : fmt::format(" ({})", rule.applies), rule.why, rule.source);
    }
    json.push_back({{"runtime", target.runtime()}, {"version", target.version()}, {"package", runtime_package(*target.rules)},
                    {"rules", rules}});
  }
  session.print({{"runtimes", json}}, text);
}

/// The model with as many and as wide experts as the options say.
ServedModel as_asked(const Flags& flags, ServedModel served, const std::vector<RuntimeTarget>& targets) {
  const Mtp mtp = parse_mtp(flags.mtp);
  if (mtp == Mtp::drop) served.mtp_layers = served.mtp_experts = 0;
  if (!flags.keep.empty()) {
    served.mtp_follows = mtp == Mtp::prune;
    const KeepBudget budget = KeepBudget::parse(flags.keep);
    const int keep = budget.experts ? legal_keep(served.router, budget, false) : legal_keep(served, targets, budget);
    served = with_keep(std::move(served), keep);
  }
  if (!flags.width.empty()) {
    const int width = parse_count(flags.width, "--width");
    if (width > served.width_before) {
      throw InvalidInput(fmt::format("--width {}: the experts are {} wide; give at most that", width, served.width_before));
    }
    served = with_width(std::move(served), width);
  }
  return served;
}

/// The checks of what the options say would be served.
struct Asked {
  ServedModel served;
  std::vector<RuntimeCheck> checks;  ///< by target
};

Asked checked(ServedModel served, const std::vector<RuntimeTarget>& targets) {
  Asked out{std::move(served), {}};
  for (const RuntimeTarget& target : targets) out.checks.push_back(check_runtime(out.served, target));
  return out;
}

Asked check_asked(const Flags& flags, const std::vector<RuntimeTarget>& targets) {
  const Mtp mtp = parse_mtp(flags.mtp);
  if (is_gguf_file(flags.checkpoint)) {
    check_targets_of_gguf(targets, flags.checkpoint);
    const GgufModel file = GgufModel::open(flags.checkpoint);
    const GgufMoe model = describe_gguf(file);
    return checked(flags.plan.empty() ? as_asked(flags, served_model(model), targets)
                                      : served_model(model, read_plan(flags.plan), mtp), targets);
  }
  const Checkpoint checkpoint = Checkpoint::open(flags.checkpoint);
  const Model model = describe(checkpoint);
  std::optional<Plan> plan;
  if (!flags.plan.empty()) plan = read_plan(flags.plan);
  Asked out = checked(plan ? moetrim::served_model(model, *plan, mtp) : as_asked(flags, moetrim::served_model(model), targets), targets);
  for (RuntimeCheck& check : out.checks) check_export(check, model, plan ? &*plan : nullptr, mtp);
  return out;
}

std::string describe_served(const ServedModel& served) {
  std::string text = fmt::format("{} experts in each layer", served.router.experts);
  if (served.listed_counts) text = fmt::format("at most {} experts in a layer", served.router.experts);
  if (served.width && !served.listed_widths) text += fmt::format(", {} wide", *served.width);
  return served.quant ? text + ", " + served.quant->name + "\n" : text + "\n";
}

void run_check(const Session& session, const Flags& flags) {
  if (flags.checkpoint.empty()) throw UsageError("no checkpoint is given; add one, or ask for the rules with --list-rules");
  if (flags.runtimes.empty()) {
    throw UsageError("nothing says for which runtime; add --runtime, for example --runtime vllm,tp=8");
  }
  if (!flags.plan.empty() && !(flags.keep.empty() && flags.width.empty())) {
    throw UsageError("--plan says what is kept; leave --keep and --width out");
  }
  const auto targets = parse_runtimes(flags.runtimes);
  const auto [served, checked] = check_asked(flags, targets);
  Json checks = Json::array();
  std::string text = describe_served(served);
  std::vector<std::string> refused;
  for (const RuntimeCheck& check : checked) {
    const RuntimeTarget& target = check.target;
    const auto choices = parallel_choices(served, target);
    checks.push_back(check_to_json(check));
    if (!choices.empty()) checks.back()["parallel"] = parallel_json(choices);
    text += "\n" + describe_check(check) + describe_parallel(choices);
    if (check.refused()) refused.push_back(fmt::format("{} ({})", target.text, check.findings.front().rule));
  }
  Json json{{"checkpoint", flags.checkpoint},
            {"experts", served.router.experts},
            {"refused", !refused.empty()},
            {"checks", checks}};
  if (flags.plan.empty() && flags.keep.empty()) {
    const auto keeps = legal_keeps(served, targets);
    json["legal_keeps"] = keeps;
    text += fmt::format("\nnumbers of experts that {}: {}\n", targets.size() == 1 ? "it takes" : "all of them take",
                        describe_numbers(keeps));
  }
  session.print(json, text);
  if (!refused.empty()) throw InvalidInput(fmt::format("refused by {}", fmt::join(refused, "; ")));
}

}  // namespace

void add_check(CLI::App& app, Session& session) {
  CLI::App* command =
      add_command(app, session, "check", "Say what a runtime would refuse of a checkpoint or a plan, and what it takes",
                  "moetrim check demo/model --keep 0.5 --runtime vllm,tp=2,ep=2 --runtime llama.cpp,quant=q4_k_m");
  auto flags = std::make_shared<Flags>();
  command->add_option("checkpoint", flags->checkpoint, "Checkpoint folder, or a GGUF file for llama.cpp");
  command
      ->add_option(
          "--runtime", flags->runtimes,
          "Runtime and how it serves: vllm, sglang, llama.cpp, transformers or mlx, then tp=, ep=, dp=, quant=, ... (see "
          "docs/runtimes.md); repeatable; all: every one by itself")
      ->allow_extra_args(false);
  command->add_option("--plan", flags->plan, "Plan: check what it makes of the checkpoint");
  command->add_option("--keep", flags->keep,
                      "Instead of a plan: experts of every layer that would stay, a number or a ratio");
  command->add_option("--width", flags->width, "Likewise: width that every expert would have");
  command->add_option("--mtp", flags->mtp, "What becomes of multi-token-prediction blocks: prune, keep or drop")
      ->check(CLI::IsMember({"prune", "keep", "drop"}))->capture_default_str();
  CLI::Option* list = command->add_option("--list-rules", flags->list_rules, "Print the rules of a runtime, or of all")
                          ->expected(0, 1)->default_str("all");
  command->callback([&session, flags, list] {
    session.run = [&session, flags, listed = list->count() > 0] {
      if (!listed) return run_check(session, *flags);
      list_rules(session, flags->list_rules.empty() ? "all" : flags->list_rules);
    };
  });
}

}  // namespace moetrim::cli
