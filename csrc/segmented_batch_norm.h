// Segmented BatchNorm with activation and residual; the contract is in eidetic_kernels/ops/batch_norm.py.
//
// The CUDA and the CPU implementation have the same entry points and are linked into different modules. Tensors are
// seen as [outer, channels, inner]: contiguous [N, C, H, W] is [N, C, H * W]; channels_last [N, C, H, W] and [N, C] have
// inner = 1. Within one outer index memory is dense; from one to the next it is the tensor's stride, so that a slice
// of the columns of [N, C] runs as it is. Outputs are dense.
#pragma once
#include <cstdint>
#include <string>

namespace eidetic {

enum class Dtype : int { float32, bfloat16, float16 };

// The order of eidetic_kernels/backends/activations.py.
enum class Activation : int { none, relu, relu6, silu, gelu, hardswish };

struct SegmentedBatchNorm {
    int64_t outer, channels, inner;  // any may be 0
    int64_t frozen;                  // channels [0, frozen) are frozen, [frozen, channels) live
    int64_t x_stride, residual_stride, dy_stride;  // elements from one outer index to the next

    Dtype dtype;            // of x, residual, dy, y, dx, dresidual
    Dtype parameter_dtype;  // of weight, bias, their gradients, running statistics, frozen scale and shift
    Activation activation;
    bool training;  // batch statistics, and running statistics move
    bool full_input_grad;   // backward: frozen channels get their true gradient instead of zeros
    float momentum, eps;

    const void *x, *residual;  // residual: null for none
    const void *weight, *bias, *frozen_scale, *frozen_shift;  // weight, bias [live] or null; frozen_* [frozen]
    void *running_mean, *running_var;                         // [live]; forward only
    float *mean, *rstd;  // [live]: forward writes them, backward reads them

    void* y;                // forward; x where a value's place is its own (inner > 1)
    const void* dy;         // backward
    void *dx, *dresidual;   // backward; null where not wanted
    void *dweight, *dbias;  // backward [live]; null where not wanted
    float* workspace;       // segmented_batch_norm_workspace(norm) floats

    int device;    // CUDA: the device of all pointers
    void* stream;  // CUDA: where the kernels are enqueued
    int threads;   // CPU: how many to use at most
};

// Each returns an empty string, or what went wrong.
std::string segmented_batch_norm_forward(const SegmentedBatchNorm& norm);
std::string segmented_batch_norm_backward(const SegmentedBatchNorm& norm);

// How many floats of workspace a problem of these sizes needs, in either direction.
int64_t segmented_batch_norm_workspace(const SegmentedBatchNorm& norm);

}  // namespace eidetic
