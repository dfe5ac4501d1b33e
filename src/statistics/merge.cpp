// Statistics of separate runs added to one. Possible because nothing in them is a mean.
#include "moetrim/statistics.h"

#include <algorithm>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"
#include "statistics/check.h"

namespace moetrim {
namespace {

using TaskFacts = StatisticsManifest::TaskFacts;

/// The part's name in messages: parts have no other name here.
std::string part_name(std::size_t index) { return fmt::format("part {}", index + 1); }

void check_same_run(const StatisticsManifest& first, const StatisticsManifest& other, std::size_t index) {
  auto expected = manifest_to_json(first);
  auto got = manifest_to_json(other);
  for (const auto& field : got.items()) expected[field.key()];  // one that only the other part has is null here
  for (const auto& field : expected.items()) {
    if (field.key() == "tasks" || field.value() == got[field.key()]) continue;
    throw InvalidInput(fmt::format("{} cannot be merged: {} is {}, in {} it is {}", part_name(index), field.key(),
                                   got[field.key()].dump(), part_name(0), field.value().dump()));
  }
}

std::vector<std::string> digests_of(const TaskFacts& task) {
  std::vector<std::string> digests;
  for (std::size_t begin = 0; begin <= task.digest.size();) {
    const std::size_t end = std::min(task.digest.find('+', begin), task.digest.size());
    digests.push_back(task.digest.substr(begin, end - begin));
    begin = end + 1;
  }
  return digests;
}

void add_facts(TaskFacts& to, const TaskFacts& from, std::size_t index) {
  const auto known = digests_of(to);
  for (const auto& digest : digests_of(from)) {
    if (std::find(known.begin(), known.end(), digest) != known.end()) {
      throw InvalidInput(fmt::format("{}: task {} holds demonstrations that an earlier part has too (digest {}); they would "
                                     "count twice, leave one part out",
                                     part_name(index), in_quotes(from.name), digest));
    }
  }
  to.digest += "+" + from.digest;
  to.demonstrations += from.demonstrations;
  to.tokens += from.tokens;
  to.counted_tokens += from.counted_tokens;
  to.predicted_tokens += from.predicted_tokens;
  to.loss += from.loss;
}

/// Adds the part's tasks to the manifest. @return where each of them went.
std::vector<int> place_tasks(std::vector<TaskFacts>& tasks, const std::vector<TaskFacts>& part, std::size_t index) {
  std::vector<int> places;
  for (const TaskFacts& task : part) {
    const auto found =
        std::find_if(tasks.begin(), tasks.end(), [&](const TaskFacts& known) { return known.name == task.name; });
    places.push_back(static_cast<int>(found - tasks.begin()));
    if (found == tasks.end()) {
      tasks.push_back(task);
    } else {
      add_facts(*found, task, index);
    }
  }
  return places;
}

using Places = std::vector<std::vector<int>>;  // [parts][tasks of the part]

LayerStatistics merge_layer(std::span<const Statistics> parts, std::size_t index, const Places& places, int tasks) {
  const LayerStatistics& first = parts.front().layers[index];
  LayerStatistics layer(first.layer, tasks, first.experts);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    for (std::size_t task = 0; task < places[i].size(); ++task) {
      layer.add_task(places[i][task], parts[i].layers[index], static_cast<int>(task));
    }
  }
  return layer;
}

AtomStatistics merge_atoms(std::span<const Statistics> parts, std::size_t index, const Places& places, int tasks) {
  const AtomStatistics& first = parts.front().atoms[index];
  AtomStatistics atoms(first.layer, tasks, first.experts, first.width);
  atoms.down_squares = first.down_squares;
  atoms.gate_up_squares = first.gate_up_squares;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    for (std::size_t task = 0; task < places[i].size(); ++task) {
      atoms.add_task(places[i][task], parts[i].atoms[index], static_cast<int>(task));
    }
  }
  return atoms;
}

}  // namespace

Statistics merge_statistics(std::span<const Statistics> parts) {
  if (parts.empty()) throw InvalidInput("nothing to merge: no statistics were given");
  Statistics merged;
  merged.manifest = parts.front().manifest;
  merged.manifest.tasks.clear();
  Places places;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    check_same_run(parts.front().manifest, parts[i].manifest, i);
    check_statistics(parts[i], part_name(i));
    places.push_back(place_tasks(merged.manifest.tasks, parts[i].manifest.tasks, i));
  }
  const int tasks = static_cast<int>(merged.manifest.tasks.size());
  for (std::size_t l = 0; l < parts.front().layers.size(); ++l) merged.layers.push_back(merge_layer(parts, l, places, tasks));
  for (std::size_t l = 0; l < parts.front().atoms.size(); ++l) merged.atoms.push_back(merge_atoms(parts, l, places, tasks));
  return merged;
}

}  // namespace moetrim
