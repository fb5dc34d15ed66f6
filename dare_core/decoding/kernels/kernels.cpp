// What a CPU spends a decoding step on. library.py describes the functions' arguments and mirrors the structures.

#include "attention.h"
#include "layer.h"
#include "linear.h"
#include "verification.h"

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
    layered(*layer, *batch, x, cosines, sines, rotary, y);
}
}
