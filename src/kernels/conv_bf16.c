/* conv_bf16.c - convolution of one picture in bf16, sums in fp32, by tiles that read the picture where it lies; conv.c says what of.
 *   outputs   the tile of a row of outputs: rows stride*C apart in the picture [PH, PW, C], a row of the window is one run of K*C
 *   weights   [N/64][K][run/2][64][2], run = K*C padded to 32: pairs of rows side by side, as products_bf16.c has its right operands
 *   dw        for each point k of the window, sum_p x[c, p + k] d[p, n] over points p of pitch PW: x with channels first, d in pairs
 *             of points, zero where no output is (stride 1)
 */
#include "kernels/conv.h"
#include "kernels/kernels_isa.h"
#include "kernels/products.h"
#include <string.h>

enum {
    WIDE = 64,    /* columns of a panel */
    DEEP = 32,    /* steps of a sum that a tile holds, and what is read behind the last row */
    NEAR = 6144   /* numbers that stay in the first cache */
};

static int64_t up(int64_t n, int64_t size)
{
    return (n + size - 1) / size * size;
}

bool kn_conv_takes_bf16(kn_precision p, const kn_conv *c)
{
    const kn_table *t = kn_isa();
    return p == KN_BF16 && t->runs_bf16 && t->has_bf16() && c->groups == 1 && c->dilation == 1 && c->K > 1 && c->OW >= 8;
}

bool kn_correlate_takes_bf16(const kn_plain *c)
{
    return c->stride == 1;
}

/* ---- convolution -------------------------------------------------------------------------- */

int64_t kn_conv_bf16_picture(int64_t PH, int64_t PW, int64_t C)
{
    return up(PH * PW * C + DEEP, DEEP);
}

void kn_conv_bf16_margin(uint16_t *to, int64_t PH, int64_t PW, const real *x, int64_t H, int64_t W, int64_t C, int64_t at, int64_t step)
{
    const kn_table *t = kn_isa();
    const int64_t all = kn_conv_bf16_picture(PH, PW, C);
    if (step != 1 || PH * PW != H * W)
        memset(to, 0, (size_t)all * sizeof *to);
    else
        memset(to + H * W * C, 0, (size_t)(all - H * W * C) * sizeof *to);
    for (int64_t h = 0; h < H; h++)
        for (int64_t w = 0; w < W; w += step == 1 ? W : 1)
            t->to_bf16(to + ((at + h * step) * PW + at + w * step) * C, x + (h * W + w) * C, step == 1 ? W * C : C);
}

uint16_t *kn_conv_bf16_weights_new(const kn_plain *c, const real *wt)
{
    const kn_table *t = kn_isa();
    const int64_t width = c->K * c->C, run = up(width, DEEP), panel = c->K * run * WIDE;
    uint16_t *to = nb_alloc_zeroed((size_t)(up(c->N, WIDE) / WIDE * panel), sizeof *to);
    static const real zero[WIDE];
    for (int64_t n = 0; to && n < c->N; n += WIDE)
        for (int64_t ky = 0; ky < c->K; ky++)
            for (int64_t k = 0; k < width; k += 2) {
                const real *x = wt + (ky * width + k) * c->N + n;
                uint32_t *y = (uint32_t *)(void *)(to + n / WIDE * panel + (ky * run + k) * WIDE);
                t->pair_bf16(y, x, k + 1 < width ? x + c->N : zero, 1, 1, kn_min(WIDE, c->N - n));
            }
    return to;
}

void kn_convolve_bf16(real *y, const kn_plain *c, const uint16_t *x, const uint16_t *w, const real *b, kn_activation act, bool add)
{
    const kn_table *t = kn_isa();
    const int64_t row = c->W * c->C, lines = kn_max(1, NEAR / (c->OW * c->N));
    for (int64_t oy = 0; oy < c->OH; oy += lines) {
        const int64_t n = kn_min(lines, c->OH - oy);
        real *to = y + oy * c->OW * c->N;
        const kn_bf16_runs job = {.c = to,
                                  .ldc = c->N,
                                  .a = x + oy * c->stride * row,
                                  .lda = c->stride * c->C,
                                  .b = w,
                                  .M = c->OW,
                                  .N = c->N,
                                  .steps = up(c->K * c->C, DEEP) / DEEP,
                                  .runs = c->K,
                                  .a_run = row,
                                  .lines = n,
                                  .c_line = c->OW * c->N,
                                  .a_line = c->stride * row,
                                  .add = add};
        t->runs_bf16(&job);
        if (b || act != KN_LINEAR)
            t->finish_rows(to, b, n * c->OW, c->N, act);
    }
}

/* ---- correlation -------------------------------------------------------------------------- */

static int64_t line_of(const kn_plain *c) /* numbers of a channel of x */
{
    return up(c->OH * c->W, DEEP) + up(c->K * c->W + c->K, DEEP);
}

int64_t kn_correlate_bf16_room(const kn_plain *c)
{
    return c->C * line_of(c) + up(c->OH * c->W, DEEP) * up(c->N, WIDE);
}

/* to [N/64][points/2][64][2] <- d [OH*OW, N] at pitch W, zeros where no output is */
static void pair_up(uint16_t *to, const kn_plain *c, const real *d)
{
    const kn_table *t = kn_isa();
    const int64_t points = up(c->OH * c->W, DEEP);
    static const real zero[WIDE];
    for (int64_t n = 0; n < c->N; n += WIDE)
        for (int64_t p = 0; p < points; p += 2) {
            const int64_t columns = kn_min(WIDE, c->N - n);
            const real *x[2];
            for (int64_t i = 0; i < 2; i++) {
                const int64_t oy = (p + i) / c->W, ox = (p + i) % c->W;
                x[i] = oy < c->OH && ox < c->OW ? d + (oy * c->OW + ox) * c->N + n : zero;
            }
            uint32_t *y = (uint32_t *)(void *)(to + (n / WIDE * points + p) * WIDE);
            t->pair_bf16(y, x[0], x[1], 1, 1, columns);
            memset(y + columns, 0, (size_t)(WIDE - columns) * sizeof *y);
        }
}

void kn_correlate_bf16(real *dwt, const kn_plain *c, const real *d, const real *x, int64_t PH, uint16_t *room)
{
    const int64_t line = line_of(c), points = up(c->OH * c->W, DEEP);
    uint16_t *pairs = room + c->C * line;
    kn_bf16_left_turned(room, line, x, c->C, PH * c->W, c->C, line, NULL);
    pair_up(pairs, c, d);
    for (int64_t ky = 0; ky < c->K; ky++) {
        const kn_bf16_runs job = {.c = dwt + ky * c->K * c->C * c->N,
                                  .ldc = c->N,
                                  .a = room + ky * c->W,
                                  .lda = line,
                                  .b = pairs,
                                  .M = c->C,
                                  .N = c->N,
                                  .steps = points / DEEP,
                                  .runs = 1,
                                  .lines = c->K,
                                  .c_line = c->C * c->N,
                                  .a_line = 1,
                                  .add = true};
        kn_isa()->runs_bf16(&job);
    }
}
