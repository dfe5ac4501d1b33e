// Which rank this process is: what torchrun and srun say in the environment.

#include <charconv>
#include <cstring>

#include <fmt/format.h>

#include "moetrim/distributed.h"
#include "moetrim/error.h"

namespace moetrim {

namespace {

constexpr int kMostRanks = 1 << 20;

class Variables {
 public:
  explicit Variables(const Environment& environment) : environment_(environment) {}

  bool has(const char* name) const {
    const char* value = environment_(name);
    return value != nullptr && *value != '\0';
  }
  std::string text(const char* name) const {
    if (has(name)) return environment_(name);
    throw UsageError(fmt::format("{} is not set; start the ranks with torchrun --no-python or srun, or unset WORLD_SIZE for one process", name));
  }
  int number(const char* name, int least, int most) const {
    const std::string value = text(name);
    int number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error == std::errc() && end == value.data() + value.size() && number >= least && number <= most) return number;
    throw UsageError(fmt::format("{} is \"{}\", expected a number from {} to {}", name, value, least, most));
  }
  int number_or(const char* name, int least, int most, int otherwise) const {
    return has(name) ? number(name, least, most) : otherwise;
  }

 private:
  const Environment& environment_;
};

RankPlace torchrun_place(const Variables& variables) {
  RankPlace place;
  place.ranks = variables.number("WORLD_SIZE", 1, kMostRanks);
  place.rank = variables.number("RANK", 0, place.ranks - 1);
  place.local_rank = variables.number_or("LOCAL_RANK", 0, kMostRanks, 0);
  place.local_ranks = variables.number_or("LOCAL_WORLD_SIZE", 1, place.ranks, 1);
  place.host = variables.text("MASTER_ADDR");
  place.port = variables.number("MASTER_PORT", 1, 65535);
  place.store_is_given = variables.has("TORCHELASTIC_USE_AGENT_STORE") && variables.text("TORCHELASTIC_USE_AGENT_STORE") == "True";
  if (variables.has("TORCHELASTIC_RESTART_COUNT")) place.attempt = variables.text("TORCHELASTIC_RESTART_COUNT");
  return place;
}

/// Ports below the range that the kernel hands out itself; jobs on one machine have different numbers.
int port_of_job(const Variables& variables) {
  const int job = variables.number("SLURM_JOB_ID", 0, std::numeric_limits<int>::max());
  const int step = variables.number_or("SLURM_STEP_ID", 0, std::numeric_limits<int>::max(), 0);
  return 20000 + (job % 12000 + step % 12000 * 997) % 12000;
}

/// Tasks on this machine: "4(x2),3" for two machines with four and one with three. One machine's number serves all.
int tasks_per_node(const Variables& variables, int ranks) {
  if (!variables.has("SLURM_STEP_TASKS_PER_NODE")) return 1;
  const std::string list = variables.text("SLURM_STEP_TASKS_PER_NODE");
  int tasks = 0;
  std::from_chars(list.data(), list.data() + list.size(), tasks);
  return std::clamp(tasks, 1, ranks);
}

RankPlace slurm_place(const Variables& variables, const char* count) {
  RankPlace place;
  place.ranks = variables.number(count, 1, kMostRanks);
  place.rank = variables.number("SLURM_PROCID", 0, place.ranks - 1);
  place.local_rank = variables.number_or("SLURM_LOCALID", 0, kMostRanks, 0);
  place.local_ranks = tasks_per_node(variables, place.ranks);
  if (variables.has("MASTER_ADDR")) {
    place.host = variables.text("MASTER_ADDR");
  } else {
    place.host = first_host(variables.text(variables.has("SLURM_STEP_NODELIST") ? "SLURM_STEP_NODELIST" : "SLURM_JOB_NODELIST"));
  }
  place.port = variables.has("MASTER_PORT") ? variables.number("MASTER_PORT", 1, 65535) : port_of_job(variables);
  return place;
}

}  // namespace

std::string first_host(std::string_view list) {
  std::string host;
  for (std::size_t i = 0; i < list.size() && list[i] != ','; ++i) {
    if (list[i] != '[') {
      host += list[i];
      continue;
    }
    const std::size_t close = std::min(list.find(']', i), list.size());
    host += list.substr(i + 1, std::min(list.find_first_of(",-]", i), list.size()) - i - 1);
    i = close;
  }
  return host;
}

std::optional<RankPlace> rank_place(const Environment& environment) {
  const Variables variables(environment);
  // A batch script has SLURM_NTASKS and SLURM_PROCID too, but is one process; only srun counts the tasks of a step.
  const bool step = variables.has("SLURM_STEP_NUM_TASKS");
  const bool told = variables.has("SLURM_NTASKS") && variables.has("MASTER_ADDR") && variables.has("MASTER_PORT");
  RankPlace place;
  if (variables.has("WORLD_SIZE")) {
    place = torchrun_place(variables);
  } else if (variables.has("SLURM_PROCID") && (step || told)) {
    place = slurm_place(variables, step ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS");
  }
  if (place.ranks == 1) return std::nullopt;
  place.timeout = std::chrono::seconds(variables.number_or("MOETRIM_RANK_TIMEOUT", 1, 86400, 30));
  return place;
}

}  // namespace moetrim
