// Commands that several processes do together.

#include "cli/ranks.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <thread>

#include <fmt/format.h>
#include <unistd.h>

#include "moetrim/error.h"
#include "moetrim/machine.h"

namespace moetrim::cli {

namespace {

constexpr std::chrono::seconds kGrace{20};

/// What the ranks say that did not cause the end, and their exit code.
Error error_of(const RankLoss& loss, const std::string& rank) {
  if (loss.failed) return Error(rank + loss.sentence);
  return Interrupted(rank + loss.sentence + "; the work so far is kept, repeat the command on all ranks to go on");
}

/// A layer can take longer than anyone should wait for a run that is lost. What it has finished is on disk.
void end_after_grace(const Error& error) {
  std::thread([error] {
    std::this_thread::sleep_for(kGrace);
    fmt::print(stderr, "moetrim: {}\n", error.what());
    std::fflush(stderr);
    _exit(error.exit_code());
  }).detach();
}

int visible_gpus() {
  const char* list = std::getenv("CUDA_VISIBLE_DEVICES");
  return list == nullptr || *list == '\0' ? 0 : 1 + static_cast<int>(std::count(list, list + std::strlen(list), ','));
}

}  // namespace

void with_ranks(Session& session, const std::function<void(RankGroup*)>& work) {
  const auto place = rank_place([](const char* name) { return std::getenv(name); });
  if (!place) return work(nullptr);
  if (place->rank > 0) session.quiet = true;
  const std::string rank = fmt::format("rank {} of {}: ", place->rank, place->ranks);
  const auto lost = [rank](const RankLoss& loss) {
    stop_requested = true;
    end_after_grace(error_of(loss, rank));
  };
  RankGroup ranks(*place, lost, &stop_requested);
  try {
    work(&ranks);
  } catch (const std::exception& error) {
    if (const auto loss = ranks.loss()) throw error_of(*loss, rank);
    const bool stopped = dynamic_cast<const Interrupted*>(&error) != nullptr;
    ranks.give_up(stopped ? "was stopped by a signal" : fmt::format("failed: {}", error.what()), !stopped);
    if (const auto* known = dynamic_cast<const Error*>(&error)) throw Error(rank + known->what(), known->exit_code());
    throw;
  }
}

void take_share(RunOptions& options, const RankPlace& place) {
  options.share = {.number = place.rank + 1, .count = place.ranks};
  const int ranks = std::max(place.local_ranks, 1);
  if (options.threads == 0) options.threads = std::max(1, usable_cores() / ranks);
  if (options.max_memory == 0) options.max_memory = available_memory() / static_cast<std::uint64_t>(ranks);
  if (options.device != "cuda") return;
  const int gpus = visible_gpus();
  options.device = fmt::format("cuda:{}", gpus > 0 ? place.local_rank % gpus : place.local_rank);
}

}  // namespace moetrim::cli
