// Targets: "vllm,tp=8,ep=8,quant=fp8".
#include <algorithm>
#include <array>
#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "moetrim/error.h"
#include "moetrim/suggest.h"
#include "runtimes/rule.h"

namespace moetrim {

namespace {

constexpr std::array<const RuntimeRules*, 5> kRuntimes{&runtime_rules::vllm, &runtime_rules::sglang,
                                                       &runtime_rules::llama_cpp, &runtime_rules::transformers,
                                                       &runtime_rules::mlx};
constexpr std::int64_t kMostRanks = 1 << 16;

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> parts;
  while (true) {
    const auto comma = text.find(',');
    parts.push_back(text.substr(0, comma));
    if (comma == std::string_view::npos) return parts;
    text.remove_prefix(comma + 1);
  }
}

std::vector<std::string_view> names_of(const std::vector<QuantName>& quants) {
  std::vector<std::string_view> names;
  for (const QuantName& quant : quants) names.push_back(quant.name);
  return names;
}

/// One target while its parts are read.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  RuntimeTarget read() {
    const auto parts = split(text_);
    choose(parts.front());
    for (const std::string_view part : std::span(parts).subspan(1)) add(part);
    finish();
    return target_;
  }

 private:
  [[noreturn]] void fail(const std::string& why) const { throw UsageError(fmt::format("--runtime {}: {}", text_, why)); }

  void choose(std::string_view name) {
    std::vector<std::string_view> names;
    for (const RuntimeRules* rules : kRuntimes) {
      names.push_back(rules->name);
      if (rules->name == name) target_.rules = rules;
    }
    if (target_.rules == nullptr) {
      fail(fmt::format("unknown runtime {}; known: {}{}", in_quotes(name), fmt::join(names, ", "),
                       did_you_mean(name, names)));
    }
    target_.text = text_;
  }

  std::vector<std::string_view> known_keys() const {
    auto keys = target_.rules->keys;
    if (!target_.rules->quants.empty()) keys.insert(keys.end(), {"quant", "group"});
    return keys;
  }

  void add(std::string_view part) {
    const auto equals = part.find('=');
    const std::string_view key = part.substr(0, equals);
    const auto keys = known_keys();
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) {
      fail(fmt::format("{} does not take {}; it takes {}{}", target_.rules->name, in_quotes(key),
                       keys.empty() ? "nothing" : fmt::format("{}", fmt::join(keys, ", ")), did_you_mean(key, keys)));
    }
    if (std::find(seen_.begin(), seen_.end(), key) != seen_.end()) fail(fmt::format("{} is there twice", key));
    seen_.push_back(key);
    const bool flag = key == "eplb" || key == "mtp" || key == "trust_remote_code";
    if (flag != (equals == std::string_view::npos)) {
      fail(flag ? fmt::format("{} takes no value", key) : fmt::format("{} needs a value, for example {}=8", key, key));
    }
    set(key, flag ? std::string_view() : part.substr(equals + 1));
  }

  void set(std::string_view key, std::string_view value) {
    if (key == "quant") return set_quant(value);
    if (key == "eplb") target_.eplb = true;
    if (key == "mtp") target_.mtp = true;
    if (key == "trust_remote_code") target_.remote_code = true;
    if (key == "tp") target_.tp = number(key, value, 1);
    if (key == "ep") target_.ep = number(key, value, 1);
    if (key == "dp") target_.dp = number(key, value, 1);
    if (key == "redundant") target_.redundant = number(key, value, 0);
    if (key == "group") group_ = number(key, value, 1);
  }

  std::int64_t number(std::string_view key, std::string_view value, std::int64_t least) const {
    std::int64_t out = -1;
    const auto [end, problem] = std::from_chars(value.data(), value.data() + value.size(), out);
    if (problem != std::errc() || end != value.data() + value.size() || out < least || out > kMostRanks) {
      fail(fmt::format("{}: expected a number from {} to {}, got {}", key, least, kMostRanks, in_quotes(value)));
    }
    return out;
  }

  void set_quant(std::string_view value) {
    std::string name(value);
    for (char& c : name) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    const auto& quants = target_.rules->quants;
    const auto found =
        std::find_if(quants.begin(), quants.end(), [&](const QuantName& quant) { return quant.name == name; });
    if (found == quants.end()) {
      const auto names = names_of(quants);
      fail(fmt::format("quant: unknown {}; known: {}{}", in_quotes(value), fmt::join(names, ", "),
                       did_you_mean(name, names)));
    }
    quant_ = &*found;
    target_.quant = ServedQuantisation{.name = name, .scheme = quant_->scheme, .block = quant_->block};
  }

  void finish() {
    if (group_ > 0) {
      if (quant_ == nullptr || !quant_->grouped) {
        fail("group is the group size of integer weights; say them with quant, or leave it out");
      }
      target_.quant->block = group_;
    }
    if (target_.redundant > 0 && !target_.eplb) fail("redundant experts are for eplb; add it, or leave them out");
    if (target_.eplb && target_.ep == 1) fail("eplb balances experts over ranks; add ep");
  }

  std::string text_;
  RuntimeTarget target_;
  const QuantName* quant_ = nullptr;
  std::int64_t group_ = 0;
  std::vector<std::string_view> seen_;
};

}  // namespace

std::span<const RuntimeRules* const> runtimes() { return kRuntimes; }
std::string_view runtime_name(const RuntimeRules& rules) { return rules.name; }
std::string_view runtime_version(const RuntimeRules& rules) { return rules.version; }
std::string_view runtime_package(const RuntimeRules& rules) { return rules.read_from; }
std::string_view RuntimeTarget::runtime() const { return rules->name; }
std::string_view RuntimeTarget::version() const { return rules->version; }

RuntimeTarget parse_runtime(std::string_view text) { return Reader(text).read(); }

std::vector<RuntimeTarget> parse_runtimes(std::span<const std::string> texts) {
  std::vector<RuntimeTarget> targets;
  for (const std::string& text : texts) {
    if (text == "all") {
      for (const RuntimeRules* rules : kRuntimes) targets.push_back(parse_runtime(rules->name));
    } else {
      targets.push_back(parse_runtime(text));
    }
  }
  return targets;
}

}  // namespace moetrim
