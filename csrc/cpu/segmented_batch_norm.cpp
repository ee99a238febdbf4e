// Segmented BatchNorm with activation and residual on the CPU; see ../segmented_batch_norm.h.
//
// Work is split by sizes alone, never by the number of threads, and merged in a fixed order: results do not depend on
// how many threads there are. Here is what is done once a call; kernels.h names what threads do,
// planes.h and rows.h do it on the vectors of lanes.h, and portable.cpp, avx2.cpp and avx512.cpp compile these.

#include "../segmented_batch_norm.h"

#include "rounding.h"

#include <algorithm>
#include <string>
#include <vector>

#include "instruction_sets.h"
#include "kernels.h"
#include "numbers.h"

namespace eidetic {

namespace {

using Norm = SegmentedBatchNorm;

// ---- Instruction sets ----

struct InstructionSet {
    const char* name;
    Kernels (*kernels)(Activation);
};

std::vector<InstructionSet> sets_here() {
    std::vector<InstructionSet> sets;
#ifdef EIDETIC_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        sets.push_back({"avx512", avx512::kernels});
    }
    if (__builtin_cpu_supports("avx2")) sets.push_back({"avx2", avx2::kernels});
#endif
    sets.push_back({"portable", portable::kernels});
    return sets;
}

InstructionSet chosen = sets_here().front();

// ---- Splitting work ----

constexpr int64_t ELEMENTS_A_THREAD = 32768;  // fewer do not pay for waking it
constexpr int64_t ELEMENTS_A_PART = 65536;    // of the live channels' sums
constexpr int64_t MAX_PARTS = 64;

int useful_threads(const Norm& p) {
    const int64_t most = p.outer * p.inner * p.channels / ELEMENTS_A_THREAD;
    return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(p.threads, most)));
}

// Rows that one part of the sums covers: a multiple of 8, but for the last part.
int64_t rows_a_part(const Norm& p) {
    const int64_t live = std::max<int64_t>(p.channels - p.frozen, 1);
    const int64_t enough = std::max((p.outer + MAX_PARTS - 1) / MAX_PARTS, ELEMENTS_A_PART / live);
    return (enough + 7) / 8 * 8;
}

int64_t parts(const Norm& p) { return (p.outer + rows_a_part(p) - 1) / rows_a_part(p); }

// `work(begin, end)` for shares of [0, size), on the threads that are useful, one share each.
template <class Work>
void share_out(int threads, int64_t size, const Work& work) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int share = 0; share < threads; ++share) work(size * share / threads, size * (share + 1) / threads);
}

// ---- Rows: what lies between the passes ----

// `first(part's begin, end, its place)` for every part of the rows; two arrays a part, side by side in the workspace.
template <class First>
void sum_parts(const Norm& p, const First& first) {
    const int64_t rows = rows_a_part(p), stride = 2 * row_width(p.channels - p.frozen);
    share_out(useful_threads(p), parts(p), [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) {
            first(part * rows, std::min((part + 1) * rows, p.outer), p.workspace + part * stride);
        }
    });
}

// Merges the moments of all parts into those of the first, for all places at once.
void merge_moments(const Norm& p, float* mean, float* squares) {
    const int64_t width = row_width(p.channels - p.frozen), rows = rows_a_part(p), count = parts(p);
    for (int64_t part = 1; part < count; ++part) {
        const float before = part * rows, own = std::min(rows, p.outer - part * rows);
        const float share = own / (before + own), cross = before * share;
        const float *const other_mean = p.workspace + part * 2 * width, *const other_squares = other_mean + width;
        for (int64_t i = 0; i < width; ++i) {
            const float distance = other_mean[i] - mean[i];
            mean[i] += distance * share;
            squares[i] += other_squares[i] + distance * distance * cross;
        }
    }
}

void merge_sums(const Norm& p, float* sums) {
    const int64_t width = 2 * row_width(p.channels - p.frozen), count = parts(p);
    for (int64_t part = 1; part < count; ++part) {
        const float* const other = p.workspace + part * width;
        for (int64_t i = 0; i < width; ++i) sums[i] += other[i];
    }
}

class ColumnMemory {
  public:
    explicit ColumnMemory(int64_t channels) : memory_(5 * channels), channels_(channels) {}
    Columns columns() {
        float* const at = memory_.data();
        return {at, at + channels_, at + 2 * channels_, at + 3 * channels_, at + 4 * channels_};
    }

  private:
    std::vector<float> memory_;
    int64_t channels_;
};

void set(const Columns& columns, int64_t channel, const Affine& affine) {
    columns.center[channel] = affine.center;
    columns.scale[channel] = affine.scale;
    columns.shift[channel] = affine.shift;
}

void rows_forward(const Norm& p, const Kernels& kernels) {
    const int64_t live = p.channels - p.frozen, width = row_width(live);
    float *const mean = p.workspace, *const squares = p.workspace + width;
    if (p.training && live > 0 && p.outer > 0) {
        sum_parts(p, [&](int64_t begin, int64_t end, float* partial) { kernels.row_moments(p, begin, end, partial); });
        merge_moments(p, mean, squares);
    }
    ColumnMemory memory(p.channels);
    const Columns columns = memory.columns();
    for (int64_t channel = 0; channel < p.frozen; ++channel) set(columns, channel, frozen_affine(p, channel));
    for (int64_t i = 0; i < live; ++i) {
        if (p.training) {
            Moments moments;
            if (p.outer > 0) {
                const int64_t place = row_position(live, i);
                moments = {static_cast<float>(p.outer), mean[place], squares[place]};
            }
            keep_statistics(p, i, moments);
        } else {
            copy_statistics(p, i);
        }
        set(columns, p.frozen + i, live_affine(p, i));
    }
    share_out(useful_threads(p), p.outer,
              [&](int64_t begin, int64_t end) { kernels.row_forward(p, columns, begin, end); });
}

void rows_backward(const Norm& p, const Kernels& kernels) {
    const int64_t live = p.channels - p.frozen, width = row_width(live);
    ColumnMemory memory(p.channels);
    const Columns columns = memory.columns();
    for (int64_t channel = 0; channel < p.frozen; ++channel) set(columns, channel, frozen_affine(p, channel));
    for (int64_t i = 0; i < live; ++i) set(columns, p.frozen + i, live_affine(p, i));
    if (live > 0) {
        if (p.outer > 0) {
            sum_parts(p, [&](int64_t begin, int64_t end, float* partial) {
                kernels.row_sums(p, columns, begin, end, partial);
            });
            merge_sums(p, p.workspace);
        }
        for (int64_t i = 0; i < live; ++i) {
            float dz = 0, dz_x = 0;
            if (p.outer > 0) {
                dz = p.workspace[row_position(live, i)];
                dz_x = p.workspace[width + row_position(live, i)];
            }
            const Gradient gradient = live_gradient(p, i, dz, dz_x);
            columns.mean_dz[p.frozen + i] = gradient.mean_dz;
            columns.slope[p.frozen + i] = gradient.slope;
        }
    }
    if (!p.dx && !p.dresidual) return;
    share_out(useful_threads(p), p.outer,
              [&](int64_t begin, int64_t end) { kernels.row_backward(p, columns, begin, end); });
}

}  // namespace

std::string segmented_batch_norm_forward(const SegmentedBatchNorm& norm) {
    const Kernels kernels = chosen.kernels(norm.activation);
    if (norm.inner == 1) {
        rows_forward(norm, kernels);
    } else {
        share_out(useful_threads(norm), norm.channels,
                  [&](int64_t begin, int64_t end) { kernels.plane_forward(norm, begin, end); });
    }
    return "";
}

std::string segmented_batch_norm_backward(const SegmentedBatchNorm& norm) {
    const Kernels kernels = chosen.kernels(norm.activation);
    if (norm.inner == 1) {
        rows_backward(norm, kernels);
    } else {
        share_out(useful_threads(norm), norm.channels,
                  [&](int64_t begin, int64_t end) { kernels.plane_backward(norm, begin, end); });
    }
    return "";
}

int64_t segmented_batch_norm_workspace(const SegmentedBatchNorm& norm) {
    return norm.inner == 1 ? parts(norm) * 2 * row_width(norm.channels - norm.frozen) : 0;
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const InstructionSet& set : sets_here()) names.push_back(set.name);
    return names;
}

std::string use_instruction_set(const std::string& name) {
    for (const InstructionSet& set : sets_here()) {
        if (set.name == name) {
            chosen = set;
            return "";
        }
    }
    std::string known;
    for (const InstructionSet& set : sets_here()) known += std::string(known.empty() ? "" : ", ") + set.name;
    return "no instruction set " + name + " here; there are: " + known;
}

}  // namespace eidetic
