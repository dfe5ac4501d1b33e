// Ranks: processes, on one machine or several, that share the demonstrations of one run.
//
// They meet at a store of torch.distributed's c10d (TCPStore), which rank 0 or torchrun holds. Sums lie on the host and cross the
// network once, at the end, so they travel through the store as well, in pieces of bounded size.
#pragma once

#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moetrim/statistics.h"

namespace moetrim {

/// Which rank this process is, and where the ranks meet.
struct RankPlace {
  int rank = 0, ranks = 1;
  int local_rank = 0, local_ranks = 1;   ///< the same among the ranks of this machine
  std::string host;                      ///< of the store
  int port = 0;
  bool store_is_given = false;           ///< torchrun holds it; otherwise rank 0 does
  std::string attempt = "0";             ///< torchrun's count of restarts
  std::chrono::seconds timeout{30};      ///< a rank that has not answered for so long has ended
};

/// Value of an environment variable, or null.
using Environment = std::function<const char*(const char* name)>;

/// The first machine of a list as Slurm writes it: "gpu-[03-05,11],login" gives "gpu-03".
std::string first_host(std::string_view slurm_node_list);

/// What torchrun (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT) or srun (SLURM_PROCID,
/// SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_NODELIST) say; nothing for a process that is alone. Of srun's ranks,
/// MASTER_ADDR and MASTER_PORT may say where to meet. MOETRIM_RANK_TIMEOUT, in seconds, changes the timeout.
/// @throws UsageError naming the variable that is missing or no number.
std::optional<RankPlace> rank_place(const Environment& environment);

/// Why a run of ranks cannot go on.
struct RankLoss {
  std::string sentence;   ///< names the rank
  bool failed = false;    ///< it met an error; otherwise it was stopped or has ended, and the same command goes on
};

/// The ranks of one run, from the moment when all have come until the last has left.
///
/// A thread tells the others that this rank lives and asks whether they do. Every wait ends when one of them is lost.
class RankGroup {
 public:
  /// Waits for all ranks.
  /// @param lost  called once, from another thread, when a rank cannot go on.
  /// @param stop  ends waiting, as a signal handler may wish. May be null.
  /// @throws Error when not all ranks come within five minutes, or the store cannot be reached or opened.
  RankGroup(const RankPlace& place, std::function<void(const RankLoss&)> lost, const std::atomic<bool>* stop);
  /// Leaves; rank 0 stays until all have left, ten seconds at most, if it holds the store.
  ~RankGroup();
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  const RankPlace& place() const;

  /// What every rank gives, in the order of ranks, on rank 0; nothing on the others. The values may be of any size.
  /// @throws Error, as all waiting does, when a rank is lost; Interrupted when `stop` was set.
  std::vector<std::string> gather(std::string_view value);
  /// To one other rank, which must receive() as often; returns when it has.
  void send(int to, std::string_view value);
  std::string receive(int from);
  /// Adds up in the order of ranks; rank 0 has the sum then.
  void add_up(std::span<double> values);
  /// Waits until all ranks are here.
  void meet();

  /// Tells the others that this rank cannot go on.
  /// @param why  what follows the rank's name in a sentence.
  void give_up(const std::string& why, bool failed) noexcept;
  /// What `lost` was called with.
  std::optional<RankLoss> loss() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Adds the ranks' statistics up, layer by layer, and writes `output` on rank 0.
/// @param part  this rank's share as calibrate() wrote it.
/// @throws InvalidInput as StatisticsMerge and write_statistics do.
void collect_statistics(RankGroup& ranks, const std::filesystem::path& part, const std::filesystem::path& output);

/// Whether the ranks would measure shares of one and the same run: before anything is measured.
/// @param manifest  of this rank's share. @throws InvalidInput on rank 0, naming rank and field.
void check_same_run(RankGroup& ranks, const StatisticsManifest& manifest);

}  // namespace moetrim
