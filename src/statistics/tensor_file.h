// What the kinds of statistics files have in common: tensors of known names, types and shapes of one layer, nothing else.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moetrim/checkpoint.h"

namespace moetrim {

/// A tensor of the file and the memory that holds its values; no memory while only the file's shape is checked.
struct StatisticsField {
  TensorSpec spec;
  std::span<double> values;
  bool can_be_negative = false;
  std::span<float> floats = {};   ///< instead of `values` where the type is F32
};

/// @throws InvalidInput naming the file.
[[noreturn]] void fail(const SafetensorsFile& file, const std::string& problem);

/// The layer's absolute id. @param format  name and version, for example "statistics-layer-1".
int read_layer_id(const SafetensorsFile& file, std::string_view format);

/// The three dimensions of one tensor, each from 1 to what an int holds.
/// @param what  the shape in words, for example "[tasks, experts, width]".
std::vector<int> read_dimensions(const SafetensorsFile& file, std::string_view tensor, std::string_view what);

/// Before anything is allocated: a small file must not announce a large matrix. Refuses tensors that no field names.
void check_fields(const SafetensorsFile& file, const std::vector<StatisticsField>& fields);
/// Every value is finite and, unless it may be, not negative.
void read_fields(const SafetensorsFile& file, const std::vector<StatisticsField>& fields);
/// In the order of the fields; equal values give equal bytes.
void write_fields(const std::filesystem::path& file, std::string_view format, int layer,
                  const std::vector<StatisticsField>& fields);

}  // namespace moetrim
