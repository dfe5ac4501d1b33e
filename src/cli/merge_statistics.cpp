// moetrim merge-statistics: adds statistics of separate runs.

#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/statistics.h"

namespace moetrim::cli {

void add_merge_statistics(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "merge-statistics", "Add statistics of separate runs on the same checkpoint",
                                  "moetrim merge-statistics part1.stats part2.stats -o all.stats");
  struct Flags {
    std::vector<std::string> parts;
    std::string output;
  };
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->parts, "Folders that calibrate wrote")->required();
  command->add_option("-o,--output", flags->output, "Folder for the sum")->required();
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      std::vector<Statistics> parts;
      for (const auto& part : flags->parts) {
        parts.push_back(Statistics::read(part, read_statistics_manifest(part).expert_width > 0));
      }
      const Statistics sum = merge_statistics(parts);
      write_statistics(flags->output, sum);
      session.print({{"statistics", flags->output}, {"manifest", manifest_to_json(sum.manifest)}},
                    fmt::format("{} parts, {} tasks in {}\n", parts.size(), sum.manifest.tasks.size(), flags->output));
    };
  });
}

}  // namespace moetrim::cli
