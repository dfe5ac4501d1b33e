# io_uring for reading, by liburing: linked whole, so that the program also runs where the library is not installed.
find_library(URING_LIBRARY NAMES liburing.a uring)
find_path(URING_INCLUDE liburing.h)
if(URING_LIBRARY AND URING_INCLUDE)
  set_source_files_properties(${CMAKE_SOURCE_DIR}/src/checkpoint/uring_queue.cpp TARGET_DIRECTORY moetrim_checkpoint
                              PROPERTIES COMPILE_DEFINITIONS MOETRIM_URING INCLUDE_DIRECTORIES ${URING_INCLUDE})
  target_link_libraries(moetrim_checkpoint PRIVATE ${URING_LIBRARY})
else()
  message(STATUS "liburing not found: checkpoints are read by threads")
endif()
