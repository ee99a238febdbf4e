// The kernels for AVX2.
#include "rounding.h"

#include <cstring>

#include "instruction_sets.h"
#include "numbers.h"

#ifdef EIDETIC_X86
#pragma GCC target("avx2")  // after the library's headers, whose functions other files share
namespace eidetic {
namespace avx2 {
#include "lanes.h"
#include "planes.h"
#include "rows.h"
#include "table.h"
}  // namespace avx2
}  // namespace eidetic
#endif
