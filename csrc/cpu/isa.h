// Instruction sets of the CPU backend. Each is a copy of the kernels, compiled with its own flags.
#pragma once

namespace frugalore {

enum class Isa { baseline, avx2, avx512 };

namespace cpu {

// The set in use: the best that this build has and this machine runs, or the one that the environment
// variable FRUGALORE_ISA names. Throws std::invalid_argument if that one is unknown or cannot run here.
Isa active_isa();

// Forces a set by name ("baseline", "avx2", "avx512"), for tests and benchmarks. Same errors.
void force_isa(const char* name);

const char* isa_name(Isa isa);

// Who made this processor: "intel", "amd" or "other".
const char* cpu_vendor();

}  // namespace cpu
}  // namespace frugalore
