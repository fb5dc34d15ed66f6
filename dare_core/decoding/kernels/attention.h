// Attention of ragged trees: every sequence's own rows and positions, none padded.
//
// What a row's attention comes to depends on what it sees alone, to the last bit: not on the tree that it stands in, nor
// on the rows beside it. So a text that was drafted equals one that was not, whatever rounding follows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "threads.h"
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

// Replace scores by e to their power over the largest, so that they sum to one.
inline void soften(float* scores, long n) {
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
    const float share = 1.0f / total;
    for (i = 0; i < n; i++) scores[i] *= share;
}

// `DIM` is the head's width where it is known when this is compiled, else 0.
template <int DIM>
inline void score(const float* query, const float* keys, long stride, long dim, long count, float scale, float* out) {
    const long width = DIM ? DIM : dim;
    for (long j = 0; j < count; j += KEYS) {
        const float* key[KEYS];
        for (int i = 0; i < KEYS; i++) key[i] = keys + std::min(j + i, count - 1) * stride;
        Vec products[KEYS] = {};
        for (long d = 0; d < width; d += LANES) {
            const Vec q = load(query + d);
            for (int i = 0; i < KEYS; i++) products[i] += q * load(key[i] + d);
        }
        float scores[KEYS];
        sums_of(products, scores);
        for (int i = 0; i < KEYS && j + i < count; i++) out[j + i] = scores[i] * scale;
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
    // Positions before `shared` are kept once, in the slot `prefix`, for all sequences that begin alike.
    int64_t slot, cached, chain, rows, first_row, first_node, prefix, shared;
};

struct Stretch {
    int64_t sequence, begin, end;  // rows
};

struct Attention {
    int64_t layer, heads, kv_heads, dim, window;
    float scale, softcap;
};

struct Batch {
    int64_t rows, n_sequences, n_tasks, slots, capacity;
    float *keys, *values;         // [layers, slots, capacity, kv_heads, dim]
    const Sequence* sequences;    // [n_sequences]
    const Stretch* stretches;     // of rows of sequences
    const int64_t* tasks;         // [n_tasks + 1]: task i has the stretches tasks[i] up to tasks[i + 1], of one prefix
    const int32_t *parents, *depths;
};

struct Rows {  // [heads, rows, dim] of any strides but the last
    const float* at;
    int64_t head_stride, row_stride;
    const float* of(long head, long row) const { return at + head * head_stride + row * row_stride; }
};

// A layer's part of the cache.
struct LayerCache {
    float *keys, *values;
    long capacity, width, dim;

    LayerCache(const Attention& shape, const Batch& batch)
        : capacity(batch.capacity), width(shape.kv_heads * shape.dim), dim(shape.dim) {
        const long layer = shape.layer * batch.slots * capacity * width;
        keys = batch.keys + layer, values = batch.values + layer;
    }

    long place(const Sequence& s, long position) const {
        return ((position < s.shared ? s.prefix : s.slot) * capacity + position) * width;
    }
};

// One query: a row of a sequence and a head.
struct Query {
    const float* at;  // [dim]
    const Sequence* sequence;
    long row, kv_head;
    long first, count;  // the first position that it sees, and how many
    long from;          // the first key: keys of nodes stand in the tree's order, not in that of positions
    float* scores;      // of the sequence's keys
    long end() const { return sequence->cached + row + 1; }
};

// Attention of a task's stretches in the KV heads [head, last_head), into `out` [queries, dim] in the queries' order.
// `query_of(head, row, space)` is a query; it may be made in the `space` given to it.
template <int DIM, typename QueryOf>
void attend(const Attention& shape, const Batch& batch, long task, long head, long last_head, const QueryOf& query_of,
            const LayerCache& cache, float* out) {
    const long group = shape.heads / shape.kv_heads, dim = shape.dim;
    const Stretch* stretches = batch.stretches;
    long rows = 0, longest = 0;
    for (long i = batch.tasks[task]; i < batch.tasks[task + 1]; i++) {
        rows += stretches[i].end - stretches[i].begin;
        longest = std::max<long>(longest, batch.sequences[stretches[i].sequence].cached + stretches[i].end);
    }
    const long queries = rows * group * (last_head - head), padded = (longest + LANES) / LANES * LANES;
    Query* asked = scratch<Query>(QUERIES, queries);
    float* scores = scratch<float>(SCORES, (queries + 1) * padded + queries * dim);
    float* seen = scores + queries * padded;  // one query's scores, those that it sees, by position
    float* space = seen + padded;
    long shared = 0, first_shared = longest, m = 0;
    for (long kv_head = head; kv_head < last_head; kv_head++)
        for (long i = batch.tasks[task]; i < batch.tasks[task + 1]; i++) {
            const Sequence& s = batch.sequences[stretches[i].sequence];
            const long nodes = s.cached + s.chain;  // the key of the first node
            shared = s.shared;
            for (long row = stretches[i].begin; row < stretches[i].end; row++) {
                const bool in_tree = row >= s.chain;
                const long position = in_tree ? nodes - 1 + batch.depths[s.first_node + row - s.chain] : s.cached + row;
                const long first = std::max<long>(0, position - shape.window + 1);
                const long from = in_tree ? std::min(first, nodes) : first;
                first_shared = std::min(first_shared, from);
                for (long h = 0; h < group; h++, m++) {
                    const float* at = query_of(kv_head * group + h, s.first_row + row, space + m * dim);
                    asked[m] = {at, &s, row, kv_head, first, position + 1 - first, from, scores + m * padded};
                }
            }
        }
    // `each(query, its number, keys [begin, end))`, a block of keys for all queries that have it, then the next, which is
    // fetched from `memory`, keys or values, meanwhile.
    auto over_keys = [&](const float* memory, auto each) {
        auto fetch = [&](const Sequence& s, long begin, long end, long part, long parts) {
            if (last_head - head < shape.kv_heads || begin >= end) return;  // of some heads it is not in a row
            const char* at = reinterpret_cast<const char*>(memory + cache.place(s, begin));
            const long lines = (std::min(begin + KEY_BLOCK, end) - begin) * cache.width * sizeof(float) / LINE;
            for (long i = part * lines / parts; i < (part + 1) * lines / parts; i++) __builtin_prefetch(at + i * LINE);
        };
        for (long key = first_shared; key < shared; key += KEY_BLOCK) {
            const long end = std::min(key + KEY_BLOCK, shared);
            for (long q = 0; q < queries; q++) {
                const long begin = std::max(key, asked[q].from), last = std::min(end, asked[q].end());
                fetch(*asked[q].sequence, end, shared, q, queries);
                if (begin < last) each(asked[q], q, begin, last);
            }
        }
        const long each_head = rows * group;  // a sequence's queries of one KV head lie side by side
        for (long q = 0, next; q < queries; q = next) {
            const Sequence* s = asked[q].sequence;
            long from = longest, to = 0;
            for (next = q; next < queries && next / each_head == q / each_head && asked[next].sequence == s; next++) {
                from = std::min(from, std::max<long>(s->shared, asked[next].from));
                to = std::max(to, asked[next].end());
            }
            for (long key = from; key < to; key += KEY_BLOCK)
                for (long p = q; p < next; p++) {
                    fetch(*s, key + KEY_BLOCK, to, p - q, next - q);
                    const long begin = std::max({key, (long)s->shared, asked[p].from});
                    const long last = std::min(key + KEY_BLOCK, asked[p].end());
                    if (begin < last) each(asked[p], p, begin, last);
                }
        }
    };
    over_keys(cache.keys, [&](const Query& q, long, long begin, long end) {
        score<DIM>(q.at, cache.keys + cache.place(*q.sequence, begin) + q.kv_head * dim, cache.width, dim, end - begin,
                   shape.scale, q.scores + begin);
    });
    for (long i = 0; i < queries; i++) {
        const Query& q = asked[i];
        const Sequence& s = *q.sequence;
        const bool in_tree = q.row >= s.chain;
        const long nodes = s.cached + s.chain, before = std::max(0L, nodes - q.first);
        float* at = in_tree ? seen : q.scores + q.first;
        auto each_ancestor = [&](auto call) {  // from the row itself upwards: these come last of what it sees
            long to = q.count;
            for (long node = s.first_node + q.row - s.chain; node >= 0 && to > before; node = batch.parents[node])
                call(seen[--to], q.scores[nodes + node - s.first_node]);
        };
        if (in_tree) {
            std::copy(q.scores + q.first, q.scores + q.first + before, seen);
            each_ancestor([](float& by_position, float& of_key) { by_position = of_key; });
        }
        if (shape.softcap > 0)
            for (long j = 0; j < q.count; j++) at[j] = shape.softcap * std::tanh(at[j] / shape.softcap);
        soften(at, q.count);
        if (in_tree) {
            std::copy(seen, seen + before, q.scores + q.first);
            std::fill(q.scores + nodes, q.scores + q.end(), 0.0f);
            each_ancestor([](float& by_position, float& of_key) { of_key = by_position; });
        }
    }
    std::fill(out, out + queries * dim, 0.0f);
    over_keys(cache.values, [&](const Query& q, long number, long begin, long end) {
        weigh<DIM>(q.scores + begin, cache.values + cache.place(*q.sequence, begin) + q.kv_head * dim, cache.width, dim,
                   end - begin, out + number * dim);
    });
}

// Write the rows' keys and values into the cache; `turn` may change a head of a key, [dim], on its way.
template <typename Turn>
void remembered(Member& member, const LayerCache& cache, const Attention& shape, const Batch& batch, const Rows& key,
                const Rows& value, const Turn& turn) {
    const long width = shape.kv_heads * shape.dim;
    const Pieces pieces = Pieces::of(batch.n_sequences, 64);
    auto each_row = [&](long piece, auto call) {
        for (long i = pieces.begin(piece), n = 0; i < pieces.end(piece); i++)
            for (long row = 0; row < batch.sequences[i].rows; row++) call(batch.sequences[i], row, n++);
    };
    auto buffer_of = [&](long piece) {
        long rows = 0;
        each_row(piece, [&](const Sequence&, long, long) { rows++; });
        return scratch<float>(MADE, rows * width);
    };
    float* turned = nullptr;
    member.each(
        pieces.number,
        [&](long piece) {
            turned = buffer_of(piece);
            each_row(piece, [&](const Sequence& s, long row, long n) {
                for (long head = 0; head < shape.kv_heads; head++)
                    turn(key.of(head, s.first_row + row), s.first_row + row, turned + n * width + head * shape.dim);
            });
        },
        [&](long piece) {
            each_row(piece, [&](const Sequence& s, long row, long n) {
                const long to = cache.place(s, s.cached + row);
                std::memcpy(cache.keys + to, turned + n * width, width * sizeof(float));
                for (long head = 0; head < shape.kv_heads; head++)
                    std::memcpy(cache.values + to + head * shape.dim, value.of(head, s.first_row + row),
                                shape.dim * sizeof(float));
            });
        });
}

// out [rows, heads, dim]: every row's attention; `query_of` as `attend` takes it.
template <typename QueryOf>
void attended(Member& member, const LayerCache& cache, const Attention& shape, const Batch& batch,
              const QueryOf& query_of, float* out) {
    const long group = shape.heads / shape.kv_heads;
    // All heads of a position lie side by side: they are read together, unless that leaves threads idle.
    const long parts = batch.n_tasks < MANY_TASKS ? shape.kv_heads : 1, heads = shape.kv_heads / parts;
    const Pieces pieces = Pieces::of(batch.n_tasks * parts);
    auto each_row = [&](long piece, auto call) {  // (head, row of the batch), in the queries' order
        for (long i = pieces.begin(piece); i < pieces.end(piece); i++)
            for (long head = i % parts * heads; head < (i % parts + 1) * heads; head++)
                for (long s = batch.tasks[i / parts]; s < batch.tasks[i / parts + 1]; s++) {
                    const Stretch& stretch = batch.stretches[s];
                    const long first_row = batch.sequences[stretch.sequence].first_row;
                    for (long row = stretch.begin; row < stretch.end; row++) call(head, first_row + row);
                }
    };
    float* made = nullptr;
    member.each(
        pieces.number,
        [&](long piece) {
            long queries = 0;
            each_row(piece, [&](long, long) { queries += group; });
            float* to = made = scratch<float>(MADE, queries * shape.dim);
            for (long i = pieces.begin(piece); i < pieces.end(piece); i++) {
                const auto attend_task = shape.dim == 64    ? attend<64, QueryOf>
                                         : shape.dim == 128 ? attend<128, QueryOf>
                                                            : attend<0, QueryOf>;
                const long head = i % parts * heads;
                attend_task(shape, batch, i / parts, head, head + heads, query_of, cache, to);
                for (long s = batch.tasks[i / parts]; s < batch.tasks[i / parts + 1]; s++)
                    to += (batch.stretches[s].end - batch.stretches[s].begin) * group * heads * shape.dim;
            }
        },
        [&](long piece) {
            const float* from = made;
            each_row(piece, [&](long head, long row) {
                std::memcpy(out + (row * shape.heads + head * group) * shape.dim, from,
                            group * shape.dim * sizeof(float));
                from += group * shape.dim;
            });
        });
}

}  // namespace
