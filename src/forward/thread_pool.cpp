// Threads for the tiles of a layer.

#include "forward/thread_pool.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

namespace moetrim {

ThreadPool::ThreadPool(int threads) {
  at::set_num_threads(1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  start_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(std::int64_t count, const std::function<void(std::int64_t, int)>& body) {
  {
    const std::lock_guard lock(mutex_);
    body_ = &body;
    next_ = 0;
    count_ = count;
    busy_ = size();
    failure_ = nullptr;
    inference_ = c10::InferenceMode::is_enabled();
    ++round_;
  }
  start_.notify_all();
  drain(0);
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [this] { return busy_ == 0; });
  body_ = nullptr;
  if (failure_) std::rethrow_exception(failure_);
}

void ThreadPool::work(int worker) {
  at::set_num_threads(1);  // OpenMP keeps its thread count per calling thread
  std::uint64_t seen = 0;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      start_.wait(lock, [&] { return stop_ || round_ != seen; });
      if (stop_) return;
      seen = round_;
    }
    drain(worker);
  }
}

void ThreadPool::drain(int worker) {
  const c10::InferenceMode mode(inference_);
  while (true) {
    std::int64_t index = 0;
    {
      const std::lock_guard lock(mutex_);
      if (next_ >= count_ || failure_) {
        if (--busy_ == 0) finished_.notify_all();
        return;
      }
      index = next_++;
    }
    try {
      (*body_)(index, worker);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }
}

bool TurnGate::wait(std::int64_t number) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return abandoned_ || next_ == number; });
  return !abandoned_;
}

void TurnGate::pass() {
  {
    const std::lock_guard lock(mutex_);
    ++next_;
  }
  changed_.notify_all();
}

void TurnGate::abandon() {
  {
    const std::lock_guard lock(mutex_);
    abandoned_ = true;
  }
  changed_.notify_all();
}

}  // namespace moetrim
