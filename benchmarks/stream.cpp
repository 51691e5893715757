// The bare stream of an optimizer step: reads θ, g, m and v, writes θ, m and v, and computes next to nothing.
#include <stdint.h>

extern "C" void stream(float* const* thetas, const float* const* grads, float* const* ms, float* const* vs,
                       const int64_t* sizes, int64_t tensors, int threads) {
#pragma omp parallel num_threads(threads)
    for (int64_t i = 0; i < tensors; ++i) {
        float* __restrict theta = thetas[i];
        const float* __restrict grad = grads[i];
        float* __restrict m = ms[i];
        float* __restrict v = vs[i];
#pragma omp for schedule(static) nowait
        for (int64_t k = 0; k < sizes[i]; ++k) {
            m[k] += grad[k];
            v[k] += grad[k];
            theta[k] += grad[k];
        }
    }
}
