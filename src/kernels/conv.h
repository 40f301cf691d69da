/* conv.h - what the files of convolution share (private to kernels/). */
#ifndef NIBBLE_KERNELS_CONV_H
#define NIBBLE_KERNELS_CONV_H
#include "kernels/kernels.h"

/* Each channel for itself: products of vectors, not of matrices. */
static inline bool kn_conv_depthwise(int64_t C, int64_t N, int64_t groups)
{
    return groups > 1 && groups == C && C == N;
}

/* A convolution of a picture that has its margins already. */
typedef struct {
    int64_t W, C, N, K, stride, dilation, groups, OH, OW;
} kn_plain;
kn_plain kn_plain_of(const kn_conv *c);
/* True: kn_convolve and kn_correlate want the windows [OH*OW, K*K*C] of kn_copy_windows, else NULL. */
bool kn_copies_windows(const kn_plain *c);
void kn_copy_windows(real *to, const kn_plain *c, const real *x);
/* y = act(conv(x, wt) + b) or, add (act linear, b NULL), y += conv. wt: [groups][K*K*C/groups][N/groups]; depthwise [K*K][C]. */
void kn_convolve(real *y, const kn_plain *c, const real *x, const real *wt, const real *windows, const real *b, kn_activation act,
                 bool add);
/* dwt, laid out as wt, += sum over points of dy and x. */
void kn_correlate(real *dwt, const kn_plain *c, const real *dy, const real *x, const real *windows);
/* to [PH, PW, C] <- zeros, and the points of x [H, W, C], `step` apart, from (at, at) on. */
void kn_with_margin(real *to, int64_t PH, int64_t PW, const real *x, int64_t H, int64_t W, int64_t C, int64_t at, int64_t step);

typedef struct {
    int64_t G, D, N; /* groups, K*K*C/groups, N/groups */
    int64_t C;       /* channels of a point of the window, of one group */
    bool depthwise;
} kn_order;
kn_order kn_order_of(const kn_conv *c);
/* Where w[n, d] stands in wt; and in the weights of the convolution that gives dx: the window turned round, inputs and outputs exchanged. */
int64_t kn_place(const kn_order *o, int64_t n, int64_t d);
int64_t kn_place_turned(const kn_order *o, int64_t n, int64_t d);
real *kn_arranged_new(const kn_conv *c, const real *w, int64_t (*where)(const kn_order *o, int64_t n, int64_t d));

/* ---- the same in bf16, sums in fp32 (conv_bf16.c) ---- */

bool kn_conv_takes_bf16(kn_precision p, const kn_conv *c);
bool kn_correlate_takes_bf16(const kn_plain *c);
/* A picture [PH, PW, C] in bf16: how many numbers, with what is read behind it; and kn_with_margin. */
int64_t kn_conv_bf16_picture(int64_t PH, int64_t PW, int64_t C);
void kn_conv_bf16_margin(uint16_t *to, int64_t PH, int64_t PW, const real *x, int64_t H, int64_t W, int64_t C, int64_t at, int64_t step);
uint16_t *kn_conv_bf16_weights_new(const kn_plain *c, const real *wt);
void kn_convolve_bf16(real *y, const kn_plain *c, const uint16_t *x, const uint16_t *w, const real *b, kn_activation act, bool add);
/* x with its margins, PH rows of points; room: kn_correlate_bf16_room numbers. */
int64_t kn_correlate_bf16_room(const kn_plain *c);
void kn_correlate_bf16(real *dwt, const kn_plain *c, const real *d, const real *x, int64_t PH, uint16_t *room);
#endif
