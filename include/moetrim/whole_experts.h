// Plans that only move whole experts, for what has bytes and names of experts alone to work on: GGUF files, lists of ids.
#pragma once

#include <string_view>

#include "moetrim/plan.h"

namespace moetrim {

/// What a plan does to experts beyond dropping, reordering and repeating them, as a clause for messages: "merges experts". Empty:
/// nothing.
std::string_view beyond_whole_experts(const Plan& plan);

}  // namespace moetrim
