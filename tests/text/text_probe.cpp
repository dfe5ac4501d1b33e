// Answers questions about the text stage, so that Python tests can compare it with transformers.
// One JSON request a line on stdin, one JSON answer a line on stdout.

#include <iostream>
#include <map>
#include <string>

#include <nlohmann/json.hpp>

#include "moetrim/error.h"
#include "moetrim/text.h"

namespace {

using Json = nlohmann::ordered_json;

const moetrim::Tokenizer& tokenizer_of(const std::string& folder) {
  static std::map<std::string, moetrim::Tokenizer> opened;
  const auto found = opened.find(folder);
  if (found != opened.end()) return found->second;
  return opened.emplace(folder, moetrim::Tokenizer::open(folder)).first->second;
}

Json task_answer(const Json& request) {
  moetrim::TaskOptions options;
  options.samples = request.value("samples", std::int64_t{0});
  options.max_tokens = request.value("max_tokens", std::int64_t{0});
  options.vocabulary = request.value("vocabulary", std::int64_t{0});
  options.generation_prompt_only = request.value("generation_prompt_only", false);
  if (request.contains("shuffle_seed")) options.shuffle_seed = request["shuffle_seed"].get<std::uint64_t>();
  const moetrim::Tokenizer* tokenizer =
      request.contains("folder") ? &tokenizer_of(request["folder"].get<std::string>()) : nullptr;
  const moetrim::Task task = moetrim::read_task(request.at("file").get<std::string>(), tokenizer, options);
  Json rows = Json::array();
  for (const auto& demonstration : task.demonstrations) {
    rows.push_back({{"ids", demonstration.ids},
                    {"prompt_tokens", demonstration.prompt_tokens},
                    {"prompt", demonstration.prompt},
                    {"response", demonstration.response},
                    {"answer", demonstration.answer},
                    {"line", demonstration.line}});
  }
  return {{"name", task.name}, {"digest", task.digest}, {"rows", rows}};
}

Json answer(const Json& request) {
  const std::string what = request.at("do").get<std::string>();
  if (what == "task") return task_answer(request);
  const moetrim::Tokenizer& tokenizer = tokenizer_of(request.at("folder").get<std::string>());
  if (what == "encode") {
    return {{"ids", tokenizer.encode(request.at("text").get<std::string>(), request.at("special").get<bool>())}};
  }
  if (what == "decode") {
    const auto ids = request.at("ids").get<std::vector<std::int32_t>>();
    return {{"text", tokenizer.decode(ids, request.at("skip").get<bool>())}};
  }
  if (what == "render") {
    return {{"text", tokenizer.render_chat(request.at("messages"), request.at("prompt").get<bool>(),
                                           request.value("extra", Json::object()))}};
  }
  return {{"error", "unknown request"}, {"code", 2}};
}

Json answer_or_error(const std::string& line) {
  try {
    return answer(Json::parse(line));
  } catch (const moetrim::Error& error) {
    return {{"error", error.what()}, {"code", error.exit_code()}};
  } catch (const nlohmann::json::exception& error) {
    return {{"error", error.what()}, {"code", 2}};
  }
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) std::cout << answer_or_error(line).dump() << std::endl;
}
