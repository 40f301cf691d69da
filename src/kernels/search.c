/* search.c - scales by search, and ggml's file encoders.
 *   kn_encode_mse: per span, the candidate store(range * k) with the least sum h (x - decode(encode(x)))^2; the first of
 *   equals. With zero points both ends shrink by k and the zero follows.
 *   ggml Q8_0 file: d = amax / 127, id = 1 / d, q = round half away(x id), scale = fp16(d).   (ggml-quants.c *_ref) */
#include "kernels/encode.h"
#include "kernels/kernels_isa.h"

#include <assert.h>
#include <math.h>
#include <tgmath.h>

typedef struct {
    double error;
    real scale;
    int32_t zero;
} candidate;

/* The parts of one span: the whole for TENSOR, one piece of one row otherwise but for BLOCK, which may straddle rows. */
static double span_error(const kn_codes *c, const real *x, const real *h, int64_t first, int64_t n, const candidate *k)
{
    const kn_table *t = kn_isa();
    const kn_rounding r = kn_rounding_of(&c->grid, k->scale, k->zero);
    const real mul = (real)kn_mul(&c->grid), offset = kn_offset(&c->grid, k->zero);
    double error = 0;
    for (int64_t at = first; at < first + n;) {
        const int64_t col = at % c->cols, m = kn_min(first + n - at, c->cols - col);
        if (kn_has_table(&c->grid))
            error += kn_levels_error(x + at, h ? h + at : NULL, m, &c->grid, k->scale);
        else
            error += (double)t->rounding_error(x + at, h ? h + at : NULL, m, &r, k->scale, mul, offset);
        at += m;
    }
    return error;
}

/* The best scale of flattened elements [first, first + n). */
static void search_span(kn_codes *c, const real *x, const real *h, int64_t first, int64_t n, int64_t index, real from,
                        real to, int steps, bool signs)
{
    real scale = 0;
    int32_t zero = 0;
    kn_range_span(&c->grid, x + first, n, &scale, &zero);
    candidate best = {.error = INFINITY, .scale = scale, .zero = zero};
    real min, max;
    kn_isa()->min_max(&min, &max, x + first, n);
    for (int i = 0; i < steps; i++) {
        const real k = steps > 1 ? from + (to - from) * (real)i / (real)(steps - 1) : from;
        candidate try = {.scale = kn_store(&c->grid, scale * k)};
        if (c->grid.has_zero)
            kn_range_of(&c->grid, min * k, max * k, &try.scale, &try.zero);
        for (int sign = 0; sign <= (signs && !c->grid.has_zero); sign++) {
            try.error = span_error(c, x, h, first, n, &try);
            if (try.error < best.error)
                best = try;
            try.scale = -try.scale;
        }
    }
    c->scale[index] = best.scale;
    if (c->zero)
        c->zero[index] = best.zero;
}

void kn_encode_mse(kn_codes *c, const real *x, const real *weight, real from, real to, int steps, bool signs)
{
    const int64_t whole = c->rows * c->cols, group = c->grid.group;
#pragma omp parallel for if (whole > KN_PARALLEL / 16) schedule(static)
    for (int64_t i = 0; i < c->n_scales; i++) {
        int64_t first, n;
        switch (c->grid.grain) {
        case KN_TENSOR:
            first = 0;
            n = whole;
            break;
        case KN_ROW:
            first = i * c->cols;
            n = c->cols;
            break;
        case KN_BLOCK:
            first = i * group;
            n = kn_min(group, whole - first);
            break;
        default:
            first = i / c->spans * c->cols + i % c->spans * group;
            n = kn_min(group, c->cols - i % c->spans * group);
            break;
        }
        search_span(c, x, weight, first, n, i, from, to, steps, signs);
    }
    kn_store_scales(&c->grid, c->scale, c->rows, c->spans);
    kn_encode_with(c, x);
}

static void encode_q8_0(int8_t *q, const real *x, int64_t n, const kn_grid *g, real *scale)
{
    const real d = kn_isa()->absmax(x, n) / 127, id = d != 0 ? 1 / d : 0;
    for (int64_t i = 0; i < n; i++) {
        const real t = round(x[i] * id);
        q[i] = (int8_t)(t > -127 ? t < 127 ? t : 127 : -127);
    }
    *scale = kn_store(g, d);
}

void kn_encode_ggml_file(kn_codes *c, const real *x)
{
    assert(c->grid.grain == KN_GROUP && c->grid.group == 32 && c->grid.scale == KN_SCALE_F16 && c->q);
#pragma omp parallel for if (c->rows * c->cols > KN_PARALLEL) schedule(static)
    for (int64_t row = 0; row < c->rows; row++)
        for (int64_t s = 0; s < c->spans; s++) {
            const int64_t col = s * 32, n = kn_min(32, c->cols - col);
            int8_t *q = c->q + row * c->ld + col;
            real *scale = &c->scale[row * c->spans + s];
            if (c->grid.bits == 4)
                kn_encode_q4_0(q, x + row * c->cols + col, n, &c->grid, scale);
            else
                encode_q8_0(q, x + row * c->cols + col, n, &c->grid, scale);
        }
}
