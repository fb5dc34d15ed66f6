// What a CPU spends a decoding step on. library.py describes the functions' arguments and mirrors the structures.

#include "attention.h"
#include "layer.h"
#include "linear.h"
#include "threads.h"
#include "verification.h"

namespace {

constexpr int DONE = 0, NO_MEMORY = 1;

// A run of all threads, and what came of it.
template <typename Body>
int run(const Body& body) {
    try {
        Pool::of_process().run(wanted_threads.load(), body);
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
    return DONE;
}

}  // namespace

extern "C" {

int dare_panel() { return PANEL; }
int dare_lanes() { return LANES; }
int dare_bf16_group() { return BF16_GROUP; }
void dare_threads(int count) { wanted_threads.store(count); }

int dare_linear(const Linear* layer, const float* x, float* y, long rows) {
    return run([=](Member& member) {
        multiplied(member, *layer, [=] { return operand(*layer, x, rows); }, nullptr, y, rows);
    });
}

int dare_attention(const Attention* shape, const Batch* batch, const Rows* query, const Rows* key, const Rows* value,
                   float* out) {
    return run([=](Member& member) {
        const LayerCache cache(*shape, *batch);
        remembered(member, cache, *shape, *batch, *key, *value, [=](const float* from, long, float* to) {
            std::memcpy(to, from, shape->dim * sizeof(float));
        });
        attended(
            member, cache, *shape, *batch, [=](long head, long row, float*) { return query->of(head, row); }, out);
    });
}

int dare_peaks(const float* logits, long rows, long width, float* peaks, int32_t* places) {
    return run([=](Member& member) {
        const long pieces = std::min(rows, MOST_PIECES);
        float* found = nullptr;
        int32_t* at = nullptr;
        auto first_of = [=](long piece) { return piece * rows / pieces; };
        member.each(
            pieces,
            [&](long piece) {
                const long first = first_of(piece), count = first_of(piece + 1) - first;
                found = scratch<float>(ROWS, count), at = scratch<int32_t>(SCALES, count);
                for (long r = 0; r < count; r++) found[r] = peak_of(logits + (first + r) * width, width, at + r);
            },
            [&](long piece) {
                const long first = first_of(piece), count = first_of(piece + 1) - first;
                std::copy(found, found + count, peaks + first);
                std::copy(at, at + count, places + first);
            });
    });
}

int dare_compare(const float* logits, long width, const int64_t* rows, const float* values, const float* peaks, long n,
                 int32_t* above, float* log_sums) {
    return run([=](Member& member) {
        const long pieces = std::min(n, MOST_PIECES);
        auto first_of = [=](long piece) { return piece * n / pieces; };
        int32_t* counts = nullptr;
        float* sums = nullptr;
        member.each(
            pieces,
            [&](long piece) {
                const long first = first_of(piece), count = first_of(piece + 1) - first;
                counts = scratch<int32_t>(ROWS, count), sums = scratch<float>(SCALES, count);
                for (long i = 0; i < count; i++)
                    compare(logits + rows[first + i] * width, width, values[first + i], peaks[first + i], counts + i,
                            sums + i);
            },
            [&](long piece) {
                const long first = first_of(piece), count = first_of(piece + 1) - first;
                std::copy(counts, counts + count, above + first);
                std::copy(sums, sums + count, log_sums + first);
            });
    });
}

int dare_layers(const Layer* layers, long n, const Batch* batch, const float* x, const float* cosines,
                const float* sines, long rotary, float* y) {
    try {
        const Shared shared = Shared::of(layers, n, batch->rows);
        return run([=](Member& member) {
            for (long i = 0; i < n; i++)
                layered(member, layers[i], *batch, shared, i ? y : x, cosines, sines, rotary, y);
        });
    } catch (const std::bad_alloc&) {
        return NO_MEMORY;
    }
}
}
