// The keys of a file.
#pragma once

#include <vector>

#include "gguf/export/mapping.h"
#include "moetrim/gguf_export.h"

namespace moetrim::gguf_detail {

/// general.* and those of the architecture that all have.
void add_general_keys(const GgufSource& source, const std::vector<GgufPlannedTensor>& tensors, GgmlType type,
                      GgufMetadata& metadata);
/// Keys that any architecture has, and those of the mapping's rules.
void add_model_keys(const GgufSource& source, const GgufMapping& mapping, GgufKeys& keys);

}  // namespace moetrim::gguf_detail
