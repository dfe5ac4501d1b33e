// The CPU loops for one instruction set: avx512. Flags are set in cmake/instruction_sets.cmake.

#include "forward/kernels_cpu.h"

namespace moetrim::kernels {

namespace avx512 {
#include "forward/kernels_cpu_loops.inc"
}  // namespace avx512

const CpuTable* tables_avx512() { return avx512::kTables; }

}  // namespace moetrim::kernels
