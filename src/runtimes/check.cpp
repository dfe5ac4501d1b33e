// A model against a runtime's rules, and the nearest numbers that satisfy them.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"
#include "runtimes/rule.h"

namespace moetrim {

namespace {

bool about_experts(const Rule& rule) {
  if (rule.times == Times::experts) return rule.fact != Fact::mtp_experts;
  switch (rule.fact) {
    case Fact::experts:
    case Fact::experts_and_copies:
    case Fact::experts_per_rank:
    case Fact::experts_per_group:
    case Fact::reachable_experts: return true;
    default: return false;
  }
}

bool about_width(const Rule& rule) {
  return rule.fact == Fact::width || rule.fact == Fact::width_per_rank;
}

/// A shared expert that grows with the experts' width is chosen with it.
bool about_width_of(const Rule& rule, const ServedModel& model) {
  const bool shared = rule.fact == Fact::shared_width || rule.fact == Fact::shared_width_per_rank;
  return about_width(rule) || (shared && model.shared_follows_width);
}

bool refuses(const Rule& rule, const ServedModel& model, const RuntimeTarget& target) {
  return rule.severity == RuleSeverity::refused && judge(rule, model, target) == Verdict::broken;
}

template <class About>
bool legal(const ServedModel& model, std::span<const RuntimeTarget> targets, const About& about) {
  return std::all_of(targets.begin(), targets.end(), [&](const RuntimeTarget& target) {
    return std::none_of(target.rules->rules.begin(), target.rules->rules.end(),
                        [&](const Rule& rule) { return about(rule) && refuses(rule, model, target); });
  });
}

/// "8", or "tp = 8", or "32 x ep = 256".
std::string bound_text(const Rule& rule, const ServedModel& model, const RuntimeTarget& target) {
  const std::int64_t bound = rule.number * times_value(rule.times, model, target);
  if (rule.times == Times::one) return std::to_string(bound);
  const std::string_view label = times_label(rule.times);
  return rule.number == 1 ? fmt::format("{} = {}", label, bound) : fmt::format("{} x {} = {}", rule.number, label, bound);
}

std::string demand_text(const Rule& rule, const std::string& bound) {
  switch (rule.demand) {
    case Demand::multiple_of: return "a multiple of " + bound;
    case Demand::at_most: return "at most " + bound;
    case Demand::at_least: return "at least " + bound;
    case Demand::below: return "fewer than " + bound;
    case Demand::equal_to: return "equal to " + bound;
    case Demand::shares: return fmt::format("a multiple of {}, or a divisor of it", bound);
    case Demand::power_of_two: return "a power of two";
    case Demand::one_of: return fmt::format("one of {}", fmt::join(rule.numbers, ", "));
    case Demand::named: return fmt::format("one of {}", fmt::join(rule.names, ", "));
    case Demand::absent: return "absent";
  }
  return "";
}

std::string finding_text(const Rule& rule, const ServedModel& model, const RuntimeTarget& target) {
  const FactValue value = fact_value(rule.fact, model, target);
  const std::string_view label = fact_label(rule.fact);
  const std::string_view must = rule.severity == RuleSeverity::refused ? "must" : "should";
  if (rule.demand == Demand::named) return fmt::format("{} {} is none that it has", label, in_quotes(value.name));
  if (rule.demand == Demand::absent) return fmt::format("there {} be no {}", must, label);
  std::string part;
  if (rule.fact == Fact::width_per_rank && model.width != value.number) {
    part = fmt::format(" (of {})", model.width.value_or(0));
  }
  if (rule.fact == Fact::experts_per_rank || rule.fact == Fact::experts_per_group) {
    part = fmt::format(" (of {})", model.router.experts);
  }
  return fmt::format("{}: {}{}, {} be {}", label, value.number, part, must,
                     demand_text(rule, bound_text(rule, model, target)));
}

RuntimeFinding finding(const Rule& rule, const ServedModel& model, const RuntimeTarget& target) {
  RuntimeFinding out{.rule = std::string(rule.id),
                     .severity = rule.severity,
                     .text = finding_text(rule, model, target),
                     .why = std::string(rule.why),
                     .source = std::string(rule.source),
                     .nearest = {}};
  if (rule.severity != RuleSeverity::refused) return out;
  const std::span<const RuntimeTarget> targets(&target, 1);
  if (about_experts(rule)) {
    const auto keeps = legal_keeps(model, targets);
    out.nearest = nearest_of(std::vector<std::int64_t>(keeps.begin(), keeps.end()), model.router.experts);
  } else if (about_width_of(rule, model)) {
    out.nearest = nearest_of(legal_widths(model, targets), model.width.value_or(0));
    out.nearest_widths = true;
  }
  return out;
}

std::string nearest_text(const RuntimeFinding& finding) {
  if (finding.nearest.empty()) return "";
  return fmt::format("; the nearest {}: {}", finding.nearest_widths ? "widths that work" : "that work",
                     fmt::join(finding.nearest, " and "));
}

}  // namespace

std::string_view rule_severity_name(RuleSeverity severity) {
  switch (severity) {
    case RuleSeverity::refused: return "refused";
    case RuleSeverity::slower: return "slower";
  }
  return "";
}

RuntimeCheck check_runtime(const ServedModel& model, const RuntimeTarget& target) {
  RuntimeCheck check{.target = target, .findings = {}, .unchecked = {}};
  for (const Rule& rule : target.rules->rules) {
    const Verdict verdict = judge(rule, model, target);
    if (verdict == Verdict::broken) check.findings.push_back(finding(rule, model, target));
    if (verdict == Verdict::unknown) check.unchecked.emplace_back(rule.id);
  }
  std::stable_sort(check.findings.begin(), check.findings.end(),
                   [](const RuntimeFinding& a, const RuntimeFinding& b) { return a.severity < b.severity; });
  return check;
}

void require_runtime(const RuntimeCheck& check) {
  if (!check.refused()) return;
  const RuntimeFinding& first = check.findings.front();
  throw InvalidInput(fmt::format("{}: {}; {} (rule {}, read from {} {}){}", check.target.text, first.text, first.why,
                                 first.rule, check.target.runtime(), check.target.version(), nearest_text(first)));
}

std::vector<int> legal_keeps(const ServedModel& model, std::span<const RuntimeTarget> targets) {
  std::vector<int> keeps;
  for (int keep = model.router.experts_per_token; keep <= model.experts_before; ++keep) {
    if (!router_groups_problem(model.router.groups, keep, model.router.experts_per_token).empty()) continue;
    if (legal(with_keep(model, keep), targets, about_experts)) keeps.push_back(keep);
  }
  return keeps;
}

std::vector<std::int64_t> legal_widths(const ServedModel& model, std::span<const RuntimeTarget> targets) {
  std::vector<std::int64_t> widths;
  ServedModel equal = model;
  equal.listed_widths = false;
  const auto about = [&](const Rule& rule) { return about_width_of(rule, model); };
  for (std::int64_t width = 1; width <= model.width_before; ++width) {
    if (legal(with_width(equal, width), targets, about)) widths.push_back(width);
  }
  return widths;
}

std::vector<std::int64_t> nearest_of(std::span<const std::int64_t> legal, std::int64_t value) {
  std::vector<std::int64_t> nearest;
  const auto above = std::upper_bound(legal.begin(), legal.end(), value);
  const auto from = std::lower_bound(legal.begin(), legal.end(), value);
  if (from != legal.begin()) nearest.push_back(*(from - 1));
  if (above != legal.end()) nearest.push_back(*above);
  return nearest;
}

int legal_keep(const ServedModel& model, std::span<const RuntimeTarget> targets, const KeepBudget& budget) {
  const auto keeps = legal_keeps(model, targets);
  if (keeps.empty()) {
    for (const RuntimeTarget& target : targets) require_runtime(check_runtime(model, target));
    throw InvalidInput(
        "no number of experts works with this router and every --runtime that is given; ask for each with moetrim check");
  }
  if (budget.experts) {
    legal_keep({.experts = model.experts_before,
                .experts_per_token = model.router.experts_per_token,
                .groups = model.router.groups},
               budget, false);
    if (std::binary_search(keeps.begin(), keeps.end(), *budget.experts)) return *budget.experts;
    const ServedModel asked = with_keep(model, *budget.experts);
    for (const RuntimeTarget& target : targets) {
      for (const Rule& rule : target.rules->rules) {
        if (!about_experts(rule) || !refuses(rule, asked, target)) continue;
        RuntimeCheck check{.target = target, .findings = {finding(rule, asked, target)}, .unchecked = {}};
        check.findings.front().nearest = nearest_of(std::vector<std::int64_t>(keeps.begin(), keeps.end()), *budget.experts);
        require_runtime(check);
      }
    }
  }
  if (!budget.ratio) throw UsageError("keep: expected a number of experts or a ratio");
  const double wanted = *budget.ratio * model.experts_before;
  int best = keeps.front();
  for (const int keep : keeps) {  // half up: the later of two that are as near
    if (std::abs(keep - wanted) <= std::abs(best - wanted)) best = keep;
  }
  return best;
}

std::vector<ParallelChoice> parallel_choices(const ServedModel& model, const RuntimeTarget& base) {
  constexpr std::int64_t kMost = 16;
  std::vector<ParallelChoice> choices;
  const Spread spread = base.rules->spread;
  if (spread == Spread::none) return choices;
  for (std::int64_t tp = 1; tp <= kMost; tp *= 2) {
    for (std::int64_t ep = 1; ep <= kMost; ep *= 2) {
      RuntimeTarget target = base;
      target.tp = tp;
      target.ep = ep;
      target.dp = spread == Spread::either ? std::max<std::int64_t>(1, ep / tp) : 1;
      if (ep == 1) target.eplb = false;
      target.text = fmt::format("{},tp={},ep={}", base.runtime(), tp, ep);
      if (target.dp > 1) target.text += fmt::format(",dp={}", target.dp);
      const auto& rules = target.rules->rules;
      const auto first =
          std::find_if(rules.begin(), rules.end(), [&](const Rule& rule) { return refuses(rule, model, target); });
      choices.push_back({.target = target, .refused_by = first == rules.end() ? "" : std::string(first->id)});
    }
  }
  return choices;
}

namespace {

std::string applies_text(const Rule& rule) {
  std::vector<std::string> parts;
  for (const When when : rule.when) parts.emplace_back(when_label(when));
  if (!rule.quant.empty()) {
    std::vector<std::string_view> names;
    for (const QuantScheme scheme : rule.quant) {
      switch (scheme) {
        case QuantScheme::none: names.emplace_back("bf16"); break;
        case QuantScheme::fp8_block: names.emplace_back("fp8"); break;
        case QuantScheme::fp8_compressed: names.emplace_back("fp8-compressed"); break;
        case QuantScheme::fp8_tensor: names.emplace_back("fp8-tensor"); break;
        case QuantScheme::int_group: names.emplace_back("int4"); break;
        case QuantScheme::gptq: names.emplace_back("gptq"); break;
        case QuantScheme::awq: names.emplace_back("awq"); break;
        case QuantScheme::mxfp4: names.emplace_back("mxfp4"); break;
        case QuantScheme::nvfp4: names.emplace_back("nvfp4"); break;
        case QuantScheme::blocks: names.emplace_back("types in blocks"); break;
        case QuantScheme::other: names.emplace_back("others"); break;
      }
    }
    parts.push_back(fmt::format("quant {}", fmt::join(names, ", ")));
  }
  if (!rule.families.empty()) parts.push_back(fmt::format("{}", fmt::join(rule.families, ", ")));
  return fmt::format("{}", fmt::join(parts, "; "));
}

}  // namespace

std::vector<RuleText> describe_rules(const RuntimeRules& rules) {
  std::vector<RuleText> texts;
  for (const Rule& rule : rules.rules) {
    std::string bound = std::to_string(rule.number);
    if (rule.times != Times::one) {
      bound = rule.number == 1 ? std::string(times_label(rule.times))
                               : fmt::format("{} x {}", rule.number, times_label(rule.times));
    }
    texts.push_back({.id = std::string(rule.id),
                     .demand = fmt::format("{}: {}", fact_label(rule.fact), demand_text(rule, bound)),
                     .applies = applies_text(rule),
                     .why = std::string(rule.why),
                     .source = std::string(rule.source),
                     .severity = rule.severity});
  }
  return texts;
}

nlohmann::ordered_json check_to_json(const RuntimeCheck& check) {
  nlohmann::ordered_json findings = nlohmann::ordered_json::array();
  for (const RuntimeFinding& found : check.findings) {
    findings.push_back({{"rule", found.rule}, {"severity", rule_severity_name(found.severity)}, {"text", found.text},
                        {"why", found.why}, {"source", found.source}});
    if (!found.nearest.empty()) findings.back()[found.nearest_widths ? "nearest_widths" : "nearest_keeps"] = found.nearest;
  }
  return {{"runtime", check.target.text}, {"version", check.target.version()}, {"refused", check.refused()},
          {"findings", findings}, {"unchecked", check.unchecked}};
}

}  // namespace moetrim
