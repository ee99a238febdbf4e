// What all instruction sets offer: the work of one thread, for one dtype and activation.
#pragma once
#include <cstdint>

#include "../segmented_batch_norm.h"

namespace eidetic {

// Per channel: z = (x - center) * scale + shift, and of live ones dx = scale * (dz - mean_dz - (x - center) * slope).
// Arrays over all channels; frozen ones have center 0 and no gradient terms.
struct Columns {
    float *center, *scale, *shift, *mean_dz, *slope;
};

struct Kernels {
    // [outer, channels, inner] with inner > 1: channels [begin, end), statistics, output and all.
    void (*plane_forward)(const SegmentedBatchNorm&, int64_t begin, int64_t end);
    void (*plane_backward)(const SegmentedBatchNorm&, int64_t begin, int64_t end);
    // inner is 1: rows [begin, end). The first of each pair writes two numbers a live channel, side by side in arrays
    // of row_width(live): (mean, sum of squared distances), (sum of dz, sum of dz * (x - center)).
    void (*row_moments)(const SegmentedBatchNorm&, int64_t begin, int64_t end, float* partial);
    void (*row_forward)(const SegmentedBatchNorm&, const Columns&, int64_t begin, int64_t end);
    void (*row_sums)(const SegmentedBatchNorm&, const Columns&, int64_t begin, int64_t end, float* partial);
    void (*row_backward)(const SegmentedBatchNorm&, const Columns&, int64_t begin, int64_t end);
};

// Room for `live` channels in whole vectors, and one vector more: the last one overlaps its neighbour, see rows.h.
inline int64_t row_width(int64_t live) { return (live / 16 + 1) * 16; }

// Where the numbers of live channel `index` are in such an array.
inline int64_t row_position(int64_t live, int64_t index) {
    const int64_t whole = live / 16 * 16;
    if (index < whole || live < 16) return index;
    return whole + index - (live - 16);
}

}  // namespace eidetic
