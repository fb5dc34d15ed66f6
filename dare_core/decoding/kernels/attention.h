// Attention of ragged trees: every sequence's own rows and positions, none padded.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

constexpr int KEYS = 8;         // dot products made at once
constexpr long KEY_BLOCK = 64;  // keys or values that all queries of a task use before the next ones
constexpr long MANY_TASKS = 16; // that keep all threads busy
constexpr float HIDDEN = -1e30f;

// The sums of eight vectors' lanes.
inline void sums_of(const Vec* values, float* out) {
#if defined(__AVX2__) || defined(__AVX512F__)
    __m256 v[KEYS];
    for (int i = 0; i < KEYS; i++)
#if defined(__AVX512F__)
        v[i] = _mm256_add_ps(_mm512_castps512_ps256((__m512)values[i]),
                             _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)values[i]), 1)));
#else
        v[i] = (__m256)values[i];
#endif
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    _mm256_storeu_ps(out, _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31)));
#else
    for (int i = 0; i < KEYS; i++) out[i] = sum(values[i]);
#endif
}

// Replace scores by e to their power over the largest; return what the values sum to.
inline float soften(float* scores, long n) {
    float peak = HIDDEN;
    long i = 0;
    Vec peaks = Vec{} + HIDDEN;
    for (; i + LANES <= n; i += LANES) peaks = larger(load(scores + i), peaks);
    for (int lane = 0; lane < LANES; lane++) peak = std::max(peak, peaks[lane]);
    for (; i < n; i++) peak = std::max(peak, scores[i]);
    Vec totals = {};
    for (i = 0; i + LANES <= n; i += LANES) {
        const Vec e = exponential(load(scores + i) - peak);
        store(scores + i, e);
        totals += e;
    }
    float total = sum(totals);
    for (; i < n; i++) total += scores[i] = std::exp(scores[i] - peak);
    return total;
}

// `DIM` is the head's width where it is known when this is compiled, else 0.
template <int DIM>
inline void score(const float* query, const float* keys, long stride, long dim, long count, float scale, float* out) {
    const long width = DIM ? DIM : dim;
    long j = 0;
    for (; j + KEYS <= count; j += KEYS) {
        Vec products[KEYS] = {};
        for (long d = 0; d < width; d += LANES) {
            const Vec q = load(query + d);
            for (int i = 0; i < KEYS; i++) products[i] += q * load(keys + (j + i) * stride + d);
        }
        sums_of(products, out + j);
        for (int i = 0; i < KEYS; i++) out[j + i] *= scale;
    }
    for (; j < count; j++) {
        Vec products = {};
        for (long d = 0; d < width; d += LANES) products += load(query + d) * load(keys + j * stride + d);
        out[j] = sum(products) * scale;
    }
}

template <int DIM>
inline void weigh(const float* weights, const float* values, long stride, long dim, long count, float* out) {
    constexpr int WIDE = 8;  // vectors of the output kept in registers
    const long width = DIM ? DIM : dim;
    long d = 0;
    for (; d + WIDE * LANES <= width; d += WIDE * LANES) {
        Vec total[WIDE];
        for (int i = 0; i < WIDE; i++) total[i] = load(out + d + i * LANES);
        for (long j = 0; j < count; j++) {
            const Vec weight = weights[j] - Vec{};
            for (int i = 0; i < WIDE; i++) total[i] += weight * load(values + j * stride + d + i * LANES);
        }
        for (int i = 0; i < WIDE; i++) store(out + d + i * LANES, total[i]);
    }
    for (; d < width; d += LANES) {
        Vec total = load(out + d);
        for (long j = 0; j < count; j++) total += weights[j] * load(values + j * stride + d);
        store(out + d, total);
    }
}

struct Sequence {
    int64_t slot, cached, chain, rows, first_row, first_node;
};

struct Attention {
    int64_t layer, heads, kv_heads, dim, window;
    float scale, softcap;
};

struct Batch {
    int64_t rows, n_sequences, n_tasks, slots, capacity;
    float *keys, *values;         // [layers, slots, capacity, kv_heads, dim]
    const Sequence* sequences;    // [n_sequences]
    const int64_t (*tasks)[3];    // [n_tasks] sequence, first row, end
    const int32_t *parents, *depths;
};

struct Rows {  // [heads, rows, dim] of any strides but the last
    const float* at;
    int64_t head_stride, row_stride;
    const float* of(long head, long row) const { return at + head * head_stride + row * row_stride; }
};

// Attention of the rows [begin, end) of a sequence in the KV heads [head, last_head).
template <int DIM>
void attend(const Attention& shape, const Batch& batch, const Sequence& s, long begin, long end, long head,
            long last_head, const Rows& query, const float* keys, const float* values, std::vector<float>& scratch,
            std::vector<uint8_t>& visible, float* out) {
    const int32_t *parents = batch.parents, *depths = batch.depths;
    const long group = shape.heads / shape.kv_heads, dim = shape.dim, stride = shape.kv_heads * dim;
    const long count = s.cached + end, each = (end - begin) * group, queries = each * (last_head - head);
    const long root = s.cached + s.chain - 1;
    auto position = [&](long row) {
        return row < s.chain ? s.cached + row : root + depths[s.first_node + row - s.chain];
    };
    auto first_seen = [&](long row) { return std::max(0L, position(row) - shape.window + 1); };
    long first = count;
    for (long row = begin; row < end; row++) first = std::min(first, first_seen(row));
    const long padded = (count + LANES) / LANES * LANES;
    if ((long)scratch.size() < queries * padded) scratch.resize(queries * padded);
    const float* slot_keys = keys + s.slot * batch.capacity * stride;
    const float* slot_values = values + s.slot * batch.capacity * stride;
    auto head_of = [&](long m) { return head + m / each; };
    auto row_of = [&](long m) { return begin + m % each / group; };
    auto query_head = [&](long m) { return head_of(m) * group + m % group; };
    auto out_of = [&](long m) { return out + ((s.first_row + row_of(m)) * shape.heads + query_head(m)) * dim; };

    for (long key = first; key < count; key += KEY_BLOCK) {
        const long size = std::min(KEY_BLOCK, count - key);
        for (long m = 0; m < queries; m++)
            score<DIM>(query.of(query_head(m), s.first_row + row_of(m)), slot_keys + key * stride + head_of(m) * dim,
                       stride, dim, size, shape.scale, scratch.data() + m * padded + key);
    }
    for (long m = 0; m < queries; m++) {
        float* scores = scratch.data() + m * padded;
        const long row = row_of(m), seen = first_seen(row), last = s.cached + row + 1;
        if (shape.softcap > 0)
            for (long key = seen; key < last; key++) scores[key] = shape.softcap * std::tanh(scores[key] / shape.softcap);
        if (row >= s.chain) {  // of the nodes, the row itself and its ancestors
            visible.assign(row - s.chain + 1, 0);
            for (long node = s.first_node + row - s.chain; node >= 0; node = parents[node])
                visible[node - s.first_node] = root + depths[node] >= seen;
            for (long node = 0; node <= row - s.chain; node++)
                if (!visible[node]) scores[s.cached + s.chain + node] = HIDDEN;
        }
        const float total = soften(scores + seen, last - seen);
        std::fill(scores + first, scores + seen, 0.0f);
        std::fill(scores + last, scores + count, 0.0f);
        for (long key = seen; key < last; key++) scores[key] /= total;
        std::fill(out_of(m), out_of(m) + dim, 0.0f);
    }
    for (long key = first; key < count; key += KEY_BLOCK) {
        const long size = std::min(KEY_BLOCK, count - key);
        for (long m = 0; m < queries; m++)
            weigh<DIM>(scratch.data() + m * padded + key, slot_values + key * stride + head_of(m) * dim, stride, dim,
                       size, out_of(m));
    }
}

void attended(const Attention& shape, const Batch& batch, const Rows& query, const Rows& key, const Rows& value,
              float* out) {
    const long width = shape.kv_heads * shape.dim, layer = shape.layer * batch.slots * batch.capacity * width;
    float *keys = batch.keys + layer, *values = batch.values + layer;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (long i = 0; i < batch.n_sequences; i++) {
            const Sequence& s = batch.sequences[i];
            for (long row = 0; row < s.rows; row++)
                for (long head = 0; head < shape.kv_heads; head++) {
                    const long to = (s.slot * batch.capacity + s.cached + row) * width + head * shape.dim;
                    std::memcpy(keys + to, key.of(head, s.first_row + row), shape.dim * sizeof(float));
                    std::memcpy(values + to, value.of(head, s.first_row + row), shape.dim * sizeof(float));
                }
        }
        std::vector<float> scratch;
        std::vector<uint8_t> visible;
        const auto attend_rows = shape.dim == 64 ? attend<64> : shape.dim == 128 ? attend<128> : attend<0>;
        // All heads of a position lie side by side: they are read together, unless that leaves threads idle.
        const long parts = batch.n_tasks < MANY_TASKS ? shape.kv_heads : 1, heads = shape.kv_heads / parts;
#pragma omp for schedule(dynamic)
        for (long task = 0; task < batch.n_tasks * parts; task++) {
            const int64_t* which = batch.tasks[task / parts];
            const long head = task % parts * heads;
            attend_rows(shape, batch, batch.sequences[which[0]], which[1], which[2], head, head + heads, query, keys,
                        values, scratch, visible, out);
        }
    }
}

}  // namespace
