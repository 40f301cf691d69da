/* attention_backward_bf16.c - the gradients of attention_backward.c with products in bf16 by tiles, sums in fp32.
 *   S = Qh Kh' + Ql Kh' + Qh Kl', one product of 3 D steps: x = xh + xl, xh its bf16, so that exp(S c - lse) is as exact as in fp32;
 *   the other four round their operands once
 * Left operands are rows of steps, right ones panels [N/64][K/32][16][64][2] (products_bf16.c). */
#include "kernels/attention_backward.h"
#include "kernels/kernels_isa.h"
#include "kernels/products.h"

#include <string.h>
#include <tgmath.h>

enum { WIDE = 64, DEEP = 32, QUERIES = 64, KEYS = 256, MOST = 256 /* channels of a head */ };

/* Each is one operand of one kv head, or of one tile of queries; room behind rows keeps them in different sets of the cache. */
typedef struct {
    uint16_t *k3, *vt, *k;      /* right: [3D, T], [D, T], [T, D] */
    uint16_t *q3, *d_o;         /* left: [QUERIES, 3D], [QUERIES, D] */
    uint16_t *q, *d_o_rows;     /* right: [QUERIES, D] */
    uint16_t *pt, *dst, *ds16;  /* left: [KEYS, QUERIES] twice, [QUERIES, KEYS] */
    real *p, *ds;               /* [QUERIES, KEYS] */
    real *dk, *dv;              /* [T, D] */
    real *low;                  /* [WIDE, D] */
    real *delta;                /* [QUERIES] */
} scratch;

static int64_t up(int64_t n, int64_t size)
{
    return (n + size - 1) / size * size;
}

/* Places in `memory`; its bytes where memory is NULL. */
static size_t lay(scratch *s, char *memory, int64_t T, int64_t D)
{
    const int64_t deep = up(D, DEEP), wide = up(D, WIDE), keys = up(T, WIDE);
    uint16_t **const half[] = {&s->k3, &s->vt, &s->k, &s->q3, &s->d_o, &s->q, &s->d_o_rows, &s->pt, &s->dst, &s->ds16};
    const int64_t halves[] = {3 * deep * keys,           deep * keys,    keys * wide,    QUERIES * (3 * deep + DEEP), QUERIES * (deep + DEEP),
                              QUERIES * wide,            QUERIES * wide, KEYS * (QUERIES + DEEP), KEYS * (QUERIES + DEEP), QUERIES * (KEYS + DEEP)};
    real **const full[] = {&s->p, &s->ds, &s->dk, &s->dv, &s->low, &s->delta};
    const int64_t reals[] = {QUERIES * KEYS, QUERIES * KEYS, T * D, T * D, WIDE * D, QUERIES};
    size_t at = 0;
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++, at += (size_t)up(halves[i - 1], DEEP) * sizeof(uint16_t))
        *half[i] = memory ? (uint16_t *)(void *)(memory + at) : NULL;
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++, at += (size_t)up(reals[i - 1], 16) * sizeof(real))
        *full[i] = memory ? (real *)(void *)(memory + at) : NULL;
    return at;
}

bool kn_attention_backward_takes_bf16(kn_precision p, int64_t T, int64_t D)
{
    const kn_table *t = kn_isa();
    return p == KN_BF16 && t->has_bf16 && t->has_bf16() && T >= QUERIES && D >= DEEP && D <= MOST;
}

size_t kn_attention_backward_bf16_bytes(int64_t T, int64_t D)
{
    scratch s;
    return lay(&s, NULL, T, D);
}

/* ---- operands ----------------------------------------------------------------------------- */

/* low [rows, D] = x - bf16(x) */
static void low_part(real *low, const real *x, int64_t ld, int64_t rows, int64_t D)
{
    uint16_t high[MOST];
    for (int64_t i = 0; i < rows; i++) {
        kn_isa()->to_bf16(high, x + i * ld, D);
        for (int64_t d = 0; d < D; d++)
            low[i * D + d] = x[i * ld + d] - (real)kn_bf16_value(high[d]);
    }
}

/* Right operand [steps, columns] <- x [rows, columns] */
static void right_rows(uint16_t *to, const real *x, int64_t ld, int64_t rows, int64_t steps, int64_t columns)
{
    static const real zero[WIDE];
    for (int64_t n = 0; n < columns; n += WIDE)
        for (int64_t k = 0; k < steps; k += 2) {
            const int64_t width = kn_min(WIDE, columns - n);
            const real *x0 = k < rows ? x + k * ld + n : zero, *x1 = k + 1 < rows ? x + (k + 1) * ld + n : zero;
            uint32_t *y = (uint32_t *)(void *)(to + n * steps + k * WIDE);
            kn_isa()->pair_bf16(y, x0, x1, 1, 1, width);
            memset(y + width, 0, (size_t)(WIDE - width) * sizeof *y);
        }
}

static void lay_keys(const scratch *s, const kn_attention_gradients *j, const real *k, const real *v, int64_t length)
{
    const int64_t D = j->D, narrow = j->G * D, deep = up(D, DEEP);
    for (int64_t n = 0; n < length; n += WIDE) {
        const int64_t rows = kn_min(WIDE, length - n);
        uint16_t *to = s->k3 + n * 3 * deep;
        low_part(s->low, k + n * narrow, narrow, rows, D);
        kn_bf16_right_turned(to, k + n * narrow, narrow, rows, D);
        memcpy(to + deep * WIDE, to, (size_t)(deep * WIDE) * sizeof *to);
        kn_bf16_right_turned(to + 2 * deep * WIDE, s->low, D, rows, D);
        kn_bf16_right_turned(s->vt + n * deep, v + n * narrow, narrow, rows, D);
    }
    right_rows(s->k, k, narrow, length, up(length, WIDE), D);
}

static void lay_queries(const scratch *s, const kn_attention_gradients *j, const real *q, const real *d_o, int64_t n)
{
    const int64_t D = j->D, wide = j->H * D, deep = up(D, DEEP), lda = 3 * deep + DEEP;
    low_part(s->low, q, wide, n, D);
    kn_bf16_left(s->q3, lda, q, wide, n, D, deep, NULL);
    kn_bf16_left(s->q3 + deep, lda, s->low, D, n, D, deep, NULL);
    kn_bf16_left(s->q3 + 2 * deep, lda, q, wide, n, D, deep, NULL);
    kn_bf16_left(s->d_o, deep + DEEP, d_o, wide, n, D, deep, NULL);
    right_rows(s->q, q, wide, n, QUERIES, D);
    right_rows(s->d_o_rows, d_o, wide, n, QUERIES, D);
}

/* ---- products ----------------------------------------------------------------------------- */

/* Queries [q0, q0 + n) of head h, laid out, against keys [k0, k0 + keys). row: first row of the sequence. */
static void backward_tile(const scratch *s, const kn_attention_gradients *j, int64_t row, int64_t h, int64_t q0, int64_t n, int64_t k0,
                          int64_t keys, int64_t length)
{
    const kn_table *t = kn_isa();
    const int64_t D = j->D, deep = up(D, DEEP), wide = j->H * D, turned = QUERIES + DEEP, steps = up(keys, DEEP), all = up(length, WIDE);
    const real scale = 1 / sqrt((real)D);
    t->multiply_bf16(s->p, KEYS, s->q3, 3 * deep + DEEP, s->k3 + k0 * 3 * deep, 3 * deep * WIDE, n, keys, 3 * deep, false);
    t->multiply_bf16(s->ds, KEYS, s->d_o, deep + DEEP, s->vt + k0 * deep, deep * WIDE, n, keys, deep, false);
    for (int64_t i = 0; i < n; i++)
        t->attend_backward_row(s->p + i * KEYS, s->ds + i * KEYS, keys, q0 + i + 1 - k0, j->lse[(row + q0 + i) * j->H + h], s->delta[i], scale);
    if (j->dv) {
        kn_bf16_left_turned(s->pt, turned, s->p, KEYS, n, keys, QUERIES, NULL);
        t->multiply_bf16(s->dv + k0 * D, D, s->pt, turned, s->d_o_rows, QUERIES * WIDE, keys, D, QUERIES, true);
    }
    if (j->dk) {
        kn_bf16_left_turned(s->dst, turned, s->ds, KEYS, n, keys, QUERIES, NULL);
        t->multiply_bf16(s->dk + k0 * D, D, s->dst, turned, s->q, QUERIES * WIDE, keys, D, QUERIES, true);
    }
    if (j->dq) {
        kn_bf16_left(s->ds16, KEYS + DEEP, s->ds, KEYS, n, keys, steps, NULL);
        t->multiply_bf16(j->dq + (row + q0) * wide + h * D, wide, s->ds16, KEYS + DEEP, s->k + k0 * WIDE, all * WIDE, n, D, steps, true);
    }
}

void kn_attention_backward_bf16(const kn_attention_gradients *j, void *memory, int64_t b, int64_t g, int64_t length)
{
    const kn_table *t = kn_isa();
    const int64_t D = j->D, row = b * j->T, wide = j->H * D, narrow = j->G * D, share = j->H / j->G;
    scratch s;
    lay(&s, memory, j->T, D);
    lay_keys(&s, j, j->k + row * narrow + g * D, j->v + row * narrow + g * D, length);
    memset(s.dk, 0, (size_t)(length * D) * sizeof(real));
    memset(s.dv, 0, (size_t)(length * D) * sizeof(real));
    for (int64_t h = g * share; h < (g + 1) * share; h++)
        for (int64_t q0 = 0; q0 < length; q0 += QUERIES) {
            const int64_t n = kn_min(QUERIES, length - q0), at = (row + q0) * wide + h * D;
            for (int64_t i = 0; i < n; i++)
                t->dots(s.delta + i, 1, j->d_o + at + i * wide, D, j->o + at + i * wide, D, 1, 1, D);
            lay_queries(&s, j, j->q + at, j->d_o + at, n);
            for (int64_t k0 = 0; k0 < q0 + n; k0 += KEYS)
                backward_tile(&s, j, row, h, q0, n, k0, kn_min(KEYS, q0 + n - k0), length);
        }
    for (int64_t i = 0; i < length; i++) {
        if (j->dk)
            t->add_to(j->dk + (row + i) * narrow + g * D, s.dk + i * D, D);
        if (j->dv)
            t->add_to(j->dv + (row + i) * narrow + g * D, s.dv + i * D, D);
    }
}
