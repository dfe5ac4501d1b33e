// JSON files: order kept, and everything refused on which two readers could disagree.
#include "testing.h"

#include <chrono>
#include <string>

#include "given_files.h"
#include "moetrim/checkpoint.h"

using namespace moetrim;
using given::has;

namespace {

std::string nested(int depth) { return std::string(depth, '[') + std::string(depth, ']'); }

}  // namespace

TEST_CASE("keys keep the order of the file", "[checkpoint]") {
  const given::Folder folder;
  const std::string text = R"({"z":1,"a":[true,null,-2,1.5,"\u00e4"],"m":{"y":{},"b":[]},"":18446744073709551615})";
  CHECK(read_json_file(folder.file("f.json", text)).dump(-1, ' ', true) == text);
  CHECK(read_json_file(folder.file("f.json", " 7 ")) == 7);
}

TEST_CASE("a syntax error is named by line and column", "[checkpoint]") {
  const given::Folder folder;
  const auto says = [&](const std::string& text, const std::string& part, bool comments = false) {
    const auto file = folder.file("f.json", text);
    const std::string message = given::refusal([&] { read_json_file(file, comments); });
    INFO(message);
    CHECK(has(message, file.string()));
    CHECK(has(message, part));
    CHECK(message.size() < 600);
  };
  says("", "line 1, column 1");
  says("{\n  \"a\": 1,\n  \"b\": tru}\n", "line 3, column 11");
  says("{\n  \"a\": 1\n  \"b\": 2}", "line 3, column 5");
  says("{} x", "line 1, column 4");
  says("{\"a\": NaN}", "line 1, column 7");
  says(std::string("{}\n\0", 4), "line 2, column 1");
  says("{\"a\":\"\xFF\"}", "UTF-8");
  says("{\"a\":1e999}", "line 1");
  says("\"" + std::string(100'000, 'x') + "\n\"", "line 1");
  says("{\"a\":1,\"b\":{\"a\":1,\"a\":2}}", "'a' appears twice");
  says("{} // comment", "line 1, column 4");
  says("{} /* comment", "comment", true);
}

TEST_CASE("comments are read where they are allowed", "[checkpoint]") {
  const given::Folder folder;
  const auto file = folder.file("f.json", "// first\n{ /* second */ \"a\": 1 }\n");
  CHECK(read_json_file(file, true) == nlohmann::ordered_json{{"a", 1}});
}

TEST_CASE("nesting ends at 512 levels", "[checkpoint]") {
  const given::Folder folder;
  CHECK_NOTHROW(read_json_file(folder.file("f.json", nested(512))));
  CHECK(has(given::refusal([&] { read_json_file(folder.file("f.json", nested(513))); }), "deeper than 512"));
  CHECK(has(given::refusal([&] { read_json_file(folder.file("f.json", std::string(5'000'000, '['))); }), "deeper"));
}

TEST_CASE("a file of more than 256 MiB is refused unread", "[checkpoint]") {
  const given::Folder folder;
  const auto file = folder.file("f.json", "{}");
  std::filesystem::resize_file(file, (std::uintmax_t{256} << 20) + 1);
  CHECK(has(given::refusal([&] { read_json_file(file); }), "268435456"));
}

TEST_CASE("an object of a hundred thousand keys takes a moment, not minutes", "[checkpoint]") {
  const given::Folder folder;
  std::string text = "{\"key\":0";
  for (int i = 0; i < 100'000; ++i) text += ",\"model.layers.0.mlp.experts." + std::to_string(i) + "\":0";
  const auto file = folder.file("f.json", text + "}");
  const auto start = std::chrono::steady_clock::now();
  CHECK(read_json_file(file).size() == 100'001);
  // Looking every key up among those before took 20 s; sanitizers and a busy machine need the margin.
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(10));
}
