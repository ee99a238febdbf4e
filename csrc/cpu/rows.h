// [outer, channels] with neighbouring channels in neighbouring lanes. Included once for each instruction set, after
// planes.h.
//
// Sums of a block of rows are kept in an array over the live channels. Their last vector, where they do not fill it,
// is the last one that fits and overlaps the one before; its sums have a place of their own (row_position).

// Calls `body(channel, count, place)` for vectors that cover channels [0, size), `place` in an array of row_width.
template <class Body>
EIDETIC_INLINE void cover_places(int64_t size, const Body& body) {
    int64_t place = 0;
    cover(size, [&](int64_t channel, int64_t count) EIDETIC_BODY {
        body(channel, count, place);
        place += LANES;
    });
}

template <int GROUP>
EIDETIC_INLINE void add_rows(const SegmentedBatchNorm& p, int64_t row, float counted, float* mean, float* squares) {
    const float total = counted + GROUP, share = GROUP / total, cross = counted * share;
    const int64_t x_stride = p.x_stride;  // not read again after every store
    const float* const x = at(p.x, row * x_stride + p.frozen);
    cover_places(p.channels - p.frozen, [&](int64_t channel, int64_t count, int64_t place) EIDETIC_BODY {
        Lanes values[GROUP], group_mean, deviation;
        for (int i = 0; i < GROUP; ++i) {
            values[i] = load(x + i * x_stride + channel, count);
            __builtin_prefetch(x + (i + GROUP) * x_stride + channel);  // rows look like a scattered walk
        }
        group_moments(values, group_mean, deviation);
        if (counted == 0) {
            store(mean + place, group_mean);
            store(squares + place, deviation);
            return;
        }
        const Lanes old = load(mean + place), distance = group_mean - old;
        store(mean + place, old + distance * share);
        store(squares + place, load(squares + place) + deviation + distance * distance * cross);
    });
}

static void row_moments(const SegmentedBatchNorm& p, int64_t begin, int64_t end, float* partial) {
    constexpr int GROUP = 8;
    float *const mean = partial, *const squares = partial + row_width(p.channels - p.frozen);
    int64_t row = begin;
    for (; row + GROUP <= end; row += GROUP) add_rows<GROUP>(p, row, row - begin, mean, squares);
    for (; row < end; ++row) add_rows<1>(p, row, row - begin, mean, squares);
}

template <Activation activation>
void row_forward(const SegmentedBatchNorm& p, const Columns& columns, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const float* const x = at(p.x, row * p.x_stride);
        const float* const residual = p.residual ? at(p.residual, row * p.residual_stride) : nullptr;
        float* const y = static_cast<float*>(p.y) + row * p.channels;
        cover(p.channels, [&](int64_t c, int64_t count) EIDETIC_BODY {
            const Lanes centered = load(x + c, count) - load(columns.center + c, count);
            Lanes z = centered * load(columns.scale + c, count) + load(columns.shift + c, count);
            if (residual) z += load(residual + c, count);
            store(y + c, activate<activation>(z), count);
        });
    }
}

template <int GROUP, Activation activation>
EIDETIC_INLINE void add_row_sums(const SegmentedBatchNorm& p, const Columns& columns, int64_t row, bool first,
                                 float* dz_sums, float* dz_x_sums) {
    const float* const x = at(p.x, row * p.x_stride + p.frozen);
    const float* const dy = at(p.dy, row * p.dy_stride + p.frozen);
    const float* const residual = p.residual ? at(p.residual, row * p.residual_stride + p.frozen) : nullptr;
    cover_places(p.channels - p.frozen, [&](int64_t c, int64_t count, int64_t place) EIDETIC_BODY {
        const Lanes center = load(columns.center + p.frozen + c, count);
        const Lanes scale = load(columns.scale + p.frozen + c, count);
        const Lanes shift = load(columns.shift + p.frozen + c, count);
        Lanes sum{}, sum_x{};
        for (int i = 0; i < GROUP; ++i) {
            const Lanes centered = load(x + i * p.x_stride + c, count) - center;
            Lanes z = centered * scale + shift;
            if (residual) z += load(residual + i * p.residual_stride + c, count);
            const Lanes dz = slope_times<activation>(load(dy + i * p.dy_stride + c, count), z);
            sum += dz;
            sum_x += dz * centered;
        }
        store(dz_sums + place, first ? sum : load(dz_sums + place) + sum);
        store(dz_x_sums + place, first ? sum_x : load(dz_x_sums + place) + sum_x);
    });
}

template <Activation activation>
void row_sums(const SegmentedBatchNorm& p, const Columns& columns, int64_t begin, int64_t end, float* partial) {
    constexpr int GROUP = 4;
    float *const dz = partial, *const dz_x = partial + row_width(p.channels - p.frozen);
    int64_t row = begin;
    for (; row + GROUP <= end; row += GROUP) {
        add_row_sums<GROUP, activation>(p, columns, row, row == begin, dz, dz_x);
    }
    for (; row < end; ++row) add_row_sums<1, activation>(p, columns, row, row == begin, dz, dz_x);
}

// Channels [from, to) of one row; `statistics`: they normalised by statistics of the batch.
template <Activation activation, bool statistics>
EIDETIC_INLINE void row_gradient(const SegmentedBatchNorm& p, const Columns& columns, int64_t row, int64_t from,
                                 int64_t to) {
    const float* const x = at(p.x, row * p.x_stride + from);
    const float* const dy = at(p.dy, row * p.dy_stride + from);
    const float* const residual = p.residual ? at(p.residual, row * p.residual_stride + from) : nullptr;
    float* const dx = p.dx ? static_cast<float*>(p.dx) + row * p.channels + from : nullptr;
    float* const dresidual = p.dresidual ? static_cast<float*>(p.dresidual) + row * p.channels + from : nullptr;
    cover(to - from, [&](int64_t c, int64_t count) EIDETIC_BODY {
        const Lanes centered = load(x + c, count) - load(columns.center + from + c, count);
        const Lanes scale = load(columns.scale + from + c, count);
        Lanes z = centered * scale + load(columns.shift + from + c, count);
        if (residual) z += load(residual + c, count);
        Lanes dz = slope_times<activation>(load(dy + c, count), z);
        if (dresidual) store(dresidual + c, dz, count);
        if (statistics) {
            dz = dz - load(columns.mean_dz + from + c, count) - centered * load(columns.slope + from + c, count);
        }
        if (dx) store(dx + c, scale * dz, count);
    });
}

template <Activation activation>
void row_backward(const SegmentedBatchNorm& p, const Columns& columns, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        if (p.full_input_grad) {
            row_gradient<activation, false>(p, columns, row, 0, p.frozen);
        } else {
            const int64_t bytes = p.frozen * sizeof(float);
            if (p.dx) std::memset(static_cast<float*>(p.dx) + row * p.channels, 0, bytes);
            if (p.dresidual) std::memset(static_cast<float*>(p.dresidual) + row * p.channels, 0, bytes);
        }
        if (p.training) {
            row_gradient<activation, true>(p, columns, row, p.frozen, p.channels);
        } else {
            row_gradient<activation, false>(p, columns, row, p.frozen, p.channels);
        }
    }
}
