// Statistics of separate runs, or of the shares of one, added to one. Possible because nothing in them is a mean.
#include "moetrim/statistics.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/input_statistics.h"
#include "moetrim/row_statistics.h"
#include "moetrim/suggest.h"
#include "moetrim/vectors.h"
#include "statistics/check.h"

namespace moetrim {
namespace {

using TaskFacts = StatisticsManifest::TaskFacts;
using Part = StatisticsManifest::Part;

[[noreturn]] void refuse(const std::string& part, const std::string& why) {
  throw InvalidInput(fmt::format("{} cannot be merged: {}", part, why));
}

/// What must be equal. Runs may have different tasks; shares of one run have the same, but each its own demonstrations of them.
nlohmann::ordered_json comparable(const StatisticsManifest& manifest) {
  auto json = manifest_to_json(manifest);
  json.erase("tasks");
  if (!manifest.part) return json;
  json["part"].erase("shares");
  for (const TaskFacts& task : manifest.tasks) json["tasks"].push_back({{"name", task.name}, {"digest", task.digest}});
  return json;
}

void check_same_run(const StatisticsManifest& first, const std::string& first_name, const StatisticsManifest& other,
                    const std::string& name) {
  if (first.part.has_value() != other.part.has_value()) {
    refuse(name, fmt::format("one of it and {} is a share of a run, the other a whole run; merge the shares first", first_name));
  }
  auto expected = comparable(first);
  auto got = comparable(other);
  for (const auto& field : got.items()) expected[field.key()];  // one that only the other part has is null here
  for (const auto& field : expected.items()) {
    if (field.value() == got[field.key()]) continue;
    refuse(name, fmt::format("{} is {}, in {} it is {}", field.key(), got[field.key()].dump(), first_name, field.value().dump()));
  }
}

/// Each was measured behind its own pruned layers: no one choice of experts fits the sum.
void check_not_sequential(const std::vector<StatisticsManifest>& parts, const std::vector<std::string>& names) {
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (!parts[i].settings.contains("sequential")) continue;
    refuse(names[i], "it was calibrated with --sequential, behind layers pruned by its own tasks; calibrate all tasks in one "
                     "run");
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

struct TaskSum {
  TaskFacts facts;

  void add(const TaskSum& other) {
    facts.demonstrations += other.facts.demonstrations;
    facts.tokens += other.facts.tokens;
    facts.counted_tokens += other.facts.counted_tokens;
    facts.predicted_tokens += other.facts.predicted_tokens;
    facts.loss += other.facts.loss;
  }
};

void check_other_demonstrations(const TaskFacts& known, const TaskFacts& more, const std::string& name) {
  const auto digests = digests_of(known);
  for (const auto& digest : digests_of(more)) {
    if (std::find(digests.begin(), digests.end(), digest) == digests.end()) continue;
    refuse(name, fmt::format("task {} holds demonstrations that an earlier part has too (digest {}); they would count twice, "
                             "leave one part out", in_quotes(more.name), digest));
  }
}

/// The sum over values 0 to count - 1 as a tree in which i and i + step meet, the largest power of two first. Shares of whole
/// slices are the tree's own branches, so that 1, 2, 4 and 8 of them add in one and the same order.
template <class Value>
Value fold(std::size_t count, const std::function<Value(std::size_t)>& value, std::size_t index = 0, std::size_t step = 1) {
  if (step >= count) return value(index);
  Value sum = fold(count, value, index, 2 * step);
  if (index + step < count) sum.add(fold(count, value, index + step, 2 * step));
  return sum;
}

/// A part's layer with its tasks where the sum has them.
template <class Layer, class... Sizes>
Layer placed(Layer layer, const std::vector<int>& places, int tasks, Sizes... sizes) {
  std::vector<int> same(static_cast<std::size_t>(tasks));
  std::iota(same.begin(), same.end(), 0);
  if (places == same) return layer;
  Layer out(layer.layer, tasks, layer.experts, sizes...);
  if constexpr (requires { out.down_squares; }) {
    out.down_squares = layer.down_squares;
    out.gate_up_squares = layer.gate_up_squares;
  }
  for (std::size_t task = 0; task < places.size(); ++task) out.add_task(places[task], layer, static_cast<int>(task));
  return out;
}

}  // namespace

StatisticsMerge::StatisticsMerge(std::vector<StatisticsManifest> parts, std::vector<std::string> names, bool partial)
    : parts_(std::move(parts)), names_(std::move(names)) {
  if (parts_.empty()) throw InvalidInput("nothing to merge: no statistics were given");
  order_.resize(parts_.size());
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  if (parts_.size() > 1) check_not_sequential(parts_, names_);
  for (std::size_t i = 1; i < parts_.size(); ++i) check_same_run(parts_[0], names_[0], parts_[i], names_[i]);
  manifest_ = parts_.front();
  if (!manifest_.part) {
    place_runs();
    return;
  }
  std::sort(order_.begin(), order_.end(),
            [&](std::size_t a, std::size_t b) { return parts_[a].part->shares.front() < parts_[b].part->shares.front(); });
  place_shares();
  if (!manifest_.part || partial) return;
  std::vector<int> missing;
  for (int share = 1; share <= manifest_.part->count; ++share) {
    if (!std::binary_search(manifest_.part->shares.begin(), manifest_.part->shares.end(), share)) missing.push_back(share);
  }
  throw InvalidInput(fmt::format("share(s) {} of {} are missing; give all of them, or --partial to make do without",
                                 fmt::join(missing, ", "), manifest_.part->count));
}

void StatisticsMerge::place_runs() {
  auto& tasks = manifest_.tasks;
  tasks.clear();
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    auto& places = places_.emplace_back();
    for (const TaskFacts& task : parts_[i].tasks) {
      const auto found = std::find_if(tasks.begin(), tasks.end(), [&](const TaskFacts& known) { return known.name == task.name; });
      places.push_back(static_cast<int>(found - tasks.begin()));
      if (found == tasks.end()) {
        tasks.push_back(task);
      } else {
        check_other_demonstrations(*found, task, names_[i]);
        TaskSum sum{*found};
        sum.add({task});
        sum.facts.digest += "+" + task.digest;
        *found = sum.facts;
      }
    }
  }
}

void StatisticsMerge::place_shares() {
  std::vector<int> own(manifest_.tasks.size());
  std::iota(own.begin(), own.end(), 0);
  places_.assign(parts_.size(), own);
  std::vector<std::string> holder(static_cast<std::size_t>(manifest_.part->count) + 1);  // by share
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    for (const int share : parts_[i].part->shares) {
      auto& name = holder[static_cast<std::size_t>(share)];
      if (!name.empty()) refuse(names_[i], fmt::format("{} holds share {} too, which would count twice", name, share));
      name = names_[i];
    }
  }
  auto& part = *manifest_.part;
  part.shares.clear();
  for (int share = 1; share <= part.count; ++share) {
    if (!holder[static_cast<std::size_t>(share)].empty()) part.shares.push_back(share);
  }
  for (std::size_t task = 0; task < manifest_.tasks.size(); ++task) {
    manifest_.tasks[task] = fold<TaskSum>(parts_.size(), [&](std::size_t i) { return TaskSum{parts_[order_[i]].tasks[task]}; }).facts;
  }
  if (part.shares.size() < static_cast<std::size_t>(part.count)) return;
  for (std::size_t task = 0; task < manifest_.tasks.size(); ++task) {
    const auto& facts = manifest_.tasks[task];
    if (Part::Whole{facts.demonstrations, facts.tokens, facts.counted_tokens} != part.whole[task]) {
      throw InvalidInput(fmt::format("the shares of task {} do not add up to the {} demonstrations and {} tokens of the whole; "
                                     "a manifest was changed", in_quotes(facts.name), part.whole[task].demonstrations,
                                     part.whole[task].tokens));
    }
  }
  manifest_.part.reset();
}

LayerStatistics StatisticsMerge::layer(const std::function<LayerStatistics(std::size_t part)>& read) const {
  return fold<LayerStatistics>(parts_.size(), [&](std::size_t i) {
    return placed(read(order_[i]), places_[order_[i]], static_cast<int>(manifest_.tasks.size()));
  });
}

AtomStatistics StatisticsMerge::atoms(const std::function<AtomStatistics(std::size_t part)>& read) const {
  return fold<AtomStatistics>(parts_.size(), [&](std::size_t i) {
    return placed(read(order_[i]), places_[order_[i]], static_cast<int>(manifest_.tasks.size()), manifest_.expert_width);
  });
}

ExpertVectors StatisticsMerge::vectors(const std::function<ExpertVectors(std::size_t part)>& read) const {
  const int tasks = static_cast<int>(manifest_.tasks.size());
  return fold<ExpertVectors>(parts_.size(), [&](std::size_t i) {
    ExpertVectors part = read(order_[i]);
    ExpertVectors out(part.layer, tasks, part.experts, *manifest_.vectors);
    out.weight_max = part.weight_max;
    const auto& places = places_[order_[i]];
    for (std::size_t task = 0; task < places.size(); ++task) out.add_task(places[task], part, static_cast<int>(task));
    out.add_samples(part);
    return out;
  });
}

RowStatistics StatisticsMerge::rows(const std::function<RowStatistics(std::size_t part)>& read) const {
  const int tasks = static_cast<int>(manifest_.tasks.size());
  return fold<RowStatistics>(parts_.size(), [&](std::size_t i) {
    const RowStatistics part = read(order_[i]);
    RowStatistics out(part.layer, tasks, part.experts, part.width, part.hidden);
    const auto& places = places_[order_[i]];
    for (std::size_t task = 0; task < places.size(); ++task) out.add_task(places[task], part, static_cast<int>(task));
    return out;
  });
}

Statistics merge_statistics(std::span<const Statistics> parts) {
  std::vector<StatisticsManifest> manifests;
  std::vector<std::string> names;
  for (const Statistics& part : parts) {
    names.push_back(fmt::format("part {}", names.size() + 1));
    manifests.push_back(part.manifest);
    check_statistics(part, names.back());
  }
  const StatisticsMerge merge(std::move(manifests), std::move(names));
  Statistics sum{.manifest = merge.manifest(), .layers = {}};
  sum.manifest.vectors.reset();
  sum.manifest.row_rank = 0;
  forget_inputs(sum.manifest);
  for (std::size_t l = 0; l < parts.front().layers.size(); ++l) {
    sum.layers.push_back(merge.layer([&](std::size_t part) { return parts[part].layers[l]; }));
  }
  for (std::size_t l = 0; l < parts.front().atoms.size(); ++l) {
    sum.atoms.push_back(merge.atoms([&](std::size_t part) { return parts[part].atoms[l]; }));
  }
  return sum;
}

}  // namespace moetrim
