#include <string>

#ifdef EIDETIC_CUDA_ON_CPU
#include "cuda_on_cpu.h"
#else
#include <cuda_runtime.h>
#endif

#include "device.h"

namespace eidetic {

namespace {

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string hint(int error) {
    switch (error) {
        case cudaErrorInsufficientDriver:
            return cuda_driver_supports() == 0
                       ? "there is no NVIDIA driver on this machine: install one, or use the CPU."
                       : "the NVIDIA driver supports CUDA " + version_text(cuda_driver_supports()) +
                             " at most and this build needs " + version_text(cuda_built_for()) +
                             ": update the driver, or install a build for its CUDA version.";
        case cudaErrorNoDevice:
            return "the NVIDIA driver shows no device to this process: check nvidia-smi and CUDA_VISIBLE_DEVICES.";
        case cudaErrorNoKernelImageForDevice:
        case cudaErrorUnsupportedPtxVersion:
            return "this build has no code for the device: build it again with its architecture in "
                   "EIDETIC_CUDA_ARCHS.";
        default:
            return "";
    }
}

}  // namespace

std::string cuda_error_text(int error) {
    if (error == cudaSuccess) return "";
    std::string text = "CUDA error " + std::to_string(error) + ", " +
                       cudaGetErrorString(static_cast<cudaError_t>(error));
    const std::string advice = hint(error);
    return advice.empty() ? text : text + ": " + advice;
}

int cuda_device_count(std::string& error) {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    error = cuda_error_text(status);
    if (status != cudaSuccess) {
        cudaGetLastError();  // said once; the next launch must not report it again
        return 0;
    }
    return count;
}

int cuda_built_for() { return CUDART_VERSION; }

#define EIDETIC_TEXT(value) #value
#define EIDETIC_TEXT_OF(macro) EIDETIC_TEXT(macro)
#ifndef EIDETIC_CUDA_CODE  // setup.py names it
#define EIDETIC_CUDA_CODE
#endif

const char* cuda_code() { return EIDETIC_TEXT_OF(EIDETIC_CUDA_CODE); }

int cuda_driver_supports() {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace eidetic
