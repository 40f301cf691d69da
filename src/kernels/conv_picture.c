/* conv_picture.c - convolution of one picture in floats and its correlation with a gradient, on one thread; conv.c says what of.
 * Each row of outputs is one product of tiles whose sum runs over the rows of a window (tile_runs), read where they lie.
 */
#include "kernels/conv.h"
#include "kernels/kernels_isa.h"
#include <stdlib.h>
#include <string.h>

enum { FEW = 24 /* numbers in a row of a window below which windows are copied */, NEAR = 6144 /* numbers that stay in the first cache */ };

kn_plain kn_plain_of(const kn_conv *c)
{
    return (kn_plain){c->W + 2 * c->pad, c->C, c->N, c->K, c->stride, c->dilation, c->groups, c->OH, c->OW};
}

bool kn_copies_windows(const kn_plain *c)
{
    return c->groups == 1 && c->K > 1 && c->K * c->C < FEW;
}

/* Row oy of the outputs of group g, in which C inputs go to N outputs. */
static void output_row(real *y, const kn_plain *c, const real *x, const real *wt, int64_t g, int64_t oy, bool add)
{
    const int64_t C = c->C / c->groups, N = c->N / c->groups, row = c->W * c->C;
    const bool together = c->dilation == 1 && c->groups == 1; /* a row of the window lies in one piece */
    const int64_t steps = together ? 1 : c->K, width = together ? c->K * C : C;
    for (int64_t kx = 0; kx < steps; kx++)
        kn_isa()->tile_runs(y + oy * c->OW * c->N + g * N, c->N, x + oy * c->stride * row + kx * c->dilation * c->C + g * C,
                            c->stride * c->C, 1, wt + (g * c->K * c->K + kx) * C * N, N, c->OW, N, width, c->K, c->dilation * row,
                            c->K * C * N, add || kx > 0);
}

void kn_convolve(real *y, const kn_plain *c, const real *x, const real *wt, const real *windows, const real *b, kn_activation act,
                 bool add)
{
    const kn_table *t = kn_isa();
    const int64_t depth = c->K * c->K * c->C;
    const bool finish = b || act != KN_LINEAR;
    const bool deep = kn_conv_depthwise(c->C, c->N, c->groups);
    for (int64_t oy = 0; oy < c->OH; oy++) { /* what a row of outputs needs last, it finds in the first cache */
        if (windows)
            t->tile(y + oy * c->OW * c->N, c->N, windows + oy * c->OW * depth, depth, 1, wt, c->N, c->OW, c->N, depth, add);
        if (deep)
            t->depthwise_row(y + oy * c->OW * c->N, x + oy * c->stride * c->W * c->C, wt, c->OW, c->C, c->K, c->stride * c->C,
                             c->dilation * c->W * c->C, c->dilation * c->C, add);
        for (int64_t g = 0; !windows && !deep && g < c->groups; g++)
            output_row(y, c, x, wt, g, oy, add);
        if (finish)
            t->finish_rows(y + oy * c->OW * c->N, b, c->OW, c->N, act);
    }
}

static void depthwise_dw(real *dwt, const kn_plain *c, const real *dy, const real *x)
{
    const kn_table *t = kn_isa();
    const int64_t row = c->W * c->C;
    for (int64_t oy = 0; oy < c->OH; oy++)
        t->depthwise_row_dw(dwt, x + oy * c->stride * row, dy + oy * c->OW * c->C, c->OW, c->C, c->K, c->stride * c->C, c->dilation * row,
                            c->dilation * c->C);
}

void kn_correlate(real *dwt, const kn_plain *c, const real *dy, const real *x, const real *windows)
{
    const kn_table *t = kn_isa();
    const int64_t C = c->C / c->groups, N = c->N / c->groups, row = c->W * c->C, depth = c->K * c->K * c->C;
    if (kn_conv_depthwise(c->C, c->N, c->groups)) {
        depthwise_dw(dwt, c, dy, x);
        return;
    }
    if (windows) {
        t->tile(dwt, N, windows, 1, depth, dy, N, depth, N, c->OH * c->OW, true);
        return;
    }
    const bool together = c->dilation == 1 && c->groups == 1;
    const int64_t steps = together ? 1 : c->K, width = together ? c->K * C : C, rows = kn_max(1, NEAR / (c->OW * c->N));
    for (int64_t g = 0; g < c->groups; g++)
        for (int64_t oy = 0; oy < c->OH; oy += rows)
            for (int64_t ky = 0; ky < c->K; ky++)
                for (int64_t kx = 0; kx < steps; kx++)
                    t->tile_runs(dwt + (g * c->K * c->K + ky * c->K + kx) * C * N, N,
                                 x + (oy * c->stride + ky * c->dilation) * row + kx * c->dilation * c->C + g * C, 1, c->stride * c->C,
                                 dy + oy * c->OW * c->N + g * N, c->N, width, N, c->OW, kn_min(rows, c->OH - oy), c->stride * row,
                                 c->OW * c->N, true);
}

void kn_copy_windows(real *to, const kn_plain *c, const real *x)
{
    const int64_t C = c->C, row = c->W * C, run = c->K * C;
    for (int64_t oy = 0; oy < c->OH; oy++)
        for (int64_t ox = 0; ox < c->OW; ox++)
            for (int64_t ky = 0; ky < c->K; ky++) {
                const real *from = x + (oy * c->stride + ky * c->dilation) * row + ox * c->stride * C;
                for (int64_t i = 0; i < run; i++)
                    *to++ = from[c->dilation == 1 ? i : i / C * c->dilation * C + i % C];
            }
}

void kn_with_margin(real *to, int64_t PH, int64_t PW, const real *x, int64_t H, int64_t W, int64_t C, int64_t at, int64_t step)
{
    memset(to, 0, (size_t)(PH * PW * C) * sizeof *to);
    for (int64_t h = 0; h < H; h++)
        for (int64_t w = 0; w < W; w += step == 1 ? W : 1)
            memcpy(to + ((at + h * step) * PW + at + w * step) * C, x + (h * W + w) * C,
                   (size_t)(step == 1 ? W * C : C) * sizeof *to);
}

/* ---- weights ------------------------------------------------------------------------------ */

kn_order kn_order_of(const kn_conv *c)
{
    return (kn_order){c->groups, kn_conv_depth(c), c->N / c->groups, c->C / c->groups, kn_conv_depthwise(c->C, c->N, c->groups)};
}

int64_t kn_place(const kn_order *o, int64_t n, int64_t d)
{
    return o->depthwise ? d * o->G + n : (n / o->N * o->D + d) * o->N + n % o->N;
}

int64_t kn_place_turned(const kn_order *o, int64_t n, int64_t d)
{
    const int64_t points = o->D / o->C, k = points - 1 - d / o->C, c = d % o->C;
    return o->depthwise ? k * o->G + n : ((n / o->N * points + k) * o->N + n % o->N) * o->C + c;
}

real *kn_arranged_new(const kn_conv *c, const real *w, int64_t (*where)(const kn_order *o, int64_t n, int64_t d))
{
    const kn_order o = kn_order_of(c);
    real *wt = nb_alloc_aligned((size_t)(c->N * o.D), sizeof *wt);
    for (int64_t n = 0; wt && n < c->N; n++)
        for (int64_t d = 0; d < o.D; d++)
            wt[where(&o, n, d)] = w[n * o.D + d];
    return wt;
}
