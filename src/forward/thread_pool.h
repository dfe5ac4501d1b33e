// Threads for the tiles of a layer.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace moetrim {

/// A fixed set of workers. LibTorch's own threads are switched off for the whole process: a tile is computed by one thread,
/// so that results do not depend on how many there are.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(index, worker) once for every index in [0, count), handing indices out in order; the caller is worker 0, and
  /// all workers are in inference mode when it is.
  /// Returns when all are done; rethrows the first exception, after which the rest are skipped.
  void run(std::int64_t count, const std::function<void(std::int64_t, int)>& body);

 private:
  void work(int worker);
  void drain(int worker);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable start_, finished_;
  const std::function<void(std::int64_t, int)>* body_ = nullptr;
  std::int64_t next_ = 0, count_ = 0;
  int busy_ = 0;
  std::uint64_t round_ = 0;
  bool stop_ = false;
  bool inference_ = false;
  std::exception_ptr failure_;
};

/// Lets tasks that ran in any order finish in the order of their numbers, so that sums have one order.
class TurnGate {
 public:
  /// Blocks until every lower number has passed. Returns false when abandon() was called.
  bool wait(std::int64_t number);
  void pass();
  /// Releases all waiters after a failure.
  void abandon();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t next_ = 0;
  bool abandoned_ = false;
};

}  // namespace moetrim
