// moetrim list: what the program knows.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/command.h"
#include "moetrim/family.h"

namespace moetrim::cli {

namespace {

void list_methods(const Session& session) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  std::string text;
  for (const ScoringMethod* method : scoring_methods()) {
    list.push_back({{"name", method->name}, {"source", method->source}, {"unit", method->unit}, {"official", method->official}});
    text += fmt::format("{:<16} {}\n", method->name, method->source);
  }
  session.print({{"methods", list}}, text);
}

void list_families(const Session& session) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  std::string text;
  for (const Family* family : families()) {
    list.push_back({{"name", family->name}, {"architectures", family->architectures}, {"source", family->source}});
    text += fmt::format("{:<16} {}\n", family->name, fmt::join(family->architectures, ", "));
  }
  session.print({{"families", list}}, text);
}

}  // namespace

void add_list(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "list", "List scoring methods or model families", "moetrim list methods");
  auto what = std::make_shared<std::string>();
  command->add_option("what", *what, "methods or families")->required()->check(CLI::IsMember({"methods", "families"}));
  command->callback([&session, what] {
    session.run = [&session, what] { *what == "methods" ? list_methods(session) : list_families(session); };
  });
}

}  // namespace moetrim::cli
