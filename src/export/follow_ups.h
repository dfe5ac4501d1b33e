// What to do with a new checkpoint: commands that serve and evaluate it, for the model card.
#pragma once

#include <string>

#include "moetrim/family.h"
#include "moetrim/plan.h"
#include "moetrim/rewrite.h"

namespace moetrim::export_detail {

/// What the source's tokenizer files say.
struct TokenizerFacts {
  bool own_code = false;       ///< Python code of its own
  bool chat_template = false;
};
/// Files that cannot be read say nothing: a card is no reason to refuse a checkpoint.
TokenizerFacts tokenizer_facts(const Checkpoint& source);

/// Facts of the output that commands depend on.
struct FollowUps {
  const Model& model;        ///< the source
  const Plan& plan;
  TokenizerFacts tokenizer;
  Mtp mtp = Mtp::prune;
  bool listed = false;       ///< our own modelling code has to read it
  bool dequantised = false;  ///< its weights are plain though the source's are quantised

  /// Whether transformers has to run Python code out of the folder: ours, or the source's where transformers has no class for it.
  bool runs_code() const;
  /// Whether moetrim can compute with the weights: else it neither evaluates nor converts them.
  bool values_known() const;
  /// Sections "Serve" and "Evaluate". The folder is called FOLDER, and the source BASE where it has no name on the hub.
  std::string text() const;
};

}  // namespace moetrim::export_detail
