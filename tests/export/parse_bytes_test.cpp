// Sizes as people write them.

#include "testing.h"

#include "moetrim/error.h"
#include "moetrim/export.h"

using namespace moetrim;

TEST_CASE("sizes are read with decimal and binary units", "[export]") {
  CHECK(parse_bytes("5GB") == 5'000'000'000);
  CHECK(parse_bytes("5gib") == 5'368'709'120);
  CHECK(parse_bytes("500 MB") == 500'000'000);
  CHECK(parse_bytes("1.5KiB") == 1536);
  CHECK(parse_bytes("0.25kB") == 250);
  CHECK(parse_bytes("123") == 123);
  CHECK(parse_bytes("7B") == 7);
  CHECK(parse_bytes("18446744073709551615") == ~std::uint64_t{0});
}

TEST_CASE("other texts are no sizes", "[export]") {
  const char* text = GENERATE("", "GB", "5G", "-1", "0", "0.0MB", "5 GB x", "1.2.3GB", "1.", ".5GB", "1e9", "5,0GB", " 5GB",
                              "18446744073709551616", "20000000TB", "0x10");
  CAPTURE(text);
  CHECK_THROWS_AS(parse_bytes(text), UsageError);
}
