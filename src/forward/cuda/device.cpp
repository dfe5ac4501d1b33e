// The device itself: whether it can be used, its memory, its streams.

#include <deque>
#include <utility>

#include <ATen/ATen.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "forward/cuda/kernel_table.h"

namespace moetrim::cuda {

namespace {

std::string problem(int device) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    return fmt::format("{}; is there an NVIDIA GPU, with a driver for CUDA {}.{}?", cudaGetErrorString(error), CUDART_VERSION / 1000,
                       CUDART_VERSION % 1000 / 10);
  }
  if (device >= count) return fmt::format("there are {} CUDA devices, numbered from 0", count);
  cudaDeviceProp properties{};
  if (const cudaError_t failed = cudaGetDeviceProperties(&properties, device); failed != cudaSuccess) return cudaGetErrorString(failed);
  if (properties.major >= 8) {
    at::globalContext().lazyInitDevice(at::kCUDA);  // LibTorch's allocator answers no question before
    return "";
  }
  return fmt::format("{} has compute capability {}.{}; 8.0 or newer is needed for bf16", properties.name, properties.major,
                     properties.minor);
}

Memory memory(int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  std::size_t free = 0, total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
  const auto reserve = stats.reserved_bytes[0].current - stats.allocated_bytes[0].current;
  return {.free_bytes = free + static_cast<std::uint64_t>(reserve), .total_bytes = total};
}

bool multiplies_groups(int device) {
  int major = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major == 9 || major == 10;
}

std::byte* allocate_pinned(std::size_t size) {
  void* memory = nullptr;
  if (cudaHostAlloc(&memory, size, cudaHostAllocPortable) == cudaSuccess) return static_cast<std::byte*>(memory);
  cudaGetLastError();  // the caller reports it; it must not look like the failure of a later call
  return nullptr;
}

void free_pinned(std::byte* memory) { cudaFreeHost(memory); }

/// An event that is recorded once.
class Event {
 public:
  explicit Event(cudaStream_t stream) {
    C10_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
    C10_CUDA_CHECK(cudaEventRecord(event_, stream));
  }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void block(cudaStream_t stream) const { C10_CUDA_CHECK(cudaStreamWaitEvent(stream, event_, 0)); }
  void wait() const { C10_CUDA_CHECK(cudaEventSynchronize(event_)); }

 private:
  cudaEvent_t event_ = nullptr;
};

class DeviceCopyStream : public CopyStream {
 public:
  explicit DeviceCopyStream(int device)
      : stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/true, static_cast<c10::DeviceIndex>(device))) {}

  // Buffers go back to the host only when nothing reads them any more.
  ~DeviceCopyStream() override { cudaStreamSynchronize(stream_); }

  void run(const std::function<void()>& body) override {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    body();
  }

  Mark mark_compute() override { return std::make_shared<const Event>(computing()); }
  void wait_for(const Mark& mark) override { static_cast<const Event*>(mark.get())->block(stream_); }
  void hold_compute() override { Event(stream_).block(computing()); }

  void keep(std::shared_ptr<const void> memory) override {
    kept_.emplace_back(std::make_unique<Event>(stream_), std::move(memory));
    if (kept_.size() <= kMostKept) return;
    kept_.front().first->wait();
    kept_.pop_front();
  }

 private:
  static constexpr std::size_t kMostKept = 3;  // enough that the next copy is queued when one ends

  cudaStream_t computing() const { return c10::cuda::getCurrentCUDAStream(stream_.device_index()); }

  const c10::cuda::CUDAStream stream_;
  std::deque<std::pair<std::unique_ptr<Event>, std::shared_ptr<const void>>> kept_;
};

std::unique_ptr<CopyStream> open_copy_stream(int device) { return std::make_unique<DeviceCopyStream>(device); }

}  // namespace

Stream stream_of(const at::Tensor& x) {
  c10::cuda::set_device(x.device().index());
  return c10::cuda::getCurrentCUDAStream(x.device().index());
}

void check_launch() { C10_CUDA_KERNEL_LAUNCH_CHECK(); }

}  // namespace moetrim::cuda

extern "C" __attribute__((visibility("default"))) const moetrim::cuda::Table* moetrim_cuda_table() {
  using namespace moetrim::cuda;
  static const Table table{.problem = problem,
                           .memory = memory,
                           .multiplies_groups = multiplies_groups,
                           .allocate_pinned = allocate_pinned,
                           .free_pinned = free_pinned,
                           .open_copy_stream = open_copy_stream,
                           .kernels = kKernels,
                           .dequantise = dequantise_tensor};
  return &table;
}
