// The CPU loops for one instruction set: baseline. Flags are set in cmake/instruction_sets.cmake.

#include "forward/kernels_cpu.h"

namespace moetrim::kernels {

namespace baseline {
#include "forward/kernels_cpu_loops.inc"
}  // namespace baseline

const CpuTable* tables_baseline() { return baseline::kTables; }

}  // namespace moetrim::kernels
