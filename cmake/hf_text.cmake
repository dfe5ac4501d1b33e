# The tokenizer library: a static archive built by cargo, as the target `hf_text`.
find_program(CARGO cargo HINTS $ENV{HOME}/.cargo/bin REQUIRED)
set(hf_text_dir ${CMAKE_SOURCE_DIR}/src/text/hf_text)
set(hf_text_archive ${CMAKE_BINARY_DIR}/hf_text/release/libhf_text.a)
file(GLOB hf_text_sources CONFIGURE_DEPENDS ${hf_text_dir}/src/*.rs)
add_custom_command(
  OUTPUT ${hf_text_archive}
  COMMAND ${CARGO} build --release --locked --quiet --manifest-path ${hf_text_dir}/Cargo.toml --target-dir ${CMAKE_BINARY_DIR}/hf_text
  DEPENDS ${hf_text_sources} ${hf_text_dir}/Cargo.toml ${hf_text_dir}/Cargo.lock
  COMMENT "Building the tokenizer library")
add_custom_target(hf_text_build DEPENDS ${hf_text_archive})
add_library(hf_text INTERFACE)
add_dependencies(hf_text hf_text_build)
target_link_libraries(hf_text INTERFACE ${hf_text_archive} dl pthread m)
