/* linear_int.c - exact integer products: packed weights, who computes what, and products with decoded weights.
 * Layout and epilogue: kernels.h. Threads share out rows where there are many, panels of outputs where there are few. */
#include "kernels/encode.h"
#include "kernels/kernels_isa.h"
#include "kernels/products.h"

#include <assert.h>
#include <limits.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h>

enum {
    ROW_BLOCK = 48,    /* rows of one unit of work, at least */
    MANY_ROWS = 256,   /* and at most */
    FEW_ROWS = 96,     /* below: panels are shared out */
    WORK = 1 << 18,    /* multiplications below which one thread does it */
    DECODED_ROWS = 64, /* tile of decoded weights: 64 x 256 floats */
    DECODED_COLUMNS = 256,
    FEW_DECODED = 8 /* rows up to which weights are multiplied as they are decoded */
};

static bool one_scale_a_row(const kn_grid *g)
{
    return g->grain == KN_TENSOR || g->grain == KN_ROW;
}

bool kn_can_multiply(const kn_grid *a, const kn_grid *w, int64_t k)
{
    const bool a_fits = a->bits >= 1 && a->bits <= 8 && a->levels != KN_LEVELS_HALF_STEP && !kn_has_table(a);
    const bool w_fits = w->bits >= 1 && w->bits <= 8 && !w->has_zero && kn_largest(w) <= 128 &&
                        (one_scale_a_row(w) || (w->grain == KN_GROUP && w->group % 4 == 0));
    if (!a_fits || !w_fits)
        return false;
    if (!one_scale_a_row(a) && !(a->grain == KN_GROUP && w->grain == KN_GROUP && a->group == w->group && !a->has_zero))
        return false;
    return k <= INT_MAX / kn_largest(a) / kn_largest(w);
}

static size_t rounded(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static status reserve(kn_packed *p, bool half_scale)
{
    const size_t n = (size_t)p->panels * 16 * (size_t)p->groups;
    const size_t codes = rounded((size_t)p->panels * (size_t)kn_panel_bytes(p)), sums = rounded(n * sizeof(int32_t));
    const size_t bytes = codes + sums + rounded(n * (half_scale ? sizeof(uint16_t) : sizeof(real)));
    if (bytes > p->capacity) {
        free(p->memory);
        p->memory = nb_alloc_aligned(bytes, 1);
        p->capacity = p->memory ? bytes : 0;
        if (!p->memory)
            return NB_NOMEM;
    }
    p->w = p->memory;
    p->sum = (int32_t *)(void *)(p->w + codes);
    p->scale = half_scale ? NULL : (real *)(void *)(p->w + codes + sums);
    p->half_scale = half_scale ? (uint16_t *)(void *)(p->w + codes + sums) : NULL;
    return NB_OK;
}

/* own [n] <- what n codes stand for in a table of integers. */
static void operands_of(int8_t *own, const int8_t *q, int64_t n, const kn_grid *g)
{
    const real *level = kn_table_levels(g);
    for (int64_t i = 0; i < n; i++)
        own[i] = (int8_t)level[q[i]];
}

/* One panel: 16 rows of codes, interleaved by fours along k, their sums and scales by group. own [16, ld]: room for the operands of
 * a table's codes, else unused. */
static void pack_panel(const kn_packed *p, const kn_codes *w, int64_t panel, int8_t *own)
{
    const int64_t stride = p->panels * 16, row = panel * 16, rows = kn_min(16, w->rows - row);
    const bool table = kn_has_table(&w->grid);
    for (int64_t i = 0; table && i < rows; i++)
        operands_of(own + i * w->ld, w->q + (row + i) * w->ld, w->cols, &w->grid);
    kn_isa()->pack(p->w + panel * kn_panel_bytes(p), p->sum + row, stride, table ? own : w->q + row * w->ld, w->ld, rows, w->cols,
                   p->group, kn_mul(&w->grid) == 2, p->half);
    for (int64_t g = 0; g < p->groups; g++)
        for (int64_t i = 0; i < 16; i++) {
            const real scale = i < rows ? w->scale[kn_scale_index(w, row + i, g * p->group)] : 0;
            if (p->half_scale)
                p->half_scale[g * stride + row + i] = nb_half_from((float)scale);
            else
                p->scale[g * stride + row + i] = scale;
        }
}

/* Operands that half a byte holds. */
static bool fits_half(const kn_codes *w)
{
    const kn_grid *g = &w->grid;
    if (kn_has_table(g))
        return false;
    const int lo = g->levels == KN_LEVELS_SIGN ? -1 : kn_mul(g) * g->lo + kn_add(g), hi = kn_mul(g) * g->hi + kn_add(g);
    return lo >= -8 && hi <= 7 && (g->grain != KN_GROUP || g->group % 8 == 0 || w->spans == 1);
}

status kn_pack(kn_packed *p, const kn_codes *w)
{
    const bool grouped = w->grid.grain == KN_GROUP;
    if (!w->q || w->zero || w->cols < 1 || w->rows < 1 || (grouped && w->grid.group % 4) || kn_largest(&w->grid) == INT_MAX)
        return nb_fail(NB_SHAPE, "codes of %lld x %lld, %d bits: no integer product takes them", (long long)w->rows,
                       (long long)w->cols, w->grid.bits);
    p->n = w->rows;
    p->k = w->cols;
    p->panels = (w->rows + 15) / 16;
    p->k4 = (w->cols + 3) / 4;
    p->groups = grouped ? w->spans : 1;
    p->group = grouped && w->spans > 1 ? w->grid.group : p->k4 * 4;
    p->half = fits_half(w);
    TRY(reserve(p, w->grid.scale == KN_SCALE_F16));
    bool failed = false;
#pragma omp parallel if (w->rows * w->cols > KN_PARALLEL)
    {
        int8_t *own = kn_has_table(&w->grid) ? nb_alloc_aligned((size_t)w->ld, 16) : NULL;
        const bool ready = own || !kn_has_table(&w->grid);
        if (!ready) {
#pragma omp atomic write
            failed = true;
        }
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < p->panels; panel++)
            if (ready)
                pack_panel(p, w, panel, own);
        free(own);
    }
    return failed ? NB_NOMEM : NB_OK;
}

void kn_packed_free(kn_packed *p)
{
    free(p->memory);
    *p = (kn_packed){0};
}

static kn_linear_job job_of(real *y, const kn_codes *a, int64_t row, int64_t M, const kn_packed *w, const real *b)
{
    const int64_t spans = a->grid.grain == KN_TENSOR ? 0 : a->spans;
    assert(a->cols == w->k && row >= 0 && row + M <= a->rows && a->q);
    return (kn_linear_job){.y = y,
                           .a = a->q + row * a->ld,
                           .lda = a->ld,
                           .M = M,
                           .panels = w->panels,
                           .a_scale = a->scale + row * spans,
                           .scale_row = spans,
                           .scale_group = a->grid.grain == KN_GROUP,
                           .a_zero = a->zero ? a->zero + row * spans : NULL,
                           .zero_row = spans,
                           .w = w,
                           .b = b};
}

/* Tiles: where there are rows enough, and groups are of whole tiles and not too long. */
static void run(const kn_linear_job *j)
{
    const kn_table *t = kn_isa();
    const bool tall = t->linear_tall && !j->sums && j->M >= KN_TALL && (j->w->groups == 1 || (j->w->group % 32 == 0 && j->w->group <= 1024));
    (tall ? t->linear_tall : t->linear)(j);
}

static void run_part(const kn_linear_job *j, int64_t part, int64_t parts)
{
    kn_linear_job own = *j;
    const int64_t fours = (j->panels + 3) / 4;
    own.panel = kn_min(fours * part / parts * 4, j->panels);
    own.panels = kn_min(fours * (part + 1) / parts * 4, j->panels) - own.panel;
    if (own.panels > 0)
        run(&own);
}

/* The operand of output i of a panel at column k. */
static int operand_of(const uint8_t *panel, const kn_packed *w, int64_t k, int64_t i)
{
    const int64_t four = k / 4, at = i * 4 + k % 4;
    if (!w->half)
        return panel[four * 64 + at] - 128;
    return (panel[four / 2 * 64 + at] >> (four % 2 ? 4 : 0) & 15) - 8;
}

/* y [N] += x times column k of the weights; groups are whole fours. */
static void add_column(real *y, real x, const kn_packed *w, int64_t k)
{
    const int64_t stride = w->panels * 16, group = k / w->group * stride;
    for (int64_t panel = 0; panel < w->panels; panel++) {
        const uint8_t *p = w->w + panel * kn_panel_bytes(w);
        for (int64_t i = 0; i < kn_min(16, w->n - panel * 16); i++) {
            const int64_t n = panel * 16 + i;
            const real scale = w->half_scale ? (real)nb_half_to(w->half_scale[group + n]) : w->scale[group + n];
            y[n] = fma(x, (real)operand_of(p, w, k, i) * scale, y[n]);
        }
    }
}

static void add_outliers(real *y, const kn_codes *a, int64_t row, int64_t M, const kn_packed *w)
{
#pragma omp parallel for schedule(static) if (M > 1 && !omp_in_parallel())
    for (int64_t m = 0; m < M; m++) {
        const uint16_t *wide = a->wide + (row + m) * a->ld;
        for (int64_t k = 0; k < w->k; k++)
            if (wide[k])
                add_column(y + m * w->n, (real)nb_half_to(wide[k]), w, k);
    }
}

static void multiply(real *y, const kn_codes *a, int64_t row, int64_t M, const kn_packed *w, const real *b)
{
    const kn_linear_job job = job_of(y, a, row, M, w, b);
    if (M * w->n * w->k <= WORK || omp_in_parallel()) {
        run(&job);
        return;
    }
    const int64_t threads = omp_get_max_threads();
    if (M < FEW_ROWS) {
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < threads; i++)
            run_part(&job, i, threads);
        return;
    }
    const int64_t block = kn_max(ROW_BLOCK, kn_min(MANY_ROWS, (M / threads + 15) / 16 * 16));
#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < M; m += block) {
        kn_linear_job part = job;
        part.M = kn_min(block, M - m);
        part.y += m * w->n;
        part.a += m * job.lda;
        part.a_scale += m * job.scale_row;
        part.a_zero = job.a_zero ? job.a_zero + m * job.zero_row : NULL;
        run(&part);
    }
}

/* Four bytes of a may be read behind a row's last: with weights of 0. */
void kn_linear_sums(int32_t *sums, const int8_t *a, int64_t lda, int64_t M, const kn_packed *w)
{
    const real one = 1;
    assert(w->groups == 1);
    const kn_linear_job job = {.sums = sums, .a = a, .lda = lda, .M = M, .panels = w->panels, .a_scale = &one, .w = w};
    if (M * w->n * w->k <= WORK || omp_in_parallel()) {
        run(&job);
        return;
    }
    const int64_t block = kn_max(6, kn_min(ROW_BLOCK, (M / omp_get_max_threads() + 5) / 6 * 6));
#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < M; m += block) {
        kn_linear_job part = job;
        part.M = kn_min(block, M - m);
        part.sums += m * w->n;
        part.a += m * lda;
        run(&part);
    }
}

void kn_linear_int(real *y, const kn_codes *a, int64_t row, int64_t M, const kn_packed *w, const real *b)
{
    multiply(y, a, row, M, w, b);
    if (a->wide)
        add_outliers(y, a, row, M, w);
}

void kn_decode_part(real *x, const kn_codes *c, int64_t row, int64_t k, int64_t n)
{
    const kn_table *t = kn_isa();
    const real mul = (real)kn_mul(&c->grid);
    const int64_t group = c->grid.group;
    for (int64_t at = k; at < k + n;) {
        const int64_t i = kn_scale_index(c, row, at);
        int64_t end = k + n;
        if (c->grid.grain == KN_BLOCK)
            end = kn_min(end, at + group - (row * c->cols + at) % group);
        else if (!one_scale_a_row(&c->grid))
            end = kn_min(end, (at / group + 1) * group);
        const real offset = kn_offset(&c->grid, c->zero ? c->zero[i] : 0);
        if (kn_has_table(&c->grid))
            kn_decode_levels(x + at - k, c->q + row * c->ld + at, end - at, &c->grid, c->scale[i]);
        else if (c->q16)
            t->decode16(x + at - k, c->q16 + row * c->ld + at, end - at, c->scale[i], mul, offset);
        else
            t->decode8(x + at - k, c->q + row * c->ld + at, end - at, c->scale[i], mul, offset);
        at = end;
    }
    if (c->wide)
        kn_decode_outliers(x, c, row, k, n);
}

/* Outputs [n0, n0 + n), n <= DECODED_ROWS, of all M rows by the library. */
static void decode_tile(real *y, const real *x, int64_t M, const kn_codes *w, int64_t n0, int64_t n)
{
    real tile[DECODED_ROWS * DECODED_COLUMNS];
    for (int64_t k = 0; k < w->cols; k += DECODED_COLUMNS) {
        const int64_t columns = kn_min(DECODED_COLUMNS, w->cols - k);
        for (int64_t i = 0; i < n; i++)
            kn_decode_part(tile + i * columns, w, n0 + i, k, columns);
        kn_blas_tile(y + n0, w->rows, x + k, w->cols, tile, columns, M, n, columns, k > 0);
    }
}

/* The same for few rows, from the codes themselves: all that is read is one byte a weight. */
static void decode_dots(real *y, const real *x, int64_t M, const kn_codes *w, int64_t n0, int64_t n)
{
    const kn_table *t = kn_isa();
    const int64_t group = one_scale_a_row(&w->grid) ? w->cols : w->grid.group;
    for (int64_t row = n0; row < n0 + n; row++) {
        const int64_t i = kn_scale_index(w, row, 0);
        for (int64_t m = 0; m < M; m += 4)
            t->dot_codes(y + m * w->rows + row, w->rows, x + m * w->cols, w->cols, kn_min(4, M - m), w->q + row * w->ld,
                         w->cols, w->scale + i, w->zero ? w->zero + i : NULL, group, (real)kn_mul(&w->grid),
                         (real)kn_add(&w->grid));
    }
}

void kn_linear_decode(kn_precision p, real *y, const real *x, int64_t M, const kn_codes *w, const real *b)
{
    (void)p; /* decoded tiles are multiplied in fp32 */
    const bool dots = M <= FEW_DECODED && w->q && w->grid.grain != KN_BLOCK && !kn_has_table(&w->grid);
#pragma omp parallel for if (M * w->rows * w->cols > KN_PARALLEL * 4) schedule(static)
    for (int64_t n = 0; n < w->rows; n += DECODED_ROWS) {
        const int64_t rows = kn_min(DECODED_ROWS, w->rows - n);
        (dots ? decode_dots : decode_tile)(y, x, M, w, n, rows);
        for (int64_t m = 0; b && m < M; m++)
            kn_isa()->add_to(y + m * w->rows + n, b + n, rows);
    }
}
