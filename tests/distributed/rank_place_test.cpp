// Which rank a process is, from what torchrun and srun put into the environment.
#include "testing.h"

#include <map>

#include "given.h"
#include "moetrim/distributed.h"

using namespace moetrim;
using Catch::Matchers::Contains;

namespace {

using Variables = std::map<std::string, std::string>;

std::optional<RankPlace> place_in(const Variables& variables) {
  return rank_place([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

const Variables kTorchrun{{"RANK", "3"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"},
                          {"MASTER_ADDR", "node1"}, {"MASTER_PORT", "29500"}, {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                          {"TORCHELASTIC_RESTART_COUNT", "2"}};
const Variables kSrun{{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "4"}, {"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_LOCALID", "1"},
                      {"SLURM_STEP_TASKS_PER_NODE", "2(x3),1"}, {"SLURM_JOB_ID", "7"}, {"SLURM_STEP_ID", "0"},
                      {"SLURM_STEP_NODELIST", "gpu-[03-05,11],login"}, {"SLURM_JOB_NODELIST", "other"}};

Variables with(Variables variables, const std::string& name, const std::string& value) {
  variables[name] = value;
  return variables;
}

Variables without(Variables variables, const std::string& name) {
  variables.erase(name);
  return variables;
}

}  // namespace

TEST_CASE("torchrun's variables", "[distributed]") {
  const auto place = place_in(kTorchrun).value();
  CHECK(place.rank == 3);
  CHECK(place.ranks == 4);
  CHECK(place.local_rank == 1);
  CHECK(place.local_ranks == 2);
  CHECK(place.host == "node1");
  CHECK(place.port == 29500);
  CHECK(place.store_is_given);
  CHECK(place.attempt == "2");
  CHECK(place.timeout == std::chrono::seconds(30));
  CHECK(place_in(with(kTorchrun, "MOETRIM_RANK_TIMEOUT", "5")).value().timeout == std::chrono::seconds(5));
}

TEST_CASE("srun's variables", "[distributed]") {
  const auto place = place_in(kSrun).value();
  CHECK(place.rank == 1);
  CHECK(place.ranks == 2);
  CHECK(place.local_rank == 1);
  CHECK(place.local_ranks == 2);
  CHECK(place.host == "gpu-03");
  CHECK(place.port == 20007);
  CHECK_FALSE(place.store_is_given);
  const auto told = place_in(with(with(kSrun, "MASTER_ADDR", "x"), "MASTER_PORT", "1234")).value();
  CHECK(told.host == "x");
  CHECK(told.port == 1234);
}

TEST_CASE("one process is no rank, nor is a batch script", "[distributed]") {
  CHECK_FALSE(place_in({}));
  CHECK_FALSE(place_in({{"WORLD_SIZE", "1"}, {"RANK", "0"}, {"MASTER_ADDR", "x"}, {"MASTER_PORT", "1"}}));
  CHECK_FALSE(place_in(without(kSrun, "SLURM_STEP_NUM_TASKS")));
  CHECK(place_in({{"SLURM_PROCID", "1"}, {"SLURM_NTASKS", "4"}, {"MASTER_ADDR", "x"}, {"MASTER_PORT", "1"}}).value().ranks == 4);
}

TEST_CASE("a variable that is missing or no number is named", "[distributed]") {
  for (const char* name : {"RANK", "MASTER_ADDR", "MASTER_PORT"}) {
    CHECK_THAT(given::thrown_by([&] { place_in(without(kTorchrun, name)); }), Contains("UsageError") && Contains(name));
  }
  CHECK_THAT(given::thrown_by([] { place_in(with(kTorchrun, "RANK", "4")); }), Contains("RANK") && Contains("0 to 3"));
  CHECK_THAT(given::thrown_by([] { place_in(with(kTorchrun, "WORLD_SIZE", "2x")); }), Contains("WORLD_SIZE"));
  CHECK_THAT(given::thrown_by([] { place_in(with(kTorchrun, "MASTER_PORT", "70000")); }), Contains("MASTER_PORT"));
}

TEST_CASE("the first machine of Slurm's list", "[distributed]") {
  CHECK(first_host("a[1-3,7]") == "a1");
  CHECK(first_host("node[001-004],x") == "node001");
  CHECK(first_host("gpu-[02,05]-ib") == "gpu-02-ib");
  CHECK(first_host("r[1-2]n[3-4]") == "r1n3");
  CHECK(first_host("b2,a1") == "b2");
  CHECK(first_host("one") == "one");
}
