// The CUDA runtime, or for tests its stand-in on the CPU, and how kernels are launched.
#pragma once

#ifdef EIDETIC_CUDA_ON_CPU
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define EIDETIC_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif

namespace eidetic {

// Makes a device current for as long as it lives; torch's own choice is left as it was.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        status_ = cudaGetDevice(&previous_);
        if (status_ == cudaSuccess && previous_ != device) {
            status_ = cudaSetDevice(device);
            changed_ = status_ == cudaSuccess;
        }
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;
    cudaError_t status() const { return status_; }

  private:
    cudaError_t status_ = cudaSuccess;
    int previous_ = 0;
    bool changed_ = false;
};

}  // namespace eidetic
