// Times what retrieval does beside running the model: reading signatures, and comparing queries with them.
//
// Usage: patterns_probe LIBRARY DEPTH QUERIES
#include <chrono>
#include <cstdlib>
#include <random>

#include <fmt/format.h>

#include "moetrim/patterns.h"

using namespace moetrim;

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const int depth = std::atoi(argv[2]), queries = std::atoi(argv[3]);
  const auto library = PatternLibrary::open(argv[1]);
  auto begin = std::chrono::steady_clock::now();
  const auto table = library.signatures(SignatureStat::routed_count, depth);
  const double reading = seconds_since(begin);
  std::mt19937 bits(1);
  std::vector<TextRouting> texts(static_cast<std::size_t>(queries));
  for (auto& text : texts) {
    for (auto& shares : text.shares) {
      for (int i = 0; i < depth * table.experts; ++i) shares.push_back(static_cast<float>(bits()) / 4294967296.0F);
    }
  }
  begin = std::chrono::steady_clock::now();
  const auto found = retrieve(table, texts, {});
  fmt::print("{} patterns, {} rows, {:.1f} MB of signatures read in {:.3f} s, compared in {:.4f} s\n", table.names.size(),
             table.owner.size(), static_cast<double>(table.rows.size() * sizeof(float)) / 1e6, reading,
             seconds_since(begin));
  return found.size() == texts.size() ? 0 : 1;
}
