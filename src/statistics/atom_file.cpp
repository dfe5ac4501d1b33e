// One MoE layer's second-order statistics as a safetensors file: one F64 tensor per kind of number, nothing else.
#include "moetrim/statistics.h"

#include <fmt/format.h>

#include "statistics/tensor_file.h"

namespace moetrim {
namespace {

constexpr std::string_view kFormat = "statistics-atoms-1";  // name and version

/// What the file holds, in the order of its bytes; the spans are empty when `atoms` is null.
std::vector<StatisticsField> fields_of(int tasks, int experts, int width, AtomStatistics* atoms) {
  const auto of = [&](std::vector<double> AtomStatistics::*member) {
    return atoms ? std::span<double>(atoms->*member) : std::span<double>();
  };
  const auto field = [&](const char* name, std::vector<std::int64_t> shape, std::vector<double> AtomStatistics::*member,
                         bool can_be_negative = false) {
    return StatisticsField{{name, Dtype::f64, std::move(shape)}, of(member), can_be_negative};
  };
  return {field("tokens", {tasks, experts}, &AtomStatistics::tokens),
          field("activation", {tasks, experts, width}, &AtomStatistics::activation),
          field("gradient", {tasks, experts, width}, &AtomStatistics::gradient),
          field("joint", {tasks, experts, width}, &AtomStatistics::joint),
          field("taylor", {tasks, kSlices, experts}, &AtomStatistics::taylor, true),
          field("fisher", {tasks, kSlices, experts}, &AtomStatistics::fisher),
          field("down_squares", {experts, width}, &AtomStatistics::down_squares),
          field("gate_up_squares", {experts, width}, &AtomStatistics::gate_up_squares)};
}

}  // namespace

std::string atom_file_name(int layer) { return fmt::format("atoms-{:05d}.safetensors", layer); }

void write_atom_statistics(const std::filesystem::path& file, const AtomStatistics& atoms) {
  AtomStatistics copy = atoms;  // fields_of() hands out writable spans
  write_fields(file, kFormat, atoms.layer, fields_of(atoms.tasks, atoms.experts, atoms.width, &copy));
}

AtomStatistics read_atom_statistics(const std::filesystem::path& path) {
  const auto file = SafetensorsFile::open(path);
  const int layer = read_layer_id(file, kFormat);
  const auto size = read_dimensions(file, "activation", "[tasks, experts, width]");
  check_fields(file, fields_of(size[0], size[1], size[2], nullptr));
  AtomStatistics atoms(layer, size[0], size[1], size[2]);
  read_fields(file, fields_of(size[0], size[1], size[2], &atoms));
  return atoms;
}

}  // namespace moetrim
