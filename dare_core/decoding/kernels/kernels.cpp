// What a CPU spends a decoding step on: linear layers over a few rows, and attention of ragged trees.
//
// The matrix libraries that torch ships are made for many rows. A step has one to a few dozen, so that a linear layer's
// time is that of its weights' way from memory: they are read once, in order, and the next ones are fetched while these
// are used. library.py describes the functions' arguments.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
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
constexpr int PANEL = 2 * LANES;  // output features whose weights lie side by side
constexpr long BLOCK = 128;       // input features that are worked through before the next row tile's turn
constexpr long LINE = 64;         // bytes of a line of the processor's caches

typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef float LooseVec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef int32_t IntVec __attribute__((vector_size(LANES * sizeof(int32_t))));

inline Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<LooseVec*>(to) = value; }

// ---- linear layers -------------------------------------------------------------------------------------------------

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

// ---- attention -----------------------------------------------------------------------------------------------------

constexpr int KEYS = 8;         // dot products made at once
constexpr long KEY_BLOCK = 64;  // keys or values that all queries of a task use before the next ones
constexpr long MANY_TASKS = 16; // that keep all threads busy
constexpr float HIDDEN = -1e30f;

inline float sum(Vec value) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += value[i];
    return total;
}

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

// ---- verification --------------------------------------------------------------------------------------------------

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

// ---- decoder layers ------------------------------------------------------------------------------------------------

struct Layer {  // x + attention(norm(x)), and to that y: y + down(activation(gate(norm(y))) * up(norm(y)))
    Attention attention;
    const float *input_norm, *query_norm, *key_norm, *output_norm;  // those of queries and keys may be missing
    float epsilon;
    int64_t activation;  // 0: SiLU, 1: GELU by tanh
    Linear query_key_value, output, gate_up, down;
};

void normed(const float* x, const float* weight, float epsilon, long width, float* y) {  // y may be x
    Vec squares = {};
    long i = 0;
    for (; i + LANES <= width; i += LANES) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (; i < width; i++) total += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(total / width + epsilon);
    for (i = 0; i < width; i++) y[i] = x[i] * scale * weight[i];
}

void rotated(float* x, const float* cosines, const float* sines, long width) {
    const long half = width / 2;
    for (long i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cosines[i] - b * sines[i];
        x[i + half] = b * cosines[i + half] + a * sines[i + half];
    }
}

inline Vec sigmoid(Vec x) {
    const Vec e = exponential(x < 0 ? x : -x);  // of what is not above zero: no overflow
    return (x < 0 ? e : Vec{} + 1.0f) / (e + 1.0f);
}

inline Vec activated(Vec x, bool gelu) {
    return x * sigmoid(gelu ? 1.5957691216f * (x + 0.044715f * x * x * x) : x);
}

}  // namespace

// The structures and functions below are mirrored in library.py.
extern "C" {

int dare_panel() { return PANEL; }
int dare_lanes() { return LANES; }

void dare_linear(const Linear* layer, const float* x, float* y, long rows) { multiplied(*layer, x, nullptr, y, rows); }

void dare_attention(const Attention* shape, const Batch* batch, const Rows* query, const Rows* key, const Rows* value,
                    float* out) {
    attended(*shape, *batch, *query, *key, *value, out);
}

void dare_peaks(const float* logits, long rows, long width, float* peaks, int32_t* places) {
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) peaks[r] = peak_of(logits + r * width, width, places + r);
}

void dare_compare(const float* logits, long width, const int64_t* rows, const float* values, const float* peaks, long n,
                  int32_t* above, float* log_sums) {
#pragma omp parallel for schedule(dynamic)
    for (long i = 0; i < n; i++)
        compare(logits + rows[i] * width, width, values[i], peaks[i], above + i, log_sums + i);
}

void dare_layer(const Layer* layer, const Batch* batch, const float* x, const float* cosines, const float* sines,
                long rotary, float* y) {
    const Attention& shape = layer->attention;
    const long rows = batch->rows, hidden = layer->output.outputs, inner = layer->down.inputs, dim = shape.dim;
    const long width = shape.heads * dim, all = layer->query_key_value.outputs, narrow = shape.kv_heads * dim;
    static thread_local std::vector<float> buffer;
    const size_t needed = rows * (hidden + std::max(all + width, 3 * inner));
    if (buffer.size() < needed) buffer.resize(needed);
    float *norm = buffer.data(), *qkv = norm + rows * hidden, *heads = qkv + rows * all;
    float *gate_up = qkv, *product = gate_up + rows * 2 * inner;  // when attention's are no longer needed

#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) normed(x + r * hidden, layer->input_norm, layer->epsilon, hidden, norm + r * hidden);
    multiplied(layer->query_key_value, norm, nullptr, qkv, rows);
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++)
        for (long head = 0; head < shape.heads + shape.kv_heads; head++) {
            float* at = qkv + r * all + head * dim;
            const float* weight = head < shape.heads ? layer->query_norm : layer->key_norm;
            if (weight) normed(at, weight, layer->epsilon, dim, at);
            rotated(at, cosines + r * rotary, sines + r * rotary, rotary);
        }
    attended(shape, *batch, {qkv, dim, all}, {qkv + width, dim, all}, {qkv + width + narrow, dim, all}, heads);
    multiplied(layer->output, heads, x, y, rows);
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) normed(y + r * hidden, layer->output_norm, layer->epsilon, hidden, norm + r * hidden);
    multiplied(layer->gate_up, norm, nullptr, gate_up, rows);
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const float *gate = gate_up + r * 2 * inner, *up = gate + inner;
        for (long i = 0; i < inner; i += LANES)  // a multiple of LANES
            store(product + r * inner + i, activated(load(gate + i), layer->activation == 1) * load(up + i));
    }
    multiplied(layer->down, product, y, y, rows);
}
}
