// The row forms of a task file, and how each becomes token ids.

#include "text/demonstrations.h"

#include <algorithm>
#include <limits>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "moetrim/error.h"
#include "text/hostile_json.h"

namespace moetrim::text {
namespace {

using Json = nlohmann::ordered_json;
using Ids = std::vector<std::int32_t>;

constexpr std::string_view kForms =
    "{\"prompt\",\"response\"}, {\"messages\":[...]}, {\"text\"}, {\"input_ids\":[...]} or {\"question\",\"answer\"}";

std::string string_field(const Json& row, const char* name) {
  const auto found = row.find(name);
  if (found == row.end()) throw InvalidInput(fmt::format("the field \"{}\" is missing; add it", name));
  if (!found->is_string()) {
    throw InvalidInput(fmt::format("\"{}\" is a JSON {}, expected a string", name, found->type_name()));
  }
  return found->get<std::string>();
}

std::string optional_string_field(const Json& row, const char* name) {
  return row.contains(name) ? string_field(row, name) : std::string();
}

std::int64_t common_prefix(const Ids& a, const Ids& b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

const Tokenizer& require(const Tokenizer* tokenizer) {
  if (tokenizer != nullptr) return *tokenizer;
  throw InvalidInput(
      "the row needs a tokenizer and the checkpoint has none; add tokenizer.json or use rows with \"input_ids\"");
}

/// A conversation cut into what the model sees and what it should answer.
struct Conversation {
  Json before;  // messages of the prompt
  Json reply;   // the assistant's message; null where there is none
  Json variables = Json::object();
};

std::string content_text(const Json& message) {
  const auto found = message.find("content");
  return found != message.end() && found->is_string() ? found->get<std::string>() : std::string();
}

/// Ids of prompt and response through the chat template.
void encode_chat(const Tokenizer& tokenizer, const Conversation& chat, bool prompt_only, Demonstration& out) {
  const std::string prompt = tokenizer.render_chat(chat.before, true, chat.variables);
  const Ids prompt_ids = tokenizer.encode(prompt, false);
  if (prompt_only) {
    out.ids = prompt_ids;
    out.prompt_tokens = static_cast<std::int64_t>(out.ids.size());
    return;
  }
  Json all = chat.before;
  all.push_back(chat.reply);
  std::string whole = tokenizer.render_chat(all, false, chat.variables);
  // A reply without text (only tool calls) cannot be appended, so its own rendering is all there is.
  if (!whole.starts_with(prompt) && !content_text(chat.reply).empty()) {
    whole = prompt + content_text(chat.reply) + tokenizer.eos_token();
  }
  out.ids = tokenizer.encode(whole, false);
  out.prompt_tokens = common_prefix(out.ids, prompt_ids);
}

/// Ids of a prompt alone without a template. A tokenizer may end every text with EOS, after
/// which no model goes on.
Ids plain_prompt_ids(const Tokenizer& tokenizer, const std::string& prompt) {
  Ids ids = tokenizer.encode(prompt, true);
  const auto eos = tokenizer.eos_token().empty() ? std::nullopt : tokenizer.token_id(tokenizer.eos_token());
  if (eos && ids.size() > 1 && ids.back() == *eos && !prompt.ends_with(tokenizer.eos_token())) ids.pop_back();
  return ids;
}

void encode_pair(const Tokenizer& tokenizer, bool prompt_only, Demonstration& out) {
  if (tokenizer.has_chat_template()) {
    Conversation chat;
    chat.before = Json::array({{{"role", "user"}, {"content", out.prompt}}});
    chat.reply = {{"role", "assistant"}, {"content", out.response}};
    encode_chat(tokenizer, chat, prompt_only, out);
    return;
  }
  const Ids prompt_ids = plain_prompt_ids(tokenizer, out.prompt);
  out.ids = prompt_only ? prompt_ids : tokenizer.encode(out.prompt + out.response, true);
  out.prompt_tokens = common_prefix(out.ids, prompt_ids);
}

Demonstration from_prompt(const Json& row, const Tokenizer* tokenizer, const TaskOptions& options) {
  Demonstration out;
  out.prompt = string_field(row, "prompt");
  const bool only = options.generation_prompt_only;
  out.response = only ? optional_string_field(row, "response") : string_field(row, "response");
  out.answer = optional_string_field(row, "answer");
  encode_pair(require(tokenizer), only, out);
  return out;
}

std::string final_answer(std::string_view answer) {
  constexpr std::string_view mark = "#### ";
  constexpr std::string_view white = " \t\r\n";
  if (const auto at = answer.rfind(mark); at != std::string_view::npos) answer.remove_prefix(at + mark.size());
  const auto first = answer.find_first_not_of(white);
  if (first == std::string_view::npos) return {};
  return std::string(answer.substr(first, answer.find_last_not_of(white) - first + 1));
}

Demonstration from_question(const Json& row, const Tokenizer* tokenizer, const TaskOptions& options) {
  Demonstration out;
  out.prompt = string_field(row, "question");
  out.response = string_field(row, "answer");
  out.answer = final_answer(out.response);
  encode_pair(require(tokenizer), options.generation_prompt_only, out);
  return out;
}

std::string role(const Json& message) {
  if (!message.is_object()) throw InvalidInput("\"messages\" holds something that is not an object");
  return string_field(message, "role");
}

Conversation read_conversation(const Json& row, bool prompt_only) {
  const Json& messages = row["messages"];
  if (!messages.is_array() || messages.empty()) {
    throw InvalidInput("\"messages\" is not a list with at least one message");
  }
  std::size_t reply = messages.size();
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (role(messages[i]) == "assistant") reply = i;
  }
  if (reply == messages.size() && !prompt_only) {
    throw InvalidInput("\"messages\" has no message of the role \"assistant\" to be the response; add one");
  }
  Conversation chat;
  chat.before = Json(messages.begin(), messages.begin() + static_cast<std::ptrdiff_t>(reply));
  if (reply < messages.size()) chat.reply = messages[reply];
  if (row.contains("tools") && !row["tools"].is_null()) {
    if (!row["tools"].is_array()) throw InvalidInput("\"tools\" is not a list");
    chat.variables["tools"] = row["tools"];
  }
  return chat;
}

Demonstration from_messages(const Json& row, const Tokenizer* tokenizer, const TaskOptions& options) {
  const Tokenizer& usable = require(tokenizer);
  const Conversation chat = read_conversation(row, options.generation_prompt_only);
  if (!usable.has_chat_template()) {
    throw InvalidInput(
        "\"messages\" needs a chat template and the checkpoint has none; add chat_template.jinja or use rows with "
        "\"prompt\" and \"response\"");
  }
  Demonstration out;
  for (const Json& message : chat.before) {
    if (role(message) == "user") out.prompt = content_text(message);
  }
  if (chat.reply.is_object()) out.response = content_text(chat.reply);
  out.answer = optional_string_field(row, "answer");
  encode_chat(usable, chat, options.generation_prompt_only, out);
  return out;
}

Demonstration from_text(const Json& row, const Tokenizer* tokenizer, const TaskOptions& options) {
  if (options.generation_prompt_only) {
    throw InvalidInput("a {\"text\"} row has no prompt to answer; use {\"prompt\",\"response\"} rows");
  }
  Demonstration out;
  out.response = string_field(row, "text");
  out.ids = require(tokenizer).encode(out.response, true);
  return out;
}

std::int32_t token_id(const Json& value, std::size_t at) {
  if (!value.is_number_integer()) {
    throw InvalidInput(fmt::format("\"input_ids\"[{}] is a JSON {}, expected a whole number", at, value.type_name()));
  }
  constexpr std::uint64_t largest = std::numeric_limits<std::int32_t>::max();
  // The parser gives unsigned numbers for everything from 0 on.
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > largest) {
    throw InvalidInput(fmt::format("\"input_ids\"[{}] is {}, expected 0 to {}", at, value.dump(), largest));
  }
  return value.get<std::int32_t>();
}

Demonstration from_ids(const Json& row, const Tokenizer* tokenizer, const TaskOptions& options) {
  const Json& ids = row["input_ids"];
  if (!ids.is_array()) throw InvalidInput(fmt::format("\"input_ids\" is a JSON {}, expected a list", ids.type_name()));
  Demonstration out;
  out.ids.reserve(ids.size());
  for (std::size_t i = 0; i < ids.size(); ++i) out.ids.push_back(token_id(ids[i], i));
  if (row.contains("prompt_tokens")) {
    const Json& count = row["prompt_tokens"];
    if (!count.is_number_unsigned() || count.get<std::uint64_t>() > out.ids.size()) {
      throw InvalidInput(fmt::format("\"prompt_tokens\" is {}, expected 0 to {}, the number of ids",
                                     excerpt(count.dump()), out.ids.size()));
    }
    out.prompt_tokens = count.get<std::int64_t>();
  }
  out.answer = optional_string_field(row, "answer");
  if (!options.generation_prompt_only) return out;
  if (out.prompt_tokens == 0) {
    throw InvalidInput("an {\"input_ids\"} row needs \"prompt_tokens\" to say where its prompt ends");
  }
  if (tokenizer != nullptr) {
    out.response = tokenizer->decode(std::span(out.ids).subspan(static_cast<std::size_t>(out.prompt_tokens)), true);
  }
  out.ids.resize(static_cast<std::size_t>(out.prompt_tokens));
  return out;
}

void check_ids(const Ids& ids, std::int64_t vocabulary) {
  if (ids.empty()) throw InvalidInput("the row gives no tokens; remove it or fill it");
  if (vocabulary <= 0) return;
  const auto largest = std::max_element(ids.begin(), ids.end());
  if (*largest >= vocabulary) {
    throw InvalidInput(fmt::format(
        "token id {} at position {} is outside the model's vocabulary of {}; use this model's own tokenizer", *largest,
        largest - ids.begin(), vocabulary));
  }
}

}  // namespace

Demonstration make_demonstration(const Json& row, const Tokenizer* tokenizer, const TaskOptions& options) {
  struct Form {
    const char* field;
    Demonstration (*make)(const Json&, const Tokenizer*, const TaskOptions&);
  };
  constexpr Form forms[] = {{"input_ids", from_ids},    {"messages", from_messages}, {"prompt", from_prompt},
                            {"question", from_question}, {"text", from_text}};
  if (!row.is_object()) {
    throw InvalidInput(fmt::format("a JSON {}, expected an object: {}", row.type_name(), kForms));
  }
  for (const Form& form : forms) {
    if (!row.contains(form.field)) continue;
    Demonstration out = form.make(row, tokenizer, options);
    check_ids(out.ids, options.vocabulary);
    if (options.max_tokens > 0 && static_cast<std::int64_t>(out.ids.size()) > options.max_tokens) {
      out.ids.resize(static_cast<std::size_t>(options.max_tokens));
      out.prompt_tokens = std::min(out.prompt_tokens, options.max_tokens);
    }
    return out;
  }
  throw InvalidInput(fmt::format("none of the known forms; a row is one of {}", kForms));
}

}  // namespace moetrim::text
