// Runs the code of CUDA kernels on the CPU.

#include "forward/cuda_on_cpu.h"

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <vector>

#include "forward/cuda/kernel_table.h"

Index threadIdx, blockIdx, blockDim, gridDim;

namespace moetrim::cuda {

namespace {

constexpr std::size_t kStackBytes = 64 << 10;
constexpr unsigned kWarp = 32;

/// Threads that wait for one another: the last to come lets all go on.
struct Barrier {
  unsigned members = 0, here = 0;
  std::uint64_t round = 0;

  void open_if_all_here() {
    if (here < members) return;
    here = 0;
    ++round;
  }
};

struct Thread {
  ucontext_t context = {};
  std::unique_ptr<std::byte[]> stack;
  bool done = false;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Barrier> warps;
  Barrier all;
  std::array<double, 1024> exchanged = {};
  std::vector<float> shared;
  const std::function<void()>* body = nullptr;
  ucontext_t scheduler = {};
};

Block* block = nullptr;

Thread& own_thread() { return block->threads[threadIdx.x]; }
Barrier& own_warp() { return block->warps[threadIdx.x / kWarp]; }

void yield() {
  const Index mine = threadIdx;
  swapcontext(&own_thread().context, &block->scheduler);
  threadIdx = mine;
}

void wait_at(Barrier& barrier) {
  const std::uint64_t round = barrier.round;
  ++barrier.here;
  barrier.open_if_all_here();
  while (barrier.round == round) yield();
}

/// A thread that has returned is waited for no more.
void leave(Barrier& barrier) {
  --barrier.members;
  if (barrier.members > 0) barrier.open_if_all_here();
}

void run_thread() {
  (*block->body)();
  own_thread().done = true;
  leave(own_warp());
  leave(block->all);
}  // on to the scheduler, see uc_link

void start(Thread& thread) {
  if (!thread.stack) thread.stack = std::make_unique<std::byte[]>(kStackBytes);
  thread.done = false;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStackBytes;
  thread.context.uc_link = &block->scheduler;
  makecontext(&thread.context, run_thread, 0);
}

void run_one_block() {
  const auto count = static_cast<unsigned>(block->threads.size());
  block->all = {.members = count};
  for (unsigned warp = 0; warp < block->warps.size(); ++warp) {
    block->warps[warp] = {.members = std::min(kWarp, count - warp * kWarp)};
  }
  for (Thread& thread : block->threads) start(thread);
  while (block->all.members > 0) {
    for (threadIdx.x = 0; threadIdx.x < count; ++threadIdx.x) {
      if (!own_thread().done) swapcontext(&block->scheduler, &own_thread().context);
    }
  }
}

}  // namespace

void run_blocks(std::int64_t blocks, unsigned threads, std::size_t shared_bytes, const std::function<void()>& body) {
  Block own;
  own.threads.resize(threads);
  own.warps.resize((threads + kWarp - 1) / kWarp);
  own.shared.resize(shared_bytes / sizeof(float));
  own.body = &body;
  block = &own;
  blockDim.x = threads;
  gridDim.x = static_cast<unsigned>(blocks);
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    own.shared.assign(own.shared.size(), NAN);  // a block may not count on what is there
    run_one_block();
  }
  block = nullptr;
}

float* shared_floats() { return block->shared.data(); }
void wait_for_block() { wait_at(block->all); }
void wait_for_warp() { wait_at(own_warp()); }

double exchange(double value, int mask) {
  block->exchanged[threadIdx.x] = value;
  wait_for_warp();
  const double other = block->exchanged[threadIdx.x ^ static_cast<unsigned>(mask)];
  wait_for_warp();
  return other;
}

Stream stream_of(const at::Tensor&) { return nullptr; }
void check_launch() {}

}  // namespace moetrim::cuda
