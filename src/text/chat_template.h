// The chat template of a checkpoint folder: where it is found and how it is rendered.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include <nlohmann/json.hpp>

#include "text/hf_text.h"

namespace moetrim::text {

/// One compiled Jinja template. Renders from several threads at once.
class ChatTemplate {
 public:
  /// @param origin  file the source was read from, for messages.
  /// @throws InvalidInput  naming `origin` when the source does not compile.
  ChatTemplate(std::string origin, const std::string& source);

  /// @param variables  object of all variables, `messages` among them.
  /// @throws InvalidInput  naming the origin.
  std::string render(const nlohmann::ordered_json& variables) const;

 private:
  struct Free {
    void operator()(HfChat* chat) const noexcept { hf_chat_free(chat); }
  };
  std::string origin_;
  std::unique_ptr<HfChat, Free> chat_;
};

/// The templates of one checkpoint; both are empty where it has none.
struct ChatTemplates {
  std::unique_ptr<ChatTemplate> plain;
  std::unique_ptr<ChatTemplate> with_tools;  ///< only where a folder names one of its own
};

/// Finds the templates of `folder`; `config` is its tokenizer_config.json, or an empty object.
/// @throws InvalidInput  naming the file.
ChatTemplates find_chat_templates(const std::filesystem::path& folder,
                                  const nlohmann::ordered_json& config);

/// The messages as templates expect them: null fields left out, reasoning under all its names.
/// @throws InvalidInput  when they are not an array of objects.
nlohmann::ordered_json template_messages(const nlohmann::ordered_json& messages);

}  // namespace moetrim::text
