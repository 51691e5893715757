// AdamHC and SGDC on a CUDA device, in two launches for up to CAPACITY tensors that are kept in the same dtypes.
// kernels/cuda compiles and launches it.
//
// An update (at the end of this file is one for each combination of rule and dtypes) gives each block a chunk of one
// tensor, in one pass over memory; `finish` gives each block a tensor, for which it combines the chunks' sums and
// advances the 0-dim state. All that changes from step to step is read from the device, so that a captured graph
// follows it; only the gradients' addresses are arguments. No float atomics, and every sum in a fixed order: the same
// input gives the same bits. tests/kernels/emulator.cpp compiles this file for a CPU.
#include "tiles.h"

// Not an unnamed namespace, whose mangled names are other ones each time: the same source gives the same cubin.
namespace adamhc {

constexpr int CAPACITY = 2048;         // tensors of a launch; arguments may be 32,764 bytes
constexpr long long CHUNK = 8 * TILE;  // elements of a block; kernels/cuda/batch.py has it too

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
    void* of[CAPACITY];  // only read; of the parameters' dtypes
};

static_assert(sizeof(Record) == 104 && sizeof(Group) == 112 && sizeof(Batch) == 64, "as kernels/cuda/batch.py packs them");

// What weights and gradients are kept in: float; Narrow, with a master copy as float; Narrow alone.
enum Weights { FLOAT32, MASTER, BFLOAT16 };

template <Weights weights>
struct Kept {
    typedef Narrow Gradient;
    typedef float Exact;
};
template <>
struct Kept<FLOAT32> {
    typedef float Gradient;
    typedef float Exact;
};
template <>
struct Kept<BFLOAT16> {
    typedef Narrow Gradient;
    typedef Narrow Exact;
};

// A tensor's memory.
template <Rule rule_, Weights weights_, class Moment>
struct Arrays {
    static constexpr Rule rule = rule_;
    static constexpr Weights weights = weights_;
    typedef typename Kept<weights>::Gradient Gradient;
    typedef typename Kept<weights>::Exact Exact;

    Exact* theta;    // the weights as exactly as they are known
    Narrow* copy;    // of a master copy, to the nearest
    Gradient* grad;  // only read
    Moment* m;       // of SGD without momentum null
    Moment* v;       // of Adam

    __device__ __forceinline__ Arrays(const Record& r, void* gradient)
        : theta(global((Exact*)(weights == BFLOAT16 ? (void*)r.weights : (void*)r.theta))),
          copy(global(r.weights)),
          grad(global((Gradient*)gradient)),
          m(global((Moment*)r.m)),
          v(global((Moment*)r.v)) {}

    __device__ __forceinline__ bool is_aligned() const {
        Long all = (Long)theta | (Long)grad | (Long)m;
        if (weights == MASTER) all |= (Long)copy;
        if (rule == ADAM) all |= (Long)v;
        return all % 16 == 0;
    }
};

// Reads the thread's share of a tile from element `at`, whole and aligned, and then updates it; returns its Σ|θ'|.
template <class A>
__device__ __forceinline__ float update_tile(const A& a, long long at, const Coefficients& k, const Keys& keys) {
    Share theta, grad, m = {}, v;
    read(theta, a.theta + at);
    read(grad, a.grad + at);
    if (a.rule == ADAM || a.m) read(m, a.m + at);
    if (a.rule == ADAM) read(v, a.v + at);
#pragma unroll
    for (int e = 0; e < SHARE; ++e) update<A::rule>(theta.of[e], grad.of[e], m.of[e], v.of[e], k);
    keep(a.theta + at, theta, at, keys.of[WEIGHTS]);
    if (a.rule == ADAM || a.m) keep(a.m + at, m, at, keys.of[FIRST_MOMENT]);
    if (a.rule == ADAM) keep(a.v + at, v, at, keys.of[SECOND_MOMENT]);
    float sum = 0;
    Octet copies = {};
#pragma unroll
    for (int e = 0; e < SHARE; ++e) {
        sum += fabsf(theta.of[e]);
        if (a.weights == MASTER) copies.group[e / WIDTH] |= (Long)nearest(theta.of[e]) << 16 * (e % WIDTH);
    }
    if (a.weights == MASTER) octet(a.copy + at) = swapped(copies);
    return sum;
}

// The same for a tile that may be cut off or not aligned.
template <class A>
__device__ __forceinline__ float update_rest(const A& a, long long start, long long count, const Coefficients& k,
                                             const Keys& keys) {
    float sum = 0;
    for_each(count, [&](int place) {
        const long long at = start + place;
        const bool has_m = a.rule == ADAM || a.m;
        float theta = wide(a.theta[at]), m = has_m ? wide(a.m[at]) : 0, v = a.rule == ADAM ? wide(a.v[at]) : 0;
        update<A::rule>(theta, wide(a.grad[at]), m, v, k);
        keep(a.theta + at, theta, (Word)at, keys.of[WEIGHTS]);
        if (has_m) keep(a.m + at, m, (Word)at, keys.of[FIRST_MOMENT]);
        if (a.rule == ADAM) keep(a.v + at, v, (Word)at, keys.of[SECOND_MOMENT]);
        if (a.weights == MASTER) a.copy[at] = nearest(theta);
        sum += fabsf(theta);
    });
    return sum;
}

template <class A>
__device__ __forceinline__ double update_chunk(const A& a, long long start, long long stop, const Coefficients& k,
                                               const Keys& keys) {
    const bool aligned = a.is_aligned();
    float sum = 0;
    for (long long at = start; at < stop; at += TILE)
        sum += aligned && at + TILE <= stop ? update_tile(a, at, k, keys) : update_rest(a, at, stop - at, k, keys);
    return sum;
}

// The thread's Σ|θ| of a tile, added up as by an update.
template <class T>
__device__ __forceinline__ float measure_tile(const T* theta, long long count) {
    float sum = 0;
    for_each(count, [&](int at) { sum += fabsf(wide(theta[at])); });
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

// One block per chunk: weights and moments in place, and Σ|θ'| of the chunk.
template <Rule rule, Weights weights, class Moment>
__device__ __forceinline__ void update_block(const Batch& batch, const Gradients& gradients) {
    if (is_skipped(batch)) return;
    __shared__ Coefficients coefficients;
    __shared__ Keys keys;
    __shared__ Decay decay;
    const Chunk chunk = batch.chunks[blockIdx.x];
    const Record r = record_of(batch, chunk.tensor);
    const long long start = chunk.index * CHUNK;
    if (threadIdx.x == 0) {
        const Options options = options_of(batch, r);
        coefficients = coefficients_of(options, r, batch.grad_factor ? *batch.grad_factor : 1.0f);
        decay = options.decay;
        for (int what = 0; what < 3; ++what)
            keys.of[what] = random_key(r.stream, (Long)*r.step + 1, (Rounded)what, (Long)start);
    }
    __syncthreads();
    const Arrays<rule, weights, Moment> arrays(r, gradients.of[chunk.tensor]);
    const double share = update_chunk(arrays, start, stop_of(r, start), coefficients, keys);
    if (!is_huber(decay)) return;
    const double sum = block_sum(share);
    if (threadIdx.x == 0) batch.sums[blockIdx.x] = sum;
}

template <class T>
__device__ __forceinline__ float measure_chunk(const T* theta, long long start, long long stop) {
    float share = 0;
    for (long long at = start; at < stop; at += TILE) share += measure_tile(theta + at, stop - at);
    return share;
}

}  // namespace adamhc

using namespace adamhc;

// One block per chunk: Σ|θ| of the chunk, to the bit what an update would leave for these weights.
extern "C" __global__ void __launch_bounds__(THREADS) adamhc_measure(const __grid_constant__ Batch batch) {
    const Chunk chunk = batch.chunks[blockIdx.x];
    const Record& r = batch.records[chunk.tensor];
    const long long start = chunk.index * CHUNK, stop = stop_of(r, start);
    const double sum = block_sum(r.theta ? measure_chunk(global(r.theta), start, stop)
                                         : measure_chunk(global(r.weights), start, stop));
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

// One block per tensor, after an update: the step count, μ, and the mean of the new weights.
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

// The updates, by the names that kernels/cuda/plan.py gives them: rule, weights, moments. As many blocks are to be on a
// multiprocessor as its registers allow with none spilled.
#define UPDATE(name, rule, weights, Moment)                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, rule == ADAM ? 4 : 3)                  \
        name(const __grid_constant__ Batch batch, const __grid_constant__ Gradients gradients) { \
        update_block<rule, weights, Moment>(batch, gradients);                                   \
    }
#define UPDATES(name, rule)                                \
    UPDATE(name##_float32_float32, rule, FLOAT32, float)   \
    UPDATE(name##_float32_bfloat16, rule, FLOAT32, Narrow) \
    UPDATE(name##_master_float32, rule, MASTER, float)     \
    UPDATE(name##_master_bfloat16, rule, MASTER, Narrow)   \
    UPDATE(name##_bfloat16_float32, rule, BFLOAT16, float) \
    UPDATE(name##_bfloat16_bfloat16, rule, BFLOAT16, Narrow)

UPDATES(adamhc, ADAM)
UPDATES(sgdc, SGD)
