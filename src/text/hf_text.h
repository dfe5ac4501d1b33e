// The C ABI of the Rust crate in hf_text/: declarations for its src/abi.rs.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct HfTokenizer;
struct HfChat;

struct HfBytes {
  std::uint8_t* data;
  std::size_t len;
};

struct HfIds {
  std::uint32_t* data;
  std::size_t len;
};

// Every function that returns an int: 0 is success, anything else means that only `error` was
// filled in, with a message to be freed by hf_bytes_free.
int hf_tokenizer_new(const char* json, std::size_t json_len, const char* added_tokens,
                     std::size_t added_tokens_len, HfTokenizer** out, HfBytes* error);
int hf_tokenizer_encode(const HfTokenizer* tokenizer, const char* text, std::size_t len,
                        bool add_special_tokens, HfIds* out, HfBytes* error);
int hf_tokenizer_decode(const HfTokenizer* tokenizer, const std::uint32_t* ids, std::size_t len,
                        bool skip_special_tokens, HfBytes* out, HfBytes* error);
int hf_tokenizer_token_id(const HfTokenizer* tokenizer, const char* token, std::size_t len,
                          std::int64_t* out, HfBytes* error);
int hf_chat_new(const char* source, std::size_t len, HfChat** out, HfBytes* error);
int hf_chat_render(const HfChat* chat, const char* variables, std::size_t len, HfBytes* out,
                   HfBytes* error);

void hf_tokenizer_free(HfTokenizer* tokenizer);
void hf_chat_free(HfChat* chat);
void hf_bytes_free(HfBytes bytes);
void hf_ids_free(HfIds ids);

}  // extern "C"
