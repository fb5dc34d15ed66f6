// Vectors of the processor's widest registers, and what is computed on them everywhere.
#pragma once

#include <cstdint>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, TILE = 12;
#elif defined(__AVX2__)
constexpr int LANES = 8, TILE = 6;
#else
constexpr int LANES = 4, TILE = 6;
#endif
constexpr long LINE = 64;          // bytes of a line of the processor's caches
constexpr int PANEL = 2 * LANES;  // output features whose weights lie side by side

typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef float LooseVec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t IntVec __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef int32_t LooseIntVec __attribute__((vector_size(LANES * sizeof(int32_t)), aligned(1), may_alias));
typedef uint8_t ByteVec __attribute__((vector_size(LANES)));

inline Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
inline IntVec load_ints(const void* from) { return *static_cast<const LooseIntVec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<LooseVec*>(to) = value; }

inline float sum(Vec value) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += value[i];
    return total;
}

inline Vec as_floats(IntVec value) { return __builtin_convertvector(value, Vec); }

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// e to the power of values that are not above zero (Cephes' polynomial; relative error below 2e-7).
inline Vec exponential(Vec x) {
    x = larger(x, Vec{} - 87.0f);
    const Vec shifted = x * 1.44269504f + 12582912.0f;  // the nearest whole number stands in the lowest bits
    const Vec whole = shifted - 12582912.0f;
    const Vec r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (Vec)((IntVec)p + ((IntVec)shifted << 23));
}

}  // namespace
