// Segmented BatchNorm with activation and residual, forward and backward; see ../segmented_batch_norm.h.
//
// Two passes each way. Forward: moments of the live channels (split over blocks, partial results in the workspace),
// then y of all channels; each block of the second pass merges its channels' partial moments for itself, in a fixed
// order, and one block of each channel writes the statistics. Backward likewise with the sums over dz. Frozen channels
// take part in the second pass only, as a multiply-add: no live value can reach them.
//
// Planes: [outer, channels, inner] with inner > 1, a block works on one channel. Rows: inner is 1, neighbouring
// threads work on neighbouring channels.

#include <algorithm>

#include "../segmented_batch_norm.h"
#include "activations.cuh"
#include "device.h"
#include "elements.cuh"
#include "moments.cuh"
#include "runtime.cuh"

namespace eidetic {

namespace {

constexpr int MAX_SPLITS = 64;
constexpr int ROW_VECTOR = 4;  // wider ones keep too many channels' numbers in registers
#ifdef EIDETIC_CUDA_ON_CPU
constexpr int STEPS = 2;  // so that small tests split, too
#else
constexpr int STEPS = 8;  // of each thread at least, before its channel is split further
#endif

using Norm = SegmentedBatchNorm;

// How the vectors (planes) or rows of a channel are split over gridDim.y.
struct Split {
    int64_t total, each;
    int parts;

    __device__ __forceinline__ int64_t begin(int part) const { return part * each; }
    __device__ __forceinline__ int64_t end(int part) const { return min((part + 1) * each, total); }
};

// z = (x - center) * scale + shift: of a frozen channel (center 0) and of a live one.
struct Affine {
    float center, scale, shift;
};

__device__ __forceinline__ Affine frozen_affine(const Norm& p, int64_t channel) {
    return {0.0f, read_parameter(p.frozen_scale, p.parameter_dtype, channel),
            read_parameter(p.frozen_shift, p.parameter_dtype, channel)};
}

__device__ __forceinline__ Affine live_affine(const Norm& p, int64_t live, float mean, float rstd) {
    const float weight = p.weight ? read_parameter(p.weight, p.parameter_dtype, live) : 1.0f;
    return {mean, __fmul_rn(rstd, weight), p.bias ? read_parameter(p.bias, p.parameter_dtype, live) : 0.0f};
}

template <class T, int V>
__device__ __forceinline__ void preactivation(const Norm& p, const Affine (&affine)[V], int64_t x_at,
                                              int64_t residual_at, float (&centered)[V], float (&z)[V]) {
    load<T, V>(p.x, x_at, centered);
#pragma unroll
    for (int i = 0; i < V; ++i) {
        centered[i] = __fsub_rn(centered[i], affine[i].center);
        z[i] = __fmaf_rn(centered[i], affine[i].scale, affine[i].shift);
    }
    if (p.residual) {
        float residual[V];
        load<T, V>(p.residual, residual_at, residual);
#pragma unroll
        for (int i = 0; i < V; ++i) z[i] = __fadd_rn(z[i], residual[i]);
    }
}

// ---- Partial results: two numbers a part and live channel ----

__device__ __forceinline__ float* partial(const Norm& p, int part, int64_t live) {
    return p.workspace + 2 * part * (p.channels - p.frozen) + live;
}

__device__ __forceinline__ void write_partial(const Norm& p, int64_t live, float first, float second) {
    float* const at = partial(p, blockIdx.y, live);
    at[0] = first;
    at[p.channels - p.frozen] = second;
}

// `elements` is how many a vector (planes) or row of the split counts for.
__device__ __forceinline__ Moments read_moments(const Norm& p, const Split& split, int part, int64_t live,
                                                int elements) {
    const float* const at = partial(p, part, live);
    return {static_cast<float>((split.end(part) - split.begin(part)) * elements), at[0], at[p.channels - p.frozen]};
}

__device__ __forceinline__ Sums read_sums(const Norm& p, int part, int64_t live) {
    const float* const at = partial(p, part, live);
    return {at[0], at[p.channels - p.frozen]};
}

// ---- From sums to what the second passes need ----

__device__ __forceinline__ float reciprocal_deviation(float variance, float eps) {
    return __fdiv_rn(1.0f, __fsqrt_rn(variance + eps));
}

// The live channel's affine; where `writer`, its statistics are kept: biased variance normalises, unbiased moves.
__device__ __forceinline__ Affine training_affine(const Norm& p, int64_t live, const Moments& moments, bool writer) {
    const float rstd = reciprocal_deviation(moments.squares / fmaxf(moments.count, 1.0f), p.eps);
    if (writer) {
        p.mean[live] = moments.mean;
        p.rstd[live] = rstd;
        if (moments.count > 0.0f) {
            const float variance = moments.squares / fmaxf(moments.count - 1.0f, 1.0f), keep = 1.0f - p.momentum;
            const Dtype dtype = p.parameter_dtype;
            write_parameter(p.running_mean, dtype, live,
                            keep * read_parameter(p.running_mean, dtype, live) + p.momentum * moments.mean);
            write_parameter(p.running_var, dtype, live,
                            keep * read_parameter(p.running_var, dtype, live) + p.momentum * variance);
        }
    }
    return live_affine(p, live, moments.mean, rstd);
}

__device__ __forceinline__ Affine evaluation_affine(const Norm& p, int64_t live, bool writer) {
    const float mean = read_parameter(p.running_mean, p.parameter_dtype, live);
    const float rstd = reciprocal_deviation(read_parameter(p.running_var, p.parameter_dtype, live), p.eps);
    if (writer) {
        p.mean[live] = mean;
        p.rstd[live] = rstd;
    }
    return live_affine(p, live, mean, rstd);
}

// Backward, one channel: dx = scale * (dz - mean_dz - (x - center) * slope), where statistics moved with x.
struct Gradient {
    float mean_dz, slope;
    bool frozen;
};

__device__ __forceinline__ Gradient live_gradient(const Norm& p, int64_t live, const Sums& sums, bool writer) {
    const float rstd = p.rstd[live];
    if (writer) {
        if (p.dweight) write_parameter(p.dweight, p.parameter_dtype, live, sums.dz_x * rstd);
        if (p.dbias) write_parameter(p.dbias, p.parameter_dtype, live, sums.dz);
    }
    const float count = static_cast<float>(p.outer * p.inner);
    return {sums.dz / count, sums.dz_x / count * rstd * rstd, false};
}

// dz [V] in, dx out; dz itself becomes the gradient of the residual.
template <int V>
__device__ __forceinline__ void finish_gradient(const Norm& p, const Affine (&affine)[V], const Gradient (&gradient)[V],
                                                const float (&centered)[V], float (&dz)[V], float (&dx)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
        float inner = dz[i];
        if (gradient[i].frozen) {
            if (!p.full_input_grad) inner = dz[i] = 0.0f;
        } else if (p.training) {
            inner = inner - gradient[i].mean_dz - centered[i] * gradient[i].slope;
        }
        dx[i] = gradient[i].frozen && !p.full_input_grad ? 0.0f : affine[i].scale * inner;
    }
}

template <int V>
__device__ __forceinline__ void welford(float& count, float (&mean)[V], float (&squares)[V], const float (&x)[V]) {
    count += 1.0f;
    const float share = 1.0f / count;
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const float distance = x[i] - mean[i];
        mean[i] += distance * share;
        squares[i] += distance * (x[i] - mean[i]);
    }
}

// ---- Planes ----

// Steps through a part of one channel's vectors, without a division a step.
template <int V>
class PlaneWalk {
  public:
    __device__ __forceinline__ PlaneWalk(const Norm& p, const Split& split, int64_t channel)
        : at_(split.begin(blockIdx.y) + threadIdx.x), end_(split.end(blockIdx.y)), per_plane_(p.inner / V),
          channel_offset_(channel * p.inner), outer_(0), vector_(0), outer_step_(0), vector_step_(0) {
        if (at_ >= end_) return;
        outer_ = at_ / per_plane_;
        vector_ = at_ % per_plane_;
        outer_step_ = THREADS / per_plane_;
        vector_step_ = THREADS % per_plane_;
    }
    __device__ __forceinline__ bool inside() const { return at_ < end_; }
    __device__ __forceinline__ void advance() {
        at_ += THREADS;
        outer_ += outer_step_;
        vector_ += vector_step_;
        if (vector_ >= per_plane_) {
            vector_ -= per_plane_;
            ++outer_;
        }
    }
    __device__ __forceinline__ int64_t offset(int64_t stride) const {
        return outer_ * stride + channel_offset_ + vector_ * V;
    }

  private:
    int64_t at_, end_, per_plane_, channel_offset_, outer_, vector_, outer_step_, vector_step_;
};

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) plane_moments(const Norm p, const Split split) {
    const int64_t live = blockIdx.x;
    float count = 0.0f, mean[V] = {}, squares[V] = {};
    for (PlaneWalk<V> walk(p, split, p.frozen + live); walk.inside(); walk.advance()) {
        float x[V];
        load<T, V>(p.x, walk.offset(p.x_stride), x);
        welford(count, mean, squares, x);
    }
    Moments moments{0.0f, 0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < V; ++i) moments.merge({count, mean[i], squares[i]});
    moments = merge_block(moments);
    if (threadIdx.x == 0) write_partial(p, live, moments.mean, moments.squares);
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) plane_forward(const Norm p, const Split split, const Split statistics) {
    const int64_t channel = blockIdx.x, live = channel - p.frozen;
    const bool writer = blockIdx.y == 0 && threadIdx.x == 0;
    Affine affine;
    if (live < 0) {
        affine = frozen_affine(p, channel);
    } else if (!p.training) {
        affine = evaluation_affine(p, live, writer);
    } else {
        Moments moments{0.0f, 0.0f, 0.0f};
        const int part = threadIdx.x;
        if (part < statistics.parts) moments = read_moments(p, statistics, part, live, V);
        affine = training_affine(p, live, merge_block(moments), writer);
    }
    Affine all[V];
#pragma unroll
    for (int i = 0; i < V; ++i) all[i] = affine;
    const int64_t y_stride = p.channels * p.inner;
    for (PlaneWalk<V> walk(p, split, channel); walk.inside(); walk.advance()) {
        float centered[V], z[V];
        preactivation<T, V>(p, all, walk.offset(p.x_stride), walk.offset(p.residual_stride), centered, z);
        activate(z, p.activation);
        store<T, V>(p.y, walk.offset(y_stride), z);
    }
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) plane_sums(const Norm p, const Split split) {
    const int64_t live = blockIdx.x;
    const Affine affine = live_affine(p, live, p.mean[live], p.rstd[live]);
    Affine all[V];
#pragma unroll
    for (int i = 0; i < V; ++i) all[i] = affine;
    Sums sums{0.0f, 0.0f};
    for (PlaneWalk<V> walk(p, split, p.frozen + live); walk.inside(); walk.advance()) {
        float centered[V], z[V], dz[V];
        preactivation<T, V>(p, all, walk.offset(p.x_stride), walk.offset(p.residual_stride), centered, z);
        load<T, V>(p.dy, walk.offset(p.dy_stride), dz);
        multiply_by_slope(dz, z, p.activation);
#pragma unroll
        for (int i = 0; i < V; ++i) sums.merge({dz[i], dz[i] * centered[i]});
    }
    sums = merge_block(sums);
    if (threadIdx.x == 0) write_partial(p, live, sums.dz, sums.dz_x);
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) plane_backward(const Norm p, const Split split, const Split statistics) {
    const int64_t channel = blockIdx.x, live = channel - p.frozen;
    Affine affine;
    Gradient gradient{0.0f, 0.0f, live < 0};
    if (live < 0) {
        affine = frozen_affine(p, channel);
    } else {
        Sums sums{0.0f, 0.0f};
        const int part = threadIdx.x;
        if (part < statistics.parts) sums = read_sums(p, part, live);
        affine = live_affine(p, live, p.mean[live], p.rstd[live]);
        gradient = live_gradient(p, live, merge_block(sums), blockIdx.y == 0 && threadIdx.x == 0);
    }
    if (!p.dx && !p.dresidual) return;
    Affine all[V];
    Gradient gradients[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
        all[i] = affine;
        gradients[i] = gradient;
    }
    const int64_t out_stride = p.channels * p.inner;
    for (PlaneWalk<V> walk(p, split, channel); walk.inside(); walk.advance()) {
        float centered[V], z[V], dz[V], dx[V];
        preactivation<T, V>(p, all, walk.offset(p.x_stride), walk.offset(p.residual_stride), centered, z);
        load<T, V>(p.dy, walk.offset(p.dy_stride), dz);
        multiply_by_slope(dz, z, p.activation);
        finish_gradient(p, all, gradients, centered, dz, dx);
        if (p.dx) store<T, V>(p.dx, walk.offset(out_stride), dx);
        if (p.dresidual) store<T, V>(p.dresidual, walk.offset(out_stride), dz);
    }
}

// ---- Rows ----
// Every thread has V neighbouring channels; V divides p.channels. The first passes begin at the last vector boundary
// that is not after the first live channel, and drop what they computed of frozen ones.

template <int V>
__device__ __forceinline__ int64_t first_channel(int64_t from) {
    return from / V * V + (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) row_moments(const Norm p, const Split split) {
    const int64_t channel = first_channel<V>(p.frozen);
    float count = 0.0f, mean[V] = {}, squares[V] = {};
    if (channel < p.channels) {
        const int64_t end = split.end(blockIdx.y);
        for (int64_t row = split.begin(blockIdx.y) + threadIdx.y; row < end; row += blockDim.y) {
            float x[V];
            load<T, V>(p.x, row * p.x_stride + channel, x);
            welford(count, mean, squares, x);
        }
    }
    Moments moments[V];
#pragma unroll
    for (int i = 0; i < V; ++i) moments[i] = {count, mean[i], squares[i]};
    merge_columns(moments);
    if (threadIdx.y != 0 || channel >= p.channels) return;
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const int64_t live = channel + i - p.frozen;
        if (live >= 0) write_partial(p, live, moments[i].mean, moments[i].squares);
    }
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) row_forward(const Norm p, const Split split, const Split statistics) {
    const int64_t channel = first_channel<V>(0);
    const bool inside = channel < p.channels, writer = blockIdx.y == 0 && threadIdx.y == 0;
    Moments moments[V];
#pragma unroll
    for (int i = 0; i < V; ++i) moments[i] = {0.0f, 0.0f, 0.0f};
    if (p.training && p.frozen < p.channels) {  // the same for all threads
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const int64_t live = channel + i - p.frozen;
            if (!inside || live < 0) continue;
            for (int part = threadIdx.y; part < statistics.parts; part += blockDim.y) {
                moments[i].merge(read_moments(p, statistics, part, live, 1));
            }
        }
        merge_columns(moments);
    }
    if (!inside) return;
    Affine affine[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const int64_t live = channel + i - p.frozen;
        affine[i] = live < 0      ? frozen_affine(p, channel + i)
                    : !p.training ? evaluation_affine(p, live, writer)
                                  : training_affine(p, live, moments[i], writer);
    }
    const int64_t end = split.end(blockIdx.y);
    for (int64_t row = split.begin(blockIdx.y) + threadIdx.y; row < end; row += blockDim.y) {
        float centered[V], z[V];
        preactivation<T, V>(p, affine, row * p.x_stride + channel, row * p.residual_stride + channel, centered, z);
        activate(z, p.activation);
        store<T, V>(p.y, row * p.channels + channel, z);
    }
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) row_sums(const Norm p, const Split split) {
    const int64_t channel = first_channel<V>(p.frozen);
    Sums sums[V];
#pragma unroll
    for (int i = 0; i < V; ++i) sums[i] = {0.0f, 0.0f};
    if (channel < p.channels) {
        Affine affine[V];
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const int64_t live = channel + i - p.frozen;
            affine[i] = live < 0 ? Affine{0.0f, 0.0f, 0.0f} : live_affine(p, live, p.mean[live], p.rstd[live]);
        }
        const int64_t end = split.end(blockIdx.y);
        for (int64_t row = split.begin(blockIdx.y) + threadIdx.y; row < end; row += blockDim.y) {
            float centered[V], z[V], dz[V];
            preactivation<T, V>(p, affine, row * p.x_stride + channel, row * p.residual_stride + channel, centered, z);
            load<T, V>(p.dy, row * p.dy_stride + channel, dz);
            multiply_by_slope(dz, z, p.activation);
#pragma unroll
            for (int i = 0; i < V; ++i) sums[i].merge({dz[i], dz[i] * centered[i]});
        }
    }
    merge_columns(sums);
    if (threadIdx.y != 0 || channel >= p.channels) return;
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const int64_t live = channel + i - p.frozen;
        if (live >= 0) write_partial(p, live, sums[i].dz, sums[i].dz_x);
    }
}

template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4) row_backward(const Norm p, const Split split, const Split statistics) {
    const int64_t channel = first_channel<V>(0);
    const bool inside = channel < p.channels, writer = blockIdx.y == 0 && threadIdx.y == 0;
    Sums sums[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
        sums[i] = {0.0f, 0.0f};
        const int64_t live = channel + i - p.frozen;
        if (!inside || live < 0) continue;
        for (int part = threadIdx.y; part < statistics.parts; part += blockDim.y) {
            sums[i].merge(read_sums(p, part, live));
        }
    }
    merge_columns(sums);
    if (!inside) return;
    Affine affine[V];
    Gradient gradient[V];
#pragma unroll
    for (int i = 0; i < V; ++i) {
        const int64_t live = channel + i - p.frozen;
        if (live < 0) {
            affine[i] = frozen_affine(p, channel + i);
            gradient[i] = {0.0f, 0.0f, true};
        } else {
            affine[i] = live_affine(p, live, p.mean[live], p.rstd[live]);
            gradient[i] = live_gradient(p, live, sums[i], writer);
        }
    }
    if (!p.dx && !p.dresidual) return;
    const int64_t end = split.end(blockIdx.y);
    for (int64_t row = split.begin(blockIdx.y) + threadIdx.y; row < end; row += blockDim.y) {
        float centered[V], z[V], dz[V], dx[V];
        preactivation<T, V>(p, affine, row * p.x_stride + channel, row * p.residual_stride + channel, centered, z);
        load<T, V>(p.dy, row * p.dy_stride + channel, dz);
        multiply_by_slope(dz, z, p.activation);
        finish_gradient(p, affine, gradient, centered, dz, dx);
        if (p.dx) store<T, V>(p.dx, row * p.channels + channel, dx);
        if (p.dresidual) store<T, V>(p.dresidual, row * p.channels + channel, dz);
    }
}

// ---- Launching ----

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// All that the kernels touch may be read and written V elements at a time.
bool allows_vectors(const Norm& p, int V, int64_t element_bytes) {
    const int64_t contiguous = p.inner == 1 ? p.channels : p.inner;
    bool fits = contiguous % V == 0 && p.x_stride % V == 0;
    if (p.residual) fits = fits && p.residual_stride % V == 0;
    if (p.dy) fits = fits && p.dy_stride % V == 0;
    for (const void* pointer : {p.x, p.residual, p.dy, const_cast<const void*>(p.y), const_cast<const void*>(p.dx),
                                const_cast<const void*>(p.dresidual)}) {
        fits = fits && reinterpret_cast<uintptr_t>(pointer) % (V * element_bytes) == 0;
    }
    return fits;
}

// At least `least` units each, no more parts than `most`, and enough that `blocks` times the parts fill the device.
Split split_up(int64_t total, int64_t least, int64_t blocks, int64_t wanted_blocks, int64_t most) {
    int64_t parts = std::min({divide_up(wanted_blocks, blocks), divide_up(total, least), most});
    parts = std::max<int64_t>(parts, 1);
    const int64_t each = std::max<int64_t>(divide_up(total, parts), 1);
    return {total, each, static_cast<int>(std::max<int64_t>(divide_up(total, each), 1))};
}

// Grids of the two passes. Both splits depend on sizes and the device alone, so that results repeat.
struct Plan {
    dim3 first_grid, second_grid, block;
    Split first, second;
};

Plan make_plan(const Norm& p, int V, int64_t processors) {
    const int64_t live = p.channels - p.frozen, first_blocks_wanted = 8 * processors;
    const int64_t second_blocks_wanted = 65535;  // as many as have work: nothing is merged afterwards
    Plan plan;
    int64_t total, least, first_columns, second_columns;
    if (p.inner == 1) {
        int width = 1;
        while (width < WARP && width * V < p.channels) width *= 2;
        plan.block = dim3(width, THREADS / width);
        total = p.outer;
        least = STEPS * (THREADS / width);
        first_columns = divide_up(p.channels - p.frozen / V * V, width * V);
        second_columns = divide_up(p.channels, width * V);
    } else {
        plan.block = dim3(THREADS);
        total = p.outer * (p.inner / V);
        least = STEPS * THREADS;
        first_columns = std::max<int64_t>(live, 1);
        second_columns = p.channels;
    }
    plan.first = split_up(total, least, std::max<int64_t>(first_columns, 1), first_blocks_wanted, MAX_SPLITS);
    plan.second = split_up(total, least, 1, second_blocks_wanted, second_blocks_wanted);
    plan.first_grid = dim3(first_columns, plan.first.parts);
    plan.second_grid = dim3(second_columns, plan.second.parts);
    return plan;
}

using FirstPass = void (*)(const Norm, const Split);
using SecondPass = void (*)(const Norm, const Split, const Split);

cudaError_t launch(const Norm& p, const Plan& plan, bool needs_first, FirstPass first, SecondPass second) {
    const auto stream = static_cast<cudaStream_t>(p.stream);
    if (needs_first) {
        EIDETIC_LAUNCH(first, plan.first_grid, plan.block, stream, p, plan.first);
        const cudaError_t status = cudaGetLastError();
        if (status != cudaSuccess) return status;
    }
    EIDETIC_LAUNCH(second, plan.second_grid, plan.block, stream, p, plan.second, plan.first);
    return cudaGetLastError();
}

template <class T, int V>
cudaError_t run_planes(const Norm& p, const Plan& plan, bool is_forward, bool needs_first) {
    if (is_forward) return launch(p, plan, needs_first, plane_moments<T, V>, plane_forward<T, V>);
    return launch(p, plan, needs_first, plane_sums<T, V>, plane_backward<T, V>);
}

template <class T, int V>
cudaError_t run_rows(const Norm& p, const Plan& plan, bool is_forward, bool needs_first) {
    if (is_forward) return launch(p, plan, needs_first, row_moments<T, V>, row_forward<T, V>);
    return launch(p, plan, needs_first, row_sums<T, V>, row_backward<T, V>);
}

template <class T>
cudaError_t dispatch(const Norm& p, bool is_forward, int64_t processors) {
    constexpr int PLANE_VECTOR = 16 / sizeof(T);
    const bool rows = p.inner == 1;
    const int wide = rows ? ROW_VECTOR : PLANE_VECTOR, V = allows_vectors(p, wide, sizeof(T)) ? wide : 1;
    const Plan plan = make_plan(p, V, processors);
    const bool needs_first = p.frozen < p.channels && (p.training || !is_forward);
    if (rows && V == 1) return run_rows<T, 1>(p, plan, is_forward, needs_first);
    if (rows) return run_rows<T, ROW_VECTOR>(p, plan, is_forward, needs_first);
    if (V == 1) return run_planes<T, 1>(p, plan, is_forward, needs_first);
    return run_planes<T, PLANE_VECTOR>(p, plan, is_forward, needs_first);
}

std::string run_on_device(const Norm& p, bool is_forward) {
    if (p.channels == 0) return "";
    const DeviceGuard guard(p.device);
    if (guard.status() != cudaSuccess) return cuda_error_text(guard.status());
    int processors = 0;
    cudaError_t status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, p.device);
    if (status != cudaSuccess) return cuda_error_text(status);
    switch (p.dtype) {
        case Dtype::float32: status = dispatch<float>(p, is_forward, processors); break;
        case Dtype::bfloat16: status = dispatch<__nv_bfloat16>(p, is_forward, processors); break;
        case Dtype::float16: status = dispatch<__half>(p, is_forward, processors); break;
    }
    return cuda_error_text(status);
}

}  // namespace

std::string segmented_batch_norm_forward(const SegmentedBatchNorm& norm) { return run_on_device(norm, true); }

std::string segmented_batch_norm_backward(const SegmentedBatchNorm& norm) { return run_on_device(norm, false); }

int64_t segmented_batch_norm_workspace(const SegmentedBatchNorm& norm) {
    return 2 * MAX_SPLITS * (norm.channels - norm.frozen);
}

}  // namespace eidetic
