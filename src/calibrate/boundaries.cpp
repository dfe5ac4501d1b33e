// How many hidden states between layers the disk can hold.

#include "calibrate/boundaries.h"

#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"

namespace moetrim {

namespace fs = std::filesystem;

namespace {

std::uint64_t free_bytes(fs::path folder) {
  folder = fs::absolute(folder.empty() ? "." : folder).parent_path();  // --dry-run may name no output
  while (!folder.empty() && !fs::exists(folder) && folder != folder.parent_path()) folder = folder.parent_path();
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error) throw InvalidInput(fmt::format("{}: cannot tell how much is free there: {}", folder.string(), error.message()));
  return space.available;
}

std::uint64_t value_bytes(const CalibrateOptions& options) {
  return options.precision == "bf16" ? 2 : options.precision == "fp64" ? 8 : 4;
}

/// Bytes of a token when every `step`-th boundary is kept: those, the ones of the segment in work, and two gradients, since
/// the old one stays until the new one is whole.
std::uint64_t token_bytes(const Model& model, const CalibrateOptions& options, int step) {
  const int layers = static_cast<int>(model.layers) - model.moe_layers().front();
  const int kept = layers / step + 2;
  const std::uint64_t gradient = options.precision == "fp64" ? 8 : 4;
  return static_cast<std::uint64_t>(model.hidden) * (static_cast<std::uint64_t>(kept + step - 1) * value_bytes(options) + 2 * gradient);
}

}  // namespace

BoundaryPlan plan_boundaries(const Model& model, const CalibrateOptions& options, const fs::path& output,
                             std::int64_t group_tokens, std::int64_t longest) {
  const std::uint64_t budget = options.max_disk > 0 ? options.max_disk : free_bytes(output) / 10 * 9;
  const int layers = static_cast<int>(model.layers) - model.moe_layers().front();
  BoundaryPlan plan{.first = model.moe_layers().front(), .step = 1, .group_tokens = group_tokens};
  int least = 1;  // the step that needs least disk
  for (int step = 1; step <= layers; ++step) {
    if (token_bytes(model, options, step) < token_bytes(model, options, least)) least = step;
    if (token_bytes(model, options, step) * static_cast<std::uint64_t>(group_tokens) > budget) continue;
    plan.step = step;
    plan.token_bytes = token_bytes(model, options, step);
    return plan;
  }
  plan.step = least;
  plan.token_bytes = token_bytes(model, options, least);
  plan.group_tokens = static_cast<std::int64_t>(budget / plan.token_bytes);
  if (plan.group_tokens < longest) {
    throw OutOfResources(fmt::format("the hidden states between the layers of a demonstration of {} tokens need {:.2f} GiB on disk, "
                                     "{:.2f} GiB may be used; raise --max-disk, write to another disk, or cut with --max-tokens",
                                     longest, static_cast<double>(plan.token_bytes * static_cast<std::uint64_t>(longest)) / (1ULL << 30),
                                     static_cast<double>(budget) / (1ULL << 30)));
  }
  return plan;
}

}  // namespace moetrim
