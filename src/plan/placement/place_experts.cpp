// Statistics and a plan to the placement problem, and its solution back to the plan.
#include <algorithm>
#include <numeric>
#include <set>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/placement.h"
#include "moetrim/suggest.h"
#include "plan/placement/problem.h"

namespace moetrim {
namespace {

using placement::Devices;
using placement::LayerFlow;
using placement::Matrix;
using placement::Placement;
using placement::Problem;

void check_request(const PlacementRequest& request, const Plan& plan) {
  if (request.devices < 1 || request.nodes < 1 || request.devices % request.nodes != 0) {
    throw UsageError(fmt::format("place: {} devices on {} nodes; expected as many devices on every node", request.devices,
                                 request.nodes));
  }
  if (plan.keep % request.devices != 0) {
    throw InvalidInput(fmt::format("place: {} experts a layer do not divide into {} devices", plan.keep, request.devices));
  }
  const int groups = plan.regroup ? 1 : plan.groups.count;
  if (groups % request.devices != 0 && request.devices % groups != 0) {
    throw InvalidInput(fmt::format("place: the router's {} groups of experts, which stay together, and {} devices: one must "
                                   "divide the other", groups, request.devices));
  }
}

void check_together(const Statistics& statistics, const Plan& plan) {
  check_plan_of(plan, statistics.manifest);
  check_equal_counts(plan, "place");
  if (merges(plan)) throw InvalidInput("place: the plan merges experts; write that checkpoint, then place its experts");
  for (const PlanLayer& layer : plan.layers) {
    if (std::set(layer.keep.begin(), layer.keep.end()).size() == layer.keep.size()) continue;
    throw InvalidInput(
        "place: the plan has experts more than once, and nothing is known of how tokens will share the copies");
  }
}

/// Rows and columns of a statistic's matrices, tasks added up.
Matrix pick(const std::vector<double>& matrices, int experts, const std::vector<int>& tasks, const std::vector<int>& rows,
            const std::vector<int>& columns) {
  Matrix out(rows.size() * columns.size());
  const auto n = static_cast<std::size_t>(experts);
  for (const int task : tasks) {
    const double* matrix = matrices.data() + static_cast<std::size_t>(task) * n * n;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const double* row = matrix + static_cast<std::size_t>(rows[i]) * n;
      for (std::size_t j = 0; j < columns.size(); ++j) out[i * columns.size() + j] += row[columns[j]];
    }
  }
  return out;
}

/// Slots are the elements, in the order of the plan.
LayerFlow flow_of(const Statistics& statistics, const Plan& plan, const std::vector<int>& tasks, std::size_t index) {
  const LayerStatistics& layer = statistics.layers[index];
  const auto& keep = plan.layers[index].keep;
  LayerFlow flow{.next = Matrix(keep.size() * keep.size()),
                 .beside = pick(layer.coactivation, layer.experts, tasks, keep, keep),
                 .load = std::vector<double>(keep.size())};
  if (index + 1 < plan.layers.size()) {
    flow.next = pick(layer.transitions, layer.experts, tasks, keep, plan.layers[index + 1].keep);
  }
  for (std::size_t e = 0; e < keep.size(); ++e) {
    flow.load[e] = flow.beside[e * keep.size() + e];  // tokens that used it and itself
    flow.beside[e * keep.size() + e] = 0;
  }
  return flow;
}

Problem problem_of(const Statistics& statistics, const PlacementRequest& request, const Plan& plan) {
  Problem problem;
  problem.elements = plan.keep;
  problem.devices = {.count = request.devices, .nodes = request.nodes};
  const auto tasks = statistics.tasks(request.tasks);
  for (std::size_t l = 0; l < plan.layers.size(); ++l) problem.layers.push_back(flow_of(statistics, plan, tasks, l));
  return problem;
}

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

/// Makes both parts of the objective means: of a pair's cost, and of the fullest device over a mean one.
void weigh(Problem& problem, PlacementObjective objective) {
  double pairs = 0;
  for (LayerFlow& flow : problem.layers) {
    pairs += sum(flow.next) + sum(flow.beside) / 2;
    const double mean = sum(flow.load) / problem.devices.count;
    for (double& load : flow.load) load = mean > 0 ? load / mean : 0;
  }
  if (objective != PlacementObjective::load && pairs > 0) problem.pair_weight = 1 / pairs;
  if (objective != PlacementObjective::traffic) problem.load_weight = 1 / static_cast<double>(problem.layers.size());
}

/// Every run of `size` elements as one.
Matrix add_runs(const Matrix& matrix, std::size_t n, std::size_t size) {
  const std::size_t runs = n / size;
  Matrix out(runs * runs);
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) out[i / size * runs + j / size] += matrix[i * n + j];
  }
  return out;
}

/// The problem with whole groups as its elements.
Problem of_groups(const Problem& problem, int groups) {
  Problem out;
  out.elements = groups;
  out.devices = problem.devices;
  const auto size = static_cast<std::size_t>(problem.elements / groups);
  for (const LayerFlow& flow : problem.layers) {
    LayerFlow whole{.next = add_runs(flow.next, problem.size(), size), .beside = add_runs(flow.beside, problem.size(), size),
                    .load = {}};
    for (std::size_t g = 0; g < out.size(); ++g) {
      whole.beside[g * out.size() + g] = 0;  // pairs that no placement can part
      whole.load.push_back(std::accumulate(flow.load.begin() + static_cast<std::ptrdiff_t>(g * size),
                                           flow.load.begin() + static_cast<std::ptrdiff_t>((g + 1) * size), 0.0));
    }
    out.layers.push_back(std::move(whole));
  }
  return out;
}

Placement solve(Problem problem, PlacementObjective objective, int groups, std::uint64_t seed) {
  const bool whole_groups = groups > 1 && groups % problem.devices.count == 0;
  weigh(problem, objective);
  if (!whole_groups) {
    problem.blocks = groups;
    return placement::solve(problem, seed);
  }
  Problem by_group = of_groups(problem, groups);
  by_group.pair_weight = problem.pair_weight;
  by_group.load_weight = problem.load_weight;
  const Placement placed = placement::solve(by_group, seed);
  Placement out;
  for (const auto& layer : placed) {
    std::vector<int>& devices = out.emplace_back();
    for (int e = 0; e < problem.elements; ++e) {
      devices.push_back(layer[static_cast<std::size_t>(e / (problem.elements / groups))]);
    }
  }
  return out;
}

void count_pairs(const Devices& devices, const Matrix& pairs, const std::vector<int>& rows, const std::vector<int>& columns,
                 double share, double& all, double& crossing, double& between_nodes) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t j = 0; j < columns.size(); ++j) {
      const double count = share * pairs[i * columns.size() + j];
      const double cost = devices.cost(rows[i], columns[j]);
      all += count;
      if (cost > 0) crossing += count;
      if (cost > 1) between_nodes += count;
    }
  }
}

double excess(const Problem& problem, const std::vector<int>& devices, const LayerFlow& flow) {
  std::vector<double> load(static_cast<std::size_t>(problem.devices.count));
  for (std::size_t e = 0; e < devices.size(); ++e) load[static_cast<std::size_t>(devices[e])] += flow.load[e];
  const double all = sum(load);
  return all > 0 ? *std::max_element(load.begin(), load.end()) / all * problem.devices.count : 1;
}

PlacementCost cost_of(const Problem& problem, const Plan& plan, const Placement& placed) {
  PlacementCost cost{.mean_load = 0, .worst_load = 0, .worst_layer = 0};
  for (std::size_t l = 0; l < placed.size(); ++l) {
    const LayerFlow& flow = problem.layers[l];
    count_pairs(problem.devices, flow.beside, placed[l], placed[l], 0.5, cost.coactivations, cost.coactivations_crossing,
                cost.coactivations_between_nodes);
    if (l + 1 < placed.size()) {
      count_pairs(problem.devices, flow.next, placed[l], placed[l + 1], 1, cost.transitions, cost.transitions_crossing,
                  cost.transitions_between_nodes);
    }
    const double load = excess(problem, placed[l], flow);
    cost.mean_load += load / static_cast<double>(placed.size());
    if (load <= cost.worst_load) continue;
    cost.worst_load = load;
    cost.worst_layer = plan.layers[l].layer;
  }
  return cost;
}

/// Slots device by device; on each in the order they had, groups together.
void reorder(const std::vector<int>& devices, PlanLayer& layer) {
  std::vector<std::size_t> order(layer.keep.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return devices[a] < devices[b]; });
  std::vector<int> keep;
  std::vector<AtomRanges> atoms;
  for (const std::size_t slot : order) {
    keep.push_back(layer.keep[slot]);
    if (!layer.atoms.empty()) atoms.push_back(layer.atoms[slot]);
  }
  layer.keep = std::move(keep);
  layer.atoms = std::move(atoms);
}

double share(double part, double whole) { return whole > 0 ? part / whole : 0; }

}  // namespace

std::string_view placement_objective_name(PlacementObjective objective) {
  switch (objective) {
    case PlacementObjective::traffic: return "traffic";
    case PlacementObjective::load: return "load";
    case PlacementObjective::both: break;
  }
  return "both";
}

PlacementObjective placement_objective_from_name(std::string_view name) {
  for (const auto objective : {PlacementObjective::traffic, PlacementObjective::load, PlacementObjective::both}) {
    if (placement_objective_name(objective) == name) return objective;
  }
  throw UsageError(fmt::format("objective {}: expected traffic, load or both", in_quotes(name)));
}

double PlacementCost::mean_cost() const {
  return share(transitions_crossing + transitions_between_nodes + coactivations_crossing + coactivations_between_nodes,
               transitions + coactivations);
}

nlohmann::ordered_json placement_cost_to_json(const PlacementCost& cost) {
  return {{"transitions_crossing", share(cost.transitions_crossing, cost.transitions)},
          {"transitions_between_nodes", share(cost.transitions_between_nodes, cost.transitions)},
          {"coactivations_crossing", share(cost.coactivations_crossing, cost.coactivations)},
          {"coactivations_between_nodes", share(cost.coactivations_between_nodes, cost.coactivations)},
          {"mean_cost", cost.mean_cost()},
          {"mean_load", cost.mean_load},
          {"worst_load", cost.worst_load},
          {"worst_layer", cost.worst_layer}};
}

PlacedPlan place_experts(const Statistics& statistics, const PlacementRequest& request, Plan base) {
  check_together(statistics, base);
  check_request(request, base);
  const Problem problem = problem_of(statistics, request, base);
  const Placement placed = solve(problem, request.objective, base.regroup ? 1 : base.groups.count, request.seed);
  PlacedPlan out{.plan = std::move(base), .before = {}, .after = {}};
  out.before = cost_of(problem, out.plan, in_order(problem));
  out.after = cost_of(problem, out.plan, placed);
  for (std::size_t l = 0; l < placed.size(); ++l) reorder(placed[l], out.plan.layers[l]);
  out.plan.order = SlotOrder::free;
  nlohmann::ordered_json tasks = nlohmann::ordered_json::array();
  for (const int task : statistics.tasks(request.tasks)) {
    tasks.push_back(statistics.manifest.tasks[static_cast<std::size_t>(task)].name);
  }
  out.plan.source["placement"] = {{"devices", request.devices},
                                  {"nodes", request.nodes},
                                  {"objective", placement_objective_name(request.objective)},
                                  {"seed", request.seed},
                                  {"tasks", std::move(tasks)},
                                  {"before", placement_cost_to_json(out.before)},
                                  {"after", placement_cost_to_json(out.after)}};
  return out;
}

}  // namespace moetrim
