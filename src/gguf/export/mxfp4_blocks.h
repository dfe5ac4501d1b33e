// Weights stored in MXFP4, as ggml's blocks of the same name: codes and scales stay, only their places change.
#pragma once

#include <cstddef>
#include <vector>

#include "export/slab_values.h"
#include "moetrim/gguf_export.h"

namespace moetrim::gguf_detail {

/// Whether the weight's codes can be written as they are: stored in MXFP4, outputs first.
bool has_mxfp4_blocks(const Model& model, const Weight& weight);

/// Rows of one slab.
/// @throws InvalidInput for a scale that is no number.
void read_mxfp4_blocks(const Model& model, const GgufSlab& slab, export_detail::SlabReader& slabs,
                       std::vector<std::byte>& out);

}  // namespace moetrim::gguf_detail
