// Names of the forms, and the one number that a form leaves to the runtime.
#include <array>
#include <utility>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/plan_exchange.h"
#include "moetrim/suggest.h"

namespace moetrim {
namespace {

constexpr std::array<std::pair<PlanForm, std::string_view>, 3> kForms{{{PlanForm::vllm_ascend, "vllm-ascend"},
                                                                       {PlanForm::profile, "profile"},
                                                                       {PlanForm::llm_compressor, "llm-compressor"}}};

}  // namespace

std::string_view plan_form_name(PlanForm form) {
  for (const auto& [known, name] : kForms) {
    if (known == form) return name;
  }
  return {};
}

PlanForm plan_form_from_name(std::string_view name) {
  for (const auto& [form, known] : kForms) {
    if (known == name) return form;
  }
  throw UsageError(fmt::format("form {}: expected vllm-ascend, profile or llm-compressor", in_quotes(name)));
}

int kept_at_prune_ratio(int experts, double ratio) { return static_cast<int>(experts * (1.0 - ratio)); }

double expert_prune_ratio(const Plan& plan) {
  const double exact = static_cast<double>(plan.experts - plan.keep) / plan.experts;
  if (kept_at_prune_ratio(plan.experts, exact) == plan.keep) return exact;
  return (plan.experts - plan.keep - 0.5) / plan.experts;  // as far from either neighbour as can be
}

}  // namespace moetrim
