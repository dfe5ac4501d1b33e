// The architectures that checkpoints are written as, see architectures.def.
#pragma once

#include "gguf/export/mapping.h"

namespace moetrim::gguf_list {

#define MOETRIM_GGUF_MAPPING(name) extern const gguf_detail::GgufMapping name;
#include "gguf/architectures/architectures.def"
#undef MOETRIM_GGUF_MAPPING

}  // namespace moetrim::gguf_list
