// From model and plan to everything that export_checkpoint writes.

#include <string>

#include "export/base_model.h"
#include "export/modelling_code.h"
#include "moetrim/export.h"

namespace moetrim {

namespace {

/// moetrim.json: enough to say what the folder is, what it was made from, and to make it again.
nlohmann::ordered_json record_of(const Model& model, const Plan& plan, const std::string& fingerprint,
                                 const std::vector<std::string>& warnings, std::string_view tool_version, Mtp mtp) {
  nlohmann::ordered_json record;
  record["format"] = "moetrim-checkpoint";
  record["version"] = 1;
  record["tool_version"] = tool_version;
  record["source"] = {{"name", export_detail::base_model(*model.checkpoint)},
                      {"fingerprint", fingerprint},
                      {"tensors", model.checkpoint->tensors().size()},
                      {"total_bytes", model.checkpoint->total_bytes()}};
  if (model.mtp_layers > 0) record["mtp"] = mtp == Mtp::prune ? "prune" : mtp == Mtp::keep ? "keep" : "drop";
  record["warnings"] = warnings;
  record["plan"] = plan_to_json(plan);
  return record;
}

}  // namespace

ExportRequest prepare_export(const Model& model, const Plan& plan, std::string_view tool_version, const PrepareOptions& options) {
  const Mtp mtp = options.mtp;
  ExportRequest request;
  request.model = &model;
  check_plan(model, plan, {}, mtp);  // cheap; the fingerprint reads from every tensor
  request.source_fingerprint = model.checkpoint->fingerprint();
  if (!options.allow_other_checkpoint) check_plan(model, plan, request.source_fingerprint, mtp);
  request.tensors = plan_tensors(model, plan, mtp);
  request.config = rewrite_config(model, plan, mtp);
  if (const Slimming slimming = slimming_of(model, plan, mtp); slimming.form == WidthForm::listed) {
    request.modelling_code = export_detail::modelling_code(slimming.architecture);
  }
  request.warnings = rewrite_warnings(model, plan, mtp);
  request.record = record_of(model, plan, request.source_fingerprint, request.warnings, tool_version, mtp);
  request.card = model_card(model, plan, request.tensors, request.warnings, tool_version);
  return request;
}

}  // namespace moetrim
