// Whether a model keeps a rule.
#include <algorithm>
#include <bit>

#include "runtimes/rule.h"

namespace moetrim {

namespace {

template <class T, class List>
bool contains(const List& list, const T& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

bool meets(const Rule& rule, std::int64_t value, std::int64_t bound) {
  switch (rule.demand) {
    case Demand::multiple_of: return value % bound == 0;
    case Demand::at_most: return value <= bound;
    case Demand::at_least: return value >= bound;
    case Demand::below: return value < bound;
    case Demand::equal_to: return value == bound;
    case Demand::shares: return value > 0 && (value % bound == 0 || bound % value == 0);
    case Demand::power_of_two: return value > 0 && std::has_single_bit(static_cast<std::uint64_t>(value));
    case Demand::one_of: return contains(rule.numbers, value);
    case Demand::absent: return value == 0;
    case Demand::named: return true;
  }
  return true;
}

}  // namespace

Verdict judge(const Rule& rule, const ServedModel& model, const RuntimeTarget& target) {
  if (!rule.families.empty() && !contains(rule.families, model.family->name)) return Verdict::kept;
  const auto is = [&](When when) { return holds(when, model, target); };
  if (!std::all_of(rule.when.begin(), rule.when.end(), is)) return Verdict::kept;
  if (!rule.quant.empty()) {
    const ServedQuantisation* quant = served_quant(model, target);
    if (quant == nullptr) return Verdict::unknown;
    if (!contains(rule.quant, quant->scheme)) return Verdict::kept;
  }
  const FactValue value = fact_value(rule.fact, model, target);
  if (value.state == FactValue::State::none) return Verdict::kept;
  if (value.state == FactValue::State::unknown) return Verdict::unknown;
  const bool kept = rule.demand == Demand::named
                        ? contains(rule.names, value.name)
                        : meets(rule, value.number, rule.number * times_value(rule.times, model, target));
  return kept ? Verdict::kept : Verdict::broken;
}

}  // namespace moetrim
