// AdamHC and SGDC on CPU threads: one parallel region for all tensors of an optimizer. kernels/cpu.py calls it by ctypes.
//
// The work is cut into chunks that depend on the tensors' sizes alone, and sums are combined in the order of the
// chunks, so that one thread and many give the same bits.
#include <vector>

#include "rounding.h"

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

// Updates a block, which is not in a cache if `far`; returns Σ|θ'| of it, the one that abs_sum gives.
template <Rule rule, bool proximal>
float update_block(float* __restrict theta, const float* __restrict grad, float* __restrict m,
                   float* __restrict v, long long n, Coefficients c, bool far) {
    c.proximal = proximal;  // known to the compiler
    Lanes lanes;
    const auto element = [&](long long i, float& lane) __attribute__((always_inline)) {
        float new_theta = theta[i], new_m = m[i], new_v = rule == ADAM ? v[i] : 0;
        update<rule>(new_theta, grad[i], new_m, new_v, c);
        theta[i] = new_theta;
        m[i] = new_m;
        if (rule == ADAM) v[i] = new_v;
        lane += fabsf(new_theta);
    };
    long long i = 0;
    for (; i + LANES <= n; i += LANES) {
        if (far) {
            for (const float* values : {(const float*)theta, grad, (const float*)m}) fetch(values + i);
            if (rule == ADAM) fetch(v + i);
        }
#pragma omp simd
        for (long long k = 0; k < LANES; ++k) element(i + k, lanes.sums[k]);
    }
    for (long long k = 0; i + k < n; ++k) element(i + k, lanes.sums[k]);
    return lanes.total();
}

float update_block(float* theta, const float* grad, float* m, float* v, long long n, const Coefficients& k, Rule rule,
                   bool far) {
    const auto update = rule == ADAM ? (k.proximal ? update_block<ADAM, true> : update_block<ADAM, false>)
                                     : (k.proximal ? update_block<SGD, true> : update_block<SGD, false>);
    return update(theta, grad, m, v, n, k, far);
}

float* widen(float* wide, const Narrow* values, long long n) {
    for (long long i = 0; i < n; ++i) wide[i] = adamhc::widen(values[i]);
    return wide;
}

// Elements of one tensor from `start`, and how the step of number t rounds them.
struct Rounding {
    Long stream, t;
    long long start;

    void operator()(Narrow* narrow, const float* wide, long long n, Rounded what) const {
        const Long key = random_key(stream, t, what, (Long)start);
        for (long long i = 0; i < n; ++i) narrow[i] = stochastic(wide[i], random_bits(key, (Word)(start + i)));
    }
};

// Returns a moment's block as float: its own memory, or in `wide` a copy of what is narrow or zeros for what is not there.
float* moment(float* wide, void* moments, const Record& r, long long start, long long n) {
    if (!moments) return (float*)memset(wide, 0, n * sizeof(float));
    return r.narrow ? widen(wide, (const Narrow*)moments + start, n) : (float*)moments + start;
}

// Updates a block of a tensor of which something is narrow or not there, by way of float copies that stay in the
// first cache.
float update_narrow(const Record& r, const void* grad, long long start, long long n, const Coefficients& k,
                    Rule rule) {
    alignas(64) float wide[4][BLOCK];
    const Rounding round = {r.stream, (Long)*r.step, start};
    Narrow* narrow = r.weights + start;
    float* theta = r.theta ? r.theta + start : widen(wide[0], narrow, n);
    const float* g = r.weights ? widen(wide[1], (const Narrow*)grad + start, n) : (const float*)grad + start;
    float* m = moment(wide[2], r.m, r, start, n);
    float* v = moment(wide[3], r.v, r, start, n);
    float sum = update_block(theta, g, m, v, n, k, rule, false);
    if (r.narrow && r.m) round((Narrow*)r.m + start, m, n, FIRST_MOMENT);
    if (r.narrow && r.v) round((Narrow*)r.v + start, v, n, SECOND_MOMENT);
    if (r.weights && r.theta)
        for (long long i = 0; i < n; ++i) narrow[i] = nearest(theta[i]);
    else if (r.weights) {
        round(narrow, theta, n, WEIGHTS);
        sum = abs_sum(widen(theta, narrow, n), n);
    }
    return sum;
}

// Updates a chunk; returns Σ|θ'| of it.
double update_chunk(const Record& r, const void* grad, const Chunk& chunk, const Coefficients& k, Rule rule, bool far) {
    return sum_blocks(chunk, [&](long long i, long long n) {
        if (r.weights || r.narrow || !r.m) return update_narrow(r, grad, i, n, k, rule);
        float* const v = rule == ADAM ? (float*)r.v + i : nullptr;
        return update_block(r.theta + i, (const float*)grad + i, (float*)r.m + i, v, n, k, rule, far);
    });
}

// Σg² of a block, in double because squares overflow.
double square_sum(const float* values, long long n) {
    double sums[LANES] = {};
    for (long long i = 0; i < n; i += LANES) {
        const long long width = n - i < LANES ? n - i : LANES;
        for (long long k = 0; k < width; ++k) sums[k] += (double)values[i + k] * values[i + k];
    }
    for (long long width = LANES / 2; width > 0; width /= 2)
        for (long long k = 0; k < width; ++k) sums[k] += sums[k + width];
    return sums[0];
}

std::vector<double> per_tensor(long long tensors, const std::vector<Chunk>& chunks, const std::vector<double>& sums) {
    std::vector<double> totals(tensors);
    for (size_t i = 0; i < chunks.size(); ++i) totals[chunks[i].tensor] += sums[i];
    return totals;
}

// Tensors to be read, of which some may be narrow. kernels/cpu.py packs the arrays.
struct Values {
    const void* const* addresses;
    const long long* sizes;
    const char* narrow;

    // Sums what body(values, n) returns for the blocks of each tensor.
    template <class Body>
    std::vector<double> sum(long long count, int threads, Body body) const {
        const auto chunks = cut(count, [&](long long i) { return sizes[i]; });
        std::vector<double> sums(chunks.size());
        for_each(chunks, threads, [&](long long i) {
            const long long tensor = chunks[i].tensor;
            sums[i] = sum_blocks(chunks[i], [&](long long start, long long n) {
                if (!narrow[tensor]) return (double)body((const float*)addresses[tensor] + start, n);
                alignas(64) float wide[BLOCK];
                return (double)body(widen(wide, (const Narrow*)addresses[tensor] + start, n), n);
            });
        });
        return per_tensor(count, chunks, sums);
    }
};

}  // namespace

extern "C" {

// One step in place: weights, moments and the 0-dim state of every tensor.
void adamhc_step(const Options* options, const Record* tensors, const void* const* grads, long long count,
                 float grad_factor, int threads) {
    std::vector<Coefficients> coefficients(count);
    for (long long i = 0; i < count; ++i)
        coefficients[i] = begin_step(options[tensors[i].options], tensors[i], grad_factor);
    const auto chunks = cut(count, [&](long long i) { return tensors[i].numel; });
    std::vector<double> sums(chunks.size());
    const bool far = elements_of(chunks) > CACHED;
    for_each(chunks, threads, [&](long long i) {
        const long long k = chunks[i].tensor;
        const Rule rule = options[tensors[k].options].rule;
        sums[i] = update_chunk(tensors[k], grads[k], chunks[i], coefficients[k], rule, far);
    });
    const auto totals = per_tensor(count, chunks, sums);
    for (long long i = 0; i < count; ++i)
        if (is_huber(options[tensors[i].options].decay)) end_step(tensors[i], totals[i]);
}

// mean|θ| of every tensor, by the sums that a step does, so that both give the same bits.
void adamhc_abs_means(const void* const* addresses, const long long* sizes, const char* narrow, long long count,
                      float* means, int threads) {
    const auto sums = Values{addresses, sizes, narrow}.sum(count, threads, abs_sum);
    for (long long i = 0; i < count; ++i) means[i] = (float)(sums[i] / (double)sizes[i]);
}

// Σg² over all tensors.
double adamhc_square_sum(const void* const* addresses, const long long* sizes, const char* narrow, long long count,
                         int threads) {
    double total = 0;
    for (double sum : Values{addresses, sizes, narrow}.sum(count, threads, square_sum)) total += sum;
    return total;
}
}
