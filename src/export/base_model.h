// What the new model card takes over from the source: its name and its licence.
#pragma once

#include <string>

#include "moetrim/checkpoint.h"

namespace moetrim::export_detail {

/// A hub name ("org/name") where config.json or the hub's cache folders give one, else the folder's name. Never a path.
std::string base_model(const Checkpoint& source);

/// Lines of YAML front matter ("license: apache-2.0\n"), taken from the source's README.md; empty when it has none.
std::string licence_lines(const Checkpoint& source);

}  // namespace moetrim::export_detail
