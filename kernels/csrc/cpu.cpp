// AdamHC on CPU threads: one parallel region for all tensors of an optimizer. kernels/cpu.py calls it by ctypes.
//
// The work is cut into chunks that depend on the tensors' sizes alone, and sums are combined in the order of the
// chunks, so that one thread and many give the same bits.
#include <vector>

#include "adamhc.h"

using namespace adamhc;

namespace {

constexpr long long BLOCK = 1024;        // elements of one float sum: they are in the first cache
constexpr long long LANES = 32;          // float sums side by side, whatever the processor's vectors are
constexpr long long CHUNK = 16 * BLOCK;  // elements of one unit of work
constexpr long long AHEAD = 512;         // elements to fetch ahead. Measured: 10 % on one thread; 256 and 1024 less
constexpr long long CACHED = 1 << 21;    // elements of which θ, g, m and v may be in a cache: fetching costs 10 % there

struct Chunk {
    long long tensor, start, stop;
};

template <class Size>
std::vector<Chunk> cut(long long tensors, Size size) {
    std::vector<Chunk> chunks;
    for (long long i = 0; i < tensors; ++i)
        for (long long start = 0; start < size(i); start += CHUNK)
            chunks.push_back({i, start, start + CHUNK < size(i) ? start + CHUNK : size(i)});
    return chunks;
}

long long elements_of(const std::vector<Chunk>& chunks) {
    long long elements = 0;
    for (const Chunk& chunk : chunks) elements += chunk.stop - chunk.start;
    return elements;
}

// Calls body(i) for each chunk. All threads or one: a team of another size would make and end threads. One thread
// enters no region, which would cost, and disturb torch's own team.
template <class Body>
void for_each(const std::vector<Chunk>& chunks, int threads, Body body) {
    const long long count = (long long)chunks.size();
    if (threads <= 1 || elements_of(chunks) < 2 * CHUNK) {
        for (long long i = 0; i < count; ++i) body(i);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long long i = 0; i < count; ++i) body(i);
}

// Float sums side by side, as many whatever the processor's vectors are: so every processor gives the same bits.
struct Lanes {
    float sums[LANES] = {};

    float total() {
        for (long long width = LANES / 2; width > 0; width /= 2)
            for (long long k = 0; k < width; ++k) sums[k] += sums[k + width];
        return sums[0];
    }
};

float abs_sum(const float* values, long long n) {
    Lanes lanes;
    for (long long i = 0; i < n; i += LANES) {
        const long long width = n - i < LANES ? n - i : LANES;
        for (long long k = 0; k < width; ++k) lanes.sums[k] += fabsf(values[i + k]);
    }
    return lanes.total();
}

// Calls body(start, n) for each block of a chunk and returns the sum of what it returns.
template <class Body>
double sum_blocks(const Chunk& chunk, Body body) {
    double sum = 0;
    for (long long start = chunk.start; start < chunk.stop; start += BLOCK)
        sum += body(start, chunk.stop - start < BLOCK ? chunk.stop - start : BLOCK);
    return sum;
}

// Fetches the lanes that come AHEAD; past the end of a tensor that does nothing.
inline void fetch(const float* values) {
    for (long long k = 0; k < LANES; k += 16) __builtin_prefetch(values + AHEAD + k);
}

// Updates a block, which is not in a cache if `far`; returns Σ|θ'| of it with a Huber decay, the one that abs_sum gives.
template <Decay decay>
float update_block(float* __restrict theta, const float* __restrict grad, float* __restrict m,
                   float* __restrict v, long long n, const Coefficients c, bool far) {
    Lanes lanes;
    const auto element = [&](long long i, float& lane) __attribute__((always_inline)) {
        float new_theta = theta[i], new_m = m[i], new_v = v[i];
        update<decay>(new_theta, grad[i], new_m, new_v, c);
        theta[i] = new_theta;
        m[i] = new_m;
        v[i] = new_v;
        if (is_huber(decay)) lane += fabsf(new_theta);
    };
    long long i = 0;
    for (; i + LANES <= n; i += LANES) {
        if (far)
            for (const float* values : {(const float*)theta, grad, (const float*)m, (const float*)v}) fetch(values + i);
#pragma omp simd
        for (long long k = 0; k < LANES; ++k) element(i + k, lanes.sums[k]);
    }
    for (long long k = 0; i + k < n; ++k) element(i + k, lanes.sums[k]);
    return lanes.total();
}

// Updates a chunk; returns Σ|θ'| of it with a Huber decay.
template <Decay decay>
double update_chunk(const Record& r, const float* grad, const Chunk& chunk, const Coefficients& k, bool far) {
    return sum_blocks(chunk, [&](long long start, long long n) {
        return update_block<decay>(r.theta + start, grad + start, r.m + start, r.v + start, n, k, far);
    });
}

double update_chunk(const Record& r, const float* grad, const Chunk& chunk, const Coefficients& k, Decay decay,
                    bool far) {
    switch (decay) {
        case NONE: return update_chunk<NONE>(r, grad, chunk, k, far);
        case L2: return update_chunk<L2>(r, grad, chunk, k, far);
        case HUBER: return update_chunk<HUBER>(r, grad, chunk, k, far);
        default: return update_chunk<HUBER_PROX>(r, grad, chunk, k, far);
    }
}

std::vector<double> per_tensor(long long tensors, const std::vector<Chunk>& chunks, const std::vector<double>& sums) {
    std::vector<double> totals(tensors);
    for (size_t i = 0; i < chunks.size(); ++i) totals[chunks[i].tensor] += sums[i];
    return totals;
}

}  // namespace

extern "C" {

// One step in place: θ, m, v and the 0-dim state of every tensor.
void adamhc_step(const Options* options, const Record* records, const float* const* grads, long long tensors,
                 float grad_factor, int threads) {
    std::vector<Coefficients> coefficients(tensors);
    for (long long i = 0; i < tensors; ++i)
        coefficients[i] = begin_step(options[records[i].options], records[i], grad_factor);
    const auto chunks = cut(tensors, [&](long long i) { return records[i].numel; });
    std::vector<double> sums(chunks.size());
    const bool far = elements_of(chunks) > CACHED;
    for_each(chunks, threads, [&](long long i) {
        const long long tensor = chunks[i].tensor;
        const Record& r = records[tensor];
        sums[i] = update_chunk(r, grads[tensor], chunks[i], coefficients[tensor], options[r.options].decay, far);
    });
    const auto totals = per_tensor(tensors, chunks, sums);
    for (long long i = 0; i < tensors; ++i)
        if (is_huber(options[records[i].options].decay)) end_step(records[i], totals[i]);
}

// mean|θ| of every tensor, by the sums that a step does, so that both give the same bits.
void adamhc_abs_means(const float* const* tensors, const long long* sizes, long long count, float* means,
                      int threads) {
    const auto chunks = cut(count, [&](long long i) { return sizes[i]; });
    std::vector<double> sums(chunks.size());
    for_each(chunks, threads, [&](long long i) {
        const float* values = tensors[chunks[i].tensor];
        sums[i] = sum_blocks(chunks[i], [&](long long start, long long n) { return abs_sum(values + start, n); });
    });
    const auto totals = per_tensor(count, chunks, sums);
    for (long long i = 0; i < count; ++i) means[i] = (float)(totals[i] / (double)sizes[i]);
}
}
