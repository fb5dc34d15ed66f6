// A whole decoder layer of Llama's form.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "vectors.h"

namespace {

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

void layered(const Layer& layer, const Batch& batch, const float* x, const float* cosines, const float* sines,
             long rotary, float* y) {
    const Attention& shape = layer.attention;
    const long rows = batch.rows, hidden = layer.output.outputs, inner = layer.down.inputs, dim = shape.dim;
    const long width = shape.heads * dim, all = layer.query_key_value.outputs, narrow = shape.kv_heads * dim;
    static thread_local std::vector<float> buffer;
    const size_t needed = rows * (hidden + std::max(all + width, 3 * inner));
    if (buffer.size() < needed) buffer.resize(needed);
    float *norm = buffer.data(), *qkv = norm + rows * hidden, *heads = qkv + rows * all;
    float *gate_up = qkv, *product = gate_up + rows * 2 * inner;  // when attention's are no longer needed

#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) normed(x + r * hidden, layer.input_norm, layer.epsilon, hidden, norm + r * hidden);
    multiplied(layer.query_key_value, norm, nullptr, qkv, rows);
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++)
        for (long head = 0; head < shape.heads + shape.kv_heads; head++) {
            float* at = qkv + r * all + head * dim;
            const float* weight = head < shape.heads ? layer.query_norm : layer.key_norm;
            if (weight) normed(at, weight, layer.epsilon, dim, at);
            rotated(at, cosines + r * rotary, sines + r * rotary, rotary);
        }
    attended(shape, batch, {qkv, dim, all}, {qkv + width, dim, all}, {qkv + width + narrow, dim, all}, heads);
    multiplied(layer.output, heads, x, y, rows);
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) normed(y + r * hidden, layer.output_norm, layer.epsilon, hidden, norm + r * hidden);
    multiplied(layer.gate_up, norm, nullptr, gate_up, rows);
#pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        const float *gate = gate_up + r * 2 * inner, *up = gate + inner;
        for (long i = 0; i < inner; i += LANES)  // a multiple of LANES
            store(product + r * inner + i, activated(load(gate + i), layer.activation == 1) * load(up + i));
    }
    multiplied(layer.down, product, y, y, rows);
}

}  // namespace
