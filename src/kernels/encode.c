/* encode.c - codes of whole matrices and back: spans that share a scale, their ranges, the clients' rules.
 *   ggml Q8_0 activations: id = 127 / amax, q = rne(x id), scale = fp16(amax / 127)
 *   ggml Q4_0: d = (signed value of largest magnitude) / -8, q = min(15, trunc(x / d + 8.5)) - 8, scale = fp16(d)
 *   llama2.c: scale = amax / 127, q = round half away(x / scale)
 * (ggml-quants.c quantize_row_q8_0, quantize_row_q4_0_ref; runq.c quantize) */
#include "kernels/encode.h"
#include "kernels/kernels_isa.h"

#include <assert.h>
#include <tgmath.h>

/* Where the span that begins at col of this row ends. */
static int64_t span_end(const kn_codes *c, int64_t row, int64_t col)
{
    const int64_t group = c->grid.group;
    switch (c->grid.grain) {
    case KN_TENSOR:
    case KN_ROW:
        return c->cols;
    case KN_BLOCK:
        return kn_min(c->cols, col + group - (row * c->cols + col) % group);
    default:
        return kn_min(c->cols, (col / group + 1) * group);
    }
}

static void encode_away(int8_t *q, const real *x, int64_t n, real scale, const kn_rounding *r)
{
    for (int64_t i = 0; i < n; i++) {
        const real t = r->inv != 0 ? round(x[i] / scale) : 0;
        q[i] = (int8_t)(t > r->lo ? t < r->hi ? t : r->hi : r->lo);
    }
}

/* Codes of x, the span at (row, col), with the scale that c holds for it. */
static void encode_span(kn_codes *c, const kn_table *t, const real *x, int64_t row, int64_t col, int64_t n)
{
    const int64_t i = kn_scale_index(c, row, col), at = row * c->ld + col;
    if (kn_has_table(&c->grid)) {
        kn_encode_levels(c->q + at, x, n, &c->grid, kn_inverse(c->scale[i]));
        return;
    }
    const kn_rounding r = kn_rounding_of(&c->grid, c->scale[i], c->zero ? c->zero[i] : 0);
    if (c->q16)
        t->encode16(c->q16 + at, x, n, &r);
    else if (c->grid.rule == KN_RULE_LLAMA2C)
        encode_away(c->q + at, x, n, c->scale[i], &r);
    else
        t->encode8(c->q + at, x, n, &r);
}

static void encode_row(kn_codes *c, const kn_table *t, const real *x, int64_t row)
{
    for (int64_t col = 0; col < c->cols;) {
        const int64_t end = span_end(c, row, col);
        encode_span(c, t, x + col, row, col, end - col);
        col = end;
    }
}

void kn_range_span(const kn_grid *g, const real *x, int64_t n, real *scale, int32_t *zero)
{
    const kn_table *t = kn_isa();
    real min, max;
    if (g->levels == KN_LEVELS_SIGN) {
        max = n ? t->sum_abs(x, n) / (real)n : 0;
        min = -max;
    } else if (g->has_zero) {
        t->min_max(&min, &max, x, n);
    } else {
        max = t->absmax(x, n);
        min = -max;
    }
    kn_range_of(g, min, max, scale, zero);
}

static int8_t code_q4_0(real x, real id)
{
    const real t = x * id + (real)8.5;
    return (int8_t)((t > 0 ? t < 15 ? (int)t : 15 : 0) - 8);
}

/* The signed value of largest magnitude, the first of equals. */
static real signed_max(const real *x, int64_t n)
{
    real most = 0;
    for (int64_t i = 0; i < n; i++)
        if (fabs(x[i]) > fabs(most))
            most = x[i];
    return most;
}

void kn_encode_q4_0(int8_t *q, const real *x, int64_t n, const kn_grid *g, real *scale)
{
    const real d = signed_max(x, n) / -8, id = d != 0 ? 1 / d : 0;
    for (int64_t i = 0; i < n; i++)
        q[i] = code_q4_0(x[i], id);
    *scale = kn_store(g, d);
}

/* Range and codes of the span at (row, col) by a rule that is not in the tables, or in 16 bits. */
static void encode_own(kn_codes *c, const kn_table *t, const real *x, int64_t row, int64_t col, int64_t n)
{
    const int64_t i = kn_scale_index(c, row, col);
    if (c->grid.rule == KN_RULE_GGML_Q4_0) {
        kn_encode_q4_0(c->q + row * c->ld + col, x, n, &c->grid, &c->scale[i]);
        return;
    }
    kn_range_span(&c->grid, x, n, &c->scale[i], c->zero ? &c->zero[i] : NULL);
    encode_span(c, t, x, row, col, n);
}

static bool in_tables(const kn_grid *g)
{
    return g->outlier == 0 && g->bits <= 8 && !kn_has_table(g) && (g->rule == KN_RULE_NIBBLE || g->rule == KN_RULE_GGML_Q8_0);
}

/* n spans of `size` numbers without gaps, codes at `at`, scales from `first`. */
static void encode_spans(kn_codes *c, const kn_table *t, const real *x, int64_t at, int64_t first, int64_t n,
                         int64_t size)
{
    for (int64_t s = 0; s < n; s += 16)
        t->encode_spans(c->q + at + s * size, size, c->scale + first + s, c->zero ? c->zero + first + s : NULL,
                        x + s * size, size, kn_min(16, n - s), size, &c->grid);
}

/* A row with outliers: the range is that of the others. */
static void encode_apart(kn_codes *c, const kn_table *t, const real *x, int64_t row)
{
    const real least = (real)c->grid.outlier, largest = 65504;
    real most = 0;
    for (int64_t i = 0; i < c->cols; i++) {
        const real a = fabs(x[i]);
        most = a < least && a > most ? a : most;
    }
    kn_range_of(&c->grid, -most, most, &c->scale[row], NULL);
    encode_span(c, t, x, row, 0, c->cols);
    for (int64_t i = 0; i < c->cols; i++) {
        const bool apart = fabs(x[i]) >= least;
        const real v = fabs(x[i]) > largest ? copysign(largest, x[i]) : x[i];
        c->wide[row * c->ld + i] = apart ? nb_half_from((float)v) : 0;
        c->q[row * c->ld + i] = apart ? 0 : c->q[row * c->ld + i];
    }
}

void kn_decode_outliers(real *x, const kn_codes *c, int64_t row, int64_t col, int64_t n)
{
    const uint16_t *wide = c->wide + row * c->ld + col;
    for (int64_t i = 0; i < n; i++)
        if (wide[i])
            x[i] = (real)nb_half_to(wide[i]);
}

/* Rows [row, row + n), n <= 16, x at the first of them. */
static void encode_own_rows(kn_codes *c, const kn_table *t, const real *x, int64_t row, int64_t n)
{
    const int64_t cols = c->cols, group = c->grid.group;
    if (c->wide) {
        for (int64_t m = 0; m < n; m++)
            encode_apart(c, t, x + m * cols, row + m);
    } else if (!in_tables(&c->grid)) {
        for (int64_t m = 0; m < n; m++)
            for (int64_t col = 0; col < cols; col = span_end(c, row + m, col))
                encode_own(c, t, x + m * cols + col, row + m, col, span_end(c, row + m, col) - col);
    } else if (c->grid.grain == KN_ROW) {
        t->encode_spans(c->q + row * c->ld, c->ld, c->scale + row, c->zero ? c->zero + row : NULL, x, cols, n, cols,
                        &c->grid);
    } else if (cols % group == 0 && c->ld == cols) {
        encode_spans(c, t, x, row * cols, row * c->spans, n * c->spans, group);
    } else {
        const int64_t full = cols / group;
        for (int64_t m = 0; m < n; m++) {
            const int64_t at = (row + m) * c->ld, first = (row + m) * c->spans;
            encode_spans(c, t, x + m * cols, at, first, full, group);
            if (full < c->spans)
                encode_spans(c, t, x + m * cols + full * group, at + full * group, first + full, 1,
                             cols - full * group);
        }
    }
}

void kn_encode_rows(kn_codes *c, const real *x, int64_t row, int64_t n)
{
    const kn_table *t = kn_isa();
    const int64_t rows = kn_max(1, kn_min(16, 4096 / kn_max(c->cols, 1))); /* stay in the first cache level */
    assert(c->grid.grain != KN_TENSOR && c->grid.grain != KN_BLOCK);
#pragma omp parallel for if (n * c->cols > KN_PARALLEL) schedule(static)
    for (int64_t m = 0; m < n; m += rows)
        encode_own_rows(c, t, x + m * c->cols, row + m, kn_min(rows, n - m));
}

void kn_encode_rows_with(kn_codes *c, const real *x, int64_t row, int64_t n)
{
    const kn_table *t = kn_isa();
#pragma omp parallel for if (n * c->cols > KN_PARALLEL) schedule(static)
    for (int64_t m = 0; m < n; m++)
        encode_row(c, t, x + m * c->cols, row + m);
}

/* One range for all: that of the rows' ranges (SIGN: the mean over rows of sums, added in order). */
static void range_whole(kn_codes *c, const real *x)
{
    const int64_t n = c->rows * c->cols;
    if (c->grid.levels == KN_LEVELS_SIGN) {
        double sum = 0;
        for (int64_t m = 0; m < c->rows; m++)
            sum += (double)kn_isa()->sum_abs(x + m * c->cols, c->cols);
        const real mean = n ? (real)(sum / (double)n) : 0;
        kn_range_of(&c->grid, -mean, mean, c->scale, c->zero);
        return;
    }
    real min = 0, max = 0;
#pragma omp parallel for if (n > KN_PARALLEL) schedule(static) reduction(min : min) reduction(max : max)
    for (int64_t m = 0; m < c->rows; m++) {
        real low, top;
        kn_isa()->min_max(&low, &top, x + m * c->cols, c->cols);
        min = low < min ? low : min;
        max = top > max ? top : max;
    }
    kn_range_of(&c->grid, min, max, c->scale, c->zero);
}

void kn_encode(kn_codes *c, const real *x)
{
    switch (c->grid.grain) {
    case KN_TENSOR:
        range_whole(c, x);
        break;
    case KN_BLOCK: {
        const int64_t n = c->rows * c->cols, group = c->grid.group;
#pragma omp parallel for if (n > KN_PARALLEL) schedule(static)
        for (int64_t i = 0; i < c->n_scales; i++)
            kn_range_span(&c->grid, x + i * group, kn_min(group, n - i * group), &c->scale[i],
                          c->zero ? &c->zero[i] : NULL);
        if (!c->scale_code)
            break;
        kn_encode_rows_with(c, x, 0, c->rows);
        kn_split_dynamic(c);
        return;
    }
    default:
        kn_encode_rows(c, x, 0, c->rows);
        if (!kn_has_super(&c->grid))
            return;
        kn_store_scales(&c->grid, c->scale, c->rows, c->spans);
    }
    kn_encode_rows_with(c, x, 0, c->rows);
}

void kn_encode_with(kn_codes *c, const real *x)
{
    kn_encode_rows_with(c, x, 0, c->rows);
}

static void decode_row(real *x, const kn_codes *c, const kn_table *t, int64_t row)
{
    const real mul = (real)kn_mul(&c->grid);
    for (int64_t col = 0; col < c->cols;) {
        const int64_t end = span_end(c, row, col), i = kn_scale_index(c, row, col), at = row * c->ld + col;
        const real offset = kn_offset(&c->grid, c->zero ? c->zero[i] : 0);
        if (kn_has_table(&c->grid))
            kn_decode_levels(x + col, c->q + at, end - col, &c->grid, c->scale[i]);
        else if (c->q16)
            t->decode16(x + col, c->q16 + at, end - col, c->scale[i], mul, offset);
        else
            t->decode8(x + col, c->q + at, end - col, c->scale[i], mul, offset);
        col = end;
    }
    if (c->wide)
        kn_decode_outliers(x, c, row, 0, c->cols);
}

/* Rows of small groups, several to a vector. */
static bool small_spans(const kn_codes *c)
{
    const bool grouped = c->grid.grain == KN_GROUP || c->grid.grain == KN_HEAD;
    return grouped && c->q && !kn_has_table(&c->grid) && 16 % c->grid.group == 0 && c->cols % c->grid.group == 0;
}

void kn_decode(real *x, const kn_codes *c, int64_t row, int64_t n)
{
    const kn_table *t = kn_isa();
    const bool small = small_spans(c);
    assert(row >= 0 && row + n <= c->rows);
#pragma omp parallel for if (n * c->cols > KN_PARALLEL) schedule(static)
    for (int64_t m = 0; m < n; m++) {
        const int64_t i = (row + m) * c->spans;
        if (small)
            t->decode_spans(x + m * c->cols, c->q + (row + m) * c->ld, c->scale + i, c->zero ? c->zero + i : NULL,
                            c->spans, c->grid.group, (real)kn_mul(&c->grid), (real)kn_add(&c->grid));
        else
            decode_row(x + m * c->cols, c, t, row + m);
    }
}
