// Runs CUDA C++ kernels on a CPU, so that tests execute the very sources that a GPU gets.
//
// Blocks run one after the other. A block's threads are fibers of one OS thread: each runs until it must wait for
// others (__syncthreads, a warp shuffle), then the next one does. In which order is a setting: a missing barrier shows
// when the order changes, since a reader then comes before its writer.
//
// It covers what our kernels use: thread and block indices, __shared__ variables, __syncthreads, __shfl_down_sync of
// whole warps, arithmetic intrinsics, bfloat16 and half through NVIDIA's own headers, which a CPU can call. It knows
// no inline PTX, tensor cores, cp.async, clusters, atomics; no two blocks ever run at once, and shared memory is
// zero when a block begins.
#pragma once

#if !defined(__x86_64__) || !defined(__linux__)
#error "cuda_on_cpu.h switches stacks in x86-64 assembly, for Linux"
#endif

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#undef __global__
#undef __device__
#undef __forceinline__
#undef __shared__
#undef __launch_bounds__
#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define EIDETIC_LAUNCH(kernel, grid, block, stream, ...) \
    ::cuda_on_cpu::launch([&] { (kernel)(__VA_ARGS__); }, grid, block, stream)

using std::min;

namespace cuda_on_cpu {

// Written and read by the tests, through cuda_on_cpu_settings() below.
struct Settings {
    int32_t order = 0;               // of threads and blocks: 0 forward, 1 reverse, otherwise random with this seed
    int32_t processors = 4;          // of the device
    int32_t devices = 2;
    int32_t device = 0;              // the current one
    int32_t fail_runtime = 0;        // the error that runtime calls answer with
    int32_t fail_launch = 0;         // how many launches from now one fails (1: the next); 0 for none
    int32_t launch_error = 0;        // and its error
    int32_t launches = 0;            // counted
    int32_t launch_device = -1;      // of the last launch
    void* launch_stream = nullptr;
};
inline Settings settings;
inline cudaError_t last_error = cudaSuccess;

extern "C" __attribute__((used, visibility("default"))) inline Settings* cuda_on_cpu_settings() { return &settings; }

// ---- Fibers ----

// Saves the registers that a call must keep, and the stack; takes up another.
extern "C" void cuda_on_cpu_switch(void** save_stack, void* other_stack);
__asm__(
    ".weak cuda_on_cpu_switch\n"
    ".hidden cuda_on_cpu_switch\n"
    ".type cuda_on_cpu_switch, @function\n"
    "cuda_on_cpu_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n");

constexpr size_t STACK_BYTES = 64 * 1024;
constexpr unsigned WARP_LANES = 32;

struct Fiber {
    std::unique_ptr<char[]> memory;
    void* stack = nullptr;
    uint3 index{};
    unsigned number = 0;
    bool done = false;
};

// What the threads of a warp bring to a shuffle, and take from it once all are there. Two slots: a fast lane may be at
// the next shuffle while a slow one still reads.
struct Warp {
    unsigned lanes = 0, arrived = 0, generation = 0;
    float values[2][WARP_LANES] = {};
};

struct Block {
    std::vector<Fiber> threads;
    std::vector<Warp> warps;
    const std::function<void()>* body = nullptr;
    void* scheduler_stack = nullptr;
    Fiber* current = nullptr;
    unsigned alive = 0, at_barrier = 0, barrier_generation = 0;
    bool progress = false;  // anyone came or went since the scheduler last looked
};

inline Block* block = nullptr;
inline uint3 thread_index, block_index;
inline dim3 block_size, grid_size;

[[noreturn]] inline void die(const char* message) {
    std::fprintf(stderr, "cuda_on_cpu: block (%u, %u, %u): %s\n", block_index.x, block_index.y, block_index.z, message);
    std::abort();
}

inline void wait_a_turn() { cuda_on_cpu_switch(&block->current->stack, block->scheduler_stack); }

inline void open_barrier_if_all_arrived() {
    if (block->at_barrier > 0 && block->at_barrier == block->alive) {
        block->at_barrier = 0;
        ++block->barrier_generation;
    }
}

inline void run_fiber() {
    (*block->body)();
    block->current->done = block->progress = true;
    --block->alive;
    open_barrier_if_all_arrived();  // threads that have returned are not waited for
    for (;;) wait_a_turn();
}

// A stack that looks as if the fiber had been switched away from at the start of run_fiber.
inline void prepare(Fiber& fiber) {
    if (!fiber.memory) fiber.memory.reset(new char[STACK_BYTES]);
    auto top = reinterpret_cast<uintptr_t>(fiber.memory.get()) + STACK_BYTES;
    auto stack = reinterpret_cast<void**>(top & ~uintptr_t{15});
    *--stack = nullptr;  // where run_fiber would return to
    *--stack = reinterpret_cast<void*>(&run_fiber);
    for (int saved_register = 0; saved_register < 6; ++saved_register) *--stack = nullptr;
    fiber.stack = stack;
    fiber.done = false;
}

inline std::vector<unsigned> ordered(unsigned count, std::mt19937& random) {
    std::vector<unsigned> order(count);
    std::iota(order.begin(), order.end(), 0u);
    if (settings.order == 1) std::reverse(order.begin(), order.end());
    if (settings.order > 1) std::shuffle(order.begin(), order.end(), random);
    return order;
}

inline void run_block(std::mt19937& random) {
    const auto threads = static_cast<unsigned>(block->threads.size());
    block->alive = threads;
    block->at_barrier = 0;
    for (auto& fiber : block->threads) prepare(fiber);
    const auto order = ordered(threads, random);
    while (block->alive > 0) {
        block->progress = false;
        for (unsigned number : order) {
            Fiber& fiber = block->threads[number];
            if (fiber.done) continue;
            block->current = &fiber;
            thread_index = fiber.index;
            cuda_on_cpu_switch(&block->scheduler_stack, fiber.stack);
        }
        if (block->alive > 0 && !block->progress) die("deadlock: not all threads reach the same barrier or shuffle");
    }
}

inline void launch(const std::function<void()>& body, dim3 grid, dim3 size, cudaStream_t stream) {
    ++settings.launches;
    settings.launch_device = settings.device;
    settings.launch_stream = stream;
    const unsigned threads = size.x * size.y * size.z;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
        threads == 0 || threads > 1024) {
        last_error = cudaErrorInvalidConfiguration;
        return;
    }
    if (settings.fail_launch > 0 && --settings.fail_launch == 0) {
        last_error = static_cast<cudaError_t>(settings.launch_error);
        return;
    }
    Block memory;
    block = &memory;
    memory.body = &body;
    memory.threads.resize(threads);
    memory.warps.resize((threads + WARP_LANES - 1) / WARP_LANES);
    for (unsigned number = 0; number < threads; ++number) {
        Fiber& fiber = memory.threads[number];
        fiber.number = number;
        fiber.index = {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
        ++memory.warps[number / WARP_LANES].lanes;
    }
    block_size = size;
    grid_size = grid;
    std::mt19937 random(settings.order);
    for (unsigned number : ordered(grid.x * grid.y * grid.z, random)) {
        block_index = {number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y)};
        std::thread([&] { run_block(random); }).join();  // its thread-local variables, shared memory, are new
    }
    block = nullptr;
}

}  // namespace cuda_on_cpu

// ---- What kernels say ----

#define threadIdx (::cuda_on_cpu::thread_index)
#define blockIdx (::cuda_on_cpu::block_index)
#define blockDim (::cuda_on_cpu::block_size)
#define gridDim (::cuda_on_cpu::grid_size)

inline void __syncthreads() {
    auto* const block = cuda_on_cpu::block;
    const unsigned generation = block->barrier_generation;
    block->progress = true;
    ++block->at_barrier;
    cuda_on_cpu::open_barrier_if_all_arrived();
    while (block->barrier_generation == generation) cuda_on_cpu::wait_a_turn();
}

inline float __shfl_down_sync(unsigned mask, float value, unsigned offset) {
    auto* const block = cuda_on_cpu::block;
    const unsigned lane = block->current->number % cuda_on_cpu::WARP_LANES;
    auto& warp = block->warps[block->current->number / cuda_on_cpu::WARP_LANES];
    if (mask != 0xffffffffu) cuda_on_cpu::die("shuffles of a part of a warp are not covered");
    const unsigned generation = warp.generation;
    auto& values = warp.values[generation % 2];
    values[lane] = value;
    block->progress = true;
    if (++warp.arrived == warp.lanes) {
        warp.arrived = 0;
        ++warp.generation;
    }
    while (warp.generation == generation) cuda_on_cpu::wait_a_turn();
    return lane + offset < warp.lanes ? values[lane + offset] : value;
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

// ---- What the host says ----

namespace cuda_on_cpu {

inline cudaError_t runtime_answer() {
    if (settings.fail_runtime != 0) last_error = static_cast<cudaError_t>(settings.fail_runtime);
    return static_cast<cudaError_t>(settings.fail_runtime);
}
inline cudaError_t get_device(int* device) {
    *device = settings.device;
    return runtime_answer();
}
inline cudaError_t set_device(int device) {
    if (device < 0 || device >= settings.devices) return cudaErrorInvalidDevice;
    settings.device = device;
    return runtime_answer();
}
inline cudaError_t device_count(int* count) {
    *count = settings.devices;
    return runtime_answer();
}
inline cudaError_t attribute(int* value, cudaDeviceAttr, int) {
    *value = settings.processors;
    return runtime_answer();
}
inline cudaError_t driver_version(int* version) {
    *version = settings.fail_runtime == 0 ? CUDART_VERSION : 0;
    return cudaSuccess;
}
inline cudaError_t take_last_error() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

}  // namespace cuda_on_cpu

#define cudaGetDevice ::cuda_on_cpu::get_device
#define cudaSetDevice ::cuda_on_cpu::set_device
#define cudaGetDeviceCount ::cuda_on_cpu::device_count
#define cudaDeviceGetAttribute ::cuda_on_cpu::attribute
#define cudaDriverGetVersion ::cuda_on_cpu::driver_version
#define cudaGetLastError ::cuda_on_cpu::take_last_error
#define cudaGetErrorString(error) "on a CPU"
