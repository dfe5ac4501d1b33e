// The pre-tokenizers of llama.cpp that published models of our families have, as data.
//
// The expressions are those of the models' tokenizer.json, with a line break written as \n and a carriage return as \r. A
// row is right when llama.cpp and the tokenizers library give the same ids: tests/end_to_end/test_gguf_tokenizer.py holds
// every row to that.

#include <array>

#include "moetrim/gguf_tokenizer.h"

namespace moetrim {
namespace {

// A step, spelled out by tokenizer.json's type and fields: see pretokenizer_shape.h.
constexpr std::string_view kBytes = "bytes";
constexpr std::string_view kWordsAndBytes = "words and bytes";
constexpr std::string_view kDigits = "digits";

constexpr std::string_view kQwen2 =
    R"(split (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen35 =
    R"(split (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kCl100k =
    R"(split (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kO200k =
    R"(split [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kKimi =
    R"(split [\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*)"
    R"(|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepseekNumbers = R"(split \p{N}{1,3})";
constexpr std::string_view kDeepseekHan = R"(split [一-龥぀-ゟ゠-ヿ]+)";
constexpr std::string_view kDeepseekWords =
    R"x(split [!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*)x"
    R"x(|\s*[\r\n]+|\s+(?!\S)|\s+)x";
constexpr std::string_view kDeepseekV2Letters =
    R"(split \s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-)"
    R"(ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹ)"
    R"(ℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+)";
constexpr std::string_view kDeepseekV2Marks = R"(split \s?[!-/:-~！-／：-～‘-‟　-。]+)";
constexpr std::string_view kDeepseekV2Han = R"(split [一-龥ࠀ-一가-퟿]+)";

// llama.cpp puts what its regular expressions can say in place of the classes of letters.
constexpr std::string_view kLetters =
    "words with combining marks, or with changes of case outside ASCII, are split elsewhere";

}  // namespace

std::span<const GgufPretokenizer> gguf_pretokenizers() {
  static const std::vector<GgufPretokenizer> table{
      {"qwen2", false, {kQwen2, kBytes}, "Qwen1.5 to Qwen3, Qwen3-Next, dots.llm1, Hunyuan-A13B", ""},
      {"qwen35", false, {kQwen35, kBytes}, "Qwen3.5", ""},
      {"llama-bpe", true, {kCl100k, kBytes}, "Llama 3, GLM-4.5", ""},
      {"glm4", false, {kCl100k, kBytes}, "GLM-4", ""},
      {"gpt-4o", false, {kO200k, kBytes}, "gpt-oss, Llama 4, MiniMax-M2", kLetters},
      {"deepseek-llm", false,
       {R"(split [\r\n])", kDeepseekV2Letters, kDeepseekV2Marks, R"(split \s+$)", kDeepseekV2Han, kDigits, kBytes},
       "DeepSeek-V2, DeepSeek-V2-Lite", "the separators U+2028 and U+2029 are no white space"},
      {"deepseek-v3", false, {kDeepseekNumbers, kDeepseekHan, kDeepseekWords, kBytes}, "DeepSeek-V3, DeepSeek-R1", ""},
      {"kimi-k2", false, {kKimi, kBytes}, "Kimi-K2, Moonlight", kLetters},
      {"gpt-2", false, {kWordsAndBytes}, "OLMoE", ""},
      {"refact", false, {kDigits, kWordsAndBytes}, "Granite 3 MoE", ""},
  };
  return table;
}

}  // namespace moetrim
