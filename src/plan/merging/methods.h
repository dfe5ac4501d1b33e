// The table of merging methods, private to the stage. One line in methods.def and one file in methods/ make a method.
#pragma once

#include "moetrim/merging.h"

namespace moetrim::merging {

#define MOETRIM_METHOD(name) extern const MergingMethod name;
#include "plan/merging/methods.def"
#undef MOETRIM_METHOD

}  // namespace moetrim::merging
