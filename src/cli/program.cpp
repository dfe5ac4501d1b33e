// What both executables do around the sub-commands.

#include "cli/program.h"

#include <csignal>
#include <new>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim::cli {

namespace {

extern "C" void request_stop(int) { stop_requested = true; }

void catch_signals() {
  struct sigaction action = {};
  action.sa_handler = request_stop;
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaction(signal, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error of the write, not a silent death
}

/// CLI11 reports a missing option before an unknown one, but the unknown one is usually the misspelt missing one.
int usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const auto extras = app.remaining(/*recurse=*/true);
  const auto chosen = app.get_subcommands();
  if (extras.empty() || chosen.empty()) return app.exit(error) == 0 ? 0 : 2;
  const CLI::App* command = chosen[0];
  std::string spelling = command->get_name();
  while (!command->get_subcommands().empty()) {
    command = command->get_subcommands()[0];
    spelling += " " + command->get_name();
  }
  std::vector<std::string> names;
  for (const CLI::Option* option : command->get_options()) {
    for (const auto& name : option->get_lnames()) names.push_back("--" + name);
  }
  return fail(fmt::format("{}: unknown argument {}{}; see moetrim {} --help", spelling, extras[0],
                          did_you_mean(extras[0], names), spelling), 2);
}

int exit_code_of(const std::function<void()>& work) {
  try {
    work();
    return 0;
  } catch (const Error& error) {
    return fail(error.what(), error.exit_code());
  } catch (const std::bad_alloc&) {
    return fail("out of memory; lower --max-memory or give the process more", 4);
  } catch (const std::exception& error) {
    return fail(error.what(), 1);
  }
}

}  // namespace

int fail(const std::string& message, int code) {
  fmt::print(stderr, "moetrim: {}\n", message);
  return code;
}

int run_program(int argc, char** argv, std::span<const AddCommand> commands,
                const std::function<void(const std::function<void()>&)>& call) {
  CLI::App app("moetrim prunes and rewrites Mixture-of-Experts checkpoints for a task.\n"
               "It reads a Hugging Face folder and a few demonstrations, measures every expert, and writes a smaller folder.");
  app.set_version_flag("--version", std::string("moetrim ") + kVersion);
  app.require_subcommand(1);
  app.footer("Example:\n  moetrim run recipes/demo.json\n\nExit codes: 0 done, 1 failed, 2 usage, 3 invalid input or check failed, "
             "4 not enough memory or disk, 5 interrupted and resumable");
  Session session;
  for (const AddCommand add : commands) add(app, session);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return usage_error(app, error);
  }
  catch_signals();
  return exit_code_of([&] { call(session.run); });
}

}  // namespace moetrim::cli
