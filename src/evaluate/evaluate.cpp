// Teacher-forced loss, KL and agreement of a checkpoint, of plans, and against another checkpoint, in one pass.

#include "moetrim/evaluate.h"

#include <algorithm>
#include <functional>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "evaluate/plan_mask.h"
#include "evaluate/shared_prefixes.h"
#include "forward/memory_plan.h"
#include "forward/thread_pool.h"
#include "moetrim/error.h"
#include "moetrim/forward.h"
#include "moetrim/machine.h"

namespace moetrim {

namespace {

/// Rows of logits held at a time: V can be 150 000.
constexpr std::int64_t kBlockRows = 128;
/// Rows of them that a thread works on: their parts stay near the cache.
constexpr std::int64_t kTogether = 8;

/// A token whose successor is predicted.
struct Predicted {
  std::size_t row = 0;     ///< of the sums: task * kSlices + slice
  std::int64_t token = 0;  ///< of the group
  std::int64_t next = 0;   ///< the id that follows
};

struct Group {
  TokenBatch batch;
  std::vector<Predicted> predicted;
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

Group make_group(const std::vector<Source>& sources, const SequenceGroup& range, Count count) {
  Group group;
  auto& ids = group.batch.ids;
  for (std::size_t i = range.first; i < range.last; ++i) {
    const Demonstration& demonstration = *sources[i].demonstration;
    const auto begin = static_cast<std::int64_t>(ids.size());
    group.batch.sequences.push_back({begin, static_cast<std::int64_t>(demonstration.ids.size())});
    ids.insert(ids.end(), demonstration.ids.begin(), demonstration.ids.end());
    const auto counted = counted_range(demonstration, count);
    for (std::int64_t t = std::max<std::int64_t>(counted.first, 1); t < counted.second; ++t) {
      group.predicted.push_back({sources[i].row, begin + t - 1, demonstration.ids[static_cast<std::size_t>(t)]});
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

/// What each of some predicted tokens costs: [n].
struct TokenCosts {
  std::vector<double> loss, kl;
  std::vector<std::int64_t> agree;

  void add(std::size_t token, LossSums& sums) const {
    ++sums.tokens;
    sums.loss += loss[token];
    if (kl.empty()) return;
    sums.kl += kl[token];
    sums.agree += agree[token];
  }
};

/// The distributions over the vocabulary after some tokens.
class Distributions {
 public:
  Distributions(Forward& forward, const std::vector<std::int64_t>& rows, ThreadPool& pool)
      : pool_(pool), log_probabilities_(forward.logits(forward.hidden(), rows)) {
    in_parts([&](std::int64_t begin, std::int64_t count) {
      at::Tensor part = log_probabilities_.narrow(0, begin, count);
      part.copy_(at::log_softmax(part, -1));
    });
  }

  /// @param next       the ids that follow
  /// @param reference  for kl and agree, or null
  TokenCosts costs(const at::Tensor& next, const Distributions* reference) {
    TokenCosts costs;
    const auto rows = log_probabilities_.size(0);
    costs.loss = values<double>(log_probabilities_.gather(1, next.unsqueeze(1)).squeeze(1).neg().to(at::kDouble));
    if (reference == nullptr) return costs;
    const auto options = log_probabilities_.options();
    at::Tensor kl = at::empty({rows}, options.dtype(at::kDouble));
    at::Tensor agree = at::empty({rows}, options.dtype(at::kLong));
    in_parts([&](std::int64_t begin, std::int64_t count) {
      const at::Tensor q = log_probabilities_.narrow(0, begin, count);
      const at::Tensor p = reference->log_probabilities_.narrow(0, begin, count);
      // 0 * (-inf - -inf) is NaN; a token that the reference rules out adds nothing.
      const at::Tensor terms = at::sub(p, q).mul_(p.exp()).nan_to_num_(0.0, std::nullopt, std::nullopt);
      kl.narrow(0, begin, count).copy_(terms.sum(-1, false, at::kDouble));
      agree.narrow(0, begin, count).copy_(p.argmax(-1).eq(q.argmax(-1)));
    });
    costs.kl = values<double>(kl);
    costs.agree = values<std::int64_t>(agree);
    return costs;
  }

 private:
  /// Rows by the thread; all at once on a device.
  void in_parts(const std::function<void(std::int64_t begin, std::int64_t count)>& body) {
    const auto rows = log_probabilities_.size(0);
    const auto together = log_probabilities_.is_cpu() ? kTogether : rows;
    pool_.run((rows + together - 1) / together, [&](std::int64_t part, int) {
      body(part * together, std::min(together, rows - part * together));
    });
  }

  template <class Value>
  static std::vector<Value> values(const at::Tensor& tensor) {
    const at::Tensor here = tensor.cpu().contiguous();
    return {here.const_data_ptr<Value>(), here.const_data_ptr<Value>() + here.numel()};
  }

  ThreadPool& pool_;
  at::Tensor log_probabilities_;  // [n, V]
};

int threads_of(const RunOptions& options) { return options.threads > 0 ? options.threads : usable_cores(); }

/// Rows of logits and what is made of them: of the model, of a plan, of another checkpoint, one being made, and what threads
/// hold while they compare two.
std::uint64_t held_rows(const RunOptions& options) {
  return static_cast<std::uint64_t>(4 * kBlockRows + 3 * kTogether * threads_of(options));
}

MemoryPlan evaluation_memory(const Model& model, const std::vector<Task>& tasks, const RunOptions& options, const SharedPass& pass,
                             const Model* against) {
  std::size_t longest = 0;
  for (const Task& task : tasks) {
    for (const Demonstration& demonstration : task.demonstrations) longest = std::max(longest, demonstration.ids.size());
  }
  const std::uint64_t copies = pass.copies.size() + (against != nullptr ? 1 : 0);
  std::uint64_t further = head_bytes(model, options, held_rows(options)) + tile_bytes(model, options, static_cast<std::int64_t>(longest));
  if (against != nullptr) further += head_bytes(*against, options, 0) + Forward::weight_bytes(*against, forward_options(*against, options));
  return plan_memory(model, options, forward_token_bytes(model, options) * copies, further);
}

/// Layers that a pass runs a token through.
std::int64_t layers_of(const SharedPass& pass, const Model& model) {
  std::int64_t layers = 0;
  for (const Copy& copy : pass.copies) layers += model.layers - copy.layer;
  return layers;
}

std::vector<ExpertMask> masks_of(const Model& model, const std::vector<Plan>& plans) {
  std::vector<ExpertMask> masks;
  for (const Plan& plan : plans) masks.push_back(mask_of(model, plan));
  return masks;
}

class Evaluation {
 public:
  Evaluation(const Model& model, Count count, const EvaluateOptions& options, const std::vector<Plan>& plans, const Model* against)
      : model_(model), count_(count), options_(options), against_(against), masks_(masks_of(model, plans)), pass_(share_prefixes(masks_)),
        forward_(model, forward_options(model, options)), pool_(options.device == "cpu" ? threads_of(options) : 1) {
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
    const MemoryPlan plan = evaluation_memory(model_, tasks, options_, pass_, against_);
    const auto sources = own_demonstrations(tasks, options_.share, plan);
    std::vector<std::int64_t> lengths;
    for (const Source& source : sources) {
      lengths.push_back(static_cast<std::int64_t>(source.demonstration->ids.size()));
      total_ += lengths.back() * (layers_of(pass_, model_) + (against_ != nullptr ? against_->layers : 0));
    }
    for (const SequenceGroup& range : cut_groups(lengths, plan.group_tokens)) measure(make_group(sources, range, count_), rows);
    if (options_.add_up) add_shares_up(rows, options_.add_up);
    std::vector<EvaluateTask> results;
    for (std::size_t t = 0; t < tasks.size(); ++t) results.push_back(sum_of_slices(std::span(rows).subspan(t * kSlices, kSlices)));
    return results;
  }

 private:
  void measure(const Group& group, std::vector<EvaluateTask>& rows) {
    const c10::InferenceMode no_autograd;
    TokenBatch batch = group.batch;
    batch.masks = masks_;
    run_all(forward_, std::move(batch), pass_.copies);
    if (other_) run_all(*other_, group.batch, {});
    for (std::size_t at = 0; at < group.predicted.size(); at += kBlockRows) {
      const auto count = std::min<std::size_t>(kBlockRows, group.predicted.size() - at);
      measure_block(std::span(group.predicted).subspan(at, count), static_cast<std::int64_t>(group.batch.ids.size()), rows);
    }
  }

  void run_all(Forward& forward, TokenBatch batch, std::span<const Copy> copies) {
    const std::size_t samples = batch.sequences.size();
    forward.begin(std::move(batch));
    RoutedLayer routed;
    while (!forward.done()) {
      std::vector<Branch> branches;
      for (const Copy& copy : copies) {
        if (copy.plan < 0 || copy.layer != forward.next_layer()) continue;
        for (std::size_t i = 0; i < samples; ++i) branches.push_back({static_cast<std::size_t>(copy.from) * samples + i, copy.plan});
      }
      forward.fork(branches);
      forward.run_layer(routed);
      done_ += forward.hidden().size(0);
      if (options_.progress) options_.progress(done_, total_);
      if (options_.stop != nullptr && *options_.stop) throw Interrupted("stopped; an evaluation starts from its beginning");
    }
  }

  /// @param tokens  of the group: a copy's rows lie that far behind those of the copy before
  void measure_block(std::span<const Predicted> predicted, std::int64_t tokens, std::vector<EvaluateTask>& results) {
    std::vector<std::int64_t> rows, next;
    for (const Predicted& token : predicted) {
      rows.push_back(token.token);
      next.push_back(token.next);
    }
    const at::Tensor targets = at::tensor(next, at::kLong).to(forward_.hidden().device());
    const auto add = [&](const TokenCosts& costs, const std::function<LossSums&(EvaluateTask&)>& column) {
      for (std::size_t i = 0; i < predicted.size(); ++i) costs.add(i, column(results[predicted[i].row]));
    };
    Distributions base(forward_, rows, pool_);
    const TokenCosts own = base.costs(targets, nullptr);
    add(own, [](EvaluateTask& row) -> LossSums& { return row.model; });
    for (std::size_t copy = 0; copy < pass_.copies.size(); ++copy) {
      TokenCosts costs = own;
      if (copy == 0) {  // of plans that change nothing
        costs.kl.assign(rows.size(), 0.0);
        costs.agree.assign(rows.size(), 1);
      } else {
        std::vector<std::int64_t> shifted = rows;
        for (auto& row : shifted) row += static_cast<std::int64_t>(copy) * tokens;
        costs = Distributions(forward_, shifted, pool_).costs(targets, &base);
      }
      for (std::size_t plan = 0; plan < masks_.size(); ++plan) {
        if (pass_.copy_of[plan] != static_cast<int>(copy)) continue;
        add(costs, [plan](EvaluateTask& row) -> LossSums& { return row.plans[plan]; });
      }
    }
    if (!other_) return;
    Distributions reference(*other_, rows, pool_);
    add(reference.costs(targets, nullptr), [](EvaluateTask& row) -> LossSums& { return *row.against; });
    const TokenCosts distance = base.costs(targets, &reference);
    for (std::size_t i = 0; i < predicted.size(); ++i) {
      LossSums& against = *results[predicted[i].row].against;
      against.kl += distance.kl[i];
      against.agree += distance.agree[i];
    }
  }

  const Model& model_;
  Count count_;
  const EvaluateOptions& options_;
  const Model* against_;
  const std::vector<ExpertMask> masks_;  // [plans]
  const SharedPass pass_;
  Forward forward_;
  std::unique_ptr<Forward> other_;
  ThreadPool pool_;
  std::int64_t done_ = 0, total_ = 0;
};

EvaluateEstimate estimate_pass(const Model& model, const std::vector<Task>& tasks, const EvaluateOptions& options, const SharedPass& pass,
                               const Model* against) {
  if (tasks.empty()) throw UsageError("no task to evaluate; give at least one --task FILE.jsonl");
  const MemoryPlan memory = evaluation_memory(model, tasks, options, pass, against);
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
  estimate.copies = static_cast<double>(layers_of(pass, model)) / static_cast<double>(model.layers);
  const auto head = [&](const Model& each) {
    return 2.0 * static_cast<double>(each.vocabulary * each.hidden) * static_cast<double>(estimate.tokens);
  };
  const auto reads = [&](const Model& each) { return each.checkpoint->total_bytes() * static_cast<std::uint64_t>(estimate.groups); };
  for (const Copy& copy : pass.copies) estimate.operations += Forward::operations(model, lengths, copy.layer) + head(model);
  estimate.read_bytes = reads(model);
  if (against != nullptr) {
    estimate.operations += Forward::operations(*against, lengths) + head(*against);
    estimate.read_bytes += reads(*against);
  }
  return estimate;
}

}  // namespace

void LossSums::add(const LossSums& other) {
  tokens += other.tokens;
  loss += other.loss;
  kl += other.kl;
  agree += other.agree;
}

LossSums EvaluateTask::model_against() const {
  LossSums sums = model;
  if (against) {
    sums.kl = against->kl;
    sums.agree = against->agree;
  }
  return sums;
}

EvaluateEstimate estimate_evaluation(const Model& model, const std::vector<Task>& tasks, const EvaluateOptions& options,
                                     std::size_t plans, const Model* against) {
  SharedPass pass{.copies = {Copy{}}, .copy_of = {}};
  for (std::size_t plan = 0; plan < plans; ++plan) {
    pass.copies.push_back({.from = 0, .layer = model.moe_layers().front(), .plan = static_cast<int>(plan)});
  }
  return estimate_pass(model, tasks, options, pass, against);
}

EvaluateEstimate estimate_evaluation(const Model& model, const std::vector<Task>& tasks, const EvaluateOptions& options,
                                     const std::vector<Plan>& plans, const Model* against) {
  return estimate_pass(model, tasks, options, share_prefixes(masks_of(model, plans)), against);
}

std::vector<EvaluateTask> evaluate(const Model& model, const std::vector<Task>& tasks, Count count, const EvaluateOptions& options,
                                   const std::vector<Plan>& plans, const Model* against) {
  if (tasks.empty()) throw UsageError("no task to evaluate; give at least one --task FILE.jsonl");
  return Evaluation(model, count, options, plans, against).run(tasks);
}

}  // namespace moetrim
