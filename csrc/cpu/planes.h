// [outer, channels, inner], channel by channel: a channel is read again while it is still in the cache. Included once
// for each instruction set, after lanes.h.
//
// A plane is whole vectors and a rest. Where the result is one for each element, the rest is the plane's last vector,
// which overlaps the one before; sums count it apart, or mask what was counted.

struct Plane {
    const float *x, *residual, *dy;  // residual: null for none
    int64_t inner;
};

EIDETIC_INLINE const float* at(const void* base, int64_t offset) {
    return static_cast<const float*>(base) + offset;
}

EIDETIC_INLINE Plane plane(const SegmentedBatchNorm& p, int64_t outer, int64_t channel) {
    const int64_t offset = channel * p.inner;
    return {at(p.x, outer * p.x_stride + offset),
            p.residual ? at(p.residual, outer * p.residual_stride + offset) : nullptr,
            p.dy ? at(p.dy, outer * p.dy_stride + offset) : nullptr, p.inner};
}

// Calls `body(offset, count)` for vectors that cover [0, size); the last may overlap.
template <class Body>
EIDETIC_INLINE void cover(int64_t size, const Body& body) {
    if (size < LANES) {
        if (size > 0) body(0, size);
        return;
    }
    for (int64_t offset = 0; offset < size; offset += LANES) body(offset < size - LANES ? offset : size - LANES, LANES);
}

// Writes `value(offset, count)` to [y, y + size). y may be what values are made of: the last vector is made before the
// one it overlaps is written.
template <class Value>
EIDETIC_INLINE void write(float* y, int64_t size, const Value& value) {
    if (size < LANES) {
        if (size > 0) store(y, value(0, size), size);
        return;
    }
    const Lanes last = value(size - LANES, LANES);
    for (int64_t offset = 0; offset < size - LANES; offset += LANES) store(y + offset, value(offset, LANES), LANES);
    store(y + size - LANES, last, LANES);
}

// ---- Moments ----

// Each lane's own moments, of one count.
struct LaneMoments {
    Lanes mean{}, squares{};
    float count = 0;

    // GROUP vectors at once: their mean and squares exactly, then one merge.
    template <int GROUP>
    __attribute__((always_inline)) void add(const float* x) {
        Lanes values[GROUP], group_mean, deviation;
        for (int i = 0; i < GROUP; ++i) values[i] = load(x + i * LANES);
        group_moments(values, group_mean, deviation);
        merge(GROUP, group_mean, deviation);
    }
    __attribute__((always_inline)) void merge(float others, Lanes other_mean, Lanes other_squares) {
        const float total = count + others, share = others / total;
        const Lanes distance = other_mean - mean;
        mean += distance * share;
        squares += other_squares + distance * distance * (count * share);
        count = total;
    }
    __attribute__((always_inline)) void collect(Moments& into, int64_t first_lane, int64_t end_lane) const {
        for (int64_t lane = first_lane; lane < end_lane; ++lane) into.merge({count, mean[lane], squares[lane]});
    }
};

EIDETIC_INLINE Moments channel_moments(const SegmentedBatchNorm& p, int64_t channel) {
    constexpr int GROUP = 8;
    LaneMoments whole, rest;
    const int64_t rest_count = p.inner % LANES, rest_at = p.inner < LANES ? 0 : p.inner - LANES;
    for (int64_t outer = 0; outer < p.outer; ++outer) {
        const float* const x = plane(p, outer, channel).x;
        int64_t offset = 0;
        for (; offset + GROUP * LANES <= p.inner; offset += GROUP * LANES) whole.add<GROUP>(x + offset);
        for (; offset + LANES <= p.inner; offset += LANES) whole.merge(1, load(x + offset), Lanes{});
        if (rest_count > 0) rest.merge(1, load(x + rest_at, p.inner < LANES ? p.inner : LANES), Lanes{});
    }
    Moments moments;
    whole.collect(moments, 0, LANES);
    // What is left over fills the last lanes of an overlapping vector, or the first of a short one.
    if (p.inner < LANES) {
        rest.collect(moments, 0, rest_count);
    } else {
        rest.collect(moments, LANES - rest_count, LANES);
    }
    return moments;
}

// ---- Forward ----

template <Activation activation>
void plane_forward(const SegmentedBatchNorm& p, int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
        Affine affine;
        const int64_t live = channel - p.frozen;
        if (live < 0) {
            affine = frozen_affine(p, channel);
        } else {
            if (p.training) {
                keep_statistics(p, live, channel_moments(p, channel));
            } else {
                copy_statistics(p, live);
            }
            affine = live_affine(p, live);
        }
        const Lanes center = all(affine.center), scale = all(affine.scale), shift = all(affine.shift);
        for (int64_t outer = 0; outer < p.outer; ++outer) {
            const Plane in = plane(p, outer, channel);
            float* const y = static_cast<float*>(p.y) + (outer * p.channels + channel) * p.inner;
            write(y, p.inner, [&](int64_t i, int64_t count) EIDETIC_BODY {
                Lanes z = (load(in.x + i, count) - center) * scale + shift;
                if (in.residual) z += load(in.residual + i, count);
                return activate<activation>(z);
            });
        }
    }
}

// ---- Backward ----

template <Activation activation>
EIDETIC_INLINE void channel_sums(const SegmentedBatchNorm& p, int64_t channel, Affine affine, float& dz, float& dz_x) {
    const Lanes center = all(affine.center), scale = all(affine.scale), shift = all(affine.shift);
    const int64_t rest_count = p.inner % LANES;
    Bits lane;
    for (int i = 0; i < LANES; ++i) lane[i] = i;
    const Bits counts = p.inner < LANES ? lane < static_cast<int>(rest_count)
                                        : lane >= static_cast<int>(LANES - rest_count);
    Lanes sum{}, sum_x{};
    for (int64_t outer = 0; outer < p.outer; ++outer) {
        const Plane in = plane(p, outer, channel);
        Lanes plane_sum{}, plane_sum_x{};
        int64_t covered = 0;
        cover(p.inner, [&](int64_t i, int64_t count) EIDETIC_BODY {
            const Lanes centered = load(in.x + i, count) - center;
            Lanes z = centered * scale + shift;
            if (in.residual) z += load(in.residual + i, count);
            Lanes gradient = slope_times<activation>(load(in.dy + i, count), z);
            Lanes product = gradient * centered;
            if (i < covered || count < LANES) {
                gradient = counts ? gradient : Lanes{};
                product = counts ? product : Lanes{};
            }
            plane_sum += gradient;
            plane_sum_x += product;
            covered = i + count;
        });
        sum += plane_sum;
        sum_x += plane_sum_x;
    }
    dz = dz_x = 0;
    for (int i = 0; i < LANES; ++i) {
        dz += sum[i];
        dz_x += sum_x[i];
    }
}

template <Activation activation>
void plane_backward(const SegmentedBatchNorm& p, int64_t begin, int64_t end) {
    for (int64_t channel = begin; channel < end; ++channel) {
        const int64_t live = channel - p.frozen;
        Affine affine;
        Gradient gradient{0, 0};
        if (live < 0) {
            affine = frozen_affine(p, channel);
        } else {
            float dz, dz_x;
            affine = live_affine(p, live);
            channel_sums<activation>(p, channel, affine, dz, dz_x);
            gradient = live_gradient(p, live, dz, dz_x);
        }
        if (!p.dx && !p.dresidual) continue;
        const Lanes center = all(affine.center), scale = all(affine.scale), shift = all(affine.shift);
        const Lanes mean_dz = all(gradient.mean_dz), slope = all(gradient.slope);
        for (int64_t outer = 0; outer < p.outer; ++outer) {
            const int64_t out = (outer * p.channels + channel) * p.inner;
            float* const dx = p.dx ? static_cast<float*>(p.dx) + out : nullptr;
            float* const dresidual = p.dresidual ? static_cast<float*>(p.dresidual) + out : nullptr;
            if (live < 0 && !p.full_input_grad) {
                if (dx) std::memset(dx, 0, p.inner * sizeof(float));
                if (dresidual) std::memset(dresidual, 0, p.inner * sizeof(float));
                continue;
            }
            const Plane in = plane(p, outer, channel);
            const bool statistics = live >= 0 && p.training;
            cover(p.inner, [&](int64_t i, int64_t count) EIDETIC_BODY {
                const Lanes centered = load(in.x + i, count) - center;
                Lanes z = centered * scale + shift;
                if (in.residual) z += load(in.residual + i, count);
                Lanes dz = slope_times<activation>(load(in.dy + i, count), z);
                if (dresidual) store(dresidual + i, dz, count);
                if (statistics) dz = dz - mean_dz - centered * slope;
                if (dx) store(dx + i, scale * dz, count);
            });
        }
    }
}
