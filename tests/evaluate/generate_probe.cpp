// Greedy answers of a checkpoint for the Python tests: generate_probe CHECKPOINT PROMPTS.json TOKENS
// PROMPTS.json is a list of sequences of token ids; prints a list of new ids for each, in fp32, none of them a stop token.

#include <cstdio>

#include "moetrim/checkpoint.h"
#include "moetrim/evaluate.h"
#include "moetrim/family.h"

int main(int argc, char** argv) try {
  using namespace moetrim;
  if (argc < 4) return 2;
  const Checkpoint checkpoint = Checkpoint::open(argv[1]);
  const Model model = describe(checkpoint);
  std::vector<std::vector<std::int32_t>> prompts;
  for (const auto& prompt : read_json_file(argv[2])) prompts.push_back(prompt.get<std::vector<std::int32_t>>());
  GenerateOptions options;
  options.precision = "fp32";
  options.max_new_tokens = std::atoi(argv[3]);
  options.batch = 2;
  const nlohmann::json answers = generate(model, prompts, options);
  std::printf("%s\n", answers.dump().c_str());
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
