# Warnings, sanitizers, compiler cache and linker for every target of ours.
find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()
find_program(MOLD mold)
if(MOLD)
  add_link_options(-fuse-ld=mold)
endif()

add_library(moetrim_flags INTERFACE)
# -Wno-restrict: GCC 12 sees overlaps in std::string's own operator+ (GCC bug 105651).
target_compile_options(moetrim_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -Wmissing-field-initializers -Wunused-const-variable -Wno-restrict>)
if(MOETRIM_SANITIZE)
  target_compile_options(moetrim_flags INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined -fno-omit-frame-pointer>)
  target_link_options(moetrim_flags INTERFACE -fsanitize=address,undefined)
endif()
target_include_directories(moetrim_flags INTERFACE ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/src)
