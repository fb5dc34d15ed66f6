// Linear layers over a few rows.
//
// The matrix libraries that torch ships are made for many rows. A step has one to a few dozen, so that a linear layer's
// time is that of its weights' way from memory: they are read once, in order, and the next ones are fetched while these
// are used.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

constexpr long BLOCK = 128;  // input features that are worked through before the next row tile's turn
constexpr long LINE = 64;    // bytes of a line of the processor's caches

inline Vec widen(const float* from) { return load(from); }

inline Vec widen(const uint16_t* from) {  // bfloat16 is float's upper half
#if defined(__AVX512F__)
    return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#elif defined(__AVX2__)
    return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)), 16);
#else
    IntVec wide;
    for (int i = 0; i < LANES; i++) wide[i] = (int32_t)from[i] << 16;
    return (Vec)wide;
#endif
}

inline Vec widen(const int8_t* from) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from)));
#elif defined(__AVX2__)
    return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from)));
#else
    Vec wide;
    for (int i = 0; i < LANES; i++) wide[i] = from[i];
    return wide;
#endif
}

// One panel's outputs for ROWS rows: += the products of `inputs` features. Meanwhile `ahead` lines are fetched.
template <int ROWS, typename Weight>
inline void multiply(const float* x, long x_stride, const Weight* weights, long inputs, float* sums, const char* next,
                     long ahead) {
    Vec low[ROWS], high[ROWS];
    for (int r = 0; r < ROWS; r++) low[r] = load(sums + r * PANEL), high[r] = load(sums + r * PANEL + LANES);
    auto step = [&](long k) {
        const Vec a = widen(weights + k * PANEL), b = widen(weights + k * PANEL + LANES);
        for (int r = 0; r < ROWS; r++) {
            const Vec value = x[r * x_stride + k] - Vec{};
            low[r] += value * a;
            high[r] += value * b;
        }
    };
    ahead = std::min(ahead, inputs);
    for (long k = 0; k < ahead; k++) {
        __builtin_prefetch(next + k * LINE, 0, 3);
        step(k);
    }
    for (long k = ahead; k < inputs; k++) step(k);
    for (int r = 0; r < ROWS; r++) store(sums + r * PANEL, low[r]), store(sums + r * PANEL + LANES, high[r]);
}

template <int ROWS = TILE, typename Weight>
inline void multiply_rows(int rows, const float* x, long x_stride, const Weight* weights, long inputs, float* sums,
                          const char* next, long ahead) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            multiply<ROWS>(x, x_stride, weights, inputs, sums, next, ahead);
        else
            multiply_rows<ROWS - 1>(rows, x, x_stride, weights, inputs, sums, next, ahead);
    }
}

struct Linear {  // y = x W^T, times scales, plus bias and what is to be added
    const void* weights;
    const float *scales, *bias;
    int64_t inputs, outputs, storage;  // of storage see `multiplied`
};

template <typename Weight>
void multiplied_by(const Linear& layer, const Weight* weights, const float* x, const float* added, float* y, long rows) {
    const long inputs = layer.inputs, outputs = layer.outputs;
    const long panels = (outputs + PANEL - 1) / PANEL, tiles = (rows + TILE - 1) / TILE;
#pragma omp parallel
    {
        std::vector<float> buffer(rows * PANEL + BLOCK * PANEL);
        float *sums = buffer.data(), *wide = sums + rows * PANEL;
#pragma omp for schedule(static)
        for (long panel = 0; panel < panels; panel++) {
            std::fill(sums, sums + rows * PANEL, 0.0f);
            for (long k = 0; k < inputs; k += BLOCK) {
                const long width = std::min(BLOCK, inputs - k);
                const Weight* stored = weights + (panel * inputs + k) * PANEL;
                // The tiles share in fetching the next block, which is another panel's when this one's are used up.
                const char* next = reinterpret_cast<const char*>(stored + width * PANEL);
                const long share = (BLOCK * PANEL * (long)sizeof(Weight) / LINE + tiles - 1) / tiles;
                const bool narrow = sizeof(Weight) < sizeof(float) && tiles > 2;  // widened once for all rows
                for (long i = 0; narrow && i < width * PANEL; i += LANES) store(wide + i, widen(stored + i));
                for (long tile = 0; tile < tiles; tile++) {  // of sizes that differ by one at most
                    const long begin = tile * rows / tiles, count = (tile + 1) * rows / tiles - begin;
                    const float* inputs_of = x + begin * inputs + k;
                    const char* ahead = next + tile * share * LINE;
                    if (narrow)
                        multiply_rows(count, inputs_of, inputs, wide, width, sums + begin * PANEL, ahead, share);
                    else
                        multiply_rows(count, inputs_of, inputs, stored, width, sums + begin * PANEL, ahead, share);
                }
            }
            const long first = panel * PANEL, count = std::min((long)PANEL, outputs - first);
            for (long r = 0; r < rows; r++) {
                float* out = sums + r * PANEL;
                for (long j = 0; layer.scales && j < count; j++) out[j] *= layer.scales[first + j];
                for (long j = 0; layer.bias && j < count; j++) out[j] += layer.bias[first + j];
                for (long j = 0; added && j < count; j++) out[j] += added[r * outputs + first + j];
                std::memcpy(y + r * outputs + first, out, count * sizeof(float));
            }
        }
    }
}

void multiplied(const Linear& layer, const float* x, const float* added, float* y, long rows) {
    switch (layer.storage) {
        case 0: return multiplied_by(layer, static_cast<const float*>(layer.weights), x, added, y, rows);
        case 1: return multiplied_by(layer, static_cast<const uint16_t*>(layer.weights), x, added, y, rows);
        default: return multiplied_by(layer, static_cast<const int8_t*>(layer.weights), x, added, y, rows);
    }
}

}  // namespace
