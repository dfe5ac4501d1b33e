// Reads a checkpoint from front to back, for benchmarks/reading.py: reading_probe CHECKPOINT use|bypass
// Prints bytes and seconds. The environment variable MOETRIM_READER chooses the way of reading.

#include <chrono>
#include <cstdio>
#include <exception>
#include <string>

#include "moetrim/checkpoint.h"

int main(int argc, char** argv) try {
  using namespace moetrim;
  if (argc != 3) return 2;
  const Checkpoint checkpoint = Checkpoint::open(argv[1]);
  const auto begin = std::chrono::steady_clock::now();
  BlockReader reader(checkpoint, std::string(argv[2]) == "bypass" ? PageCache::bypass : PageCache::use);
  auto tensor = checkpoint.tensors().begin();
  std::uint64_t bytes = 0;
  while (true) {
    for (; tensor != checkpoint.tensors().end() && reader.hungry(); ++tensor) reader.add({&*tensor, 0, tensor->size});
    const auto part = reader.next();
    if (part.empty()) break;
    bytes += part.size();
  }
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
  std::printf("%llu %.6f\n", static_cast<unsigned long long>(bytes), passed.count());
  return bytes == checkpoint.total_bytes() ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
