// What verification asks of logits: the largest of a row, and how far up a value stands in it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace {

// The largest of a row and the first place where it stands; NaN, at place 0, where one is in the row.
inline float peak_of(const float* row, long width, int32_t* place) {
    constexpr int CHAINS = 4;  // so that a comparison need not wait for the one before
    Vec peaks[CHAINS];
    IntVec unordered = {};
    for (Vec& peak : peaks) peak = Vec{} - INFINITY;
    long i = 0;
    for (; i + CHAINS * LANES <= width; i += CHAINS * LANES)
        for (int c = 0; c < CHAINS; c++) {
            const Vec value = load(row + i + c * LANES);
            peaks[c] = larger(value, peaks[c]);
            unordered |= value != value;
        }
    float peak = -INFINITY;
    bool broken = false;
    for (int lane = 0; lane < LANES; lane++) {
        broken |= unordered[lane] != 0;
        for (const Vec& chain : peaks) peak = std::max(peak, chain[lane]);
    }
    for (; i < width; i++) broken |= row[i] != row[i], peak = std::max(peak, row[i]);
    *place = broken ? 0 : std::find(row, row + width, peak) - row;
    return broken ? NAN : peak;
}

// How many of a row's values are above one, and the logarithm of the sum of e to the power of all.
inline void compare(const float* row, long width, float value, float peak, int32_t* above, float* log_sum) {
    Vec total = {};
    IntVec lower = {};  // minus one in every lane where a value is above
    long i = 0;
    for (; i + LANES <= width; i += LANES) {
        const Vec values = load(row + i);
        total += exponential(values - peak);
        lower += values > value;
    }
    float rest = sum(total);
    int32_t count = 0;
    for (int lane = 0; lane < LANES; lane++) count -= lower[lane];
    for (; i < width; i++) rest += std::exp(row[i] - peak), count += row[i] > value;
    *above = count;
    *log_sum = peak + std::log(rest);
}

}  // namespace
