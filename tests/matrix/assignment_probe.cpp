// Reads fp64 matrices [n, n] from a file and prints the best assignment of each: assignment_probe FILE N.

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/matrix.h"

int main(int count, char** arguments) {
  if (count != 3) return 2;
  const std::size_t n = std::strtoull(arguments[2], nullptr, 10);
  std::ifstream in(arguments[1], std::ios::binary);
  std::vector<double> values(n * n);
  while (in.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(double)))) {
    for (const auto optimum : {moetrim::Optimum::least, moetrim::Optimum::greatest}) {
      fmt::print("[{}]\n", fmt::join(moetrim::optimal_assignment(values, n, optimum), ", "));
    }
  }
}
