// The list of families.

#include <array>

#include "family/families.h"

namespace moetrim {

std::span<const Family* const> families() {
  static constexpr std::array all{
#define MOETRIM_FAMILY(name) &family_list::name,
#include "family/families.def"
#undef MOETRIM_FAMILY
  };
  return all;
}

}  // namespace moetrim
