// moetrim verify: structural check of any checkpoint folder or GGUF file.

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/progress.h"
#include "moetrim/error.h"
#include "moetrim/verify.h"

namespace moetrim::cli {

namespace {

void run_verify(const Session& session, const std::string& folder, bool deep) {
  Progress line("verify", "B", session.quiet);
  VerifyOptions options{.deep = deep, .progress = [&](std::uint64_t done, std::uint64_t total) {
                          line.update(static_cast<double>(done), static_cast<double>(total));
                          stop_if_requested();
                        }};
  const auto findings = verify_checkpoint(folder, options);
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  std::string text;
  std::size_t errors = 0;
  for (const Finding& finding : findings) {
    errors += finding.severity == Severity::error;
    list.push_back({{"severity", severity_name(finding.severity)}, {"where", finding.where}, {"what", finding.what}});
    text += fmt::format("{}: {}: {}\n", severity_name(finding.severity), finding.where, finding.what);
  }
  session.print({{"checkpoint", folder}, {"errors", errors}, {"findings", list}}, findings.empty() ? folder + " is sound\n" : text);
  if (errors > 0) throw InvalidInput(fmt::format("{}: {} error(s) found", folder, errors));
}

}  // namespace

void add_verify(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "verify", "Check any checkpoint folder, or GGUF file: files, index, shapes, numbering",
                                  "moetrim verify demo/model --deep");
  struct Flags {
    std::string folder;
    bool deep = false;
  };
  auto flags = std::make_shared<Flags>();
  command->add_option("checkpoint", flags->folder, "Checkpoint folder, or a GGUF file")->required();
  command->add_flag("--deep", flags->deep, "Also read every weight and look for NaN and infinity");
  command->callback([&session, flags] { session.run = [&session, flags] { run_verify(session, flags->folder, flags->deep); }; });
}

}  // namespace moetrim::cli
