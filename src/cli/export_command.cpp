// moetrim export: a checkpoint as a file of another format.

#include <fmt/format.h>

#include "cli/command.h"
#include "cli/progress.h"
#include "cli/rewrite_flags.h"
#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/gguf_export.h"
#include "moetrim/plan.h"

namespace moetrim::cli {

namespace {

struct ExportFlags {
  std::string checkpoint, output, format, dtype = "bf16", plan, shard_size, mtp = "prune", pretokenizer;
  int writers = 2;
  bool no_tokenizer = false, overwrite = false, other = false, dry_run = false;

  void add(CLI::App& command) {
    command.add_option("checkpoint", checkpoint, "Checkpoint folder")->required();
    command.add_option("--format", format, "What to write: gguf, for llama.cpp")->required()->check(CLI::IsMember({"gguf"}));
    command.add_option("-o,--output", output, "File to write, named .gguf")->required();
    command.add_option("--dtype", dtype, "Type of matrices: f32, f16, bf16 or q8_0; norms, routers and biases are f32")
        ->check(CLI::IsMember({"f32", "f16", "bf16", "q8_0"}))->capture_default_str();
    CLI::Option* by_plan = command.add_option("--plan", plan,
                                              "Prune on the way: a plan that keeps, drops, moves or repeats whole experts");
    command.add_option("--shard-size", shard_size,
                       "Largest file, for example 40GB: OUT-00001-of-0000N.gguf; without it one file");
    CLI::Option* without = command.add_flag("--no-tokenizer", no_tokenizer,
                                            "Leave the tokenizer out: the file then takes token ids only");
    command.add_option("--pretokenizer", pretokenizer,
                       "llama.cpp's name of the pre-tokenizer, where its shape does not tell, for example qwen2")->excludes(without);
    command.add_option("--mtp", mtp,
                       "Multi-token-prediction blocks: prune as the plan says (without one: keep), keep whole, or drop")
        ->check(CLI::IsMember({"prune", "keep", "drop"}))->capture_default_str();
    command.add_option("--writers", writers, "Threads; the bytes are the same")
        ->check(CLI::Range(1, 256))->capture_default_str();
    command.add_flag("--overwrite", overwrite, "Replace a GGUF file of that name");
    command.add_flag("--allow-other-checkpoint", other,
                     "Use a plan that was made for another checkpoint of the same shape")->needs(by_plan);
    command.add_flag("--dry-run", dry_run, "Say bytes, files, disk and memory; write nothing");
  }

  void run(const Session& session) const {
    const Checkpoint source = Checkpoint::open(checkpoint);
    const Model model = describe(source);
    std::optional<Plan> pruning;
    if (!plan.empty()) pruning = read_plan(plan);
    const GgufExport request = prepare_gguf_export(
        model, {.type = parse_gguf_dtype(dtype), .plan = pruning ? &*pruning : nullptr, .mtp = parse_mtp(mtp),
                .allow_other_checkpoint = other, .tokenizer = !no_tokenizer, .pretokenizer = pretokenizer});
    const GgufTarget target{.file = output, .shard_bytes = shard_size.empty() ? 0 : parse_bytes(shard_size),
                            .overwrite = overwrite, .writers = writers, .stop = &stop_requested};
    const GgufExportEstimate estimate = describe_gguf_export(request, target);
    if (!dry_run) {
      Progress line("export", "B", session.quiet);
      write_gguf_export(request, target, [&](std::uint64_t done, std::uint64_t total) {
        line.update(static_cast<double>(done), static_cast<double>(total));
      });
    }
    for (const std::string& note : request.notes) session.note("note: " + note);
    const Outcome outcome = describe_outcome(request, estimate);
    session.print(outcome.json, outcome.text);
  }

 private:
  Outcome describe_outcome(const GgufExport& request, const GgufExportEstimate& e) const {
    const std::string architecture = request.metadata.text("general.architecture", output).value_or("");
    nlohmann::ordered_json json{{"architecture", architecture}, {"bytes", e.tensor_bytes}, {"parameters", e.parameters},
                                {"tensors", request.tensors.size()}};
    std::string types;
    for (const auto& [type, bytes] : e.bytes_by_type) {
      json["types"][std::string(ggml_layout(type).name)] = bytes;
      types += fmt::format("{}{} {}", types.empty() ? "" : ", ", ggml_layout(type).name, human_bytes(bytes));
    }
    for (const auto& file : e.files) json["files"].push_back(file.string());
    json["notes"] = request.notes;
    if (!dry_run) {
      const auto count = e.files.size() > 1 ? fmt::format(" and {} more", e.files.size() - 1) : "";
      return {json, fmt::format("{}, {} tensors, {} ({}), in {}{}\n", architecture, request.tensors.size(),
                                human_bytes(e.tensor_bytes), types, e.files.front().string(), count)};
    }
    json["disk_bytes"] = e.disk_bytes;
    json["free_disk_bytes"] = e.free_disk_bytes;
    json["peak_memory_bytes"] = e.peak_memory_bytes;
    return {json, fmt::format("weights  {} ({})\nfiles    {}\ndisk     {} needed, {} free\nmemory   {}\n",
                              human_bytes(e.tensor_bytes), types, e.files.size(), human_bytes(e.disk_bytes),
                              human_bytes(e.free_disk_bytes), human_bytes(e.peak_memory_bytes))};
  }
};

}  // namespace

void add_export(CLI::App& app, Session& session) {
  CLI::App* command = add_command(app, session, "export", "Write a checkpoint as GGUF, for llama.cpp",
                                  "moetrim export demo/model --format gguf --dtype f16 -o model.gguf");
  auto flags = std::make_shared<ExportFlags>();
  flags->add(*command);
  command->callback([&session, flags] { session.run = [&session, flags] { flags->run(session); }; });
}

}  // namespace moetrim::cli
