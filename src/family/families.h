// The table of families, private to the stage. One line in families.def and one file in families/ make a family.
#pragma once

#include "moetrim/family.h"

namespace moetrim::family_list {

#define MOETRIM_FAMILY(name) extern const Family name;
#include "family/families.def"
#undef MOETRIM_FAMILY

}  // namespace moetrim::family_list
