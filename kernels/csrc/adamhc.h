// The arithmetic of AdamHC and SGDC for one tensor and for one element, shared by every compiled back end.
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
enum Rule : long long { ADAM, SGD, NESTEROV };

typedef unsigned short Narrow;  // the bits of a bfloat16
typedef unsigned long long Long;

// What the tensors of one group share at one step. kernels/records.py packs it.
struct Options {
    double lr, max_lr, beta1, beta2, eps, weight_decay, huber_c, threshold_beta;  // of SGD, beta1 is the momentum; of
                                                                                  // L2, huber_c is ∞; of NONE, 0
    Decay decay;
    Rule rule;
    long long corrected, ema;  // booleans
};

// One tensor: its memory, state and decay scale, but for the gradient, which moves. kernels/records.py packs it.
struct Record {
    float* theta;                 // the weights or their master copy; null where `weights` are all there is
    void *m, *v;                  // Narrow or float; null where the rule has none
    float* step;
    float *abs_mean, *nonfinite;  // with a Huber decay
    float* threshold_ema;         // with options.ema
    Narrow* weights;              // null if they are float
    Long stream;                  // what the random numbers of the rounding start from
    double decay_scale;
    long long numel, options, narrow;  // options: index of the group; narrow: boolean, m and v are
};

// What one element needs of its tensor and step.
struct Coefficients {
    float grad_factor;      // unscales and clips
    float lerp1;            // see lerp
    bool from_end1;
    float beta2, rest2;     // β2 and 1−β2
    float step_size;        // η/(1−β1^t); of SGD, η
    float root_scale, eps;   // 1/√(1−β2^t), ε
    bool proximal;          // the decay comes after the descent
    float tau, shrink;      // τ and 1/(1+τ)
    float delta;            // δ; by (7), ∞ of L2 and 0 of NONE
    float momentum;         // of SGD
    bool nesterov;
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
    if (!is_huber(o.decay)) return (float)o.huber_c;
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

// xⁿ by squaring, for 0 <= x < 1: at most n·2⁻⁵³ of xⁿ off, which is nothing beside 1−xⁿ in float. A library's pow is
// most of a kernel's code and registers.
ADAMHC_INLINE double power(double x, Long n) {
    double result = 1;
    for (; n; n >>= 1, x *= x)
        if (n & 1) result *= x;
    return result;
}

// Begins the step of one tensor: counts it, advances μ, and does (4) and the bias corrections.
ADAMHC_INLINE Coefficients begin_step(const Options& o, const Record& r, float grad_factor) {
    const Long t = (Long)(*r.step += 1);
    const double tau = o.lr * o.weight_decay * r.decay_scale * (o.corrected ? o.lr / o.max_lr : 1.0);
    Coefficients k;
    k.grad_factor = grad_factor;
    k.lerp1 = lerp_coefficient(1 - o.beta1);
    k.from_end1 = 1 - o.beta1 >= 0.5;
    k.beta2 = (float)o.beta2;
    k.rest2 = (float)(1 - o.beta2);
    k.step_size = (float)(o.rule == ADAM ? o.lr / (1 - power(o.beta1, t)) : o.lr);
    k.root_scale = (float)(1 / sqrt(1 - power(o.beta2, t)));
    k.eps = (float)o.eps;
    k.proximal = o.decay == HUBER_PROX;
    k.tau = (float)tau;
    k.shrink = (float)(1 / (1 + tau));
    k.delta = threshold(o, r);
    k.momentum = (float)o.beta1;
    k.nesterov = o.rule == NESTEROV;
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

// (1) and (2), or (9), times the step size: what the weights are to descend.
template <Rule rule>
ADAMHC_INLINE float descent(float g, float& m, float& v, const Coefficients& k) {
    g *= k.grad_factor;
    if (rule == ADAM) {
        m = lerp(m, g, k.lerp1, k.from_end1);
        v = k.beta2 * v + k.rest2 * g * g;
        return k.step_size * m / (sqrtf(v) * k.root_scale + k.eps);
    }
    m = k.momentum * m + g;
    return k.step_size * (k.nesterov ? g + k.momentum * m : m);
}

// (3) and (5), in this order, so that an infinite threshold gives the bits of L2, and those of the reference.
ADAMHC_INLINE float moved(float theta, float descent, const Coefficients& k) {
    const float base = k.proximal ? theta - descent : theta;
    return base - k.tau * clip(k.proximal ? base * k.shrink : base, k.delta) - (k.proximal ? 0.0f : descent);
}

// A step of one element.
template <Rule rule>
ADAMHC_INLINE void update(float& theta, float g, float& m, float& v, const Coefficients& k) {
    theta = moved(theta, descent<rule>(g, m, v, k), k);
}

}  // namespace adamhc
