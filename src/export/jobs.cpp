#include "export/jobs.h"

#include <thread>
#include <vector>

#include "moetrim/error.h"

namespace moetrim::export_detail {

void Jobs::run(int threads, const std::function<void()>& work) {
  {
    std::vector<std::jthread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back([&] { work_safely(work); });
    work_safely(work);
  }
  if (failure_) std::rethrow_exception(failure_);
}

void Jobs::work_safely(const std::function<void()>& work) {
  try {
    work();
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
}

std::optional<std::size_t> Jobs::take() {
  const std::lock_guard lock(mutex_);
  if (failure_ || next_ == count_) return std::nullopt;
  if (stop_ != nullptr && *stop_) throw Interrupted(interrupted_);
  return next_++;
}

}  // namespace moetrim::export_detail
