// What a CPU spends a decoding step on. library.py describes the functions' arguments and mirrors the structures.

#include "attention.h"
#include "layer.h"
#include "linear.h"
#include "threads.h"
#include "verification.h"

namespace {

constexpr int DONE = 0, NO_MEMORY = 1;

// `prepare(arena)(member)` by all threads, and `finish()`; see Pool::run. Returns what came of it.
template <typename Prepare, typename Finish = void (*)()>
int run(size_t bytes, bool wait, const Prepare& prepare, const Finish& finish = [] {}) {
    try {
        Pool::of_process().run(wanted_threads.load(), bytes, wait, prepare, finish);
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
    return DONE;
}

long nodes_of(const Batch& batch) {
    long count = 0;
    for (long i = 0; i < batch.n_sequences; i++) count += batch.sequences[i].rows - batch.sequences[i].chain;
    return count;
}

size_t bytes_of(const Batch& batch) {
    return Arena::room<Sequence>(batch.n_sequences) + Arena::room<int64_t>(batch.n_tasks + 1) +
           Arena::room<Stretch>(batch.tasks[batch.n_tasks]) + 2 * Arena::room<int32_t>(nodes_of(batch));
}

Batch held(const Batch& batch, Arena& arena) {
    Batch copy = batch;
    const long nodes = nodes_of(batch);
    copy.sequences = arena.copy(batch.sequences, batch.n_sequences);
    copy.stretches = arena.copy(batch.stretches, batch.tasks[batch.n_tasks]);
    copy.tasks = arena.copy(batch.tasks, batch.n_tasks + 1);
    copy.parents = arena.copy(batch.parents, nodes);
    copy.depths = arena.copy(batch.depths, nodes);
    return copy;
}

Rows held(const Rows& from, long heads, long rows, long dim, Arena& arena) {
    float* to = arena.space<float>(heads * rows * dim);
    for (long head = 0; head < heads; head++)
        for (long row = 0; row < rows; row++)
            std::memcpy(to + (row * heads + head) * dim, from.of(head, row), dim * sizeof(float));
    return {to, dim, heads * dim};
}

}  // namespace

extern "C" {

int dare_panel() { return PANEL; }
int dare_lanes() { return LANES; }
int dare_bf16_group() { return BF16_GROUP; }
void dare_threads(int count) { wanted_threads.store(count); }
void dare_spin(double seconds) { spin_seconds.store(seconds); }

void dare_settle() { Pool::of_process().settle(); }

int dare_linear(const Linear* given, const float* x, float* y, long rows) {
    const size_t count = rows * given->inputs;
    return run(Arena::room<float>(count), false, [=](Arena& arena) {
        return [=, layer = *given, x = arena.copy(x, count)](Member& member) {
            multiplied(member, layer, [=] { return operand(layer, x, rows); }, nullptr, y, rows);
        };
    });
}

int dare_attention(const Attention* asked, const Batch* given, const Rows* queries, const Rows* keys,
                   const Rows* values, float* out) {
    const long rows = given->rows, dim = asked->dim, heads = asked->heads, kv_heads = asked->kv_heads;
    const size_t bytes = bytes_of(*given) + Arena::room<float>(heads * rows * dim) +
                         2 * Arena::room<float>(kv_heads * rows * dim);
    return run(bytes, false, [=](Arena& arena) {
        return [out, shape = *asked, batch = held(*given, arena), query = held(*queries, heads, rows, dim, arena),
                key = held(*keys, kv_heads, rows, dim, arena),
                value = held(*values, kv_heads, rows, dim, arena)](Member& member) {
            const LayerCache cache(shape, batch);
            remembered(member, cache, shape, batch, key, value, [=](const float* from, long, float* to) {
                std::memcpy(to, from, shape.dim * sizeof(float));
            });
            attended(
                member, cache, shape, batch, [=](long head, long row, float*) { return query.of(head, row); }, out);
        };
    });
}

int dare_peaks(const float* logits, long rows, long width, float* peaks, int32_t* places) {
    return run(0, true, [=](Arena&) { return [=](Member& member) {
        const Pieces pieces = Pieces::of(rows);
        float* found = nullptr;
        int32_t* at = nullptr;
        member.each(
            pieces.number,
            [&](long piece) {
                const long first = pieces.begin(piece), count = pieces.end(piece) - first;
                found = scratch<float>(ROWS, count), at = scratch<int32_t>(SCALES, count);
                for (long r = 0; r < count; r++) found[r] = peak_of(logits + (first + r) * width, width, at + r);
            },
            [&](long piece) {
                const long first = pieces.begin(piece), count = pieces.end(piece) - first;
                std::copy(found, found + count, peaks + first);
                std::copy(at, at + count, places + first);
            });
    }; });
}

int dare_compare(const float* logits, long width, const int64_t* rows, const float* values, const float* peaks, long n,
                 int32_t* above, float* log_sums) {
    return run(0, true, [=](Arena&) { return [=](Member& member) {
        const Pieces pieces = Pieces::of(n);
        int32_t* counts = nullptr;
        float* sums = nullptr;
        member.each(
            pieces.number,
            [&](long piece) {
                const long first = pieces.begin(piece), count = pieces.end(piece) - first;
                counts = scratch<int32_t>(ROWS, count), sums = scratch<float>(SCALES, count);
                for (long i = 0; i < count; i++)
                    compare(logits + rows[first + i] * width, width, values[first + i], peaks[first + i], counts + i,
                            sums + i);
            },
            [&](long piece) {
                const long first = pieces.begin(piece), count = pieces.end(piece) - first;
                std::copy(counts, counts + count, above + first);
                std::copy(sums, sums + count, log_sums + first);
            });
    }; });
}

int dare_layers(const Layer* given, long n, const Batch* given_batch, const float* given_x, const float* cosines,
                const float* sines, long rotary, float* out) {
    const long rows = given_batch->rows, hidden = given[0].output.outputs;
    long all = 0, wide = 0, inner = 0;
    for (long i = 0; i < n; i++) {
        all = std::max<long>(all, given[i].query_key_value.outputs);
        wide = std::max<long>(wide, given[i].output.inputs);
        inner = std::max<long>(inner, given[i].down.inputs);
    }
    const size_t bytes = bytes_of(*given_batch) + Arena::room<Layer>(n) + 2 * Arena::room<float>(rows * rotary) +
                         Arena::room<float>(rows * hidden) + Arena::room<float>(rows * all) +
                         Arena::room<float>(rows * wide) + Arena::room<float>(rows * inner);
    float* y = nullptr;
    auto prepare = [=, &y](Arena& arena) {
        const Between between{arena.space<float>(rows * all), arena.space<float>(rows * wide),
                              arena.space<float>(rows * inner)};
        y = const_cast<float*>(arena.copy(given_x, rows * hidden));
        return [=, x = y, layers = arena.copy(given, n), batch = held(*given_batch, arena),
                cosines = arena.copy(cosines, rows * rotary),
                sines = arena.copy(sines, rows * rotary)](Member& member) {
            for (long i = 0; i < n; i++) layered(member, layers[i], batch, between, x, cosines, sines, rotary);
        };
    };
    return run(bytes, false, prepare, [=, &y] { std::memcpy(out, y, rows * hidden * sizeof(float)); });
}
}
