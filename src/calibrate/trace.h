// The trace: what every recorded token did in every layer, for plots and notebooks.
#pragma once

#include <filesystem>

#include "calibrate/token_groups.h"
#include "moetrim/forward.h"

namespace moetrim {

/// Writes FOLDER/tokens.safetensors: of the first `tokens` tokens id, task, demonstration and position, each [n].
void write_trace_tokens(const std::filesystem::path& folder, const TokenGroup& group, std::int64_t tokens);

/// Writes FOLDER/layer-NNNNN.safetensors: logits [n, E], ids, gates, norms, max_abs [n, K], turns [n].
void write_trace_layer(const std::filesystem::path& folder, const RoutedLayer& routed, std::int64_t tokens);

}  // namespace moetrim
