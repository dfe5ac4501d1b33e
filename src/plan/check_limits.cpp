// Whether the limits of a request go with the scores that it is for.
#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/plan.h"

namespace moetrim {
namespace {

void check_expert_limits(const PlanRequest& request, std::string_view method) {
  if (!request.keep_atoms.empty() || request.scope != AtomScope::global || request.align != 1 || request.atom_blocks != 1) {
    throw UsageError(fmt::format("{} scores whole experts; keep-atoms, scope, align and atom-blocks are for methods over "
                                 "atomic experts, such as heapr",
                                 method));
  }
  if (request.budget_flops) {
    throw UsageError(fmt::format("budget-flops: {} drops whole experts, and a token still uses as many of those that stay; use "
                                 "a method over atomic experts, such as heapr",
                                 method));
  }
  if (request.keep.empty() && request.keep_by_layer.empty() && !request.budget_bytes) {
    throw UsageError("nothing says how many experts stay; add --keep or --budget-bytes");
  }
}

void check_atom_limits(const PlanRequest& request, std::string_view method, bool experts) {
  if (request.keep_atoms.empty() && !request.budget_bytes && !request.budget_flops) {
    throw UsageError(fmt::format("{} scores atomic experts, and nothing says how many of them stay; add --keep-atoms, "
                                 "--budget-bytes or --budget-flops",
                                 method));
  }
  const int align = request.align;
  const int blocks = request.atom_blocks;
  if (align < 1 || blocks < 1) throw UsageError(fmt::format("align {} and atom-blocks {}: expected numbers from 1", align, blocks));
  if (align % blocks != 0 && blocks % align != 0) {
    throw UsageError(fmt::format("align {} and atom-blocks {}: one must divide the other", align, blocks));
  }
  if (request.scope == AtomScope::layer && !request.keep_by_layer.empty()) {
    throw UsageError("scope layer keeps as many atomic experts in every layer, and the layers would keep different numbers "
                     "of experts; use --scope global or expert");
  }
  if ((request.keep.empty() && request.keep_by_layer.empty()) == experts) {
    throw UsageError(fmt::format("{} scores atomic experts; scores of experts are needed with keep, and only then", method));
  }
}

}  // namespace

void check_limits(const PlanRequest& request, std::string_view method, Grain grain, bool experts) {
  if (!request.keep.empty() && !request.keep_by_layer.empty()) {
    throw UsageError("keep and keep by layer both say how many experts stay; give one of them");
  }
  if (grain == Grain::atom) {
    check_atom_limits(request, method, experts);
  } else {
    check_expert_limits(request, method);
  }
}

}  // namespace moetrim
