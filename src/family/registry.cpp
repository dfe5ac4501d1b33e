// The list of families.

#include <algorithm>
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

const Family* find_family(std::string_view model_type) {
  for (const Family* family : families()) {
    const auto& aliases = family->aliases;
    if (family->name == model_type || std::find(aliases.begin(), aliases.end(), model_type) != aliases.end()) return family;
  }
  return nullptr;
}

}  // namespace moetrim
