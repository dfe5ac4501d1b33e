// Measures plans many at a time, and remembers every measurement on disk.

#include "cli/search_measure.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/json_fields.h"

namespace moetrim::cli {

namespace fs = std::filesystem;

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kWhole = "whole";
constexpr std::int64_t kManyTokens = std::int64_t{1} << 53;

Json sums_to_json(const LossSums& sums) {
  return {{"tokens", sums.tokens}, {"loss", sums.loss}, {"kl", sums.kl}, {"agree", sums.agree}};
}

/// A sum that is no number is written as null.
double sum_from_json(JsonFields& fields, const char* name) {
  constexpr double kMost = std::numeric_limits<double>::max();
  return fields.at(name).is_null() ? std::numeric_limits<double>::quiet_NaN() : fields.number(name, -kMost, kMost);
}

LossSums sums_from_json(const Json& json, const fs::path& file, const std::string& where) {
  JsonFields fields(json, file, where);
  LossSums sums{.tokens = fields.integer("tokens", 1, kManyTokens)};
  sums.loss = sum_from_json(fields, "loss");
  sums.kl = sum_from_json(fields, "kl");
  sums.agree = fields.integer("agree", 0, sums.tokens);
  fields.finish();
  return sums;
}

/// What figures depend on, but for the plan.
Json key_of(const Model& model, const EvaluateFlags& flags, const std::vector<Task>& tasks) {
  Json key{{"fingerprint", model.checkpoint->fingerprint()},
           {"count", flags.task.count},
           {"max_tokens", flags.task.max_tokens},
           {"dtype", flags.run.dtype},
           {"device", flags.run.device},
           {"max_new_tokens", flags.max_new_tokens},
           {"version", kVersion},
           {"tasks", Json::array()}};
  for (const Task& task : tasks) key["tasks"].push_back({{"task", task.name}, {"digest", task.digest}});
  return key;
}

}  // namespace

Measurements::Measurements(const Session& session, const Model& model, const EvaluateFlags& flags, const fs::path& file,
                           const std::string& label, PrepareOptions written)
    : session_(session), model_(model), flags_(flags), file_(file), label_(label), written_(std::move(written)) {
  const fs::path folder = model.checkpoint->folder();
  tasks_ = read_tasks(flags.task, folder, flags.task.task_options(model.vocabulary));
  if (flags.exact_match) prompts_ = flags.prompts(folder, model.vocabulary);
  key_ = key_of(model, flags, tasks_);
  if (!fs::exists(file_)) return;
  const Json json = read_json_file(file_);
  JsonFields fields(json, file_);
  if (fields.at("key") != key_) {
    session_.note(fmt::format("{}: of another checkpoint, text or version; measured anew", file_.string()));
    return;
  }
  whole_ = sums_from_json(fields.object("whole"), file_, "whole");
  for (const auto& [digest, sums] : fields.object("plans").items()) sums_[digest] = sums_from_json(sums, file_, "plans." + digest);
  const Json& answers = fields.object("exact_match");
  JsonFields shares(answers, file_, "exact_match");
  for (const auto& [digest, share] : answers.items()) answers_[digest] = shares.number(digest, 0, 1);
  fields.finish();
}

EvaluateOptions Measurements::options() const {
  EvaluateOptions options;
  flags_.run.apply(options, session_, label_);
  return options;
}

EvaluateEstimate Measurements::estimate(std::size_t plans) const {
  return estimate_evaluation(model_, tasks_, options(), plans, nullptr);
}

void Measurements::choose_plans_per_pass(int most) {
  constexpr int kMost = 16;
  double best = std::numeric_limits<double>::infinity();
  for (int plans = 1; plans <= (most > 0 ? most : kMost); ++plans) {
    double passes = 0;
    try {
      passes = estimate(static_cast<std::size_t>(plans)).groups;
    } catch (const OutOfResources&) {
      if (plans == 1) throw;
      return;  // so many copies of the longest demonstration do not fit, nor do more
    }
    if (passes / plans > best) continue;
    best = passes / plans;
    plans_per_pass_ = static_cast<std::size_t>(plans);
  }
}

void Measurements::remember() {
  Json json{{"key", key_}, {"whole", sums_to_json(*whole_)}, {"plans", Json::object()}, {"exact_match", Json::object()}};
  for (const auto& [digest, sums] : sums_) json["plans"][digest] = sums_to_json(sums);
  for (const auto& [digest, share] : answers_) json["exact_match"][digest] = share;
  write_file_atomically(file_, json.dump(1) + "\n");
}

std::vector<LossSums> Measurements::losses(std::span<const MakePlan> plans) {
  std::vector<std::string> digests;
  std::vector<Plan> pending;                 // of one pass: plans are large
  std::vector<std::string> pending_digests;
  const auto flush = [&] {
    if (!pending.empty()) pass(pending, pending_digests);
    pending.clear();
    pending_digests.clear();
  };
  for (const MakePlan& make : plans) {
    Plan plan = make();
    digests.push_back(plan_digest(plan));
    if (!seen_.insert(digests.back()).second) continue;
    if (changes_values(plan)) {
      pass_of_written(plan, digests.back());
      continue;
    }
    pending.push_back(std::move(plan));
    pending_digests.push_back(digests.back());
    if (pending.size() == plans_per_pass_) flush();
  }
  flush();
  std::vector<LossSums> sums;
  for (const auto& digest : digests) sums.push_back(sums_.at(digest));
  return sums;
}

/// The first pass decides, so that a search that was stopped compares with the same figures.
void Measurements::set_whole(const LossSums& sums) {
  if (sums.tokens == 0) throw InvalidInput(fmt::format("{}: no token is counted; choose another count", label_));
  if (!whole_) whole_ = sums;
}

void Measurements::pass(const std::vector<Plan>& plans, const std::vector<std::string>& digests) {
  const int groups = estimate_evaluation(model_, tasks_, options(), plans, nullptr).groups;
  passes_ += groups;
  // Together or not at all: what shares a pass is the same however often the search is stopped.
  if (std::all_of(digests.begin(), digests.end(), [&](const auto& digest) { return sums_.contains(digest); })) {
    remembered_passes_ += groups;
    return;
  }
  const auto tasks = evaluate(model_, tasks_, flags_.task.count_value(), options(), plans, nullptr);
  set_whole(total(tasks, [](const EvaluateTask& task) { return task.model; }));
  for (std::size_t p = 0; p < plans.size(); ++p) {
    sums_[digests[p]] = total(tasks, [p](const EvaluateTask& task) { return task.plans[p]; });
  }
  remember();
}

template <class Use>
void Measurements::with_written(const Plan& plan, Use use) {
  const fs::path folder = file_.parent_path() / "candidate";
  const ExportRequest request = prepare_export(model_, plan, kVersion, written_);
  export_checkpoint(*model_.checkpoint, request, folder, {.overwrite = true}, [](const ExportProgress&) { stop_if_requested(); });
  {
    const Checkpoint checkpoint = Checkpoint::open(folder);
    use(describe(checkpoint));
  }
  fs::remove_all(folder);
}

void Measurements::pass_of_written(const Plan& plan, const std::string& digest) {
  const int groups = estimate_evaluation(model_, tasks_, options(), std::size_t{0}, &model_).groups;
  passes_ += groups;
  if (sums_.contains(digest)) {
    remembered_passes_ += groups;
    return;
  }
  with_written(plan, [&](const Model& written) {
    const auto tasks = evaluate(written, tasks_, flags_.task.count_value(), options(), {}, &model_);
    set_whole(total(tasks, [](const EvaluateTask& task) {
      return LossSums{.tokens = task.against->tokens, .loss = task.against->loss};
    }));
    sums_[digest] = total(tasks, &EvaluateTask::model_against);
  });
  remember();
}

Quality Measurements::quality(const LossSums& sums) const {
  const LossSums& base = whole();
  return {.kl = sums.kl / static_cast<double>(sums.tokens),
          .loss_increase = sums.loss / static_cast<double>(sums.tokens) - base.loss / static_cast<double>(base.tokens)};
}

double Measurements::exact_match(const Plan* plan) {
  const std::string digest = plan == nullptr ? kWhole : plan_digest(*plan);
  if (asked_.insert(digest).second) ++generations_;
  if (const auto known = answers_.find(digest); known != answers_.end()) return known->second;
  const Tokenizer tokenizer = Tokenizer::open(model_.checkpoint->folder());
  const auto measure = [&](const Model& model, const Plan* mask) {
    GenerateOptions options = flags_.generate_options(session_, *model_.checkpoint);
    options.plan = mask;
    ExactMatch match;
    for (const Task& task : prompts_) match.add(moetrim::exact_match(model, tokenizer, task, options));
    answers_[digest] = static_cast<double>(match.correct) / static_cast<double>(match.samples);
  };
  if (plan != nullptr && changes_values(*plan)) {
    with_written(*plan, [&](const Model& written) { measure(written, nullptr); });
  } else {
    measure(model_, plan);
  }
  remember();
  return answers_.at(digest);
}

}  // namespace moetrim::cli
