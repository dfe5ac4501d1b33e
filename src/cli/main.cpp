// The program: parses, runs one sub-command, and turns errors into a sentence and an exit code.

#include <csignal>
#include <new>

#include <malloc.h>

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace {

using moetrim::cli::Session;

extern "C" void request_stop(int) { moetrim::cli::stop_requested = true; }

void catch_signals() {
  struct sigaction action = {};
  action.sa_handler = request_stop;
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) sigaction(signal, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // a closed pipe is an error of the write, not a silent death
}

int fail(const std::string& message, int code) {
  fmt::print(stderr, "moetrim: {}\n", message);
  return code;
}

/// CLI11 reports a missing option before an unknown one, but the unknown one is usually the misspelt missing one.
int usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const auto extras = app.remaining(/*recurse=*/true);
  const auto chosen = app.get_subcommands();
  if (extras.empty() || chosen.empty()) return app.exit(error) == 0 ? 0 : 2;
  std::vector<std::string> names;
  for (const CLI::Option* option : chosen[0]->get_options()) {
    for (const auto& name : option->get_lnames()) names.push_back("--" + name);
  }
  return fail(fmt::format("{}: unknown argument {}{}; see moetrim {} --help", chosen[0]->get_name(), extras[0],
                          moetrim::did_you_mean(extras[0], names), chosen[0]->get_name()), 2);
}

int run(const Session& session) {
  try {
    session.run();
    return 0;
  } catch (const moetrim::Error& error) {
    return fail(error.what(), error.exit_code());
  } catch (const std::bad_alloc&) {
    return fail("out of memory; lower --max-memory or give the process more", 4);
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    return fail(what, what.find("memory") != std::string::npos ? 4 : 1);
  } catch (const std::exception& error) {
    return fail(error.what(), 1);
  }
}

/// Weights and tiles come and go in the same few sizes. By default the C library returns blocks of that size to the kernel at
/// once and takes them back one page fault per 4 KiB. Blocks so large that the faults no longer count are left to it: kept, they
/// would break the heap into pieces, and memory would creep up from layer to layer.
void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, 8 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

}  // namespace

int main(int argc, char** argv) {
  using namespace moetrim::cli;
  keep_freed_memory();
  CLI::App app("moetrim prunes and rewrites Mixture-of-Experts checkpoints for a task.\n"
               "It reads a Hugging Face folder and a few demonstrations, measures every expert, and writes a smaller folder.");
  app.set_version_flag("--version", std::string("moetrim ") + kVersion);
  app.require_subcommand(1);
  app.footer("Example:\n  moetrim run recipes/demo.json\n\nExit codes: 0 done, 1 failed, 2 usage, 3 invalid input or check failed, "
             "4 not enough memory or disk, 5 interrupted and resumable");
  Session session;
  add_inspect(app, session);
  add_calibrate(app, session);
  add_score(app, session);
  add_plan(app, session);
  add_rewrite(app, session);
  add_evaluate(app, session);
  add_run(app, session);
  add_merge_statistics(app, session);
  add_verify(app, session);
  add_list(app, session);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return usage_error(app, error);
  }
  catch_signals();
  return run(session);
}
