// Evaluation: what a checkpoint, or a plan that is not yet written, does to loss, distribution and answers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "moetrim/family.h"
#include "moetrim/plan.h"
#include "moetrim/run_options.h"
#include "moetrim/text.h"

namespace moetrim {

/// Sums over predicted tokens: counted tokens that have a predecessor in their demonstration.
struct LossSums {
  std::int64_t tokens = 0;
  double loss = 0;         ///< nats
  double kl = 0;           ///< sum of KL(reference || this) in nats; 0 without a reference
  std::int64_t agree = 0;  ///< tokens whose most probable next token is the reference's

  void add(const LossSums& other);
};

struct EvaluateTask {
  std::string name;
  LossSums model;
  std::vector<LossSums> plans;      ///< one per plan, against the model
  std::optional<LossSums> against;  ///< loss of the other checkpoint; kl and agree of `model` against it

  /// `model`, with its distance from the other checkpoint where there is one.
  LossSums model_against() const;
};

struct EvaluateOptions : RunOptions {
  /// Where several processes share the demonstrations: adds their sums up, before anything else is made of them. The process
  /// that goes on with the results has the sums of all afterwards.
  std::function<void(std::span<double>)> add_up;
};

/// What an evaluation will take, without exact match; nothing is run.
struct EvaluateEstimate {
  std::int64_t tokens = 0;              ///< of all demonstrations
  int groups = 0;                       ///< passes over the weights
  double copies = 1;                    ///< how often a token goes through the layers: plans share those before they differ
  std::uint64_t peak_memory_bytes = 0;
  std::uint64_t read_bytes = 0;         ///< at most, all passes
  double operations = 0;                ///< multiply-adds times two; see MachineRates
};

/// @throws as evaluate()
EvaluateEstimate estimate_evaluation(const Model& model, const std::vector<Task>& tasks, const EvaluateOptions& options,
                                     const std::vector<Plan>& plans, const Model* against);
/// The same for that many plans which all differ from the first MoE layer on: the most that so many can take.
EvaluateEstimate estimate_evaluation(const Model& model, const std::vector<Task>& tasks, const EvaluateOptions& options,
                                     std::size_t plans, const Model* against);

/// Teacher-forced evaluation. All plans share one pass over the weights: a plan's tokens are further sequences whose dropped
/// experts' router logits are at minus infinity. They begin where the plan first differs from the model or from another plan,
/// as copies of what those tokens have become; a plan that differs from none costs nothing. Results are those of a pass of its own
/// (in bf16 on a CPU with bf16 instructions, in fp64 and on a device up to how the library sums a product of another size).
/// @param against  another checkpoint's model, or null; the reference for EvaluateTask::against. Vocabularies must be equal.
/// @throws InvalidInput when a plan does not fit the model; OutOfResources.
std::vector<EvaluateTask> evaluate(const Model& model, const std::vector<Task>& tasks, Count count, const EvaluateOptions& options,
                                   const std::vector<Plan>& plans, const Model* against);

/// Greedy generation with a KV cache, the whole model in memory.
struct GenerateOptions : RunOptions {
  std::int64_t max_new_tokens = 256;
  std::int64_t batch = 32;                 ///< prompts decoded together
  std::vector<std::int32_t> stop_tokens;   ///< end of sequence
  const Plan* plan = nullptr;              ///< dropped experts are masked in the router
};

/// New token ids for every prompt, without the stop token.
/// @throws OutOfResources when the model does not fit into memory.
std::vector<std::vector<std::int32_t>> generate(const Model& model, const std::vector<std::vector<std::int32_t>>& prompts,
                                                const GenerateOptions& options);

/// Ids that end a generation: eos_token_id of generation_config.json, else of config.json.
std::vector<std::int32_t> stop_tokens(const Checkpoint& checkpoint);

struct ExactMatch {
  std::int64_t samples = 0;
  std::int64_t correct = 0;   ///< the final answer is the expected one
  struct Miss {
    std::int64_t demonstration = 0;   ///< index within its task
    std::int64_t line = 0;
    std::string expected, got;
  };
  std::vector<Miss> misses;   ///< the first few

  /// Adds what another share found.
  void add(const ExactMatch& other);
};

/// Generates an answer for every demonstration in the share of a task read with generation_prompt_only, and compares the final answer:
/// what follows the last "#### ", or else the whole text, without surrounding spaces.
ExactMatch exact_match(const Model& model, const Tokenizer& tokenizer, const Task& task, const GenerateOptions& options);

/// What follows the last "#### ", or else the whole text; surrounding white space removed.
std::string final_answer(std::string_view text);

}  // namespace moetrim
