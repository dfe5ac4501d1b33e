// The ranks' statistics, layer by layer, to one folder on rank 0.

#include <fstream>

#include <fmt/format.h>

#include "moetrim/checkpoint.h"
#include "moetrim/distributed.h"
#include "moetrim/error.h"
#include "moetrim/input_statistics.h"
#include "moetrim/row_statistics.h"
#include "moetrim/vectors.h"

namespace moetrim {

namespace fs = std::filesystem;

namespace {

std::string file_bytes(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in) throw InvalidInput(fmt::format("{}: cannot be read", file.string()));
  return bytes;
}

/// The parts' manifests by rank; none on other ranks than 0.
std::vector<StatisticsManifest> parsed(const std::vector<std::string>& manifests) {
  std::vector<StatisticsManifest> parts;
  for (const std::string& manifest : manifests) {
    parts.push_back(manifest_from_json(nlohmann::ordered_json::parse(manifest), fmt::format("manifest of rank {}", parts.size())));
  }
  return parts;
}

StatisticsMerge merge_of(const std::vector<StatisticsManifest>& parts) {
  std::vector<std::string> names;
  for (std::size_t rank = 0; rank < parts.size(); ++rank) names.push_back(fmt::format("rank {}", rank));
  return StatisticsMerge(parts, std::move(names));
}

/// Gives a layer file of a rank as that rank sends it: through a file, so that it is checked like any other.
class Receiver {
 public:
  Receiver(RankGroup& ranks, fs::path part, fs::path received) : ranks_(ranks), part_(std::move(part)), received_(std::move(received)) {}
  ~Receiver() {
    std::error_code ignored;
    fs::remove(received_, ignored);
  }
  Receiver(const Receiver&) = delete;
  Receiver& operator=(const Receiver&) = delete;

  fs::path file(std::size_t rank, const std::string& name) {
    if (rank == 0) return part_ / name;
    write_file_atomically(received_, ranks_.receive(static_cast<int>(rank)));
    return received_;
  }

 private:
  RankGroup& ranks_;
  fs::path part_, received_;
};

}  // namespace

void check_same_run(RankGroup& ranks, const StatisticsManifest& manifest) {
  const auto manifests = ranks.gather(manifest_to_json(manifest).dump());
  if (ranks.place().rank == 0) merge_of(parsed(manifests));
  ranks.meet();
}

void collect_statistics(RankGroup& ranks, const fs::path& part, const fs::path& output) {
  const StatisticsManifest own = read_statistics_manifest(part);
  const auto manifests = ranks.gather(manifest_to_json(own).dump());
  if (ranks.place().rank == 0) {
    fs::path received = part;
    received += ".received";
    Receiver receiver(ranks, part, received);
    const auto parts = parsed(manifests);
    write_merged_statistics(
        output, merge_of(parts),
        {.layer = [&](std::size_t rank, int layer) { return read_layer_statistics(receiver.file(rank, layer_file_name(layer))); },
         .atoms = [&](std::size_t rank, int layer) { return read_atom_statistics(receiver.file(rank, atom_file_name(layer))); },
         .vectors =
             [&](std::size_t rank, int layer) {
               return read_vectors_file(receiver.file(rank, vector_file_name(layer)), parts[rank]);
             },
         .rows =
             [&](std::size_t rank, int layer) {
               return read_row_statistics(receiver.file(rank, row_file_name(layer)), parts[rank]);
             }},
        {.manifests = parts, .read = [&](std::size_t rank, int layer) {
           return read_input_statistics(receiver.file(rank, input_file_name(layer)), parts[rank]);
         }});
  } else {
    // In the order in which rank 0 asks.
    for (const int layer : own.moe_layers) {
      ranks.send(0, file_bytes(part / layer_file_name(layer)));
      if (own.expert_width > 0) ranks.send(0, file_bytes(part / atom_file_name(layer)));
      if (own.vectors) ranks.send(0, file_bytes(part / vector_file_name(layer)));
      if (own.row_rank > 0) ranks.send(0, file_bytes(part / row_file_name(layer)));
    }
    for (const int layer : input_layers(own)) ranks.send(0, file_bytes(part / input_file_name(layer)));
  }
  ranks.meet();
}

}  // namespace moetrim
