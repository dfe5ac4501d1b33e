// The CPU loops for one instruction set: avx2. Flags are set in cmake/instruction_sets.cmake.

#include "forward/kernels_cpu.h"

namespace moetrim::kernels {

namespace avx2 {
#include "forward/kernels_cpu_loops.inc"
}  // namespace avx2

const CpuTable* tables_avx2() { return avx2::kTables; }

}  // namespace moetrim::kernels
