// The transformers class that reads experts of different widths.
#pragma once

#include <string>
#include <string_view>

namespace moetrim::export_detail {

/// modeling_moetrim.py beside this header, extending a class of transformers.
/// @param architecture  the name of that class, which must be one that a family names: it becomes code
std::string modelling_code(std::string_view architecture);

}  // namespace moetrim::export_detail
