/* descent.c - coordinate descent on tr O E H E', E = w - v. With F = E H and P = O F, a level of row r, column k that rises by a changes the cost by
 *   a^2 O_rr H_kk - 2 a P_rk     and F_r by -a H_k, P_s by -a O_sr H_k
 * and a row's scales, other rows as they are, are those of least squares for w H + P_r / O_rr - F_r in place of w H.
 * P is made for a tile of rows at a time; within it rows move one behind the other.
 */
#include "ptq/descent.h"
#include "ptq/gptq_scales.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TILE = 16 };

typedef struct {
    kn_codes *c;
    const real *w, *H, *O;
    int64_t N, K;
    real damping;  /* of H's diagonal */
    real *e, *f;   /* [N, K] E, F */
    real *p, *wh;  /* [TILE, K] P, w H */
    real *l, *lh;  /* [TILE, K], [TILE, spans, K] levels, and group by group times H */
    real *want, *trial_e, *trial_f, *was; /* [K] */
    real *scale;   /* [spans] */
    double *a;     /* [spans, spans + 1] */
} sweep;

static status open_sweep(sweep *s)
{
    const int64_t S = s->c->spans, K = s->K;
    s->e = nb_alloc((size_t)K, (size_t)(2 * s->N + TILE * (3 + S) + 4) * sizeof *s->e);
    s->a = nb_alloc((size_t)S, (size_t)(S + 1) * sizeof *s->a);
    s->scale = nb_alloc((size_t)S, sizeof *s->scale);
    if (!s->e || !s->a || !s->scale)
        return NB_NOMEM;
    s->f = s->e + s->N * K;
    s->p = s->f + s->N * K;
    s->wh = s->p + TILE * K;
    s->l = s->wh + TILE * K;
    s->lh = s->l + TILE * K;
    s->want = s->lh + TILE * S * K;
    s->trial_e = s->want + K;
    s->trial_f = s->trial_e + K;
    s->was = s->trial_f + K;
    return NB_OK;
}

/* y [n, K] <- x H, with the damping */
static void times_h(real *y, const real *x, int64_t n, const sweep *s)
{
    kn_product_nn(KN_FP32, y, x, s->H, n, s->K, s->K, 0);
    for (int64_t i = 0; i < n * s->K; i++)
        y[i] += s->damping * x[i];
}

/* e [K] <- w - v of a row */
static void row_error(real *e, const sweep *s, int64_t row)
{
    kn_decode(e, s->c, row, 1);
    for (int64_t k = 0; k < s->K; k++)
        e[k] = s->w[row * s->K + k] - e[k];
}

/* trial_f <- w H - v H by the scales that the row has now: v H = sum over groups of scale times lh. */
static void try_scales(sweep *s, int64_t row, const real *wh, const real *lh)
{
    const int64_t K = s->K, S = s->c->spans;
    row_error(s->trial_e, s, row);
    for (int64_t k = 0; k < K; k++)
        s->trial_f[k] = wh[k] - s->damping * (s->w[row * K + k] - s->trial_e[k]);
    for (int64_t g = 0; g < S; g++)
        for (int64_t k = 0; k < K; k++)
            s->trial_f[k] -= s->c->scale[row * S + g] * lh[g * K + k];
}

/* Scales of row `row`, the r-th of its tile, kept where it costs less. */
static void move_scales(sweep *s, int64_t row, int64_t r)
{
    const int64_t K = s->K, S = s->c->spans;
    const real o = s->O[row * (s->N + 1)], *wh = s->wh + r * K, *lh = s->lh + r * S * K;
    real *e = s->e + row * K, *f = s->f + row * K, *p = s->p + r * K, *scale = s->c->scale + row * S;
    double was = 0, is = 0;
    for (int64_t k = 0; k < K; k++)
        s->want[k] = wh[k] + p[k] / o - f[k];
    memcpy(s->scale, scale, (size_t)S * sizeof *scale);
    pt_fit_row(s->c, row, s->want, s->l + r * K, lh, s->damping, s->a);
    try_scales(s, row, wh, lh);
    for (int64_t k = 0; k < K; k++) {
        const double others = (double)p[k] - (double)o * (double)f[k];
        was += (double)e[k] * (2 * others + (double)o * (double)f[k]);
        is += (double)s->trial_e[k] * (2 * others + (double)o * (double)s->trial_f[k]);
    }
    if (!(is < was)) {
        memcpy(scale, s->scale, (size_t)S * sizeof *scale);
        return;
    }
    for (int64_t k = 0; k < K; k++) {
        p[k] += o * (s->trial_f[k] - f[k]);
        f[k] = s->trial_f[k];
        e[k] = s->trial_e[k];
    }
}

static void move_codes(sweep *s, int64_t row, real *p)
{
    kn_codes *c = s->c;
    const int64_t K = s->K;
    const real o = s->O[row * (s->N + 1)];
    real *e = s->e + row * K, *f = s->f + row * K;
    for (int64_t k = 0; k < K; k++) {
        const real *h = s->H + k * K, hk = h[k] + s->damping, v = s->w[row * K + k] - e[k];
        const int64_t span = kn_scale_index(c, row, k);
        if (!(hk > 0)) /* no input ever comes there */
            continue;
        const int32_t q = kn_encode_one(&c->grid, v + p[k] / (o * hk), kn_inverse(c->scale[span]), c->zero ? c->zero[span] : 0);
        const real step = pt_value(c, q, span) - v;
        if (q == pt_code(c, row * c->ld + k) || !(step * (o * hk * step - 2 * p[k]) < 0))
            continue;
        pt_put_code(c, row * c->ld + k, q);
        for (int64_t j = 0; j < K; j++) {
            f[j] -= step * h[j];
            p[j] -= o * step * h[j];
        }
        f[k] -= step * s->damping;
        p[k] -= o * step * s->damping;
        e[k] -= step;
    }
}

/* n rows from `row` on; what a row moves, those behind it see. */
static void move_rows(sweep *s, int64_t row, int64_t n)
{
    const int64_t K = s->K;
    kn_product_nn(KN_FP32, s->p, s->O + row * s->N, s->f, n, K, s->N, 0);
    times_h(s->wh, s->w + row * K, n, s);
    for (int64_t r = 0; r < n; r++)
        pt_row_levels(s->l + r * K, s->c, row + r);
    pt_levels_h(s->lh, s->l, n, s->c, s->H);
    for (int64_t r = 0; r < n; r++) {
        const real *f = s->f + (row + r) * K;
        if (!(s->O[(row + r) * (s->N + 1)] > 0))
            continue;
        memcpy(s->was, f, (size_t)K * sizeof *f);
        move_scales(s, row + r, r);
        move_codes(s, row + r, s->p + r * K);
        for (int64_t b = r + 1; b < n; b++)
            for (int64_t k = 0; k < K; k++)
                s->p[b * K + k] += s->O[(row + b) * s->N + row + r] * (f[k] - s->was[k]);
    }
}

status pt_descend(kn_codes *c, const real *w, const pt_hessian *h, const pt_hessian *outputs)
{
    sweep s = {.c = c, .w = w, .H = h->H, .O = outputs->H, .N = c->rows, .K = c->cols};
    double mean = 0;
    for (int64_t k = 0; k < s.K; k++)
        mean += (double)s.H[k * (s.K + 1)] / (double)s.K;
    s.damping = isfinite(h->damping) ? (real)(h->damping * mean) : 0;
    const status st = open_sweep(&s);
    if (st == NB_OK) {
        for (int64_t r = 0; r < s.N; r++)
            row_error(s.e + r * s.K, &s, r);
        times_h(s.f, s.e, s.N, &s);
        for (int64_t row = 0; row < s.N; row += TILE)
            move_rows(&s, row, s.N - row < TILE ? s.N - row : TILE);
    }
    free(s.e);
    free(s.a);
    free(s.scale);
    return st;
}
