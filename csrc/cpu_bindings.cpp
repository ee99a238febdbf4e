#include "bindings.h"

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "C++ kernels for the CPU; called by eidetic_kernels.cpu alone.";
    eidetic::bind_segmented_batch_norm(m);
}
