// The list of scoring methods and how their names are found.
#include <array>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"
#include "score/methods.h"

namespace moetrim {
namespace {

constexpr std::array kMethods{
#define MOETRIM_METHOD(name) &methods::name,
#include "score/methods.def"
#include "score/second_order.def"
#undef MOETRIM_METHOD
};

}  // namespace

std::span<const ScoringMethod* const> scoring_methods() { return kMethods; }

const ScoringMethod& find_scoring_method(std::string_view name) {
  std::vector<std::string_view> names;
  std::string list;
  for (const ScoringMethod* method : kMethods) {
    if (method->name == name) return *method;
    names.push_back(method->name);
    list += (list.empty() ? "" : ", ") + std::string(method->name);
  }
  throw UsageError(
      fmt::format("no scoring method {}{}; there are: {}", in_quotes(name), did_you_mean(name, names), list));
}

std::string_view variant_name(Variant variant) { return variant == Variant::official ? "official" : "executed"; }

std::string_view grain_name(Grain grain) { return grain == Grain::atom ? "atom" : "expert"; }

Variant variant_from_name(std::string_view name) {
  for (const Variant variant : {Variant::executed, Variant::official}) {
    if (variant_name(variant) == name) return variant;
  }
  throw UsageError(fmt::format("variant {}: expected executed or official", in_quotes(name)));
}

}  // namespace moetrim
