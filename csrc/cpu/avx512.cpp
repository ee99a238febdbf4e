// The kernels for AVX-512.
#include "rounding.h"

#include <cstring>

#include "instruction_sets.h"
#include "numbers.h"

#ifdef EIDETIC_X86
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")  // after the library's headers, whose functions other files share
namespace eidetic {
namespace avx512 {
#include "lanes.h"
#include "planes.h"
#include "rows.h"
#include "table.h"
}  // namespace avx512
}  // namespace eidetic
#endif
