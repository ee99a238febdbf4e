#include "bindings.h"
#include "cuda/device.h"

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels; called by eidetic_kernels.backends.cuda alone.";
    m.def("device_count", [] {
        std::string error;
        int count = eidetic::cuda_device_count(error);
        return pybind11::make_tuple(count, error);
    }, "(how many devices, why none)");
    m.def("built_for", &eidetic::cuda_built_for, "CUDA version of the build, 1000 * major + 10 * minor");
    m.def("driver_supports", &eidetic::cuda_driver_supports, "the same for the driver; 0 without one");
    m.def("code", &eidetic::cuda_code, "the GPU code that it holds: sm_80:sm_90:compute_90");
    m.def("error_text", &eidetic::cuda_error_text, "what a CUDA error's number means and what to do");
    eidetic::bind_segmented_batch_norm(m);
}
