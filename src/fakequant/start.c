/* start.c - ranges of weights before training, or for folding without it.
 *   absmax:  s = max|w| / hi per span      SEQ, ternary: alpha = max|w| (s = alpha / 4, alpha / 1.5)     sign: s = mean |w|
 *            (ParetoQ, Liu et al. 2025)    rules q8_0, q4_0: ggml's own formula
 *   mse:     argmin_s sum_j h_j (w_j - s l_j)^2 by search, then s <- sum h w l / sum h l^2 for the levels l found, while that helps
 *            h = 1; importance: h_j = E[x_j^2] sqrt(mean of the row's w^2 + w_j^2), x the input of the weight   (ggml-quants.c)
 *   admm:    from absmax / 1.25 (ADMM of alibaba/MNN), codes and least-squares scale in turn until no span gets better
 * A weight whose spec names a method (from:mse, static:kl, ...) takes that.
 */
#include "fakequant/ranges.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Candidates of the search, as shares of the absmax scale: 1 % steps. Heavy tails at 2 bits want less than a third. */
#define SEARCH_FROM ((real)0.2)
#define SEARCH_TO   ((real)1.1)
enum { SEARCH_STEPS = 91, REFITS = 3, ALTERNATIONS = 1000, CHUNK = 256 };

typedef struct {
    double error, wl, ll; /* sums of h (w - s l)^2, h w l, h l^2 */
} fit;

/* level = mul q + add - zero of elements [at, at + n) of the flattened matrix; they lie in one row. */
static void levels_of(real *level, const kn_codes *c, int64_t at, int64_t n, int32_t zero)
{
    const int mul = kn_mul(&c->grid), add = kn_add(&c->grid) - zero;
    const int64_t q = at / c->cols * c->ld + at % c->cols;
    if (kn_has_table(&c->grid))
        for (int64_t i = 0; i < n; i++)
            level[i] = kn_table_levels(&c->grid)[c->q[q + i]];
    else if (c->q)
        for (int64_t i = 0; i < n; i++)
            level[i] = (real)(mul * c->q[q + i] + add);
    else
        for (int64_t i = 0; i < n; i++)
            level[i] = (real)(mul * c->q16[q + i] + add);
}

static fit fit_unit(const kn_codes *c, int64_t unit, const real *x, const real *h)
{
    int64_t at, end;
    real level[CHUNK];
    fit f = {0};
    fq_unit(c, unit, &at, &end);
    int64_t index = fq_unit_scale(c, unit);
    int32_t zero = c->zero ? c->zero[index] : 0;
    while (at < end) {
        int64_t col = at % c->cols, n = end - at < CHUNK ? end - at : CHUNK;
        n = n < c->cols - col ? n : c->cols - col;
        levels_of(level, c, at, n, zero);
        for (int64_t i = 0; i < n; i++) {
            double l = (double)level[i], w = (double)x[at + i], k = h ? (double)h[at + i] : 1,
                   d = w - l * (double)c->scale[index];
            f.error += k * d * d;
            f.wl += k * w * l;
            f.ll += k * l * l;
        }
        at += n;
    }
    return f;
}

static void fit_all(fit *f, fit *part, const kn_codes *c, const real *x, const real *h)
{
    const int64_t units = fq_units(c);
#pragma omp parallel for if (c->rows * c->cols > FQ_PARALLEL)
    for (int64_t u = 0; u < units; u++)
        part[u] = fit_unit(c, u, x, h);
    memset(f, 0, (size_t)c->n_scales * sizeof *f);
    for (int64_t u = 0; u < units; u++) {
        fit *sum = &f[fq_unit_scale(c, u)];
        sum->error += part[u].error;
        sum->wl += part[u].wl;
        sum->ll += part[u].ll;
    }
}

/* Least-squares scales for the codes found, then new codes; spans that got worse go back; until none gets better, at most `rounds` times. */
static status refit(kn_codes *c, const real *x, const real *h, int rounds)
{
    fit *f = nb_alloc((size_t)c->n_scales * 2 + (size_t)fq_units(c), sizeof *f);
    real *old = nb_alloc((size_t)c->n_scales, sizeof *old);
    bool moves = true;
    for (int round = 0; f && old && moves && round < rounds; round++) {
        fit *before = f, *after = f + c->n_scales, *part = f + 2 * c->n_scales;
        fit_all(before, part, c, x, h);
        memcpy(old, c->scale, (size_t)c->n_scales * sizeof *old);
        for (int64_t i = 0; i < c->n_scales; i++)
            if (before[i].ll > 0)
                c->scale[i] = kn_store(&c->grid, (real)(before[i].wl / before[i].ll));
        kn_store_scales(&c->grid, c->scale, c->rows, c->spans);
        kn_encode_with(c, x);
        fit_all(after, part, c, x, h);
        moves = false;
        for (int64_t i = 0; i < c->n_scales; i++) {
            const bool better = after[i].error < before[i].error;
            moves = moves || better;
            c->scale[i] = better ? c->scale[i] : old[i];
        }
        kn_store_scales(&c->grid, c->scale, c->rows, c->spans);
        kn_encode_with(c, x);
    }
    status s = f && old ? NB_OK : NB_NOMEM;
    free(f);
    free(old);
    return s;
}

/* Clipped ranges from a histogram per span (percentile, KL; ADMM with a zero point). */
static status by_histogram(kn_codes *c, const fq_spec *spec, const real *x)
{
    fq_histogram *h = nb_alloc_zeroed(1, sizeof *h);
    if (!h)
        return NB_NOMEM;
    const int64_t units = fq_units(c);
    for (int64_t u = 0; u < units; u++) {
        int64_t begin, end, i = fq_unit_scale(c, u);
        fq_unit(c, u, &begin, &end);
        fq_histogram_add(h, x + begin, 1, end - begin, end - begin);
        if (u + 1 < units && fq_unit_scale(c, u + 1) == i)
            continue;
        double min, max;
        int32_t zero;
        fq_histogram_range(h, spec, &min, &max);
        kn_range_of(&c->grid, (real)min, (real)max, &c->scale[i], &zero);
        if (c->zero)
            c->zero[i] = zero;
        memset(h, 0, sizeof *h);
    }
    free(h);
    return NB_OK;
}

static status absmax(kn_codes *c, const real *x)
{
    const kn_grid *g = &c->grid;
    if (g->rule == KN_RULE_GGML_Q8_0 || g->rule == KN_RULE_GGML_Q4_0)
        kn_encode_ggml_file(c, x);
    else
        kn_encode(c, x);
    for (int64_t i = 0; i < c->n_scales && fq_is_ternary(g); i++)
        c->scale[i] = kn_store(g, c->scale[i] / (real)1.5);
    return NB_OK;
}

static status mse(kn_codes *c, const real *x, const real *h)
{
    const kn_grid *g = &c->grid;
    /* a power of two is stored as its exponent, SUPER6 as a natural number: no sign */
    bool signs = (g->levels == KN_LEVELS_INT || kn_has_table(g)) && !g->has_zero && g->lo != -g->hi && g->scale != KN_SCALE_POW2 &&
                 g->scale != KN_SCALE_SUPER6;
    kn_encode_mse(c, x, h, SEARCH_FROM, SEARCH_TO, SEARCH_STEPS, signs);
    return g->has_zero ? NB_OK : refit(c, x, h, REFITS);
}

static status admm(kn_codes *c, const real *x)
{
    TRY(absmax(c, x));
    for (int64_t i = 0; i < c->n_scales; i++)
        c->scale[i] = kn_store(&c->grid, c->scale[i] / (real)1.25);
    kn_store_scales(&c->grid, c->scale, c->rows, c->spans);
    kn_encode_with(c, x);
    return refit(c, x, NULL, ALTERNATIONS);
}

/* h [rows, cols] of the squared errors; the caller frees them. importance NULL: no input was seen, E = 1. */
static real *error_weights(const fq_site *s, const real *importance)
{
    const int64_t C = s->cols;
    real *h = nb_alloc((size_t)s->rows, (size_t)C * sizeof *h);
#pragma omp parallel for if (s->rows * C > FQ_PARALLEL)
    for (int64_t m = 0; m < (h ? s->rows : 0); m++) {
        const real *w = s->w->x + m * C;
        const double mean = kn_sum_squares(w, C) / (double)C;
        for (int64_t j = 0; j < C; j++) {
            const double e = importance ? (double)importance[j] : 1;
            h[m * C + j] = (real)(e * sqrt(mean + (double)w[j] * (double)w[j]));
        }
    }
    return h;
}

static status ranges(kn_codes *c, const fq_spec *spec, const real *x, fq_start how, const real *h)
{
    if (spec->method == FQ_PERCENTILE || spec->method == FQ_KL || (spec->method == FQ_ADMM && spec->grid.has_zero))
        return by_histogram(c, spec, x);
    if (spec->method == FQ_ADMM)
        return admm(c, x);
    return how != FQ_START_ABSMAX || spec->method == FQ_MSE ? mse(c, x, h) : absmax(c, x);
}

status fq_find_ranges(kn_codes *c, const fq_spec *spec, const real *x, fq_start how, const real *h)
{
    TRY(ranges(c, spec, x, how, h));
    kn_encode_with(c, x);
    return NB_OK;
}

void fq_site_set(fq_site *s, const real *scale, const int32_t *zero)
{
    for (int64_t i = 0; i < s->n_scales; i++) {
        s->start[i] = scale[i];
        if (s->start_zero)
            s->start_zero[i] = (real)zero[i];
        if (s->u)
            s->u->x[i] = 0;
        if (s->v)
            s->v->x[i] = 0;
    }
    s->started = true;
    s->version = 0; /* the codes are those of a search, not of a version */
}

status fq_start_site(fq_site *s, fq_start how, const real *importance)
{
    if (!s->is_weight || !s->spec.grid.bits || s->spec.range == FQ_DYNAMIC || !s->w)
        return NB_OK;
    kn_codes *c = &s->codes;
    if (!c->n_scales)
        TRY(kn_codes_new(c, &s->spec.grid, s->rows, s->cols));
    real *h = how == FQ_START_IMPORTANCE ? error_weights(s, importance) : NULL;
    status e = how == FQ_START_IMPORTANCE && !h ? NB_NOMEM : ranges(c, &s->spec, s->w->x, how, h);
    free(h);
    TRY(e);
    fq_site_set(s, c->scale, c->zero);
    return NB_OK;
}

status fq_start_weights(fq_sites *sites, fq_start how, const real *(*importance)(void *ctx, const fq_site *site),
                        void *ctx)
{
    for (int64_t i = 0; i < sites->n; i++) {
        fq_site *s = sites->s[i];
        if (fq_start_site(s, how, importance ? importance(ctx, s) : NULL) != NB_OK)
            return nb_fail_in(NB_NOMEM, "site %s", s->name);
    }
    return NB_OK;
}

bool fq_weights_started(const fq_sites *sites)
{
    for (int64_t i = 0; i < sites->n; i++) {
        const fq_site *s = sites->s[i];
        if (s->is_weight && s->spec.grid.bits && s->start && !s->started)
            return false;
    }
    return true;
}

/* Nearest to w, from the value v of code q, that is coded as q, half of the way; v where w is more than a code off. */
static real loosened(const kn_grid *g, real v, real w, int32_t q, real inv, int32_t zero)
{
    const int32_t other = kn_encode_one(g, w, inv, zero);
    if (other == q || abs(other - q) > 1)
        return other == q ? w : v;
    real reach = 0, step = (real)0.5;
    for (int i = 0; i < 6; i++, step /= 2)
        if (kn_encode_one(g, v + (reach + step) * (w - v), inv, zero) == q)
            reach += step;
    return v + (real)0.5 * reach * (w - v);
}

status fq_site_loosen(fq_site *s, const ag_params *ps, const real *w)
{
    const kn_codes *c = fq_site_codes(s, ps);
    if (!c)
        return NB_NOMEM;
#pragma omp parallel for
    for (int64_t row = 0; row < c->rows; row++)
        for (int64_t i = 0; i < c->cols; i++) {
            const int64_t at = kn_scale_index(c, row, i);
            const int32_t q = c->q ? c->q[row * c->ld + i] : c->q16[row * c->ld + i];
            real *x = s->w->x + row * c->cols + i;
            *x = loosened(&c->grid, kn_decode_one(c, row, i), w[row * c->cols + i], q, kn_inverse(c->scale[at]), c->zero ? c->zero[at] : 0);
        }
    return NB_OK;
}
