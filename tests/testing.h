// The one include of every C++ test: Catch2, version 2 or 3, whichever the system has.
#pragma once

// LibTorch's logging header defines CHECK too; where a test needs torch it includes it before this file.
#ifdef CHECK
#undef CHECK
#endif

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
namespace moetrim::testing {
using Catch::Approx;
}
#else
#include <catch2/catch.hpp>
namespace moetrim::testing {
using Catch::Detail::Approx;
}
#endif
