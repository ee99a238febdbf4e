// Sixteen float32 at a time, in whatever registers the instruction set has. Included once for each set, inside its
// namespace, and therefore without a guard: see avx2.cpp. Vectors never cross a call, which the sets would disagree about.

#define EIDETIC_INLINE static inline __attribute__((always_inline))
#define EIDETIC_BODY __attribute__((always_inline))  // of a lambda

#pragma GCC diagnostic ignored "-Wpsabi"  // about vectors that cross calls

using Lanes = float __attribute__((vector_size(64)));
using Bits = int32_t __attribute__((vector_size(64)));

constexpr int64_t LANES = 16;

EIDETIC_INLINE Lanes all(float value) { return value - Lanes{}; }

// The first `count` of them only; fewer than LANES.
EIDETIC_INLINE Lanes load(const float* from, int64_t count = LANES) {
    Lanes lanes{};
    std::memcpy(&lanes, from, count * sizeof(float));
    return lanes;
}

EIDETIC_INLINE void store(float* to, Lanes lanes, int64_t count = LANES) {
    std::memcpy(to, &lanes, count * sizeof(float));
}

// Mean and sum of squared distances from it of COUNT vectors (a power of two), lane by lane; sums are trees, so that
// additions need not wait for each other.
template <int COUNT>
EIDETIC_INLINE Lanes tree_sum(const Lanes* values) {
    if constexpr (COUNT == 1) {
        return values[0];
    } else {
        return tree_sum<COUNT / 2>(values) + tree_sum<COUNT / 2>(values + COUNT / 2);
    }
}

template <int COUNT>
EIDETIC_INLINE void group_moments(Lanes (&values)[COUNT], Lanes& mean, Lanes& squares) {
    mean = tree_sum<COUNT>(values) * (1.0f / COUNT);
    for (int i = 0; i < COUNT; ++i) values[i] = (values[i] - mean) * (values[i] - mean);
    squares = tree_sum<COUNT>(values);
}

// e^x within two units in the last place; 0 where it would not be a normal number.
EIDETIC_INLINE Lanes exponential(Lanes x) {
    constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Lanes shifted = x * 1.44269504f + to_integer;
    const Lanes power = shifted - to_integer;
    const Lanes r = (x - power * 0.693359375f) + power * 2.12194440e-4f;  // ln 2 in two parts, the first exact
    const Lanes q = 0.49999988f + r * (0.16666518f + r * (0.041669533f + r * (0.0083689215f + r * 0.0013751409f)));
    const Lanes e = 1.0f + (r + r * r * q);
    // Times 2^power, in two steps since 2^128 is none.
    const Bits whole = (Bits)shifted - 0x4b400000, half = whole >> 1;
    const Bits first = (half + 127) << 23, second = (whole - half + 127) << 23;
    const Lanes scaled = e * (Lanes)first * (Lanes)second;
    const Lanes low = x < -87.3f ? Lanes{} : scaled;
    return x > 88.72283f ? all(__builtin_inff()) : low;
}

// The normal distribution: cumulative function and density. erfc(t) = exp(-t^2) k P(k) with k = 1 / (1 + 0.3 t), P
// fitted to a relative error of 2e-8 on t in [0, 12].
EIDETIC_INLINE void normal(Lanes z, Lanes& cumulative, Lanes& density) {
    const Lanes bell = exponential(-0.5f * (z * z));
    const Lanes t = (z < 0.0f ? -z : z) * 0.70710678f;
    const Lanes k = 1.0f / (1.0f + 0.3f * t);
    Lanes p = 0.48442440f - k * 0.12927907f;
    p = -0.51002022f + k * p;
    p = 0.54524483f + k * p;
    p = -0.093014776f + k * p;
    p = 0.21426078f + k * p;
    p = 0.14850111f + k * p;
    p = 0.17069375f + k * p;
    p = 0.16918919f + k * p;
    const Lanes tail = 0.5f * bell * (k * p);
    cumulative = z < 0.0f ? tail : 1.0f - tail;
    density = 0.39894228f * bell;
}

EIDETIC_INLINE Lanes logistic(Lanes z) { return 1.0f / (1.0f + exponential(-z)); }

// The activations and their derivatives, with NaN, infinities and kinks as torch has them: comparisons with NaN are
// false, so that it passes.
template <Activation activation>
EIDETIC_INLINE Lanes activate(Lanes z) {
    if constexpr (activation == Activation::relu) return z < 0.0f ? Lanes{} : z;
    if constexpr (activation == Activation::relu6) {
        const Lanes positive = z < 0.0f ? Lanes{} : z;
        return positive > 6.0f ? all(6.0f) : positive;
    }
    if constexpr (activation == Activation::silu) return z / (1.0f + exponential(-z));
    if constexpr (activation == Activation::gelu) {
        Lanes cumulative, density;
        normal(z, cumulative, density);
        return z * cumulative;
    }
    if constexpr (activation == Activation::hardswish) {
        const Lanes raised = z + 3.0f, positive = raised < 0.0f ? Lanes{} : raised;
        return z * (positive > 6.0f ? all(6.0f) : positive) * (1.0f / 6.0f);
    }
    return z;
}

// The gradient dz that arrives as dy.
template <Activation activation>
EIDETIC_INLINE Lanes slope_times(Lanes dy, Lanes z) {
    if constexpr (activation == Activation::relu) return z <= 0.0f ? Lanes{} : dy;
    if constexpr (activation == Activation::relu6) {
        const Lanes above = z <= 0.0f ? Lanes{} : dy;
        return z >= 6.0f ? Lanes{} : above;
    }
    if constexpr (activation == Activation::silu) {
        const Lanes gate = logistic(z);
        return dy * (gate * (1.0f + z * (1.0f - gate)));
    }
    if constexpr (activation == Activation::gelu) {
        Lanes cumulative, density;
        normal(z, cumulative, density);
        return dy * (cumulative + z * density);
    }
    if constexpr (activation == Activation::hardswish) {
        const Lanes middle = dy * (z / 3.0f + 0.5f), inner = z >= 3.0f ? dy : middle;
        const Lanes known = z <= -3.0f ? Lanes{} : inner;
        return z == z ? known : dy;
    }
    return dy;
}
