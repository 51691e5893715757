// AdamHC on a CUDA device, in two launches for up to CAPACITY tensors. kernels/cuda compiles and launches it.
//
// `update` gives each block a chunk of one tensor, in one pass over memory; `finish` gives each block a tensor,
// for which it combines the chunks' sums and advances the 0-dim state. All that changes from step to step is read
// from the device, so that a captured graph follows it; only the gradients' addresses are arguments. No float
// atomics, and every sum in a fixed order: the same input gives the same bits. tests/kernels/emulator.cpp compiles
// this file for a CPU.
#include "adamhc.h"

// Not an unnamed namespace, whose mangled names are other ones each time: the same source gives the same cubin.
namespace adamhc {

constexpr int CAPACITY = 2048;                   // tensors of a launch; arguments may be 32,764 bytes
constexpr int THREADS = 256;
constexpr int WIDTH = 4;                         // elements of a 128-bit access
constexpr int UNROLL = 2;                        // accesses of a thread to each array that are under way at once
constexpr int TILE = THREADS * WIDTH * UNROLL;   // elements of a block's turn
constexpr long long CHUNK = 8 * TILE;            // elements of a block; kernels/cuda/batch.py has it too

// The options of a group, whose learning rate may be a tensor on the device.
struct Group {
    Options options;
    const float* lr32;
    const double* lr64;
};

// A chunk of a tensor: elements from index·CHUNK.
struct Chunk {
    int tensor, index;
};

// The tensors of a launch. kernels/cuda/batch.py packs it, and all that it points to.
struct Batch {
    const Record* records;
    const Group* groups;
    const double* decay_scales;  // of each tensor; that of its record is not used
    const Chunk* chunks;
    const long long* first;      // index of each tensor's first chunk, and the number of chunks
    double* sums;                // Σ|θ'| of each chunk
    const float* grad_factor;    // unscales and clips; may be null
    const float* found_inf;      // nonzero skips the step; may be null
};

struct Gradients {
    float* of[CAPACITY];  // only read
};

struct alignas(16) Quad {
    float lane[WIDTH];
};

static_assert(sizeof(Record) == 80 && sizeof(Group) == 104 && sizeof(Batch) == 64, "as kernels/cuda/batch.py packs them");

// Says that a pointer from a table leads to global memory, which makes its accesses faster.
template <class T>
__device__ __forceinline__ T* global(T* pointer) {
    __builtin_assume(__isGlobal(pointer));
    return pointer;
}

__device__ __forceinline__ bool is_aligned(const float* pointer) { return (unsigned long long)pointer % 16 == 0; }

__device__ __forceinline__ Quad& quad(float* at) { return *(Quad*)at; }

// The thread's place in a tile: four elements, u·THREADS·WIDTH after its first four.
__device__ __forceinline__ int place(int u) { return (u * THREADS + (int)threadIdx.x) * WIDTH; }

// Reads the thread's share of a tile that is whole and aligned, and then updates it; returns its Σ|θ'|.
template <Decay decay>
__device__ __forceinline__ float update_tile(float* theta, float* grad, float* m, float* v, const Coefficients& k) {
    Quad thetas[UNROLL], grads[UNROLL], ms[UNROLL], vs[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        thetas[u] = quad(theta + place(u));
        grads[u] = quad(grad + place(u));
        ms[u] = quad(m + place(u));
        vs[u] = quad(v + place(u));
    }
    float sum = 0;
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
#pragma unroll
        for (int lane = 0; lane < WIDTH; ++lane) {
            update<decay>(thetas[u].lane[lane], grads[u].lane[lane], ms[u].lane[lane], vs[u].lane[lane], k);
            if (is_huber(decay)) sum += fabsf(thetas[u].lane[lane]);
        }
        quad(theta + place(u)) = thetas[u];
        quad(m + place(u)) = ms[u];
        quad(v + place(u)) = vs[u];
    }
    return sum;
}

// Calls body(at) for the thread's elements among the first `count` of a tile, in the order of update_tile.
template <class Body>
__device__ __forceinline__ void for_each(long long count, Body body) {
#pragma unroll 1
    for (int u = 0; u < UNROLL; ++u)
#pragma unroll 1
        for (int at = place(u); at < place(u) + WIDTH && at < count; ++at) body(at);
}

// The same for a tile that may be cut off or not aligned.
template <Decay decay>
__device__ __forceinline__ float update_rest(float* theta, const float* grad, float* m, float* v, long long count,
                                             const Coefficients& k) {
    float sum = 0;
    for_each(count, [&](int at) {
        float new_theta = theta[at], new_m = m[at], new_v = v[at];
        update<decay>(new_theta, grad[at], new_m, new_v, k);
        theta[at] = new_theta;
        m[at] = new_m;
        v[at] = new_v;
        if (is_huber(decay)) sum += fabsf(new_theta);
    });
    return sum;
}

template <Decay decay>
__device__ __forceinline__ double update_chunk(const Record& r, float* gradient, long long start,
                                               long long stop, const Coefficients& k) {
    float* const theta = global(r.theta);
    float* const m = global(r.m);
    float* const v = global(r.v);
    float* const grad = global(gradient);
    const bool aligned = is_aligned(theta) && is_aligned(grad) && is_aligned(m) && is_aligned(v);
    float sum = 0;
    for (long long at = start; at < stop; at += TILE)
        sum += aligned && at + TILE <= stop
                   ? update_tile<decay>(theta + at, grad + at, m + at, v + at, k)
                   : update_rest<decay>(theta + at, grad + at, m + at, v + at, stop - at, k);
    return sum;
}

__device__ __forceinline__ double update_chunk(const Record& r, float* grad, long long start, long long stop,
                                               const Coefficients& k, Decay decay) {
    switch (decay) {
        case NONE: return update_chunk<NONE>(r, grad, start, stop, k);
        case L2: return update_chunk<L2>(r, grad, start, stop, k);
        case HUBER: return update_chunk<HUBER>(r, grad, start, stop, k);
        default: return update_chunk<HUBER_PROX>(r, grad, start, stop, k);
    }
}

// The thread's Σ|θ| of a tile, added up as by an update.
__device__ __forceinline__ float measure_tile(const float* theta, long long count) {
    float sum = 0;
    for_each(count, [&](int at) { sum += fabsf(theta[at]); });
    return sum;
}

// The sum over the block's threads, for thread 0.
__device__ __forceinline__ double block_sum(double share) {
    __shared__ double sums[THREADS];
    sums[threadIdx.x] = share;
    for (int width = THREADS / 2; width > 0; width /= 2) {
        __syncthreads();
        if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
    }
    return sums[0];
}

__device__ __forceinline__ bool is_skipped(const Batch& batch) { return batch.found_inf && *batch.found_inf != 0; }

__device__ __forceinline__ Record record_of(const Batch& batch, int tensor) {
    Record r = batch.records[tensor];
    r.decay_scale = batch.decay_scales[tensor];
    return r;
}

__device__ __forceinline__ Options options_of(const Batch& batch, const Record& r) {
    const Group& group = batch.groups[r.options];
    Options options = group.options;
    if (group.lr32) options.lr = *group.lr32;
    if (group.lr64) options.lr = *group.lr64;
    return options;
}

// What begin_step gives, with no change to the state, which other blocks read.
__device__ __forceinline__ Coefficients coefficients_of(const Options& options, Record r, float grad_factor) {
    float step = *r.step, level = options.ema && is_huber(options.decay) ? *r.threshold_ema : 0;
    r.step = &step;
    r.threshold_ema = &level;
    return begin_step(options, r, grad_factor);
}

__device__ __forceinline__ long long stop_of(const Record& r, long long start) {
    return start + CHUNK < r.numel ? start + CHUNK : r.numel;
}

}  // namespace adamhc

using namespace adamhc;

// One block per chunk: θ, m and v in place, and Σ|θ'| of the chunk.
extern "C" __global__ void __launch_bounds__(THREADS)
    adamhc_update(const __grid_constant__ Batch batch, const __grid_constant__ Gradients gradients) {
    if (is_skipped(batch)) return;
    __shared__ Coefficients coefficients;
    __shared__ Decay decay;
    const Chunk chunk = batch.chunks[blockIdx.x];
    const Record r = record_of(batch, chunk.tensor);
    if (threadIdx.x == 0) {
        const Options options = options_of(batch, r);
        coefficients = coefficients_of(options, r, batch.grad_factor ? *batch.grad_factor : 1.0f);
        decay = options.decay;
    }
    __syncthreads();
    const long long start = chunk.index * CHUNK;
    const double share =
        update_chunk(r, gradients.of[chunk.tensor], start, stop_of(r, start), coefficients, decay);
    if (!is_huber(decay)) return;
    const double sum = block_sum(share);
    if (threadIdx.x == 0) batch.sums[blockIdx.x] = sum;
}

// One block per chunk: Σ|θ| of the chunk, to the bit what `update` would leave for these weights.
extern "C" __global__ void __launch_bounds__(THREADS) adamhc_measure(const __grid_constant__ Batch batch) {
    const Chunk chunk = batch.chunks[blockIdx.x];
    const Record& r = batch.records[chunk.tensor];
    const float* const theta = global(r.theta);
    const long long start = chunk.index * CHUNK, stop = stop_of(r, start);
    float share = 0;
    for (long long at = start; at < stop; at += TILE) share += measure_tile(theta + at, stop - at);
    const double sum = block_sum(share);
    if (threadIdx.x == 0) batch.sums[blockIdx.x] = sum;
}

namespace adamhc {

// Σ of a tensor's chunks, for thread 0.
__device__ __forceinline__ double tensor_sum(const Batch& batch, int tensor) {
    double share = 0;
    for (long long i = batch.first[tensor] + threadIdx.x; i < batch.first[tensor + 1]; i += THREADS)
        share += batch.sums[i];
    return block_sum(share);
}

}  // namespace adamhc

// One block per tensor, after `update`: the step count, μ, and the mean of the new weights.
extern "C" __global__ void __launch_bounds__(THREADS) adamhc_finish(const __grid_constant__ Batch batch) {
    if (is_skipped(batch)) return;
    const Record r = record_of(batch, blockIdx.x);
    const Options options = options_of(batch, r);
    const bool huber = is_huber(options.decay);
    const double sum = huber ? tensor_sum(batch, blockIdx.x) : 0;
    if (threadIdx.x != 0) return;
    begin_step(options, r, 1.0f);
    if (huber) end_step(r, sum);
}

// One block per tensor, after `measure`: the mean of the present weights.
extern "C" __global__ void __launch_bounds__(THREADS) adamhc_means(const __grid_constant__ Batch batch) {
    const double sum = tensor_sum(batch, blockIdx.x);
    if (threadIdx.x == 0) end_step(batch.records[blockIdx.x], sum);
}
