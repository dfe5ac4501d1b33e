// What a plan does as a short key.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <fmt/format.h>

#include "moetrim/search.h"

namespace moetrim {

std::string plan_digest(const Plan& plan) {
  auto json = plan_to_json(plan);
  for (const char* origin : {"method", "variant", "source", "protect"}) json.erase(origin);
  const std::string text = json.dump();
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace moetrim
