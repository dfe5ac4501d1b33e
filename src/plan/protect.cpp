// Protection requests to experts.
#include "plan/protect.h"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <tuple>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"

namespace moetrim {
namespace {

[[noreturn]] void refuse(std::string_view request) {
  throw UsageError(fmt::format("protect {}: expected super, or LAYER:EXPERT,EXPERT,... with absolute layer ids",
                               in_quotes(request)));
}

int parse_id(std::string_view text, std::string_view request) {
  int id = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() || id < 0) refuse(request);
  return id;
}

ProtectedExpert checked(const StatisticsManifest& manifest, int layer, int expert, std::string_view request) {
  if (!std::binary_search(manifest.moe_layers.begin(), manifest.moe_layers.end(), layer)) {
    throw InvalidInput(fmt::format("protect {}: layer {} has no experts to choose from; the MoE layers are {} to {}{}",
                                   in_quotes(request), layer, manifest.moe_layers.front(), manifest.moe_layers.back(),
                                   " (absolute ids, dense layers counted)"));
  }
  if (expert >= manifest.experts) {
    throw InvalidInput(fmt::format("protect {}: expert {} of layer {}: there are experts 0 to {}", in_quotes(request), expert,
                                   layer, manifest.experts - 1));
  }
  return {layer, expert, "requested"};
}

/// One request; its items are separated by commas, and an item without a layer belongs to the layer before it.
void add_request(const Statistics& statistics, std::string_view request, Variant variant, std::vector<ProtectedExpert>& out) {
  int layer = -1;  // none yet
  for (std::size_t begin = 0; begin <= request.size();) {
    const std::size_t end = std::min(request.find(',', begin), request.size());
    std::string_view item = request.substr(begin, end - begin);
    begin = end + 1;
    if (item == "super") {
      const auto found = find_super_experts(statistics, variant);
      out.insert(out.end(), found.begin(), found.end());
      layer = -1;
      continue;
    }
    if (const std::size_t colon = item.find(':'); colon != std::string_view::npos) {
      layer = parse_id(item.substr(0, colon), request);
      item.remove_prefix(colon + 1);
    }
    if (layer < 0) refuse(request);
    out.push_back(checked(statistics.manifest, layer, parse_id(item, request), request));
  }
}

}  // namespace

std::vector<ProtectedExpert> resolve_protection(const Statistics& statistics, const PlanRequest& request, Variant variant) {
  std::vector<ProtectedExpert> experts;
  for (const auto& text : request.protect) add_request(statistics, text, variant, experts);
  for (const auto& [layer, expert, why] : request.protect_experts) {
    experts.push_back(checked(statistics.manifest, layer, expert, why));
    experts.back().why = why;
  }
  const auto place = [](const ProtectedExpert& e) { return std::tuple(e.layer, e.expert); };
  std::stable_sort(experts.begin(), experts.end(), [&](const auto& a, const auto& b) { return place(a) < place(b); });
  experts.erase(std::unique(experts.begin(), experts.end(), [&](const auto& a, const auto& b) { return place(a) == place(b); }),
                experts.end());
  return experts;
}

}  // namespace moetrim
