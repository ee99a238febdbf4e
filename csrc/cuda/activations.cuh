// The activations and their derivatives, with NaN, infinities and kinks as torch has them.
//
// The activation is chosen at run time, once a vector: all threads agree, so that it costs a jump and saves six times
// the code. Rounding is spelled out (__fmul_rn and the like are never fused), so that an element's bits do not depend
// on the kernel that it passes through.
#pragma once

#include "../segmented_batch_norm.h"
#include "runtime.cuh"

namespace eidetic {

__device__ __forceinline__ float logistic(float z) { return __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(-z))); }

// The normal distribution's cumulative function.
__device__ __forceinline__ float normal_cdf(float z) {
    constexpr float sqrt_half = 0.70710678118654752f;
    return __fmul_rn(0.5f, __fadd_rn(1.0f, erff(__fmul_rn(z, sqrt_half))));
}

__device__ __forceinline__ float normal_density(float z) {
    constexpr float peak = 0.39894228040143268f;
    return __fmul_rn(peak, expf(__fmul_rn(-0.5f, __fmul_rn(z, z))));
}

// Comparisons, not fminf and fmaxf, which would turn NaN into a number.
template <int V>
__device__ __forceinline__ void activate(float (&z)[V], Activation activation) {
    switch (activation) {
        case Activation::none: break;
        case Activation::relu:
#pragma unroll
            for (int i = 0; i < V; ++i) z[i] = z[i] < 0.0f ? 0.0f : z[i];
            break;
        case Activation::relu6:
#pragma unroll
            for (int i = 0; i < V; ++i) z[i] = z[i] < 0.0f ? 0.0f : z[i] > 6.0f ? 6.0f : z[i];
            break;
        case Activation::silu:
#pragma unroll
            for (int i = 0; i < V; ++i) z[i] = __fdiv_rn(z[i], __fadd_rn(1.0f, expf(-z[i])));
            break;
        case Activation::gelu:
#pragma unroll
            for (int i = 0; i < V; ++i) z[i] = __fmul_rn(z[i], normal_cdf(z[i]));
            break;
        case Activation::hardswish:
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const float gate = fminf(fmaxf(__fadd_rn(z[i], 3.0f), 0.0f), 6.0f);
                z[i] = __fmul_rn(__fmul_rn(z[i], gate), 1.0f / 6.0f);
            }
            break;
    }
}

// dz *= the activation's derivative at z. A gradient passes where z is NaN.
template <int V>
__device__ __forceinline__ void multiply_by_slope(float (&dz)[V], const float (&z)[V], Activation activation) {
    switch (activation) {
        case Activation::none: break;
        case Activation::relu:
#pragma unroll
            for (int i = 0; i < V; ++i) dz[i] = z[i] <= 0.0f ? 0.0f : dz[i];
            break;
        case Activation::relu6:
#pragma unroll
            for (int i = 0; i < V; ++i) dz[i] = z[i] <= 0.0f || z[i] >= 6.0f ? 0.0f : dz[i];
            break;
        case Activation::silu:
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const float gate = logistic(z[i]);
                dz[i] *= gate * (1.0f + z[i] * (1.0f - gate));
            }
            break;
        case Activation::gelu:
#pragma unroll
            for (int i = 0; i < V; ++i) dz[i] *= normal_cdf(z[i]) + z[i] * normal_density(z[i]);
            break;
        case Activation::hardswish:
#pragma unroll
            for (int i = 0; i < V; ++i) {
                dz[i] = z[i] <= -3.0f ? 0.0f : z[i] < 3.0f ? dz[i] * (z[i] / 3.0f + 0.5f) : dz[i];
            }
            break;
    }
}

}  // namespace eidetic
