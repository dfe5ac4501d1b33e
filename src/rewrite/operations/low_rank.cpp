// Matrices as factors of low rank and the rows that those miss most: the compression step of MC-SMoE (arXiv 2310.01334).

#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "rewrite/operations.h"

namespace moetrim::operations {

namespace {

bool is_matrix_of_expert(Role role) {
  switch (role) {
    case Role::expert_gate: case Role::expert_up: case Role::expert_down: case Role::fused_gate_up: case Role::fused_down: return true;
    default: return false;
  }
}

class FactorMatrices : public Editor {
 public:
  FactorMatrices(std::shared_ptr<const LowRank> low_rank, bool merged_only)
      : low_rank_(std::move(low_rank)), merged_only_(merged_only) {}

  void edit(const PlanLayer&, const SlabPlace& place, SlabRecipe& recipe) const override {
    const bool chosen = recipe.group || !merged_only_;
    if (is_matrix_of_expert(place.role) && chosen && !recipe.parts.empty()) recipe.low_rank = low_rank_;
  }

 private:
  std::shared_ptr<const LowRank> low_rank_;
  bool merged_only_;
};

std::unique_ptr<Editor> make(const Model& model, const Plan& plan, const RewriteSources& sources) {
  if (!sources.low_rank) return nullptr;
  const std::int64_t most = std::min(model.expert_width, model.hidden);
  if (sources.low_rank->rank < 1 || sources.low_rank->rank >= most) {
    throw UsageError(fmt::format("--low-rank {}: expected 1 to {}, below both sides of an expert's matrices ({} and {})",
                                 sources.low_rank->rank, most - 1, model.expert_width, model.hidden));
  }
  if (plan.width > 0) {
    throw UsageError("--low-rank is for experts that keep their width: factors of what the plan cuts away would be kept in part; "
                     "write the slimmer checkpoint first, and make a plan for that");
  }
  return std::make_unique<FactorMatrices>(sources.low_rank, merges(plan));
}

}  // namespace

const Operation low_rank{.name = "low-rank", .make = make};

}  // namespace moetrim::operations
