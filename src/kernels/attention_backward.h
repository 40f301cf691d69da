/* attention_backward.h - what the two ways of attention's gradients share (private to kernels/). */
#ifndef NIBBLE_KERNELS_ATTENTION_BACKWARD_H
#define NIBBLE_KERNELS_ATTENTION_BACKWARD_H
#include "kernels/kernels.h"

/* kn_attention_backward's arguments; T, H, G, D as there. */
typedef struct {
    real *dq, *dk, *dv;
    const real *d_o, *o, *lse, *q, *k, *v;
    int64_t T, H, G, D;
} kn_attention_gradients;

/* In bf16 where this CPU has tiles and the shape suits them: sequence b's kv head g, whose first `length` positions count; memory:
 * kn_attention_backward_bf16_bytes, aligned to 64. On the thread that calls. */
bool kn_attention_backward_takes_bf16(kn_precision p, int64_t T, int64_t D);
size_t kn_attention_backward_bf16_bytes(int64_t T, int64_t D);
void kn_attention_backward_bf16(const kn_attention_gradients *j, void *memory, int64_t b, int64_t g, int64_t length);
#endif
