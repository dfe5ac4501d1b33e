// Teacher-forced loss, KL and agreement of a checkpoint, of plans, and against another checkpoint, in one pass.

#include "moetrim/evaluate.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "evaluate/plan_mask.h"
#include "forward/memory_plan.h"
#include "moetrim/error.h"
#include "moetrim/forward.h"

namespace moetrim {

namespace {

/// Rows of logits held at a time: V can be 150 000, and there is one block per plan.
constexpr std::int64_t kBlockRows = 128;

/// A demonstration in a group: where it lies, which of its tokens are predicted.
struct Sample {
  std::size_t row = 0;                ///< of the sums: task * kSlices + slice
  std::int64_t begin = 0, length = 0;
  std::int64_t first = 0, last = 0;   ///< positions whose successor is counted, relative to begin
};

struct Group {
  TokenBatch batch;        ///< the samples, then once more for every plan
  std::vector<Sample> samples;
  std::int64_t tokens = 0; ///< of the samples alone
};

struct Source {
  const Demonstration* demonstration;
  std::size_t row;
};

std::vector<Source> own_demonstrations(const std::vector<Task>& tasks, const DemonstrationShare& share, const MemoryPlan& plan) {
  std::vector<Source> sources;
  for (std::size_t t = 0; t < tasks.size(); ++t) {
    for (std::size_t i = 0; i < tasks[t].demonstrations.size(); ++i) {
      if (!share.holds(static_cast<std::int64_t>(i))) continue;
      const Demonstration& demonstration = tasks[t].demonstrations[i];
      if (static_cast<std::int64_t>(demonstration.ids.size()) > plan.group_tokens) {
        throw OutOfResources(fmt::format("{}:{}: the memory budget holds {} tokens at a time, this demonstration has {}; raise "
                                         "--max-memory, cut with --max-tokens, or evaluate fewer plans at once",
                                         tasks[t].file.string(), demonstration.line, plan.group_tokens,
                                         demonstration.ids.size()));
      }
      sources.push_back({&demonstration, t * kSlices + i % kSlices});
    }
  }
  return sources;
}

Group make_group(const std::vector<Source>& sources, const SequenceGroup& range, Count count,
                 const std::vector<ExpertMask>& masks) {
  Group group;
  group.batch.masks = masks;
  for (std::size_t i = range.first; i < range.last; ++i) {
    const Demonstration& demonstration = *sources[i].demonstration;
    const auto counted = counted_range(demonstration, count);
    group.samples.push_back({.row = sources[i].row,
                             .begin = group.tokens,
                             .length = static_cast<std::int64_t>(demonstration.ids.size()),
                             .first = std::max<std::int64_t>(counted.first, 1) - 1,
                             .last = std::max<std::int64_t>(counted.second, 1) - 1});
    group.batch.ids.insert(group.batch.ids.end(), demonstration.ids.begin(), demonstration.ids.end());
    group.tokens += group.samples.back().length;
  }
  const std::vector<std::int32_t> ids = group.batch.ids;
  for (int copy = 0; copy <= static_cast<int>(masks.size()); ++copy) {
    if (copy > 0) group.batch.ids.insert(group.batch.ids.end(), ids.begin(), ids.end());
    for (const Sample& sample : group.samples) {
      group.batch.sequences.push_back({copy * group.tokens + sample.begin, sample.length, copy - 1});
    }
  }
  return group;
}

/// The sums of one row: of the model, of every plan, of the other checkpoint.
std::vector<LossSums*> columns_of(EvaluateTask& row) {
  std::vector<LossSums*> columns{&row.model};
  for (LossSums& plan : row.plans) columns.push_back(&plan);
  if (row.against) columns.push_back(&*row.against);
  return columns;
}

/// Rows as numbers, added up over all shares, and back. Counts are exact in fp64.
void add_shares_up(std::vector<EvaluateTask>& rows, const std::function<void(std::span<double>)>& add_up) {
  std::vector<double> values;
  for (EvaluateTask& row : rows) {
    for (const LossSums* sums : columns_of(row)) {
      values.insert(values.end(), {static_cast<double>(sums->tokens), sums->loss, sums->kl, static_cast<double>(sums->agree)});
    }
  }
  add_up(values);
  auto value = values.begin();
  for (EvaluateTask& row : rows) {
    for (LossSums* sums : columns_of(row)) {
      sums->tokens = static_cast<std::int64_t>(*value++);
      sums->loss = *value++;
      sums->kl = *value++;
      sums->agree = static_cast<std::int64_t>(*value++);
    }
  }
}

/// A task's sums, slice by slice: one order, whoever measured the slices.
EvaluateTask sum_of_slices(std::span<EvaluateTask> slices) {
  EvaluateTask task = slices.front();
  for (EvaluateTask& slice : slices.subspan(1)) {
    const auto to = columns_of(task);
    const auto from = columns_of(slice);
    for (std::size_t c = 0; c < to.size(); ++c) to[c]->add(*from[c]);
  }
  return task;
}

/// Log-probabilities [n, V] of some rows, and what they say about the tokens that follow.
struct Block {
  at::Tensor log_probabilities;

  Block(Forward& forward, const at::Tensor& hidden, const std::vector<std::int64_t>& rows)
      : log_probabilities(at::log_softmax(forward.logits(hidden, rows), -1)) {}

  void add_loss(const at::Tensor& targets, LossSums& sums) const {
    sums.tokens += targets.size(0);
    sums.loss -= log_probabilities.gather(1, targets.unsqueeze(1)).sum(at::kDouble).item<double>();
  }
  void add_distance(const Block& reference, LossSums& sums) const {
    const at::Tensor& p = reference.log_probabilities;
    // 0 * (-inf - -inf) is NaN; a token that the reference rules out adds nothing.
    const at::Tensor terms = (p.exp() * (p - log_probabilities)).nan_to_num(0.0, std::nullopt, std::nullopt);
    sums.kl += terms.sum(at::kDouble).item<double>();
    sums.agree += p.argmax(-1).eq(log_probabilities.argmax(-1)).sum().item<std::int64_t>();
  }
};

void run_all(Forward& forward, TokenBatch batch, const RunOptions& options, std::int64_t& done, std::int64_t total) {
  const auto tokens = static_cast<std::int64_t>(batch.ids.size());
  forward.begin(std::move(batch));
  RoutedLayer routed;
  while (!forward.done()) {
    forward.run_layer(routed);
    done += tokens;
    if (options.progress) options.progress(done, total);
    if (options.stop != nullptr && *options.stop) throw Interrupted("stopped; an evaluation starts from its beginning");
  }
}

/// Rows of logits and what is made of them, while two distributions are compared.
constexpr std::uint64_t kHeldRows = 7 * kBlockRows;

MemoryPlan evaluation_memory(const Model& model, const std::vector<Task>& tasks, const RunOptions& options, std::size_t plans,
                             const Model* against) {
  std::size_t longest = 0;
  for (const Task& task : tasks) {
    for (const Demonstration& demonstration : task.demonstrations) longest = std::max(longest, demonstration.ids.size());
  }
  const std::uint64_t copies = plans + (against != nullptr ? 2 : 1);
  std::uint64_t further = head_bytes(model, options, kHeldRows) + tile_bytes(model, options, static_cast<std::int64_t>(longest));
  if (against != nullptr) further += head_bytes(*against, options, 0) + Forward::weight_bytes(*against, forward_options(*against, options));
  return plan_memory(model, options, forward_token_bytes(model, options) * copies, further);
}

class Evaluation {
 public:
  Evaluation(const Model& model, Count count, const EvaluateOptions& options, const std::vector<Plan>& plans, const Model* against)
      : model_(model), count_(count), options_(options), against_(against), forward_(model, forward_options(model, options)) {
    for (const Plan& plan : plans) masks_.push_back(mask_of(model, plan));
    if (against == nullptr) return;
    if (against->vocabulary != model.vocabulary) {
      throw InvalidInput(fmt::format("{} has a vocabulary of {}, {} one of {}: their distributions cannot be compared",
                                     model.checkpoint->folder().string(), model.vocabulary,
                                     against->checkpoint->folder().string(), against->vocabulary));
    }
    other_ = std::make_unique<Forward>(*against, forward_options(*against, options));
  }

  std::vector<EvaluateTask> run(const std::vector<Task>& tasks) {
    std::vector<EvaluateTask> rows;
    for (const Task& task : tasks) {
      EvaluateTask row{.name = task.name, .model = {}, .plans = std::vector<LossSums>(masks_.size()), .against = {}};
      if (against_ != nullptr) row.against.emplace();
      rows.insert(rows.end(), kSlices, row);
    }
    const MemoryPlan plan = evaluation_memory(model_, tasks, options_, masks_.size(), against_);
    const auto sources = own_demonstrations(tasks, options_.share, plan);
    std::vector<std::int64_t> lengths;
    for (const Source& source : sources) {
      lengths.push_back(static_cast<std::int64_t>(source.demonstration->ids.size()));
      total_ += lengths.back() * (model_.layers * (1 + static_cast<std::int64_t>(masks_.size())) +
                                  (against_ != nullptr ? against_->layers : 0));
    }
    for (const SequenceGroup& range : cut_groups(lengths, plan.group_tokens)) {
      measure(make_group(sources, range, count_, masks_), rows);
    }
    if (options_.add_up) add_shares_up(rows, options_.add_up);
    std::vector<EvaluateTask> results;
    for (std::size_t t = 0; t < tasks.size(); ++t) results.push_back(sum_of_slices(std::span(rows).subspan(t * kSlices, kSlices)));
    return results;
  }

 private:
  void measure(const Group& group, std::vector<EvaluateTask>& rows) {
    const c10::InferenceMode no_autograd;
    run_all(forward_, group.batch, options_, done_, total_);
    if (other_) {
      TokenBatch plain;
      plain.ids.assign(group.batch.ids.begin(), group.batch.ids.begin() + group.tokens);
      plain.sequences.assign(group.batch.sequences.begin(),
                             group.batch.sequences.begin() + static_cast<std::ptrdiff_t>(group.samples.size()));
      run_all(*other_, std::move(plain), options_, done_, total_);
    }
    for (const Sample& sample : group.samples) {
      for (std::int64_t at = sample.first; at < sample.last; at += kBlockRows) {
        measure_block(group, sample, at, std::min(sample.last, at + kBlockRows), rows[sample.row]);
      }
    }
  }

  void measure_block(const Group& group, const Sample& sample, std::int64_t first, std::int64_t last, EvaluateTask& result) {
    std::vector<std::int64_t> rows, next;
    for (std::int64_t i = first; i < last; ++i) {
      rows.push_back(sample.begin + i);
      next.push_back(group.batch.ids[static_cast<std::size_t>(sample.begin + i + 1)]);
    }
    const at::Tensor targets = at::tensor(next, at::kLong).to(forward_.hidden().device());
    const Block base(forward_, forward_.hidden(), rows);
    base.add_loss(targets, result.model);
    for (std::size_t p = 0; p < masks_.size(); ++p) {
      std::vector<std::int64_t> shifted = rows;
      for (auto& row : shifted) row += static_cast<std::int64_t>(p + 1) * group.tokens;
      const Block pruned(forward_, forward_.hidden(), shifted);
      pruned.add_loss(targets, result.plans[p]);
      pruned.add_distance(base, result.plans[p]);
    }
    if (!other_) return;
    const Block reference(*other_, other_->hidden(), rows);
    reference.add_loss(targets, *result.against);
    base.add_distance(reference, *result.against);
  }

  const Model& model_;
  Count count_;
  const EvaluateOptions& options_;
  const Model* against_;
  Forward forward_;
  std::unique_ptr<Forward> other_;
  std::vector<ExpertMask> masks_;
  std::int64_t done_ = 0, total_ = 0;
};

}  // namespace

void LossSums::add(const LossSums& other) {
  tokens += other.tokens;
  loss += other.loss;
  kl += other.kl;
  agree += other.agree;
}

EvaluateEstimate estimate_evaluation(const Model& model, const std::vector<Task>& tasks, const EvaluateOptions& options,
                                     std::size_t plans, const Model* against) {
  if (tasks.empty()) throw UsageError("no task to evaluate; give at least one --task FILE.jsonl");
  const MemoryPlan memory = evaluation_memory(model, tasks, options, plans, against);
  std::vector<std::int64_t> lengths;
  for (const Source& source : own_demonstrations(tasks, options.share, memory)) {
    lengths.push_back(static_cast<std::int64_t>(source.demonstration->ids.size()));
  }
  EvaluateEstimate estimate;
  std::int64_t largest = 0;
  for (const SequenceGroup& group : cut_groups(lengths, memory.group_tokens)) {
    ++estimate.groups;
    estimate.tokens += group.tokens;
    largest = std::max(largest, group.tokens);
  }
  estimate.peak_memory_bytes = memory.fixed_bytes + memory.token_bytes * static_cast<std::uint64_t>(largest);
  const auto add = [&](const Model& each, double copies) {
    const double head = 2.0 * static_cast<double>(each.vocabulary * each.hidden) * static_cast<double>(estimate.tokens);
    estimate.operations += copies * (Forward::operations(each, lengths) + head);
    estimate.read_bytes += each.checkpoint->total_bytes() * static_cast<std::uint64_t>(estimate.groups);
  };
  add(model, static_cast<double>(plans + 1));
  if (against != nullptr) add(*against, 1);
  return estimate;
}

std::vector<EvaluateTask> evaluate(const Model& model, const std::vector<Task>& tasks, Count count, const EvaluateOptions& options,
                                   const std::vector<Plan>& plans, const Model* against) {
  if (tasks.empty()) throw UsageError("no task to evaluate; give at least one --task FILE.jsonl");
  return Evaluation(model, count, options, plans, against).run(tasks);
}

}  // namespace moetrim
