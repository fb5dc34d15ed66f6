// Linear layers over a few rows.
//
// The matrix libraries that torch ships are made for many rows. A step has one to a few dozen, so that a linear layer's
// time is that of its weights' way from memory: they are read once, in order, and the next ones are fetched while these
// are used.
//
// Weights are float32, bfloat16 or int8. int8 rows are multiplied by int8 weights into int32, exactly, on any processor;
// blocks of BLOCK inputs have scales of their own, of a row and of an output. bfloat16 rows are rounded and multiplied
// where the processor does that, else the weights are widened. A row's result never depends on the rows beside it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "threads.h"
#include "vectors.h"

namespace {

constexpr long BLOCK = 128;  // input features that are worked through before the next row tile's turn
constexpr long QUAD = 4;     // int8 inputs that are multiplied and summed at once
constexpr long WORD = 4;     // bytes of the narrow inputs that are
constexpr float INT8_MOST = 127.0f;
constexpr float NEAREST = 12582912.0f;  // added to a float, it leaves the nearest whole number in the lowest bits

#if defined(__AVX512BF16__)
constexpr long BF16_GROUP = 2;  // bfloat16 inputs likewise
#else
constexpr long BF16_GROUP = 1;
#endif
#if (defined(__AVX512VNNI__) && defined(__AVX512BW__)) || defined(__AVXVNNI__)
constexpr bool SHIFTED = true;  // rows are stored as unsigned numbers, 128 more than they are
#else
constexpr bool SHIFTED = false;
#endif
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int INT8_TILE = SHIFTED ? TILE : 4;
#else
constexpr int INT8_TILE = TILE;
#endif

struct Linear {  // y = x W^T, plus bias
    const void* weights;       // [panels, inputs / group, PANEL, group]
    const float* scales;       // int8: [panels, blocks, PANEL]
    const int32_t* shifts;     // int8: [panels, blocks, PANEL], -128 times the sum of the weights
    const float* bias;         // [outputs], or null
    int64_t inputs, outputs, storage;  // 0: float32, 1: bfloat16, 2: int8

    long panels() const { return (outputs + PANEL - 1) / PANEL; }
    long blocks() const { return (inputs + BLOCK - 1) / BLOCK; }
    long bytes() const { return storage == 0 ? 4 : storage == 1 ? 2 : 1; }  // of a weight
    long group() const { return storage == 0 ? 1 : storage == 1 ? BF16_GROUP : QUAD; }
    long padded() const { return (inputs + group() - 1) / group() * group(); }  // inputs, to whole groups
    bool is_narrow() const { return storage == 2 || (storage == 1 && BF16_GROUP == 2); }  // of its rows, too
    long words() const { return padded() / group(); }
};

// Rows that are multiplied together; tiles differ by one row at most.
struct Tiles {
    long rows, number;

    Tiles(const Linear& layer, long rows) : rows(rows) {
        const long most = layer.storage == 2 ? INT8_TILE : TILE;
        number = (rows + most - 1) / most;
    }
    long begin(long tile) const { return tile * rows / number; }
    long count(long tile) const { return begin(tile + 1) - begin(tile); }
};

// Rows as a layer's weights are multiplied with them. Words of narrow inputs lie side by side over the rows of a tile.
struct Operand {
    const float* x;                      // [rows, inputs]
    const uint8_t *narrow, *magnitudes;  // [tiles, words, rows of the tile, WORD]
    const float* scales;                 // [rows, blocks]
};

inline uint16_t rounded_to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40;  // NaN stays one
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// One row's block in units of its largest value's 127th, a word every `stride` bytes. Returns the unit; NaN where the
// block holds one.
inline float quantise(const float* x, long count, uint8_t* to, uint8_t* magnitudes, long stride) {
    Vec peaks = {};
    IntVec unordered = {};
    long i = 0;
    for (; i + LANES <= count; i += LANES) {
        const Vec value = load(x + i);
        peaks = larger(value < 0 ? -value : value, peaks);
        unordered |= value != value;
    }
    float most = 0;
    bool broken = false;
    for (int lane = 0; lane < LANES; lane++) most = std::max(most, peaks[lane]), broken |= unordered[lane] != 0;
    for (; i < count; i++) most = std::max(most, std::fabs(x[i])), broken |= x[i] != x[i];
    const float per_unit = most > 0 ? INT8_MOST / most : 0.0f;
    auto put = [&](Vec values, long at, long n) {
        const IntVec whole = (IntVec)(values * per_unit + NEAREST) - (IntVec)(Vec{} + NEAREST);
        const ByteVec bytes = __builtin_convertvector(SHIFTED ? whole + 128 : whole, ByteVec);
        const ByteVec sizes = __builtin_convertvector(whole < 0 ? -whole : whole, ByteVec);
        for (long i = 0; i < n; i += QUAD) {
            const long word = (at + i) / QUAD * stride;
            std::memcpy(to + word, reinterpret_cast<const uint8_t*>(&bytes) + i, WORD);
            if (!SHIFTED) std::memcpy(magnitudes + word, reinterpret_cast<const uint8_t*>(&sizes) + i, WORD);
        }
    };
    for (i = 0; i + LANES <= count; i += LANES) put(load(x + i), i, LANES);
    if (i < count) {
        Vec rest = {};
        for (long lane = 0; i + lane < count; lane++) rest[lane] = x[i + lane];
        put(rest, i, count - i);
    }
    return broken ? NAN : most / INT8_MOST;
}

// `x` [rows, inputs] as `layer` takes it, in this thread's memory.
inline Operand operand(const Linear& layer, const float* x, long rows) {
    if (!layer.is_narrow()) return {x, nullptr, nullptr, nullptr};
    const Tiles tiles(layer, rows);
    const long inputs = layer.inputs, words = layer.words(), blocks = layer.blocks(), size = rows * words * WORD;
    uint8_t* narrow = scratch<uint8_t>(ROWS, 2 * size);
    uint8_t* magnitudes = narrow + size;
    float* scales = scratch<float>(SCALES, rows * blocks);
    for (long tile = 0; tile < tiles.number; tile++) {
        const long begin = tiles.begin(tile), stride = tiles.count(tile) * WORD;
        for (long r = begin; r < tiles.begin(tile + 1); r++) {
            const long first = begin * words * WORD + (r - begin) * WORD;
            const float* row = x + r * inputs;
            if (layer.storage == 2) {
                for (long b = 0; b < blocks; b++) {
                    const long at = first + b * (BLOCK / QUAD) * stride;
                    scales[r * blocks + b] = quantise(row + b * BLOCK, std::min(BLOCK, inputs - b * BLOCK),
                                                      narrow + at, magnitudes + at, stride);
                }
                continue;
            }
            for (long word = 0; word < words; word++) {
                const bool whole = 2 * word + 1 < inputs;
                const uint16_t pair[2] = {rounded_to_bf16(row[2 * word]),
                                          whole ? rounded_to_bf16(row[2 * word + 1]) : (uint16_t)0};
                std::memcpy(narrow + first + word * stride, pair, WORD);
            }
        }
    }
    return {x, narrow, magnitudes, scales};
}

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

inline int32_t word_at(const uint8_t* from) {
    int32_t word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

#if (defined(__AVX512VNNI__) && defined(__AVX512BW__)) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
// In the instruction itself: with the compiler's intrinsic GCC 12 moves every sum to another register and back.
inline IntVec plus_products(IntVec sums, IntVec unsigned_bytes, IntVec signed_bytes) {
#if defined(__AVX512F__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(unsigned_bytes), "v"(signed_bytes));
#else
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(unsigned_bytes), "x"(signed_bytes));
#endif
    return sums;
}
#endif

// One panel's outputs for ROWS rows: += the products of `inputs` features. Meanwhile `ahead` lines are fetched.
template <int ROWS>
struct Multiply {
    // Float weights, one input after the other.
    template <typename Weight>
    static void wide(const float* x, long stride, const Weight* weights, long inputs, float* sums, const char* next,
                     long ahead) {
        Vec low[ROWS], high[ROWS];
        for (int r = 0; r < ROWS; r++) low[r] = load(sums + r * PANEL), high[r] = load(sums + r * PANEL + LANES);
        auto step = [&](long k) __attribute__((always_inline)) {  // else the sums go through memory
            const Vec a = widen(weights + k * PANEL), b = widen(weights + k * PANEL + LANES);
            for (int r = 0; r < ROWS; r++) {
                const Vec value = x[r * stride + k] - Vec{};
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

#if defined(__AVX512BF16__)
    static void pairs(const uint8_t* x, const uint16_t* weights, long count, float* sums, const char* next,
                      long ahead) {
        __m512 low[ROWS], high[ROWS];
        for (int r = 0; r < ROWS; r++)
            low[r] = _mm512_loadu_ps(sums + r * PANEL), high[r] = _mm512_loadu_ps(sums + r * PANEL + LANES);
        for (long k = 0; k < count; k++) {
            if (k < ahead) __builtin_prefetch(next + k * LINE, 0, 3);
            const __m512bh a = (__m512bh)_mm512_loadu_si512(weights + k * PANEL * 2);
            const __m512bh b = (__m512bh)_mm512_loadu_si512(weights + k * PANEL * 2 + PANEL);
            for (int r = 0; r < ROWS; r++) {
                const __m512bh value = (__m512bh)_mm512_set1_epi32(word_at(x + (k * ROWS + r) * WORD));
                low[r] = _mm512_dpbf16_ps(low[r], value, a);
                high[r] = _mm512_dpbf16_ps(high[r], value, b);
            }
        }
        for (int r = 0; r < ROWS; r++)
            _mm512_storeu_ps(sums + r * PANEL, low[r]), _mm512_storeu_ps(sums + r * PANEL + LANES, high[r]);
    }
#endif

    // int8 by int8: four inputs at once, a block of them.
    static void quads(const uint8_t* x, [[maybe_unused]] const uint8_t* magnitudes, const float* x_scales,
                      long x_blocks, const int8_t* weights, const float* scales,
                      [[maybe_unused]] const int32_t* shifts, long count, float* sums, const char* next, long ahead) {
#if (defined(__AVX512VNNI__) && defined(__AVX512BW__)) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
        IntVec low[ROWS], high[ROWS];
        for (int r = 0; r < ROWS; r++) low[r] = load_ints(shifts), high[r] = load_ints(shifts + LANES);
        for (long k = 0; k < count; k++) {
            if (k < ahead) __builtin_prefetch(next + k * LINE, 0, 3);
            const IntVec a = load_ints(weights + k * PANEL * QUAD), b = load_ints(weights + (k * PANEL + LANES) * QUAD);
            for (int r = 0; r < ROWS; r++) {
                const IntVec value = word_at(x + (k * ROWS + r) * WORD) - IntVec{};
                low[r] = plus_products(low[r], value, a);
                high[r] = plus_products(high[r], value, b);
            }
        }
#elif defined(__AVX2__) && !defined(__AVX512F__)
        // The signs of the rows are given to the weights: |x| * (w sign x). Pairs fit 16 bits: none is -128.
        const __m256i ones = _mm256_set1_epi16(1);
        IntVec low[ROWS], high[ROWS];
        for (int r = 0; r < ROWS; r++) low[r] = high[r] = IntVec{};
        for (long k = 0; k < count; k++) {
            if (k < ahead) __builtin_prefetch(next + k * LINE, 0, 3);
            const __m256i a = _mm256_loadu_si256((const __m256i*)(weights + k * PANEL * QUAD));
            const __m256i b = _mm256_loadu_si256((const __m256i*)(weights + k * PANEL * QUAD + LANES * QUAD));
            for (int r = 0; r < ROWS; r++) {
                const __m256i sign = _mm256_set1_epi32(word_at(x + (k * ROWS + r) * WORD));
                const __m256i size = _mm256_set1_epi32(word_at(magnitudes + (k * ROWS + r) * WORD));
                const __m256i c = _mm256_maddubs_epi16(size, _mm256_sign_epi8(a, sign));
                const __m256i d = _mm256_maddubs_epi16(size, _mm256_sign_epi8(b, sign));
                low[r] += (IntVec)_mm256_madd_epi16(ones, c);
                high[r] += (IntVec)_mm256_madd_epi16(ones, d);
            }
        }
#elif defined(__AVX512BW__)
        const __m512i ones = _mm512_set1_epi16(1), zero = _mm512_setzero_si512();
        IntVec low[ROWS], high[ROWS];
        for (int r = 0; r < ROWS; r++) low[r] = high[r] = IntVec{};
        for (long k = 0; k < count; k++) {
            if (k < ahead) __builtin_prefetch(next + k * LINE, 0, 3);
            const __m512i a = _mm512_loadu_si512(weights + k * PANEL * QUAD);
            const __m512i b = _mm512_loadu_si512(weights + k * PANEL * QUAD + LANES * QUAD);
            for (int r = 0; r < ROWS; r++) {
                const __mmask64 below = _mm512_movepi8_mask(_mm512_set1_epi32(word_at(x + (k * ROWS + r) * WORD)));
                const __m512i size = _mm512_set1_epi32(word_at(magnitudes + (k * ROWS + r) * WORD));
                const __m512i c = _mm512_maddubs_epi16(size, _mm512_mask_sub_epi8(a, below, zero, a));
                const __m512i d = _mm512_maddubs_epi16(size, _mm512_mask_sub_epi8(b, below, zero, b));
                low[r] += (IntVec)_mm512_madd_epi16(ones, c);
                high[r] += (IntVec)_mm512_madd_epi16(ones, d);
            }
        }
#else
        IntVec low[ROWS], high[ROWS];
        for (int r = 0; r < ROWS; r++) low[r] = high[r] = IntVec{};
        for (long k = 0; k < count; k++)
            for (int r = 0; r < ROWS; r++)
                for (int i = 0; i < LANES; i++)
                    for (long j = 0; j < QUAD; j++) {
                        const int32_t value = (int8_t)x[(k * ROWS + r) * WORD + j];
                        low[r][i] += value * weights[(k * PANEL + i) * QUAD + j];
                        high[r][i] += value * weights[(k * PANEL + LANES + i) * QUAD + j];
                    }
#endif
        const Vec low_scale = load(scales), high_scale = load(scales + LANES);
        for (int r = 0; r < ROWS; r++) {
            const Vec unit = x_scales[r * x_blocks] - Vec{};
            float* of_row = sums + r * PANEL;
            store(of_row, load(of_row) + as_floats(low[r]) * (unit * low_scale));
            store(of_row + LANES, load(of_row + LANES) + as_floats(high[r]) * (unit * high_scale));
        }
    }
};

template <int ROWS, typename Call>
inline void of_rows(long rows, const Call& call) {  // `call` for so many rows, known when this is compiled
    if constexpr (ROWS > 0) {
        if (rows == ROWS)
            call(Multiply<ROWS>());
        else
            of_rows<ROWS - 1>(rows, call);
    }
}

// `sums` [rows, PANEL]: what `operand`'s rows make with the weights of one panel.
inline void multiply_panel(const Linear& layer, const Operand& rows_of, long panel, long rows, float* sums) {
    const Tiles tiles(layer, rows);
    const long inputs = layer.inputs, blocks = layer.blocks(), bytes = layer.bytes(), padded = layer.padded();
    const char* weights = static_cast<const char*>(layer.weights) + panel * padded * PANEL * bytes;
    std::fill(sums, sums + rows * PANEL, 0.0f);
    for (long block = 0; block < blocks; block++) {
        const long k = block * BLOCK, width = std::min(BLOCK, padded - k);
        const char* stored = weights + k * PANEL * bytes;
        // The tiles share in fetching the next block, which is another panel's when this one's are used up.
        const char* next = stored + width * PANEL * bytes;
        const long share = (BLOCK * PANEL * bytes / LINE + tiles.number - 1) / tiles.number;
        const bool widened = layer.storage == 1 && BF16_GROUP == 1 && tiles.number > 2;  // once for all rows
        float* wide = widened ? scratch<float>(WIDENED, BLOCK * PANEL) : nullptr;
        for (long i = 0; widened && i < width * PANEL; i += LANES)
            store(wide + i, widen(reinterpret_cast<const uint16_t*>(stored) + i));
        for (long tile = 0; tile < tiles.number; tile++) {
            const long begin = tiles.begin(tile), count = tiles.count(tile);
            const long words = (begin * layer.words() + k / layer.group() * count) * WORD;
            const char* ahead = next + tile * share * LINE;
            const float* x = rows_of.x + begin * inputs + k;
            float* to = sums + begin * PANEL;
            of_rows<TILE>(count, [&](auto multiply) {
                if (layer.storage == 0 || widened) {
                    multiply.wide(x, inputs, widened ? wide : reinterpret_cast<const float*>(stored), width, to, ahead,
                                  share);
                } else if (layer.storage == 1) {
                    const auto* narrow = reinterpret_cast<const uint16_t*>(stored);
#if defined(__AVX512BF16__)
                    multiply.pairs(rows_of.narrow + words, narrow, width / 2, to, ahead, share);
#else
                    multiply.wide(x, inputs, narrow, width, to, ahead, share);
#endif
                } else {
                    const long of_block = (panel * blocks + block) * PANEL;
                    multiply.quads(rows_of.narrow + words, rows_of.magnitudes + words,
                                   rows_of.scales + begin * blocks + block, blocks,
                                   reinterpret_cast<const int8_t*>(stored), layer.scales + of_block,
                                   layer.shifts + of_block, width / QUAD, to, ahead, share);
                }
            });
        }
    }
    const long first = panel * PANEL, count = std::min((long)PANEL, layer.outputs - first);
    for (long r = 0; layer.bias && r < rows; r++)
        for (long j = 0; j < count; j++) sums[r * PANEL + j] += layer.bias[first + j];
}

// Panels in pieces: enough for threads to share evenly, no more than pay for being taken.
inline Pieces pieces_of(long panels) {
    return {panels, std::clamp(panels / 4, std::min(panels, 48L), MOST_PIECES)};
}

// y [rows, outputs] = layer(x), plus `added` [rows, outputs] where there is such; all that of `of` says, in one call.
// `of()` gives each thread its operand.
template <typename Of>
inline void multiplied(Member& member, const Linear& layer, const Of& of, const float* added, float* y, long rows) {
    const Pieces pieces = pieces_of(layer.panels());
    Operand prepared{};
    bool is_prepared = false;
    float* sums = scratch<float>(SUMS, pieces.longest() * rows * PANEL);
    member.each(
        pieces.number,
        [&](long piece) {
            if (!is_prepared) prepared = of(), is_prepared = true;
            const long first = pieces.begin(piece);
            for (long panel = first; panel < pieces.end(piece); panel++)
                multiply_panel(layer, prepared, panel, rows, sums + (panel - first) * rows * PANEL);
        },
        [&](long piece) {
            const long first = pieces.begin(piece);
            for (long panel = first; panel < pieces.end(piece); panel++) {
                const float* of_panel = sums + (panel - first) * rows * PANEL;
                const long begin = panel * PANEL, count = std::min((long)PANEL, layer.outputs - begin);
                for (long r = 0; r < rows; r++) {
                    float* out = y + r * layer.outputs + begin;
                    const float* sum_of = of_panel + r * PANEL;
                    if (added) {
                        const float* more = added + r * layer.outputs + begin;
                        for (long j = 0; j < count; j++) out[j] = sum_of[j] + more[j];
                    } else {
                        std::memcpy(out, sum_of, count * sizeof(float));
                    }
                }
            }
        });
}

}  // namespace
