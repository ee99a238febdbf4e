// What is summed up over a channel, and how the sums of a block's threads are merged: always in the same order, so
// that the same inputs give the same bits.
#pragma once

#include "runtime.cuh"

namespace eidetic {

constexpr int THREADS = 256;  // of every block
constexpr int WARP = 32;

// Count, mean and sum of squared distances from the mean. Sums of squares would cancel where the mean is large
// beside the deviation; these do not (Welford 1962; merging: Chan, Golub and LeVeque 1979).
struct Moments {
    float count, mean, squares;

    __device__ __forceinline__ void merge(const Moments& other) {
        if (other.count == 0.0f) return;
        if (count == 0.0f) {
            *this = other;
            return;
        }
        const float total = count + other.count, distance = other.mean - mean, share = other.count / total;
        mean += distance * share;
        squares += other.squares + distance * distance * count * share;
        count = total;
    }
    __device__ __forceinline__ Moments from_lane_below(int offset) const {
        return {__shfl_down_sync(0xffffffffu, count, offset), __shfl_down_sync(0xffffffffu, mean, offset),
                __shfl_down_sync(0xffffffffu, squares, offset)};
    }
};

// Backward: the sums of dz and of dz * (x - mean).
struct Sums {
    float dz, dz_x;

    __device__ __forceinline__ void merge(const Sums& other) {
        dz += other.dz;
        dz_x += other.dz_x;
    }
    __device__ __forceinline__ Sums from_lane_below(int offset) const {
        return {__shfl_down_sync(0xffffffffu, dz, offset), __shfl_down_sync(0xffffffffu, dz_x, offset)};
    }
};

// Merges the values of all threads of a one-dimensional block; every thread gets the result. Once a kernel.
template <class Sum>
__device__ __forceinline__ Sum merge_block(Sum sum) {
    __shared__ Sum warps[THREADS / WARP];
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) sum.merge(sum.from_lane_below(offset));
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = sum;
    __syncthreads();
    sum = warps[0];
#pragma unroll
    for (int warp = 1; warp < THREADS / WARP; ++warp) sum.merge(warps[warp]);
    return sum;
}

// Merges over threadIdx.y, for each of the V channels of each threadIdx.x; every thread gets the result of its
// channels. blockDim.y is a power of two. Once a kernel.
template <class Sum, int V>
__device__ __forceinline__ void merge_columns(Sum (&sums)[V]) {
    __shared__ Sum shared[V][THREADS];
    const int own = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll
    for (int i = 0; i < V; ++i) shared[i][own] = sums[i];
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.y) < half) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                sums[i].merge(shared[i][own + half * blockDim.x]);
                shared[i][own] = sums[i];
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < V; ++i) sums[i] = shared[i][threadIdx.x];
}

}  // namespace eidetic
