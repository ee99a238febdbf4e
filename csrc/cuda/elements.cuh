// Reading and writing tensors: one element or a vector at a time, computed with as float32.
#pragma once
#include <cstdint>

#include "../segmented_batch_norm.h"
#include "runtime.cuh"

namespace eidetic {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }

template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) { return value; }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }
template <>
__device__ __forceinline__ __half from_float<__half>(float value) { return __float2half_rn(value); }

// V elements that are moved by one instruction.
template <class T, int V>
struct alignas(sizeof(T) * V) Vector {
    T element[V];
};

template <class T, int V>
__device__ __forceinline__ void load(const void* base, int64_t offset, float (&values)[V]) {
    const auto vector = *reinterpret_cast<const Vector<T, V>*>(static_cast<const T*>(base) + offset);
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] = to_float(vector.element[i]);
}

template <class T, int V>
__device__ __forceinline__ void store(void* base, int64_t offset, const float (&values)[V]) {
    Vector<T, V> vector;
#pragma unroll
    for (int i = 0; i < V; ++i) vector.element[i] = from_float<T>(values[i]);
    *reinterpret_cast<Vector<T, V>*>(static_cast<T*>(base) + offset) = vector;
}

// Parameters are read once a channel, in whatever dtype they have.
__device__ __forceinline__ float read_parameter(const void* base, Dtype dtype, int64_t index) {
    switch (dtype) {
        case Dtype::float32: return static_cast<const float*>(base)[index];
        case Dtype::bfloat16: return to_float(static_cast<const __nv_bfloat16*>(base)[index]);
        default: return to_float(static_cast<const __half*>(base)[index]);
    }
}

__device__ __forceinline__ void write_parameter(void* base, Dtype dtype, int64_t index, float value) {
    switch (dtype) {
        case Dtype::float32: static_cast<float*>(base)[index] = value; break;
        case Dtype::bfloat16: static_cast<__nv_bfloat16*>(base)[index] = __float2bfloat16_rn(value); break;
        default: static_cast<__half*>(base)[index] = __float2half_rn(value);
    }
}

}  // namespace eidetic
