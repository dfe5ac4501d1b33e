// For precompiled headers: nlohmann/json.hpp, with the members of ordered_json left to json.cpp.
#pragma once

#include <nlohmann/json.hpp>

extern template class nlohmann::basic_json<nlohmann::ordered_map>;
