// Slimmer experts on disk: estimates, jobs that are told apart, and runs that are killed.

#include "testing.h"

#include <csignal>

#include <sys/wait.h>
#include <unistd.h>

#include "moetrim/error.h"
#include "moetrim/export.h"
#include "moetrim/verify.h"
#include "tiny_checkpoint.h"

using namespace moetrim;
using namespace moetrim::testing;
namespace fs = std::filesystem;

namespace {

constexpr ExportOptions kSmallShards{.shard_bytes = 400, .overwrite = false};

Plan slim_plan(const Model& model, bool equal) {
  Plan plan = plan_keeping(model, {{0, 3, 5}});
  plan.width = static_cast<int>(model.expert_width);
  for (PlanLayer& layer : plan.layers) {
    layer.atoms = {{{0, 2}, {4, 5}}, {{1, 4}}, {{0, 1}, {2, 3}, {4, 5}}};
    if (!equal) layer.atoms[1] = {};
  }
  return plan;
}

struct Work {
  explicit Work(bool equal)
      : source((write_tiny_checkpoint(folder / "in", {}), Checkpoint::open(folder / "in"))), model(describe(source)),
        plan(slim_plan(model, equal)), request(prepare_export(model, plan, "test")) {}
  ExportResult write(const char* target, const ExportProgressFn& progress = {}) const {
    return export_checkpoint(source, request, folder / target, kSmallShards, progress);
  }

  TempFolder folder;
  Checkpoint source;
  Model model;
  Plan plan;
  ExportRequest request;
};

}  // namespace

TEST_CASE("slimmer experts: the estimate is what is written, and the result verifies", "[export][slim]") {
  const bool equal = GENERATE(true, false);
  const Work work(equal);
  const auto estimate = describe_rewrite(work.source, work.request, work.folder / "out", kSmallShards);
  const auto result = work.write("out");
  CHECK(estimate.after_bytes == result.tensor_bytes);
  CHECK(estimate.shards == result.shards);
  std::uint64_t written = 0;
  for (const auto& [name, text] : folder_contents(work.folder / "out")) written += text.size();
  CHECK(estimate.disk_bytes >= written);
  for (const auto& finding : verify_checkpoint(work.folder / "out")) {
    CAPTURE(finding.where, finding.what);
    CHECK(finding.severity != Severity::error);
  }
  CHECK(fs::exists(work.folder / "out/modeling_moetrim.py") == !equal);
}

TEST_CASE("slimmer experts: kill -9 at any moment, and the next run ends with the same bytes", "[export][slim][resume]") {
  const Work work(GENERATE(true, false));
  work.write("undisturbed");
  const int reports = GENERATE(1, 4, 9, 13);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int seen = 0;
    work.write("out", [&](const ExportProgress&) {
      if (++seen == reports) ::kill(::getpid(), SIGKILL);
    });
    ::_exit(0);
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  CHECK_FALSE(fs::exists(work.folder / "out"));
  work.write("out");
  CHECK(folder_contents(work.folder / "out") == folder_contents(work.folder / "undisturbed"));
}

TEST_CASE("finished shards of a plan with other, as many atomic experts are not believed", "[export][slim][resume]") {
  const Work work(true);
  struct Stop {};
  CHECK_THROWS_AS(work.write("out", [](const ExportProgress& state) {
    if (state.done_shards == 3) throw Stop{};
  }), Stop);
  Plan other = work.plan;
  other.layers[0].atoms[1] = {{2, 5}};
  const auto request = prepare_export(work.model, other, "test");
  CHECK(export_checkpoint(work.source, request, work.folder / "out", kSmallShards).reused_shards == 0);
}

TEST_CASE("record and card say how wide the experts are, and what loads them", "[export][slim]") {
  using Catch::Matchers::Contains;
  const Work equal(true), listed(false);
  CHECK(equal.request.record["slim"] == nlohmann::ordered_json::parse(
      R"({"form": "config", "width": 5, "least_width": 3, "most_width": 3, "atoms": 70, "kept_atoms": 18,
          "quantised_again": 0})"));
  CHECK(equal.request.config["moe_intermediate_size"] == 3);
  CHECK_THAT(equal.request.card, Contains("| width of an expert | 5 | 3 |") && Contains("74.3 %") && Contains("vllm serve"));
  CHECK(equal.request.warnings.empty());
  CHECK(listed.request.record["slim"]["form"] == "listed");
  CHECK(listed.request.config["moe_intermediate_size"] == 5);
  CHECK(listed.request.config["architectures"] == nlohmann::ordered_json{"SlimMoe"});
  CHECK(listed.request.config["auto_map"]["AutoModelForCausalLM"] == "modeling_moetrim.SlimMoe");
  CHECK_THAT(listed.request.card, Contains("| width of an expert | 5 | 0 to 3, mean 2.0 |"));
  CHECK_THAT(listed.request.card, Contains("trust_remote_code=True"));
  CHECK(listed.request.card.find("vllm serve") == std::string::npos);
  CHECK_THAT(listed.request.modelling_code, Contains("import Qwen3MoeForCausalLM as StockModel"));
}

TEST_CASE("an architecture that the family does not name never becomes code", "[export][slim]") {
  TempFolder folder;
  write_tiny_checkpoint(folder / "in", {});
  auto config = read_json_file(folder / "in/config.json");
  config["architectures"] = {"os; import os"};
  write_text(folder / "in/config.json", config.dump());
  const Checkpoint source = Checkpoint::open(folder / "in");
  const Model model = describe(source);
  const Plan plan = slim_plan(model, false);
  CHECK_THROWS_WITH(prepare_export(model, plan, "test"), Catch::Matchers::Contains("Qwen3MoeForCausalLM"));
  CHECK_NOTHROW(prepare_export(model, slim_plan(model, true), "test"));
}
