# moetrim_stage(NAME [TORCH] [NEEDS STAGE ...]): the static library moetrim_NAME from src/NAME/**.cpp.
# NEEDS is also what tests/check_stages.py holds the includes against.
function(moetrim_stage name)
  cmake_parse_arguments(STAGE "TORCH" "" "NEEDS" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cpp ${CMAKE_SOURCE_DIR}/src/${name}/*/*.cpp
       ${CMAKE_SOURCE_DIR}/src/${name}/*/*/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/forward/cuda/")  # a library of its own
  add_library(moetrim_${name} STATIC ${sources})
  target_link_libraries(moetrim_${name} PUBLIC moetrim_flags formatting)
  foreach(need ${STAGE_NEEDS})
    target_link_libraries(moetrim_${name} PUBLIC moetrim_${need})
  endforeach()
  # Most of a compilation is these headers; one precompiled copy serves all stages of a kind.
  if(STAGE_TORCH)
    target_link_libraries(moetrim_${name} PUBLIC libtorch)
    set(first forward)
  else()
    set(first checkpoint)
  endif()
  if(name STREQUAL first)
    target_precompile_headers(moetrim_${name} PRIVATE <fmt/format.h> <fmt/ranges.h> ${PRECOMPILED_JSON}
      $<$<BOOL:${STAGE_TORCH}>:<ATen/ATen.h$<ANGLE-R>>)
  else()
    target_precompile_headers(moetrim_${name} REUSE_FROM moetrim_${first})
  endif()
endfunction()
