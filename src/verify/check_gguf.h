// GGUF files: keys against tensors, and values that no weight can have.
#pragma once

#include "verify/checks.h"

namespace moetrim::verify_detail {

/// All checks of a GGUF file, or of the files that a model is split over.
Findings check_gguf_file(const std::filesystem::path& file, const VerifyOptions& options);

}  // namespace moetrim::verify_detail
