// bfloat16 and how to round to it, shared by every compiled back end; kernels/precision.py says why and has the same.
#pragma once

#ifndef __CUDACC__
#include <string.h>
#endif

#include "adamhc.h"

namespace adamhc {

typedef unsigned int Word;

enum Rounded : long long { WEIGHTS, FIRST_MOMENT, SECOND_MOMENT };

ADAMHC_INLINE Word bits_of(float x) {
    Word bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

ADAMHC_INLINE float widen(Narrow x) {
    const Word bits = (Word)x << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

ADAMHC_INLINE bool is_finite(Word bits) { return (bits & 0x7f800000u) != 0x7f800000u; }

// The nearest, or the even one of two; a NaN stays one.
ADAMHC_INLINE Narrow nearest(float x) {
    const Word bits = bits_of(x), up = bits + 0x7fffu + ((bits >> 16) & 1);
    return (Narrow)((x == x ? up : bits | 0x400000u) >> 16);
}

// Away from zero with the probability that is the remainder; `random` is uniform.
ADAMHC_INLINE Narrow stochastic(float x, Word random) {
    const Word bits = bits_of(x);
    return is_finite(bits) ? (Narrow)((bits + (random >> 16)) >> 16) : nearest(x);
}

ADAMHC_INLINE Long splitmix64(Long x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// What the random numbers of 2^32 elements from `start` have in common in step t.
ADAMHC_INLINE Long random_key(Long stream, Long t, Rounded what, Long start) {
    return splitmix64(stream + 4 * t + (Long)what + ((start >> 32) << 40));
}

ADAMHC_INLINE Word random_bits(Long key, Word index) {
    Word x = index ^ (Word)key;
    x = ((x ^ (x >> 16)) * 0x7feb352du) ^ (Word)(key >> 32);
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

}  // namespace adamhc
