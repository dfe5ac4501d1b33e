// The tables of scoring methods, private to the stage. One line in methods.def and one file in methods/ make a method; for
// those that need second-order statistics, second_order.def and second_order/.
#pragma once

#include "moetrim/score.h"

namespace moetrim::methods {

#define MOETRIM_METHOD(name) extern const ScoringMethod name;
#include "score/methods.def"
#include "score/second_order.def"
#undef MOETRIM_METHOD

}  // namespace moetrim::methods
