#include "moetrim/text.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <unistd.h>

#include "moetrim/error.h"
#include "testing.h"

using namespace moetrim;

namespace {

/// A task file that is gone at the end of the test.
class GivenFile {
 public:
  explicit GivenFile(const std::string& bytes)
      : path(std::filesystem::temp_directory_path() / ("moetrim_task_" + std::to_string(::getpid()) + ".jsonl")) {
    std::ofstream(path, std::ios::binary) << bytes;
  }
  ~GivenFile() { std::filesystem::remove(path); }
  GivenFile(const GivenFile&) = delete;
  GivenFile& operator=(const GivenFile&) = delete;

  std::filesystem::path path;
};

Task read(const std::string& bytes, const TaskOptions& options = {}) {
  const GivenFile file(bytes);
  return read_task(file.path, nullptr, options);
}

std::string message_of(const std::string& bytes, const TaskOptions& options = {}) {
  try {
    read(bytes, options);
  } catch (const InvalidInput& error) {
    return error.what();
  }
  return "no error";
}

/// One row {"input_ids":[i]} for every i below `rows`.
std::string numbered_rows(int rows) {
  std::string bytes;
  for (int i = 0; i < rows; ++i) bytes += "{\"input_ids\":[" + std::to_string(i) + "]}\n";
  return bytes;
}

std::vector<std::int32_t> first_ids(const Task& task) {
  std::vector<std::int32_t> ids;
  for (const auto& demonstration : task.demonstrations) ids.push_back(demonstration.ids.front());
  return ids;
}

// Catch2 3 gave the name Contains to another matcher.
#if __has_include(<catch2/catch_all.hpp>)
auto mentions(const std::string& part) { return Catch::Matchers::ContainsSubstring(part); }
#else
auto mentions(const std::string& part) { return Catch::Matchers::Contains(part); }
#endif

}  // namespace

TEST_CASE("input_ids rows need no tokenizer", "[text]") {
  const Task task = read("\xEF\xBB\xBF{\"input_ids\":[3,1,2],\"prompt_tokens\":2}\r\n\n  \t\n{\"input_ids\":[7]}");
  REQUIRE(task.demonstrations.size() == 2);
  CHECK(task.demonstrations[0].ids == std::vector<std::int32_t>{3, 1, 2});
  CHECK(task.demonstrations[0].prompt_tokens == 2);
  CHECK(task.demonstrations[1].prompt_tokens == 0);
  CHECK(task.demonstrations[1].line == 4);
  CHECK(task.name.starts_with("moetrim_task_"));
}

TEST_CASE("counted_range splits a demonstration", "[text]") {
  Demonstration demonstration;
  demonstration.ids = {5, 6, 7, 8, 9};
  demonstration.prompt_tokens = 2;
  using Range = std::pair<std::int64_t, std::int64_t>;
  CHECK(counted_range(demonstration, Count::all) == Range{0, 5});
  CHECK(counted_range(demonstration, Count::prompt) == Range{0, 2});
  CHECK(counted_range(demonstration, Count::response) == Range{2, 5});
}

TEST_CASE("max_tokens cuts the end", "[text]") {
  TaskOptions options;
  options.max_tokens = 2;
  const Task task = read("{\"input_ids\":[1,2,3,4],\"prompt_tokens\":3}\n{\"input_ids\":[5]}\n", options);
  CHECK(task.demonstrations[0].ids == std::vector<std::int32_t>{1, 2});
  CHECK(task.demonstrations[0].prompt_tokens == 2);
  CHECK(task.demonstrations[1].ids == std::vector<std::int32_t>{5});
}

TEST_CASE("samples takes the first rows and never looks at the rest", "[text]") {
  TaskOptions options;
  options.samples = 3;
  CHECK(first_ids(read(numbered_rows(3) + "not JSON\n", options)) == std::vector<std::int32_t>{0, 1, 2});
}

TEST_CASE("the shuffle is a permutation that depends on the seed alone", "[text]") {
  TaskOptions options;
  options.shuffle_seed = 0;
  const auto shuffled = first_ids(read(numbered_rows(7), options));
  // By hand: SplitMix64 from seed 0 gives e220a8397b1dcdaf, 6e789e6aa1b965f4, 06c45d188009454f, ...;
  // the first swaps row 6 with floor(7 x 0.8833) = 6, the second row 5 with floor(6 x 0.4315) = 2.
  CHECK(shuffled[6] == 6);
  CHECK(shuffled[5] == 2);
  auto sorted = shuffled;
  std::sort(sorted.begin(), sorted.end());
  CHECK(sorted == first_ids(read(numbered_rows(7))));
  options.shuffle_seed = 1;
  CHECK(first_ids(read(numbered_rows(7), options)) != shuffled);
  options.shuffle_seed = 0;
  options.samples = 4;
  CHECK(first_ids(read(numbered_rows(7), options)) == std::vector(shuffled.begin(), shuffled.begin() + 4));
}

TEST_CASE("the digest covers the lines used, in their order", "[text]") {
  TaskOptions three;
  three.samples = 3;
  CHECK(read(numbered_rows(5), three).digest == read(numbered_rows(3)).digest);
  CHECK(read("\n" + numbered_rows(3)).digest == read(numbered_rows(3)).digest);
  CHECK(read(numbered_rows(4)).digest != read(numbered_rows(3)).digest);
  TaskOptions shuffled;
  shuffled.shuffle_seed = 1;
  CHECK(read(numbered_rows(5), shuffled).digest != read(numbered_rows(5)).digest);
  CHECK(read(numbered_rows(3)).digest.size() == 32);
}

TEST_CASE("a prompt alone is cut from input_ids", "[text]") {
  TaskOptions options;
  options.generation_prompt_only = true;
  const Task task = read("{\"input_ids\":[1,2,3],\"prompt_tokens\":2,\"answer\":\"x\"}", options);
  CHECK(task.demonstrations[0].ids == std::vector<std::int32_t>{1, 2});
  CHECK(task.demonstrations[0].answer == "x");
  CHECK_THAT(message_of("{\"input_ids\":[1,2,3]}", options), mentions("prompt_tokens"));
}

TEST_CASE("broken task files are named by line and defect", "[text]") {
  struct Case {
    std::string bytes, message;
  };
  const std::string good = "{\"input_ids\":[1]}\n";
  const auto broken = GENERATE_COPY(values<Case>({
      {"", "no rows"},
      {"\n \n", "no rows"},
      {good + "{\"input_ids\":[1]", "line 2: not valid JSON"},
      {good + "{\"text\":\"\xff\"}", "line 2: not UTF-8 at byte 9 (0xff)"},
      {good + "{\"text\":\"\xed\xa0\x80\"}", "not UTF-8"},
      {good + "{\"text\":\"\xc0\xaf\"}", "not UTF-8"},
      {good + "{\"text\":\"\xf4\x90\x80\x80\"}", "not UTF-8"},
      {good + "{\"text\":\"\xe2\x82", "not UTF-8"},
      {good + "{\"text\":\"\\ud800\"}", "not valid JSON"},
      {good + std::string("{\"text\":\"a\0b\"}", 13), "not valid JSON"},
      {good + "{} {}", "not valid JSON"},
      {"[1]", "line 1: a JSON array, expected an object"},
      {"null", "expected an object"},
      {"{}", "none of the known forms"},
      {"{\"Prompt\":\"a\",\"response\":\"b\"}", "none of the known forms"},
      {"{\"input_ids\":5}", "\"input_ids\" is a JSON number, expected a list"},
      {"{\"input_ids\":[]}", "no tokens"},
      {"{\"input_ids\":[1,-2]}", "\"input_ids\"[1] is -2"},
      {"{\"input_ids\":[2147483648]}", "expected 0 to 2147483647"},
      {"{\"input_ids\":[18446744073709551616]}", "expected a whole number"},
      {"{\"input_ids\":[1.0]}", "expected a whole number"},
      {"{\"input_ids\":[true]}", "expected a whole number"},
      {"{\"input_ids\":[10]}", "token id 10 at position 0 is outside the model's vocabulary of 10"},
      {"{\"input_ids\":[1],\"prompt_tokens\":2}", "expected 0 to 1"},
      {"{\"input_ids\":[1],\"prompt_tokens\":-1}", "expected 0 to 1"},
      {"{\"input_ids\":[1],\"answer\":4}", "\"answer\" is a JSON number, expected a string"},
      {"{\"text\":\"a\"}", "needs a tokenizer"},
      {"{\"prompt\":\"a\"}", "\"response\" is missing"},
      {"{\"prompt\":\"a\",\"response\":null}", "\"response\" is a JSON null"},
      {"{\"question\":\"a\"}", "\"answer\" is missing"},
      {"{\"messages\":[]}", "needs a tokenizer"},
      {std::string(200000, '['), "levels deep"},
      {"{\"text\":" + std::string(101, '[') + std::string(101, ']') + "}", "levels deep"},
  }));
  TaskOptions options;
  options.vocabulary = 10;
  CAPTURE(broken.bytes.substr(0, 80));
  const std::string message = message_of(broken.bytes, options);
  CHECK_THAT(message, mentions(broken.message));
  CHECK_THAT(message, mentions("moetrim_task_"));
  CHECK(message.size() < 600);
}

TEST_CASE("a line beyond 64 MiB is refused", "[text]") {
  const std::string bytes = "{\"input_ids\":[1]}\n" + std::string((std::size_t{64} << 20) + 1, ' ');
  CHECK_THAT(message_of(bytes), mentions("line 2: longer than 64 MiB"));
}

TEST_CASE("missing files, folders and negative options are refused", "[text]") {
  CHECK_THROWS_AS(read_task("/nonexistent/tasks.jsonl", nullptr, {}), InvalidInput);
  CHECK_THROWS_AS(read_task(std::filesystem::temp_directory_path(), nullptr, {}), InvalidInput);
  TaskOptions options;
  options.samples = -1;
  CHECK_THROWS_AS(read(numbered_rows(1), options), UsageError);
  CHECK_THROWS_AS(Tokenizer::open("/nonexistent"), InvalidInput);
}

TEST_CASE("rows are split by their tags, which change nothing else", "[text]") {
  const std::string bytes =
      "{\"input_ids\":[1],\"tag\":\"thinking\"}\n{\"input_ids\":[2]}\n{\"input_ids\":[3],\"tag\":\"answer\"}\n"
      "{\"input_ids\":[4],\"tag\":\"thinking\"}\n{\"input_ids\":[5],\"tag\":null}\n{\"input_ids\":[6],\"tag\":\"answer\"}\n";
  const GivenFile file(bytes);
  TaskOptions five;
  five.samples = 5;
  const auto tasks = read_tasks_by_tag(file.path, nullptr, five);
  const Task whole = read_task(file.path, nullptr, five);
  REQUIRE(tasks.size() == 3);
  CHECK(tasks[0].name == whole.name);
  CHECK(tasks[1].name == whole.name + "/answer");
  CHECK(tasks[2].name == whole.name + "/thinking");
  CHECK(first_ids(tasks[0]) == std::vector<std::int32_t>{2, 5});
  CHECK(first_ids(tasks[1]) == std::vector<std::int32_t>{3});
  CHECK(first_ids(tasks[2]) == std::vector<std::int32_t>{1, 4});
  CHECK(first_ids(whole) == std::vector<std::int32_t>{1, 2, 3, 4, 5});
  // A tag's digest is that of a file with its rows alone.
  CHECK(tasks[2].digest == read("{\"input_ids\":[1],\"tag\":\"thinking\"}\n{\"input_ids\":[4],\"tag\":\"thinking\"}\n").digest);
}

TEST_CASE("tags that cannot name a task are refused, but only where rows are split", "[text]") {
  const std::vector<std::string> tags{"3", "\"\"", "\"a/b\"", "\"a=1\"", "\"a,b\"", "\"a\\n\"", "\"" + std::string(65, 'x') + "\""};
  for (const std::string& tag : tags) {
    const GivenFile file("{\"input_ids\":[1],\"tag\":" + tag + "}\n");
    CAPTURE(tag);
    CHECK_THROWS_WITH(read_tasks_by_tag(file.path, nullptr, {}), mentions("line 1: \"tag\" is"));
    CHECK(read_task(file.path, nullptr, {}).demonstrations.size() == 1);
  }
  std::string many;
  for (int i = 0; i < 257; ++i) many += "{\"input_ids\":[1],\"tag\":\"t" + std::to_string(i) + "\"}\n";
  const GivenFile file(many);
  CHECK_THROWS_WITH(read_tasks_by_tag(file.path, nullptr, {}), mentions("more than 256 tags"));
}
