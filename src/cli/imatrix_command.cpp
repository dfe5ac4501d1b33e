// moetrim imatrix: llama.cpp's importance matrices, shown, cut to a plan, added up, and written from our own statistics.

#include <algorithm>
#include <numeric>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "cli/command.h"
#include "moetrim/error.h"
#include "moetrim/imatrix.h"

namespace moetrim::cli {

namespace {

using Json = nlohmann::ordered_json;

struct OutputFlags {
  std::string output;
  bool overwrite = false;

  void add(CLI::App& command) {
    command.add_option("-o,--output", output, "File to write, conventionally NAME.imatrix.gguf")->required();
    command.add_flag("--overwrite", overwrite, "Replace the file when it is there already");
  }
};

struct PlanOption {
  std::string plan, mtp = "prune";

  void add(CLI::App& command, bool required) {
    CLI::Option* option = command.add_option("--plan", plan, "Plan whose experts stay; what moetrim plan wrote");
    if (required) option->required();
    command.add_option("--mtp", mtp, "Multi-token-prediction blocks: cut like the layers (without a plan: whole), or left out")
        ->check(CLI::IsMember({"prune", "drop"}))
        ->capture_default_str();
  }
  /// @param model  that the plan must be of, or null where none is known
  Imatrix apply(Imatrix matrix, const Model* model = nullptr) const {
    if (plan.empty()) return matrix;
    const Plan read = read_plan(plan);
    if (model != nullptr) check_plan(*model, read, model->checkpoint->fingerprint(), parse_mtp(mtp));
    return slice_imatrix(std::move(matrix), read, parse_mtp(mtp));
  }
};

void write(const Session& session, const Imatrix& matrix, const OutputFlags& flags) {
  for (const std::string& note : matrix.notes) session.note("note: " + note);
  write_imatrix(flags.output, matrix, flags.overwrite);
  std::uint64_t bytes = 0;
  for (const ImatrixEntry& entry : matrix.entries) bytes += 4 * (entry.inputs + 1) * entry.matrices;
  session.print({{"imatrix", flags.output},
                 {"tensors", matrix.entries.size()},
                 {"chunks", matrix.chunk_count},
                 {"datasets", matrix.datasets},
                 {"notes", matrix.notes}},
                fmt::format("{} tensors, {}, in {}\n", matrix.entries.size(), human_bytes(bytes), flags.output));
}

/// What a tensor's values say.
Json entry_json(const ImatrixEntry& entry, const ImatrixValues& values) {
  const auto [least, most] = std::minmax_element(values.counts.begin(), values.counts.end());
  double sum = 0, weight = 0;
  for (std::size_t m = 0; m < values.counts.size(); ++m) {
    const auto begin = values.sums.begin() + static_cast<std::ptrdiff_t>(m * entry.inputs);
    sum += std::accumulate(begin, begin + static_cast<std::ptrdiff_t>(entry.inputs), 0.0);
    weight += static_cast<double>(values.counts[m]) * static_cast<double>(entry.inputs);
  }
  return {{"tensor", entry.name},
          {"inputs", entry.inputs},
          {"matrices", entry.matrices},
          {"least_count", *least},
          {"most_count", *most},
          {"unseen", std::count(values.counts.begin(), values.counts.end(), 0.0F)},
          {"mean_square", weight > 0 ? Json(sum / weight) : Json()}};
}

void run_show(const Session& session, const std::string& file) {
  const Imatrix matrix = open_imatrix(file);
  Json list = Json::array();
  std::string text = fmt::format("{:44} {:>8} {:>8} {:>14} {:>7} {:>12}\n", "tensor", "inputs", "matrices", "tokens",
                                 "unseen", "mean square");
  for (std::size_t i = 0; i < matrix.entries.size(); ++i) {
    const Json entry = entry_json(matrix.entries[i], matrix.values(i));
    const auto least = entry["least_count"].get<double>(), most = entry["most_count"].get<double>();
    text += fmt::format("{:44} {:8} {:8} {:>14} {:7} {:>12}\n", matrix.entries[i].name, matrix.entries[i].inputs,
                        matrix.entries[i].matrices,
                        least == most ? fmt::format("{:.0f}", most) : fmt::format("{:.0f} to {:.0f}", least, most),
                        entry["unseen"].get<std::int64_t>(),
                        entry["mean_square"].is_null() ? "-" : fmt::format("{:.5g}", entry["mean_square"].get<double>()));
    list.push_back(entry);
  }
  text += fmt::format("{} tensors; {} chunks of {} tokens; measured on {}\n", list.size(), matrix.chunk_count,
                      matrix.chunk_size, fmt::join(matrix.datasets, ", "));
  session.print({{"imatrix", file},
                 {"chunk_count", matrix.chunk_count},
                 {"chunk_size", matrix.chunk_size},
                 {"datasets", matrix.datasets},
                 {"tensors", list}},
                text);
}

void add_show(CLI::App& imatrix, Session& session) {
  CLI::App* command =
      add_command(imatrix, session, "show", "Say what an imatrix holds", "moetrim imatrix show model.imatrix.gguf");
  auto file = std::make_shared<std::string>();
  command->add_option("file", *file, "Imatrix in GGUF form")->required();
  command->callback([&session, file] { session.run = [&session, file] { run_show(session, *file); }; });
}

void add_slice(CLI::App& imatrix, Session& session) {
  struct Flags {
    std::string file;
    PlanOption plan;
    OutputFlags output;
  };
  CLI::App* command = add_command(imatrix, session, "slice", "Cut the imatrix of a model to the experts that a plan keeps",
                                  "moetrim imatrix slice model.imatrix.gguf --plan plan.json -o pruned.imatrix.gguf");
  auto flags = std::make_shared<Flags>();
  command->add_option("file", flags->file, "Imatrix of the whole model")->required();
  flags->plan.add(*command, /*required=*/true);
  flags->output.add(*command);
  command->callback([&session, flags] {
    session.run = [&session, flags] { write(session, flags->plan.apply(open_imatrix(flags->file)), flags->output); };
  });
}

void add_merge(CLI::App& imatrix, Session& session) {
  struct Flags {
    std::vector<std::string> files;
    OutputFlags output;
  };
  CLI::App* command = add_command(imatrix, session, "merge", "Add up several imatrices of one model",
                                  "moetrim imatrix merge chat.imatrix.gguf code.imatrix.gguf -o both.imatrix.gguf");
  auto flags = std::make_shared<Flags>();
  command->add_option("files", flags->files, "Imatrices of the same model")->required();
  flags->output.add(*command);
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      std::vector<Imatrix> matrices;
      for (const std::string& file : flags->files) matrices.push_back(open_imatrix(file));
      write(session, merge_imatrices(std::move(matrices), flags->files), flags->output);
    };
  });
}

void add_write(CLI::App& imatrix, Session& session) {
  struct Flags {
    ImatrixRequest request;
    std::string statistics, checkpoint;
    PlanOption plan;
    OutputFlags output;
  };
  CLI::App* command =
      add_command(imatrix, session, "write", "Write an imatrix from statistics of calibrate --statistics inputs",
                  "moetrim imatrix write math.stats --checkpoint demo/model -o math.imatrix.gguf");
  auto flags = std::make_shared<Flags>();
  command->add_option("statistics", flags->statistics, "Folder that calibrate --statistics inputs wrote")->required();
  command
      ->add_option("--checkpoint", flags->checkpoint,
                   "The checkpoint that was measured: it says which tensors a GGUF of it has")
      ->required();
  command->add_option("--task", flags->request.tasks, "Take these tasks of the statistics alone; repeatable")
      ->allow_extra_args(false);
  command->add_flag("--output-head", flags->request.output_head, "Also of output.weight, which llama.cpp advises against");
  flags->plan.add(*command, /*required=*/false);
  flags->output.add(*command);
  command->callback([&session, flags] {
    session.run = [&session, flags] {
      const Checkpoint checkpoint = Checkpoint::open(flags->checkpoint);
      const Model model = describe(checkpoint);
      flags->request.statistics = flags->statistics;
      flags->request.mtp = parse_mtp(flags->plan.mtp);
      session.note_part(read_statistics_manifest(flags->statistics));
      write(session, flags->plan.apply(imatrix_of_statistics(model, flags->request), &model), flags->output);
    };
  });
}

}  // namespace

void add_imatrix(CLI::App& app, Session& session) {
  CLI::App* imatrix = app.add_subcommand(
      "imatrix", "llama.cpp's importance matrices: show, slice with a plan, write from statistics, merge");
  imatrix->require_subcommand(1);
  imatrix->footer(
      "Example:\n  moetrim calibrate demo/model --task calibration/arithmetic.jsonl --statistics inputs -o math.stats\n"
      "  moetrim imatrix write math.stats --checkpoint demo/model -o math.imatrix.gguf\n"
      "  moetrim imatrix slice math.imatrix.gguf --plan plan.json -o pruned.imatrix.gguf");
  add_show(*imatrix, session);
  add_slice(*imatrix, session);
  add_write(*imatrix, session);
  add_merge(*imatrix, session);
}

}  // namespace moetrim::cli
