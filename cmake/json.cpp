// The members of nlohmann::ordered_json, compiled once; see json.h.

#include <nlohmann/json.hpp>

template class nlohmann::basic_json<nlohmann::ordered_map>;
