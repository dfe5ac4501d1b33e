// One row of a task file -> one demonstration.
#pragma once

#include <nlohmann/json.hpp>

#include "moetrim/text.h"

namespace moetrim::text {

/// Turns a row into token ids, by the forms and rules described at read_task.
/// @param tokenizer  may be null; rows that need it are errors then.
/// @throws InvalidInput  saying what is wrong, without file and line: the caller knows them.
Demonstration make_demonstration(const nlohmann::ordered_json& row, const Tokenizer* tokenizer,
                                 const TaskOptions& options);

}  // namespace moetrim::text
