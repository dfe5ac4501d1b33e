// The table of scoring methods, private to the stage. One line in methods.def and one file in methods/ make a method.
#pragma once

#include "moetrim/score.h"

namespace moetrim::methods {

#define MOETRIM_METHOD(name) extern const ScoringMethod name;
#include "score/methods.def"
#undef MOETRIM_METHOD

}  // namespace moetrim::methods
