# The CPU loops are compiled once per instruction set and chosen when the program runs. No contraction to fused
# multiply-add: every set gives the same bits, but for the matrix product, which asks for it. The precompiled header would
# drag library code into these files.
# Partial redundancy elimination would divide by the clamp's bounds ahead of time, at the price of denormal numbers.
function(moetrim_instruction_sets stage file)
  foreach(set baseline avx2 avx512)
    set(flags -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math -fno-tree-pre -Wno-psabi)
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
      if(set STREQUAL "avx2")
        list(APPEND flags -mavx2 -mfma)
      elseif(set STREQUAL "avx512")
        list(APPEND flags -mavx2 -mfma -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
      endif()
    endif()
    set_source_files_properties(${CMAKE_SOURCE_DIR}/src/${stage}/${file}_${set}.cpp
      TARGET_DIRECTORY moetrim_${stage}
      PROPERTIES COMPILE_OPTIONS "${flags}" SKIP_PRECOMPILE_HEADERS ON)
  endforeach()
endfunction()
moetrim_instruction_sets(matrix matrix_product)
moetrim_instruction_sets(forward kernels_cpu)
