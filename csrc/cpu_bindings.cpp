#include <pybind11/stl.h>

#include "bindings.h"
#include "cpu/instruction_sets.h"

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "C++ kernels for the CPU; called by eidetic_kernels.backends.cpu alone.";
    m.def("instruction_sets", &eidetic::instruction_sets, "those of this build and processor, best first");
    m.def("use_instruction_set", [](const std::string& name) {
        const std::string error = eidetic::use_instruction_set(name);
        if (!error.empty()) throw std::invalid_argument(error);
    }, "for tests and measurements; the best is used unasked");
    eidetic::bind_segmented_batch_norm(m);
}
