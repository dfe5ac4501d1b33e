// What a plan does as a short key.
#include "checkpoint/digest.h"
#include "moetrim/search.h"

namespace moetrim {

std::string plan_digest(const Plan& plan) {
  auto json = plan_to_json(plan);
  for (const char* origin : {"method", "variant", "source", "protect"}) json.erase(origin);
  return checkpoint_detail::digest_of(json.dump());
}

}  // namespace moetrim
