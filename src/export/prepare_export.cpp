// From model and plan to everything that export_checkpoint writes.

#include <algorithm>
#include <optional>
#include <span>
#include <string>

#include <fmt/format.h>

#include "export/base_model.h"
#include "export/computed_factors.h"
#include "export/low_rank.h"
#include "export/modelling_code.h"
#include "export/width_facts.h"
#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/suggest.h"

namespace moetrim {

namespace {

using namespace export_detail;

/// How wide the experts are now.
nlohmann::ordered_json width_record(const WidthFacts& facts) {
  nlohmann::ordered_json json;
  json["form"] = facts.slimming.form == WidthForm::config ? "config" : "listed";
  json["width"] = facts.before;
  json["least_width"] = facts.least;
  json["most_width"] = facts.most;
  json["atoms"] = facts.atoms;
  json["kept_atoms"] = facts.kept_atoms;
  json["quantised_again"] = facts.quantised_again;
  if (facts.slimming.shared_width > 0) json["shared_width"] = facts.slimming.shared_width;
  return json;
}

/// moetrim.json: enough to say what the folder is, what it was made from, and to make it again.
nlohmann::ordered_json record_of(const ExportRequest& request, const Plan& plan, const std::optional<WidthFacts>& facts,
                                 std::string_view tool_version, Mtp mtp) {
  const Checkpoint& source = *request.model->checkpoint;
  nlohmann::ordered_json record;
  record["format"] = "moetrim-checkpoint";
  record["version"] = 1;
  record["tool_version"] = tool_version;
  record["source"] = {{"name", base_model(source)},
                      {"fingerprint", request.source_fingerprint},
                      {"tensors", source.tensors().size()},
                      {"total_bytes", source.total_bytes()}};
  if (request.model->mtp_layers > 0) record["mtp"] = mtp == Mtp::prune ? "prune" : mtp == Mtp::keep ? "keep" : "drop";
  if (facts) record["slim"] = width_record(*facts);
  if (request.low_rank) {
    record["low_rank"] = {{"rank", request.low_rank->rank}, {"sparse_rows", request.sparse_rows.value()},
                          {"merged_only", merges(plan)}};
    if (request.low_rank->form == LowRankForm::factored) {
      const FactorBytes bytes = factor_bytes(request.tensors);
      record["low_rank"]["form"] = "factored";
      record["low_rank"]["bytes"] = bytes.factored;
      record["low_rank"]["dense_bytes"] = bytes.dense;
    }
    if (!request.row_importance.empty()) record["low_rank"]["row_importance"] = row_importance_record(request);
  }
  record["warnings"] = request.warnings;
  record["plan"] = plan_to_json(plan);
  return record;
}

std::string quantised_again(const WidthFacts& facts) {
  const std::string advice = facts.block > 0 ? fmt::format("a plan with --atom-blocks {} keeps their bytes", facts.block)
                                             : "no other plan of atomic experts would keep their bytes";
  return fmt::format("{} weights lost atomic experts inside of their FP8 blocks and are quantised again, with a new scale "
                     "per block; {}.", facts.quantised_again, advice);
}

/// What the matrices are now, and what that takes.
std::string low_rank_note(const ExportRequest& request, bool merged_only) {
  std::string out = fmt::format("Matrices of {} are of rank {}, but for rows that hold at least {:.4g} % of their entries and that {}. ",
                                merged_only ? "merged experts" : "experts", request.low_rank->rank, 100 * request.sparse_rows.value(),
                                request.row_importance.empty() ? "such factors miss most"
                                                               : "matter most to the loss of the demonstrations");
  if (request.low_rank->form == LowRankForm::dense) return out + "They are stored whole: the file is as large as without.";
  const FactorBytes bytes = factor_bytes(request.tensors);
  out += fmt::format("They are stored as factors and rows, in {} bytes instead of {}.", bytes.factored, bytes.dense);
  if (bytes.larger > 0) {
    out += fmt::format(" {} of {} matrices are larger so than whole; a smaller rank or fewer rows would save more, and --low-rank-form "
                       "dense is as large as before.", bytes.larger, bytes.matrices);
  }
  return out;
}

/// Weights in FP8 blocks of which the plan changes values.
std::ptrdiff_t edited_codes(std::span<const OutputTensor> tensors) {
  return std::count_if(tensors.begin(), tensors.end(), [](const OutputTensor& tensor) {
    return tensor.computation && tensor.computation->result == Computation::Result::fp8 && has_recipe(tensor);
  });
}

}  // namespace

LowRankForm parse_low_rank_form(std::string_view text) {
  if (text == "dense") return LowRankForm::dense;
  if (text == "factored") return LowRankForm::factored;
  throw UsageError(fmt::format("--low-rank-form {}: expected dense or factored", in_quotes(text)));
}

ExportRequest prepare_export(const Model& model, const Plan& plan, std::string_view tool_version, const PrepareOptions& options) {
  const Mtp mtp = options.mtp;
  ExportRequest request;
  request.model = &model;
  check_plan(model, plan, {}, mtp);  // cheap; the fingerprint reads from every tensor
  request.source_fingerprint = model.checkpoint->fingerprint();
  if (!options.allow_other_checkpoint) check_plan(model, plan, request.source_fingerprint, mtp);
  request.sources = options.sources;
  if (options.low_rank > 0) {
    request.low_rank = std::make_shared<LowRank>(LowRank{.rank = options.low_rank, .form = options.low_rank_form});
    request.sources.low_rank = request.low_rank;
    request.sparse_rows = options.sparse_rows;
    request.row_importance = options.row_importance;
  }
  request.tensors = plan_tensors(model, plan, mtp, request.sources);
  if (!request.row_importance.empty()) check_row_importance(model, plan, request);
  request.config = rewrite_config(model, plan, mtp, request.sources);
  request.warnings = rewrite_warnings(model, plan, mtp, request.sources);
  const auto facts = width_facts(model, plan, request.tensors, mtp);
  if (const Slimming slimming = slimming_of(model, plan, mtp, request.sources); slimming.listed()) {
    request.modelling_code = modelling_code(slimming.architecture);
  }
  if (facts && facts->quantised_again > 0) request.warnings.push_back(quantised_again(*facts));
  if (options.low_rank_form == LowRankForm::factored && request.low_rank) {
    choose_stored_rows(request, {.writers = options.threads, .stop = options.stop});
  }
  if (request.low_rank) request.warnings.push_back(low_rank_note(request, merges(plan)));
  if (const auto weights = edited_codes(request.tensors); weights > 0) {
    request.warnings.push_back(fmt::format("The values of {} weights in FP8 blocks changed and are quantised again, with a new "
                                           "scale per block.", weights));
  }
  request.record = record_of(request, plan, facts, tool_version, mtp);
  request.card = model_card(model, plan, request.tensors, request.warnings, tool_version, {}, mtp);
  return request;
}

}  // namespace moetrim
