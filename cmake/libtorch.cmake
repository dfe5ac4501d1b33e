# LibTorch as the target `libtorch`, and fmt from its include path, with what of JSON is compiled once, as `formatting`.
#
# Torch's own CMake package insists on a whole CUDA toolkit whenever the wheel was built with CUDA; finding the headers and
# libraries directly also serves a build without CUDA (MOETRIM_CUDA=OFF) and a CPU-only LibTorch.
find_path(LIBTORCH_INCLUDE ATen/ATen.h PATH_SUFFIXES include
  HINTS ${CMAKE_PREFIX_PATH} ${CMAKE_SOURCE_DIR}/.venv/lib/python3.11/site-packages/torch
        ${CMAKE_SOURCE_DIR}/.venv/lib/python3.12/site-packages/torch
        ${CMAKE_SOURCE_DIR}/.venv/lib/python3.13/site-packages/torch)
if(NOT LIBTORCH_INCLUDE)
  message(FATAL_ERROR "LibTorch not found. Run scripts/setup.sh, or pass -DCMAKE_PREFIX_PATH=/path/to/torch (the folder that has include/ and lib/).")
endif()
get_filename_component(LIBTORCH_ROOT ${LIBTORCH_INCLUDE} DIRECTORY)

add_library(formatting STATIC ${CMAKE_CURRENT_LIST_DIR}/fmt.cpp ${CMAKE_CURRENT_LIST_DIR}/json.cpp)
target_include_directories(formatting SYSTEM PUBLIC ${LIBTORCH_INCLUDE})
set_target_properties(formatting PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
set(PRECOMPILED_JSON ${CMAKE_CURRENT_LIST_DIR}/json.h)

add_library(libtorch INTERFACE)
target_include_directories(libtorch SYSTEM INTERFACE ${LIBTORCH_INCLUDE} ${LIBTORCH_INCLUDE}/torch/csrc/api/include)
foreach(name torch_cpu c10)
  find_library(LIBTORCH_${name} ${name} HINTS ${LIBTORCH_ROOT}/lib NO_DEFAULT_PATH REQUIRED)
  target_link_libraries(libtorch INTERFACE ${LIBTORCH_${name}})
endforeach()
target_link_options(libtorch INTERFACE -Wl,-rpath,${LIBTORCH_ROOT}/lib)
# Programs find libmoetrim_cuda.so beside themselves, those of the tests one folder up.
set(CMAKE_BUILD_RPATH "$ORIGIN;$ORIGIN/..")

# CUDA: nvcc and the runtime, from the toolkit of CUDACXX or from PyPI's cuda-toolkit beside torch.
set(MOETRIM_HAS_CUDA OFF)
if(MOETRIM_CUDA)
  get_filename_component(site_packages ${LIBTORCH_ROOT} DIRECTORY)
  find_library(LIBTORCH_torch_cuda torch_cuda HINTS ${LIBTORCH_ROOT}/lib NO_DEFAULT_PATH)
  find_library(LIBTORCH_c10_cuda c10_cuda HINTS ${LIBTORCH_ROOT}/lib NO_DEFAULT_PATH)
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX} AND EXISTS ${site_packages}/nvidia/cu13/bin/nvcc)
    set(CMAKE_CUDA_COMPILER ${site_packages}/nvidia/cu13/bin/nvcc)
    set(CUDAToolkit_ROOT ${site_packages}/nvidia/cu13)
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 120)
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER AND LIBTORCH_torch_cuda AND LIBTORCH_c10_cuda)
    enable_language(CUDA)
    set(CMAKE_CUDA_STANDARD 20)
    find_package(CUDAToolkit REQUIRED)
    # Only libmoetrim_cuda.so links these. torch_cuda registers its kernels when it is loaded, and no symbol of it is referenced.
    add_library(libtorch_cuda INTERFACE)
    target_link_libraries(libtorch_cuda INTERFACE libtorch -Wl,--no-as-needed ${LIBTORCH_torch_cuda} ${LIBTORCH_c10_cuda}
                          -Wl,--as-needed CUDA::cudart)
    target_link_options(libtorch_cuda INTERFACE -Wl,-rpath,${CUDAToolkit_LIBRARY_DIR})
    set(MOETRIM_HAS_CUDA ON)
  else()
    message(STATUS "No nvcc or no CUDA LibTorch: building for the CPU alone")
  endif()
endif()
message(STATUS "LibTorch: ${LIBTORCH_ROOT}, CUDA kernels: ${MOETRIM_HAS_CUDA}")
