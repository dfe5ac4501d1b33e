// Reads by threads that each wait in pread.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "read_queue.h"

namespace moetrim::checkpoint_detail {
namespace {

/// They sleep in the kernel most of the time; more of them only help storage with very long ways.
constexpr std::size_t kMostThreads = 4;

class PreadQueue final : public ReadQueue {
 public:
  explicit PreadQueue(std::size_t slots) : results_(slots) {
    for (std::size_t i = 0; i < std::min(slots, kMostThreads); ++i) threads_.emplace_back([this] { work(); });
  }

  ~PreadQueue() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void start(std::size_t slot, int descriptor, std::uint64_t offset, std::span<std::byte> out) override {
    {
      const std::lock_guard lock(mutex_);
      results_[slot] = {};
      jobs_.push_back({slot, descriptor, offset, out});
    }
    changed_.notify_all();
  }

  ssize_t finish(std::size_t slot) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return results_[slot].there; });
    return results_[slot].value;
  }

 private:
  struct Job {
    std::size_t slot;
    int descriptor;
    std::uint64_t offset;
    std::span<std::byte> out;
  };
  struct Result {
    bool there = false;
    ssize_t value = 0;
  };

  static ssize_t read(const Job& job) {
    while (true) {
      const ssize_t got = ::pread(job.descriptor, job.out.data(), job.out.size(), static_cast<off_t>(job.offset));
      if (got >= 0) return got;
      if (errno != EINTR) return -errno;
    }
  }

  void work() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
      if (stop_) return;
      const Job job = jobs_.front();
      jobs_.pop_front();
      lock.unlock();
      const ssize_t got = read(job);
      lock.lock();
      results_[job.slot] = {.there = true, .value = got};
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  std::vector<Result> results_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<ReadQueue> make_pread_queue(std::size_t slots) { return std::make_unique<PreadQueue>(slots); }

}  // namespace moetrim::checkpoint_detail
