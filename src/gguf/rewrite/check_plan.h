// Refuses a plan that does not belong to a GGUF model, or cannot be done on its bytes.
#pragma once

#include "moetrim/gguf_rewrite.h"

namespace moetrim::gguf_detail {

/// @throws as prepare_gguf_rewrite
void check_gguf_plan(const GgufMoe& model, const Plan& plan, Mtp mtp, bool other);

/// Whether the architecture multiplies gates by `expert_weights_scale`.
bool reads_weights_scale(const GgufArchitecture& architecture);

}  // namespace moetrim::gguf_detail
