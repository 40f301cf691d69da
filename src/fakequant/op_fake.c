/* op_fake.c - fake quantization on the tape: y = decode(encode(x)), kept as codes. With r = x / s, level l of x's code, "inside"
 * where nothing was clipped (the straight-through estimator; Bengio et al. 2013):
 *   dx += dy * pass             pass: 1 (identity) | inside (clipped) | |x| < 2 (LLM-QAT, Liu et al. 2023)
 *   ds  = sum dy * (l - r inside, l outside)              (LSQ, Esser et al. 2020)       sign: ds = sum dy * l
 *   dz  = -s sum dy outside                               (LSQ+, Bhalgat et al. 2020)
 *   log, LSQ:  du = s ds f,  dv = (hi - lo) dz f          f = 1, LSQ: 1 / sqrt(n hi), n elements per scale
 *   PACT with a zero point, s = (max - min) / (hi - lo), z = lo - min / s:                 (Choi et al. 2018)
 *       dmax = (ds + dz min / s^2) / (hi - lo),  dmin = -dmax - dz / s;   du = max dmax,  dv = min dmin
 * inside: lo <= r + zero <= hi; half-step levels and ternary |x / alpha| <= 0.99 with alpha = 2^bits s, 1.5 s; sign |x| <= s
 * (ParetoQ, Liu et al. 2025). s is the scale as stored, straight through its rounding. u at the end of its range gets no gradient
 * that pushes further. Where x stands for exact sums (ag_sums) and the range is not dynamic, its codes are made of those by fixed-point
 * requantization (kernels.h), which may differ from rne(x / s) where that is near a half.
 */
#include "fakequant/ranges.h"
#include <assert.h>
#include <math.h>
#include <string.h>

enum { CHUNK = 256 };

/* What one scale needs to tell inside from outside. */
typedef struct {
    real inv, lo, hi; /* inside: lo <= x inv <= hi */
    real rounded;     /* 1: r is subtracted inside; 0: signs, and where the scale is 0 */
} bounds;

static bounds bounds_of(const kn_codes *c, int64_t index)
{
    const kn_grid *g = &c->grid;
    const real alpha = g->levels == KN_LEVELS_HALF_STEP ? (real)(1 << g->bits) : (real)1.5;
    const int32_t zero = c->zero ? c->zero[index] : 0;
    bounds b = {.inv = kn_inverse(c->scale[index])};
    b.rounded = b.inv != 0 ? (real)1 : 0;
    if (g->levels == KN_LEVELS_SIGN) {
        b.hi = 1;
        b.lo = -1;
        b.rounded = 0;
    } else if (g->levels == KN_LEVELS_HALF_STEP || fq_is_ternary(g)) {
        b.hi = (real)0.99 * alpha;
        b.lo = -b.hi;
    } else if (kn_has_table(g)) {
        b.lo = kn_table_levels(g)[0];
        b.hi = kn_table_levels(g)[g->hi];
    } else {
        b.hi = (real)(g->hi - zero);
        b.lo = (real)(g->lo - zero);
    }
    return b;
}

/* Sums of one unit; 16 lanes in reals over a chunk, chunks in doubles. y = s l, so s ds needs no codes. */
typedef struct {
    double sds, outside; /* s ds = sum dy * (y - x inside), sum of dy outside */
} sums;

/* n <= CHUNK elements */
static void add_chunk(sums *s, const real *dy, const real *x, const real *y, int64_t n, const bounds *b)
{
    real part[2];
    kn_range_sums(part, dy, x, y, n, b->inv, b->lo, b->hi, b->rounded);
    s->sds += (double)part[0];
    s->outside += (double)part[1];
}

/* g becomes 0 where x lies outside */
static void keep_range(real *restrict g, const real *restrict x, int64_t n, real inv, real lo, real hi)
{
    for (int64_t i = 0; i < n; i++) {
        const real r = x[i] * inv, d = g[i];
        g[i] = ((r >= lo) & (r <= hi)) ? d : 0; /* no branch */
    }
}

static void pass_all(real *dx, real beta, const real *dy, int64_t n)
{
    if (beta == 0)
        memcpy(dx, dy, (size_t)n * sizeof *dx);
    else
        for (int64_t i = 0; i < n; i++)
            dx[i] += dy[i];
}

/* |x| < 2 as a range that ends just below */
static void pass_llmqat(real *dx, real beta, const real *dy, const real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        real d = x[i] > -2 && x[i] < 2 ? dy[i] : 0;
        dx[i] = beta == 0 ? d : dx[i] + d;
    }
}

typedef struct {
    fq_site *site;
    kn_codes codes; /* of an activation; a weight's are the site's */
    uint8_t *pass;  /* bits, rows of whole bytes: 1 where the gradient passes; NULL: everywhere */
    size_t pass_bytes;
} save_fake;

/* y <- values of n elements from `at` on of the flattened matrix */
static void decode_run(real *y, const kn_codes *c, int64_t at, int64_t n)
{
    for (int64_t i = 0, take; i < n; i += take) {
        const int64_t col = (at + i) % c->cols;
        take = c->cols - col < n - i ? c->cols - col : n - i;
        kn_decode_part(y + i, c, (at + i) / c->cols, col, take);
    }
}

/* Gradient of one unit where x is at hand; sums only if s. What the codes say is decoded a chunk at a time. dx may be dy itself. */
static void unit_backward(real *dx, real beta, sums *s, const real *dy, const real *x, const kn_codes *c, int64_t unit,
                          fq_ste ste)
{
    int64_t at, end;
    const bounds b = bounds_of(c, fq_unit_scale(c, unit));
    fq_unit(c, unit, &at, &end);
    while (at < end) {
        const int64_t n = end - at < CHUNK ? end - at : CHUNK;
        if (s) {
            real y[CHUNK];
            decode_run(y, c, at, n);
            add_chunk(s, dy + at, x + at, y, n, &b);
        }
        if (dx == dy && ste == FQ_STE_CLIPPED)
            keep_range(dx + at, x + at, n, b.inv, b.lo, b.hi);
        else if (dx && ste == FQ_STE_CLIPPED)
            kn_range_pass(dx + at, beta, dy + at, x + at, n, b.inv, b.lo, b.hi);
        else if (dx && ste == FQ_STE_LLMQAT)
            pass_llmqat(dx + at, beta, dy + at, x + at, n);
        else if (dx != dy && dx)
            pass_all(dx + at, beta, dy + at, n);
        at += n;
    }
}

/* Adds a gradient to a learned parameter p at i, held at 0 where p stands at its limit and the step would go on outward. */
static void push(ag_param *p, real *g, int64_t i, double d, double value, double low, double high)
{
    if (p && g && !((value >= high && d < 0) || (value <= low && d > 0)))
        g[i] += (real)d;
}

static void learn(const fq_site *site, real *gu, real *gv, int64_t i, sums s, double n)
{
    const kn_grid *g = &site->spec.grid;
    const double limit = (double)FQ_LARGEST_LOG, steps = (double)g->hi - (double)g->lo;
    const double u = site->u ? (double)site->u->x[i] : 0, v = site->v ? (double)site->v->x[i] : 0;
    const double f = site->spec.learning == FQ_LSQ ? 1 / sqrt(n * (g->has_zero ? steps : (double)g->hi)) : 1;
    if (!g->has_zero) {
        push(site->u, gu, i, s.sds * f, u, -limit, limit);
        return;
    }
    const fq_range_now now = fq_range_at(site, i);
    const double dz = -(double)now.scale * s.outside;
    if (site->spec.learning == FQ_PACT) {
        const double inv = (double)kn_inverse(now.scale), max = (double)now.max, min = (double)now.min;
        const double dmax = (s.sds + dz * min * inv) * inv / steps;
        push(site->u, gu, i, max * dmax, u, -limit, limit);
        push(site->v, gv, i, min * (-dmax - dz * inv), v, -limit, limit);
        return;
    }
    push(site->u, gu, i, s.sds * f, u, -limit, limit);
    push(site->v, gv, i, steps * dz * f, now.zero_latent, (double)g->lo, (double)g->hi);
}

/* Sums of units to sums of scales, in the order of units; then the gradients of what is learned. spans: scales of an activation,
 * shared by the rows; 0: a weight. */
static void learn_all(const ag_tensor *out, const fq_site *site, const kn_codes *c, const sums *part, sums *total,
                      double *count)
{
    const int64_t units = fq_units(c), scales = site->n_scales;
    real *gu = out->n_src > 1 ? ag_grad(out->src[1]) : NULL, *gv = out->n_src > 2 ? ag_grad(out->src[2]) : NULL;
    memset(total, 0, (size_t)scales * sizeof *total);
    memset(count, 0, (size_t)scales * sizeof *count);
    for (int64_t k = 0; k < units; k++) {
        int64_t begin, end, i = site->is_weight ? fq_unit_scale(c, k) : k % scales;
        fq_unit(c, k, &begin, &end);
        total[i].sds += part[k].sds;
        total[i].outside += part[k].outside;
        count[i] += (double)(end - begin);
    }
#pragma omp parallel for schedule(static) if (scales > FQ_PARALLEL / 8)
    for (int64_t i = 0; i < scales; i++)
        learn(site, gu, gv, i, total[i], count[i]);
}

/* Backward where x is at hand: weights, and activations with a learned range. */
static void backward_by_value(const ag_tensor *out, const fq_site *site, const kn_codes *c, const real *x)
{
    ag_tape *t = out->tape;
    const int64_t units = fq_units(c), scales = site->n_scales, n = c->rows * c->cols;
    const bool learned = out->n_src > 1 && (out->src[1]->needs_grad || (out->n_src > 2 && out->src[2]->needs_grad));
    const size_t bytes = learned ? (size_t)(units + scales) * sizeof(sums) + (size_t)scales * sizeof(double) : 0;
    const fq_ste ste = site->spec.ste;
    const real *dy = out->g;
    real beta = 0, *dx = ag_grad_handed_over(out, out->src[0]);
    if (!dx)
        dx = ag_grad_write(out->src[0], &beta);
    sums *part = learned ? ag_take(t, bytes) : NULL;
    if ((learned && !part) || (!learned && !dx))
        return;
    if (part)
        memset(part, 0, bytes);
#pragma omp parallel for schedule(static) if (n > FQ_PARALLEL)
    for (int64_t k = 0; k < units; k++)
        unit_backward(dx, beta, part ? &part[k] : NULL, dy, x, c, k, ste);
    if (part) {
        learn_all(out, site, c, part, part + units, (double *)(part + units + scales));
        ag_give_back(t, part, bytes);
    }
}

/* ---- activations -------------------------------------------------------------------------- */

/* Whether a backward needs to know what was clipped: min-max ranges of integers clip nothing. */
static bool needs_mask(const fq_spec *s)
{
    if (s->ste == FQ_STE_CLIPPED)
        return s->range == FQ_STATIC ||
               (s->range == FQ_DYNAMIC && (s->grid.levels != KN_LEVELS_INT || fq_is_ternary(&s->grid)));
    return s->ste == FQ_STE_LLMQAT && s->range != FQ_LEARNED;
}

static void mask_row(uint8_t *pass, const kn_codes *c, const real *x, int64_t row, bool llmqat)
{
    if (!llmqat && (c->grid.grain == KN_TENSOR || c->grid.grain == KN_ROW)) {
        const bounds b = bounds_of(c, kn_scale_index(c, row, 0));
        kn_range_bits(pass, x, c->cols, b.inv, b.lo, b.hi);
        return;
    }
    memset(pass, 0, (size_t)((c->cols + 7) / 8));
    for (int64_t col = 0; col < c->cols;) {
        const int64_t index = kn_scale_index(c, row, col);
        const bounds b = bounds_of(c, index);
        for (; col < c->cols && kn_scale_index(c, row, col) == index; col++) {
            real r = x[col] * b.inv;
            bool in = llmqat ? x[col] > -2 && x[col] < 2 : r >= b.lo && r <= b.hi;
            pass[col / 8] |= (uint8_t)(in << (col % 8));
        }
    }
}

static void activation_forward(ag_tensor *out)
{
    save_fake *s = out->save;
    ag_tape *t = out->tape;
    const fq_spec *spec = &s->site->spec;
    const int64_t rows = ag_rows(out), cols = ag_cols(out), width = (cols + 7) / 8;
    const real *x = ag_value(out->src[0]);
    if (!x) {
        ag_fail(t, NB_USAGE, "site %s: its input has no value", s->site->name);
        return;
    }
    out->codes_bytes = kn_codes_bytes(&spec->grid, rows, cols);
    out->codes_memory = ag_take(t, out->codes_bytes);
    if (!out->codes_memory)
        return;
    kn_codes_lay(&s->codes, &spec->grid, rows, cols, out->codes_memory);
    if (!fq_has_sums(s->site, out->src[0])) {
        fq_encode_activation(s->site, &s->codes, x, 0, rows);
    } else if (!fq_requantize(&s->codes, s->site, out->src[0]->sums)) {
        ag_fail(t, NB_NOMEM, "site %s: %s", s->site->name, nb_fail_message());
        return;
    }
    out->codes = &s->codes;
    if (!out->src[0]->needs_grad || t->no_grad || !needs_mask(spec))
        return;
    s->pass_bytes = (size_t)(rows * width);
    s->pass = ag_take(t, s->pass_bytes);
    if (!s->pass)
        return;
#pragma omp parallel for schedule(static) if (rows * cols > FQ_PARALLEL)
    for (int64_t m = 0; m < rows; m++)
        mask_row(s->pass + m * width, &s->codes, x + m * cols, m, spec->ste == FQ_STE_LLMQAT);
}

/* dx += dy where its bit says so. The buffer of dy is handed over where x has none yet, and changed in place. */
static void straight_through(const ag_tensor *out, const save_fake *s)
{
    ag_tensor *x = out->src[0];
    const int64_t rows = ag_rows(out), cols = ag_cols(out), width = (cols + 7) / 8;
    const real *dy = out->g;
    real beta = 0, *dx = ag_grad_handed_over(out, x);
    if (dx && !s->pass)
        return;
    if (!dx && !(dx = ag_grad_write(x, &beta)))
        return;
#pragma omp parallel for schedule(static) if (rows * cols > FQ_PARALLEL)
    for (int64_t m = 0; m < rows; m++) {
        const uint8_t *pass = s->pass ? s->pass + m * width : NULL;
        real *to = dx + m * cols;
        const real *from = dy + m * cols;
        if (!pass) {
            pass_all(to, beta, from, cols);
            continue;
        }
        kn_bits_pass(to, beta, from, pass, cols);
    }
}

static void activation_backward(const ag_tensor *out)
{
    const save_fake *s = out->save;
    if (out->n_src > 1) {
        const real *x = ag_value(out->src[0]);
        if (!x)
            ag_fail(out->tape, NB_USAGE, "site %s: its input has no value", s->site->name);
        else
            backward_by_value(out, s->site, &s->codes, x);
    } else if (out->src[0]->needs_grad) {
        straight_through(out, s);
    }
    ag_give_back(out->tape, s->pass, s->pass_bytes);
}

static const ag_op op_activation = {"fakequant", activation_forward, activation_backward, 0};
static const ag_op op_learned = {"fakequant_learned", activation_forward, activation_backward, AG_KEEP(0)};

static void watch(ag_tape *t, const fq_site *site, const ag_tensor *in, const ag_tensor *out)
{
    if (t->tap.fn && out)
        t->tap.fn(t->tap.ctx, site->name, in, out);
}

/* src[0], then the learned parameters; how many there are. */
static int sources(ag_tape *t, const fq_site *site, ag_tensor **src)
{
    int n = 1;
    if (site->u)
        src[n++] = ag_use(t, site->u);
    if (site->v)
        src[n++] = ag_use(t, site->v);
    return n;
}

ag_tensor *fq_apply(ag_tape *t, fq_site *site, ag_tensor *x)
{
    if (!x || !site)
        return x;
    const fq_spec *spec = &site->spec;
    if (!spec->grid.bits || t->quantize_off || t->activations_off || (spec->range != FQ_DYNAMIC && !site->started)) {
        watch(t, site, x, x);
        return x;
    }
    if (site->cols && site->cols != ag_cols(x))
        return ag_fail(t, NB_SHAPE, "site %s: %lld channels, not %lld", site->name, (long long)ag_cols(x),
                       (long long)site->cols);
    ag_tensor *src[3] = {x};
    const int n = sources(t, site, src);
    ag_tensor *out = ag_node(t, n > 1 ? &op_learned : &op_activation, n, src, x->n_dim, x->dim, sizeof(save_fake));
    if (!out)
        return NULL;
    ((save_fake *)out->save)->site = site;
    out = ag_run_codes(t, out);
    watch(t, site, x, out);
    return out;
}

/* ---- weights ------------------------------------------------------------------------------ */

static void weight_forward(ag_tensor *out)
{
    fq_site *site = ((save_fake *)out->save)->site;
    const kn_codes *c = fq_site_codes(site, site->params);
    const kn_packed *p = c && site->multiplied ? fq_site_packed(site, site->params) : NULL;
    if (!c || (site->multiplied && !p)) {
        ag_fail(out->tape, NB_NOMEM, "site %s: %s", site->name, nb_fail_message());
        return;
    }
    out->codes = c;
    out->packed = p;
}

static void weight_backward(const ag_tensor *out)
{
    const fq_site *site = ((const save_fake *)out->save)->site;
    if (out->n_src)
        backward_by_value(out, site, &site->codes, site->w->x);
}

static const ag_op op_weight = {"fakequant_weight", weight_forward, weight_backward, 0};

/* y = x as it is stored, dx += dy. */
static void store_forward(ag_tensor *out)
{
    const kn_grid *g = &((save_fake *)out->save)->site->spec.grid;
    const real *x = out->src[0]->x;
    real *y = out->x;
    const int64_t n = ag_count(out);
#pragma omp parallel for if (n > FQ_PARALLEL)
    for (int64_t i = 0; i < n; i++)
        y[i] = kn_store(g, x[i]);
}

static void store_backward(const ag_tensor *out)
{
    real beta = 1, *dx = out->src[0]->needs_grad ? ag_grad_write(out->src[0], &beta) : NULL;
    const int64_t n = ag_count(out);
#pragma omp parallel for if (n > FQ_PARALLEL)
    for (int64_t i = 0; i < (dx ? n : 0); i++)
        dx[i] = beta != 0 ? dx[i] + out->g[i] : out->g[i];
}

static const ag_op op_store = {"store", store_forward, store_backward, 0};

static ag_tensor *stored_weight(ag_tape *t, fq_site *site, ag_param *w)
{
    ag_tensor *src[1] = {ag_use(t, w)};
    ag_tensor *out = ag_node(t, &op_store, 1, src, w->n_dim, w->dim, sizeof(save_fake));
    if (!out)
        return NULL;
    ((save_fake *)out->save)->site = site;
    out = ag_run(t, out);
    watch(t, site, src[0], out);
    return out;
}

ag_tensor *fq_weight(ag_tape *t, fq_site *site, ag_param *w)
{
    const bool off = t->quantize_off || t->weights_off;
    if (site && fq_is_stored_float(&site->spec) && !off)
        return stored_weight(t, site, w);
    if (!site || !site->spec.grid.bits || (off && w)) {
        ag_tensor *x = ag_use(t, w);
        if (site && x)
            watch(t, site, x, x);
        return x;
    }
    assert(!w || w == site->w);
    ag_tensor *src[3] = {w ? ag_use(t, w) : NULL};
    const int n = w ? sources(t, site, src) : 0;
    const int64_t whole[2] = {site->rows, site->cols};
    ag_tensor *out = ag_node(t, &op_weight, n, src, w ? w->n_dim : 2, w ? w->dim : whole, sizeof(save_fake));
    if (!out)
        return NULL;
    ((save_fake *)out->save)->site = site;
    out = ag_run_codes(t, out);
    watch(t, site, n ? src[0] : out, out);
    return out;
}
