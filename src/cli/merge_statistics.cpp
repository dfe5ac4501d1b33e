// moetrim merge-statistics: adds statistics of separate runs, or the shares of one.

#include <fmt/format.h>

#include "cli/command.h"
#include "moetrim/input_statistics.h"

namespace moetrim::cli {

namespace {

struct Flags {
  std::vector<std::string> parts;
  std::string output;
  bool partial = false;
};

void run_merge(const Session& session, const Flags& flags) {
  std::vector<StatisticsManifest> manifests;
  for (const auto& part : flags.parts) manifests.push_back(read_statistics_manifest(part));
  const StatisticsMerge merge(std::move(manifests), flags.parts, flags.partial);
  const std::vector<std::filesystem::path> folders(flags.parts.begin(), flags.parts.end());
  write_merged_statistics(flags.output, merge, read_parts(folders), read_input_parts(folders));
  const StatisticsManifest& manifest = merge.manifest();
  std::string text = fmt::format("{} parts, {} tasks in {}\n", flags.parts.size(), manifest.tasks.size(), flags.output);
  if (manifest.part) text += describe_part(*manifest.part) + "\n";
  session.print({{"statistics", flags.output}, {"manifest", manifest_to_json(manifest)}}, text);
}

}  // namespace

void add_merge_statistics(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "merge-statistics", "Add the shares of a calibration, or runs on the same checkpoint",
                                  "moetrim merge-statistics part1.stats part2.stats -o all.stats");
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->parts, "Folders that calibrate wrote, in any order")->required();
  command->add_option("-o,--output", flags->output, "Folder for the sum")->required();
  command->add_flag("--partial", flags->partial, "Make do with some of the shares of calibrate --slice");
  command->callback([&session, flags] {
    session.run = [&session, flags] { run_merge(session, *flags); };
  });
}

}  // namespace moetrim::cli
