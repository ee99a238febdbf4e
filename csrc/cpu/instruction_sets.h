// Which vector instructions the kernels run on. Every set gives the same bits: the same operations in the same order,
// never fused, on the same 16 lanes.
#pragma once
#include <string>
#include <vector>

#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EIDETIC_X86
#endif

namespace eidetic {

namespace portable {
Kernels kernels(Activation activation);
}
#ifdef EIDETIC_X86
namespace avx2 {
Kernels kernels(Activation activation);
}
namespace avx512 {
Kernels kernels(Activation activation);
}
#endif

// Those that this build holds and this processor has, best first; the first is used unless another is chosen.
std::vector<std::string> instruction_sets();

// For tests and measurements. Returns an empty string, or what went wrong.
std::string use_instruction_set(const std::string& name);

}  // namespace eidetic
