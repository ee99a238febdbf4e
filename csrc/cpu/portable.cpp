// The kernels for any processor.
#include "rounding.h"

#include <cstring>

#include "instruction_sets.h"
#include "numbers.h"

namespace eidetic {
namespace portable {
#include "lanes.h"
#include "planes.h"
#include "rows.h"
#include "table.h"
}  // namespace portable
}  // namespace eidetic
