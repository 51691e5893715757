// Runs the kernels of csrc/adamhc.cu on a CPU, a block after another. The threads of a block are fibers, which
// run one at a time from barrier to barrier, forwards or backwards: a missing barrier shows as a difference.
// tests/kernels/emulation.py compiles and calls it.
#include <string.h>
#include <ucontext.h>

#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __isGlobal(pointer) true
#define __builtin_assume(condition)

static struct { unsigned x; } threadIdx, blockIdx;

static void __syncthreads();
static unsigned long long __shfl_xor_sync(unsigned, unsigned long long value, int mask);

#include "adamhc.cu"

namespace {

ucontext_t scheduler, fibers[THREADS];
bool finished[THREADS];
std::vector<char> stacks(THREADS * 65536);
const char* kernel;
const void* const* arguments;

const Batch& batch() { return *(const Batch*)arguments[0]; }

#define CALL(name) \
    if (!strcmp(kernel, #name)) name(batch(), *(const Gradients*)arguments[1]);
#define CALLS(rule)                 \
    CALL(rule##_float32_float32)    \
    CALL(rule##_float32_bfloat16)   \
    CALL(rule##_master_float32)     \
    CALL(rule##_master_bfloat16)    \
    CALL(rule##_bfloat16_float32)   \
    CALL(rule##_bfloat16_bfloat16)

void run() {
    CALLS(adamhc)
    CALLS(sgdc)
    if (!strcmp(kernel, "adamhc_finish")) adamhc_finish(batch());
    if (!strcmp(kernel, "adamhc_measure")) adamhc_measure(batch());
    if (!strcmp(kernel, "adamhc_means")) adamhc_means(batch());
    finished[threadIdx.x] = true;
}

// Lets a thread run until it comes to a barrier or ends; tells whether it has not ended.
bool resume(int thread) {
    if (finished[thread]) return false;
    threadIdx.x = thread;
    swapcontext(&scheduler, &fibers[thread]);
    return !finished[thread];
}

}  // namespace

static void __syncthreads() { swapcontext(&fibers[threadIdx.x], &scheduler); }

// Every thread of a block comes to it. Two barriers: none overwrites what its neighbour has yet to read.
static unsigned long long __shfl_xor_sync(unsigned, unsigned long long value, int mask) {
    static unsigned long long values[THREADS];
    values[threadIdx.x] = value;
    __syncthreads();
    const unsigned long long other = values[threadIdx.x ^ mask];
    __syncthreads();
    return other;
}

extern "C" void emulate(const char* name, long long first, long long blocks, const void* const* parameters,
                        int backwards) {
    kernel = name;
    arguments = parameters;
    for (long long block = first; block < blocks; ++block) {
        blockIdx.x = (unsigned)block;
        for (int i = 0; i < THREADS; ++i) {
            finished[i] = false;
            getcontext(&fibers[i]);
            fibers[i].uc_stack = {&stacks[i * 65536], 0, 65536};
            fibers[i].uc_link = &scheduler;
            makecontext(&fibers[i], run, 0);
        }
        for (bool more = true; more;) {
            more = false;
            for (int i = 0; i < THREADS; ++i) more |= resume(backwards ? THREADS - 1 - i : i);
        }
    }
}
