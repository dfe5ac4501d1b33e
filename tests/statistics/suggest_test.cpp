// Suggestions for misspelt names, and foreign text in messages.
#include "testing.h"

#include <array>

#include "moetrim/suggest.h"

using namespace moetrim;

TEST_CASE("edit distance by hand", "[suggest]") {
  CHECK(edit_distance("", "") == 0);
  CHECK(edit_distance("keep", "") == 4);
  CHECK(edit_distance("keep", "keep") == 0);
  CHECK(edit_distance("keep", "kep") == 1);
  CHECK(edit_distance("layer", "layers") == 1);
  CHECK(edit_distance("reap", "pear") == 2);
}

TEST_CASE("the nearest name is suggested when it is near", "[suggest]") {
  const std::array<std::string_view, 3> names{"frequency", "soft-frequency", "reap"};
  CHECK(closest("freqency", names) == "frequency");
  CHECK(closest("softfrequency", names) == "soft-frequency");
  CHECK(closest("rep", names) == "reap");
  CHECK_FALSE(closest("random", names));
  CHECK_FALSE(closest("", names));
  CHECK_FALSE(closest(std::string(100'000, 'x'), names));
  CHECK(did_you_mean("reep", names) == "; did you mean \"reap\"?");
  CHECK(did_you_mean("zzz", names).empty());
}

TEST_CASE("foreign text is short and has no control characters", "[suggest]") {
  CHECK(in_quotes("a\nb") == "\"a?b\"");
  CHECK(in_quotes(std::string(500, 'x')) == "\"" + std::string(60, 'x') + "...\"");
  std::string euros = "x";
  for (int i = 0; i < 20; ++i) euros += "\u20ac";  // three bytes each
  CHECK(in_quotes(euros) == "\"" + euros.substr(0, 58) + "...\"");  // not in the middle of a character
}
