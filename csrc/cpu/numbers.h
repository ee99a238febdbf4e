// Scalars of a channel: parameters, moments and how they merge. All float32.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../segmented_batch_norm.h"

namespace eidetic {

inline float number(const void* base, int64_t index) { return static_cast<const float*>(base)[index]; }
inline float& number(void* base, int64_t index) { return static_cast<float*>(base)[index]; }

// Count, mean and sum of squared distances from the mean (merging: Chan, Golub and LeVeque 1979).
struct Moments {
    float count = 0, mean = 0, squares = 0;

    void merge(const Moments& other) {
        if (other.count == 0) return;
        if (count == 0) {
            *this = other;
            return;
        }
        const float total = count + other.count, distance = other.mean - mean, share = other.count / total;
        mean += distance * share;
        squares += other.squares + distance * distance * (count * share);
        count = total;
    }
};

// z = (x - center) * scale + shift.
struct Affine {
    float center, scale, shift;
};

inline Affine frozen_affine(const SegmentedBatchNorm& p, int64_t channel) {
    return {0, number(p.frozen_scale, channel), number(p.frozen_shift, channel)};
}

// By the statistics in p.mean and p.rstd.
inline Affine live_affine(const SegmentedBatchNorm& p, int64_t live) {
    const float weight = p.weight ? number(p.weight, live) : 1;
    return {p.mean[live], p.rstd[live] * weight, p.bias ? number(p.bias, live) : 0};
}

inline float reciprocal_deviation(float variance, float eps) { return 1 / std::sqrt(variance + eps); }

// Training: biased variance normalises, unbiased variance moves the running one.
inline void keep_statistics(const SegmentedBatchNorm& p, int64_t live, const Moments& moments) {
    p.mean[live] = moments.mean;
    p.rstd[live] = reciprocal_deviation(moments.squares / std::max(moments.count, 1.0f), p.eps);
    if (moments.count == 0) return;
    const float variance = moments.squares / std::max(moments.count - 1, 1.0f), keep = 1 - p.momentum;
    float &mean = number(p.running_mean, live), &var = number(p.running_var, live);
    mean = keep * mean + p.momentum * moments.mean;
    var = keep * var + p.momentum * variance;
}

// Evaluation: running statistics normalise.
inline void copy_statistics(const SegmentedBatchNorm& p, int64_t live) {
    p.mean[live] = number(p.running_mean, live);
    p.rstd[live] = reciprocal_deviation(number(p.running_var, live), p.eps);
}

// Backward: dx = scale * (dz - mean_dz - (x - center) * slope) where statistics moved with x.
struct Gradient {
    float mean_dz, slope;
};

// From the sums of dz and of dz * (x - center); writes the gradients of weight and bias.
inline Gradient live_gradient(const SegmentedBatchNorm& p, int64_t live, float dz, float dz_x) {
    const float rstd = p.rstd[live], count = static_cast<float>(p.outer * p.inner);
    if (p.dweight) number(p.dweight, live) = dz_x * rstd;
    if (p.dbias) number(p.dbias, live) = dz;
    return {dz / count, dz_x / count * rstd * rstd};
}

}  // namespace eidetic
