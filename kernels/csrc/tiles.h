// How the threads of a CUDA block read and write a tile of an array, in accesses of 128 bits each.
//
// A thread's share of a tile is the same whatever the array is kept in, so that sums are added up in the same order.
#pragma once

#include "rounding.h"

namespace adamhc {

constexpr int THREADS = 256;
constexpr int WIDTH = 4;               // neighbours that are a thread's own: floats of a 128-bit access
constexpr int UNROLL = 2;              // such groups of a thread that are under way at once
constexpr int SHARE = WIDTH * UNROLL;  // elements of a thread's turn
constexpr int TILE = THREADS * SHARE;  // elements of a block's turn

struct alignas(16) Quad {
    float lane[WIDTH];
};

// Two groups of narrow elements.
struct alignas(16) Octet {
    Long group[2];
};

static_assert(UNROLL == 2 && sizeof(Narrow) * WIDTH == sizeof(Long), "a pair of lanes has two groups of an Octet each");

// Says that a pointer from a table leads to global memory, which makes its accesses faster.
template <class T>
__device__ __forceinline__ T* global(T* pointer) {
    __builtin_assume(__isGlobal(pointer));
    return pointer;
}

// Where the thread's group number u begins in a tile.
__device__ __forceinline__ int place(int u) { return (u * THREADS + (int)threadIdx.x) * WIDTH; }

// The thread's share of a tile that is whole and aligned, group after group.
struct Share {
    float of[SHARE];
};

__device__ __forceinline__ void read(Share& share, float* tile) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) *(Quad*)&share.of[u * WIDTH] = *(Quad*)(tile + place(u));
}

__device__ __forceinline__ void write(float* tile, const Share& share) {
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) *(Quad*)(tile + place(u)) = *(const Quad*)&share.of[u * WIDTH];
}

__device__ __forceinline__ bool is_odd() { return threadIdx.x % 2; }

// Narrow groups are half an access wide. So of a pair of threads the even one accesses the first group of both, the
// odd one the second, and each hands the other its own.
__device__ __forceinline__ Octet& octet(Narrow* tile) {
    return *(Octet*)(tile + (is_odd() ? place(1) - WIDTH : place(0)));
}

// Makes the two groups of an access those of the thread, or the other way round.
__device__ __forceinline__ Octet swapped(Octet o) {
    const bool odd = is_odd();
    const Long given = __shfl_xor_sync(0xffffffffu, odd ? o.group[0] : o.group[1], 1);
    return odd ? Octet{{given, o.group[1]}} : Octet{{o.group[0], given}};
}

__device__ __forceinline__ void read(Share& share, Narrow* tile) {
    const Octet own = swapped(octet(tile));
#pragma unroll
    for (int e = 0; e < SHARE; ++e) share.of[e] = widen((Narrow)(own.group[e / WIDTH] >> 16 * (e % WIDTH)));
}

// How this step rounds what is narrow: what the random numbers of WEIGHTS and the moments have in common.
struct Keys {
    Long of[3];
};

// Writes a share of which element 0 of the tile has this index in its tensor, rounded if it is narrow; `share` is then
// what was written.
__device__ __forceinline__ void keep(float* tile, Share& share, long long, Long) { write(tile, share); }

__device__ __forceinline__ void keep(Narrow* tile, Share& share, long long index, Long key) {
    Octet own = {};
#pragma unroll
    for (int e = 0; e < SHARE; ++e) {
        const Word at = (Word)index + (Word)(place(e / WIDTH) + e % WIDTH);
        const Narrow rounded = stochastic(share.of[e], random_bits(key, at));
        own.group[e / WIDTH] |= (Long)rounded << 16 * (e % WIDTH);
        share.of[e] = widen(rounded);
    }
    octet(tile) = swapped(own);
}

// The same for an element.
__device__ __forceinline__ void keep(float* at, float& x, Word, Long) { *at = x; }

__device__ __forceinline__ void keep(Narrow* at, float& x, Word index, Long key) {
    *at = stochastic(x, random_bits(key, index));
    x = widen(*at);
}

__device__ __forceinline__ float wide(float x) { return x; }
__device__ __forceinline__ float wide(Narrow x) { return widen(x); }

// Calls body(at) for the thread's elements among the first `count` of a tile, in the order of a share.
template <class Body>
__device__ __forceinline__ void for_each(long long count, Body body) {
#pragma unroll 1
    for (int u = 0; u < UNROLL; ++u)
#pragma unroll 1
        for (int at = place(u); at < place(u) + WIDTH && at < count; ++at) body(at);
}

}  // namespace adamhc
