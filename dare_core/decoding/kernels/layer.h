// Whole decoder layers of Llama's form.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention.h"
#include "linear.h"
#include "threads.h"
#include "vectors.h"

namespace {

struct Layer {  // x + attention(norm(x)), and to that y: y + down(activation(gate(norm(y))) * up(norm(y)))
    Attention attention;
    const float *input_norm, *query_norm, *key_norm, *output_norm;  // those of queries and keys may be missing
    float epsilon;
    int64_t activation;  // 0: SiLU, 1: GELU by tanh
    Linear query_key_value, output, gate, up, down;
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

void rotate(float* x, const float* cosines, const float* sines, long width) {
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

// out [rows, inner] = activation(gate(x)) * up(x), of `of()`'s rows.
template <typename Of>
void gated(Member& member, const Layer& layer, const Of& of, float* out, long rows) {
    const long inner = layer.gate.outputs;
    const Pieces pieces = pieces_of(layer.gate.panels());
    const long most = pieces.longest();
    Operand prepared{};
    bool is_prepared = false;
    float *gates = scratch<float>(SUMS, (most + 1) * rows * PANEL), *ups = gates + most * rows * PANEL;
    auto each_panel = [&](long piece, auto call) {
        const long first = pieces.begin(piece);
        for (long panel = first; panel < pieces.end(piece); panel++)
            call(panel, gates + (panel - first) * rows * PANEL);
    };
    member.each(
        pieces.number,
        [&](long piece) {
            if (!is_prepared) prepared = of(), is_prepared = true;
            each_panel(piece, [&](long panel, float* gate) {
                multiply_panel(layer.gate, prepared, panel, rows, gate);
                multiply_panel(layer.up, prepared, panel, rows, ups);
                for (long i = 0; i < rows * PANEL; i += LANES)
                    store(gate + i, activated(load(gate + i), layer.activation == 1) * load(ups + i));
            });
        },
        [&](long piece) {
            each_panel(piece, [&](long panel, const float* gate) {
                const long first = panel * PANEL, count = std::min((long)PANEL, inner - first);
                for (long r = 0; r < rows; r++)
                    std::memcpy(out + r * inner + first, gate + r * PANEL, count * sizeof(float));
            });
        });
}

struct Between {  // what the threads of a run hand on from call to call
    float *qkv, *heads, *product;
};

// x [rows, hidden] = layer(x).
void layered(Member& member, const Layer& layer, const Batch& batch, const Between& between, float* x,
             const float* cosines, const float* sines, long rotary) {
    const Attention& shape = layer.attention;
    const long rows = batch.rows, hidden = layer.output.outputs, dim = shape.dim;
    const long width = shape.heads * dim, all = layer.query_key_value.outputs, narrow = shape.kv_heads * dim;
    const LayerCache cache(shape, batch);
    auto normed_rows = [&](const Linear& linear, const float* of, const float* weight) {
        float* norm = scratch<float>(NORMED, rows * hidden);
        for (long r = 0; r < rows; r++) normed(of + r * hidden, weight, layer.epsilon, hidden, norm + r * hidden);
        return operand(linear, norm, rows);
    };
    auto turned = [&](const float* from, const float* weight, long row, float* to) {
        if (weight)
            normed(from, weight, layer.epsilon, dim, to);
        else
            std::memcpy(to, from, dim * sizeof(float));
        rotate(to, cosines + row * rotary, sines + row * rotary, rotary);
        return to;
    };
    multiplied(member, layer.query_key_value, [&] { return normed_rows(layer.query_key_value, x, layer.input_norm); },
               nullptr, between.qkv, rows);
    const Rows query{between.qkv, dim, all}, key{between.qkv + width, dim, all}, value{key.at + narrow, dim, all};
    remembered(member, cache, shape, batch, key, value,
               [&](const float* from, long row, float* to) { turned(from, layer.key_norm, row, to); });
    attended(
        member, cache, shape, batch,
        [&](long head, long row, float* space) -> const float* {
            return turned(query.of(head, row), layer.query_norm, row, space);
        },
        between.heads);
    multiplied(member, layer.output, [&] { return operand(layer.output, between.heads, rows); }, x, x, rows);
    gated(member, layer, [&] { return normed_rows(layer.gate, x, layer.output_norm); }, between.product, rows);
    multiplied(member, layer.down, [&] { return operand(layer.down, between.product, rows); }, x, x, rows);
}

}  // namespace
