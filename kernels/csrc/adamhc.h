// The arithmetic of AdamHC for one tensor and for one element, shared by every compiled back end.
//
// The formulas and their numbers are those of kernels/reference.py. Elements are float; what is computed once
// per tensor and step is double. C++17 or CUDA C++, no includes beyond <math.h>.
#pragma once

#ifdef __CUDACC__
#define ADAMHC_INLINE __host__ __device__ __forceinline__
#else
#include <math.h>
#define ADAMHC_INLINE inline __attribute__((always_inline))
#endif

namespace adamhc {

enum Decay : long long { NONE, L2, HUBER, HUBER_PROX };

// What the tensors of one group share at one step. kernels/plan.py packs it.
struct Options {
    double lr, max_lr, beta1, beta2, eps, weight_decay, huber_c, threshold_beta;
    Decay decay;
    long long corrected, ema;  // booleans
};

// One tensor: its memory, its state and its own decay scale, but for the gradient, which moves. kernels/plan.py packs it.
struct Record {
    float *theta, *m, *v, *step;
    float *abs_mean, *nonfinite;  // with a Huber decay
    float* threshold_ema;         // with options.ema
    double decay_scale;
    long long numel, options;  // options: index of the group
};

// What one element needs of its tensor and step.
struct Coefficients {
    float grad_factor;      // unscales and clips
    float lerp1;            // see lerp
    bool from_end1;
    float beta2, rest2;     // β2 and 1−β2
    float step_size;        // η/(1−β1^t)
    float root_scale, eps;   // 1/√(1−β2^t), ε
    float tau, shrink;      // τ and 1/(1+τ)
    float delta;            // δ
};

// start + weight·(end − start), from whichever end is nearer: weight 1 gives `end` to the bit, as torch's lerp.
ADAMHC_INLINE float lerp(float start, float end, float coefficient, bool from_end) {
    return (from_end ? end : start) + coefficient * (end - start);
}

ADAMHC_INLINE float lerp_coefficient(double weight) {
    return (float)(weight < 0.5 ? weight : weight - 1);
}

ADAMHC_INLINE bool is_huber(Decay decay) { return decay == HUBER || decay == HUBER_PROX; }

// (6): δ of this step; advances μ, unless the last mean was not finite.
ADAMHC_INLINE float threshold(const Options& o, const Record& r) {
    if (!is_huber(o.decay)) return 0;
    float level = *r.abs_mean;
    if (o.ema) {
        const double weight = 1 - o.threshold_beta;
        if (*r.nonfinite == 0)
            *r.threshold_ema = lerp(*r.threshold_ema, level, lerp_coefficient(weight), weight >= 0.5);
        level = *r.threshold_ema;
    }
    // Weights that are all zero have level 0, and ∞·0 is NaN.
    return isinf(o.huber_c) ? (float)o.huber_c : (float)o.huber_c * level;
}

// Begins the step of one tensor: counts it, advances μ, and does (4) and the bias corrections.
ADAMHC_INLINE Coefficients begin_step(const Options& o, const Record& r, float grad_factor) {
    const double t = (double)(*r.step += 1);
    const double tau = o.lr * o.weight_decay * r.decay_scale * (o.corrected ? o.lr / o.max_lr : 1.0);
    Coefficients k;
    k.grad_factor = grad_factor;
    k.lerp1 = lerp_coefficient(1 - o.beta1);
    k.from_end1 = 1 - o.beta1 >= 0.5;
    k.beta2 = (float)o.beta2;
    k.rest2 = (float)(1 - o.beta2);
    k.step_size = (float)(o.lr / (1 - pow(o.beta1, t)));
    k.root_scale = (float)(1 / sqrt(1 - pow(o.beta2, t)));
    k.eps = (float)o.eps;
    k.tau = (float)tau;
    k.shrink = (float)(1 / (1 + tau));
    k.delta = threshold(o, r);
    return k;
}

// Ends the step of one tensor with a Huber decay: keeps the mean of the new weights, or the last finite one.
ADAMHC_INLINE void end_step(const Record& r, double abs_sum) {
    const float mean = (float)(abs_sum / (double)r.numel);
    const bool finite = isfinite(mean);
    if (finite) *r.abs_mean = mean;
    *r.nonfinite = finite ? 0.0f : 1.0f;
}

// A NaN passes through. In two steps, which are the minimum and the maximum that processors have.
ADAMHC_INLINE float clip(float x, float limit) {
    const float upper = limit < x ? limit : x;
    return -limit > upper ? -limit : upper;
}

// (1) to (3) and (5) for one element.
template <Decay decay>
ADAMHC_INLINE void update(float& theta, float g, float& m, float& v, const Coefficients& k) {
    g *= k.grad_factor;
    m = lerp(m, g, k.lerp1, k.from_end1);
    v = k.beta2 * v + k.rest2 * g * g;
    const float descent = k.step_size * m / (sqrtf(v) * k.root_scale + k.eps);
    if (decay == NONE) theta = theta - descent;
    // In this order, so that an infinite threshold gives the bits of L2, and those of the reference.
    if (decay == L2) theta = theta - k.tau * theta - descent;
    if (decay == HUBER) theta = theta - k.tau * clip(theta, k.delta) - descent;
    if (decay == HUBER_PROX) {
        const float moved = theta - descent;
        theta = moved - k.tau * clip(moved * k.shrink, k.delta);
    }
}

}  // namespace adamhc
