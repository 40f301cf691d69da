/* awq.c - activation-aware scales (Lin et al. 2023): channels with large inputs get larger weights, which round with less error there.
 *   s = mean|x|^r, at least 1e-4, / sqrt(max s  min s);  r in 0, 1/20, .. 19/20 with the least  sum over readers tr E H E',  E = w - Q(w s) / s
 * H = E[x x'], so the sum is the squared error of the readers' outputs; of large matrices ROWS rows stand for all. Sites: norm -> q, k, v;
 * v -> o (heads that share a value share s); norm -> gate, up; up -> down. Then ranges with the least error weighted by E[x^2]: what the paper clips by search. A float prefix
 * feeds each block, since scaling changes nothing.
 */
#include "ptq/gptq.h"
#include "ptq/scaling.h"
#include "ptq/walk.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RATIOS = 20, ROWS = 256 };

/* sum over rows of e H e', e [n, K] */
static double output_error(const real *e, real *eh, int64_t n, int64_t K, const real *H)
{
    double sum = 0;
    kn_product_nn(KN_FP32, eh, e, H, n, K, K, 0);
    for (int64_t i = 0; i < n * K; i++)
        sum += (double)e[i] * (double)eh[i];
    return sum;
}

/* The error of one reader under s [K] by column. */
static status reader_error(double *error, const ly_linear *l, const real *s, const real *H)
{
    const int64_t K = l->in, step = l->out > ROWS ? l->out / ROWS : 1, n = (l->out + step - 1) / step;
    kn_codes c;
    TRY(kn_codes_new(&c, &l->w_site->spec.grid, n, K));
    real *x = nb_alloc((size_t)n, (size_t)(3 * K) * sizeof *x), *v = x ? x + n * K : NULL;
    status e = x ? NB_OK : NB_NOMEM;
    for (int64_t i = 0; x && i < n * K; i++)
        x[i] = l->w->x[i / K * step * K + i % K] * s[i % K];
    if (e == NB_OK)
        e = fq_find_ranges(&c, &l->w_site->spec, x, FQ_START_ABSMAX, NULL);
    if (e == NB_OK) {
        kn_decode(v, &c, 0, n);
        for (int64_t i = 0; i < n * K; i++)
            v[i] = (x[i] - v[i]) / s[i % K];
        *error += output_error(v, v + n * K, n, K, H) * (double)step;
    }
    free(x);
    kn_codes_free(&c);
    return e;
}

/* s [channels] of one ratio, column [K] the same by column of the readers. */
static void scales_of(real *s, real *column, const pt_pair *p, const double *mean, double ratio)
{
    double least = INFINITY, most = 0;
    for (int64_t i = 0; i < p->channels; i++) {
        const double v = fmax(pow(mean[i], ratio), 1e-4);
        s[i] = (real)v;
        least = fmin(least, v);
        most = fmax(most, v);
    }
    for (int64_t i = 0; i < p->channels; i++)
        s[i] = (real)((double)s[i] / sqrt(least * most));
    for (int64_t j = 0; j < p->reader[0]->in; j++)
        column[j] = s[pt_pair_channel(p, j)];
}

static status search(real *best, const pt_pair *p, const pt_input *g)
{
    const int64_t K = g->C;
    double *mean = nb_alloc_zeroed((size_t)p->channels, sizeof *mean), least = INFINITY;
    real *s = nb_alloc((size_t)(p->channels + K), sizeof *s);
    status e = mean && s ? NB_OK : NB_NOMEM;
    for (int64_t j = 0; e == NB_OK && j < K; j++)
        mean[pt_pair_channel(p, j)] += g->magnitude[j] / g->rows / (double)p->repeat;
    for (int i = 0; i < RATIOS && e == NB_OK; i++) {
        double error = 0;
        scales_of(s, s + p->channels, p, mean, (double)i / RATIOS);
        for (int k = 0; k < p->n && e == NB_OK; k++)
            if (p->reader[k]->w_site->spec.grid.bits)
                e = reader_error(&error, p->reader[k], s + p->channels, g->gram);
        if (error < least) {
            least = error;
            memcpy(best, s, (size_t)p->channels * sizeof *s);
        }
    }
    free(mean);
    free(s);
    return e;
}

static status scale(const pt_pair *p, const pt_input *g)
{
    bool coded = false;
    for (int k = 0; k < p->n; k++)
        coded = coded || p->reader[k]->w_site->spec.grid.bits;
    if (!coded)
        return NB_OK;
    real *s = nb_alloc((size_t)p->channels, sizeof *s);
    status e = s ? search(s, p, g) : NB_NOMEM;
    if (e == NB_OK)
        pt_scale_pair(p, s);
    free(s);
    return e;
}

static status do_block(pt_walk *w)
{
    pt_pair pair[PT_PAIRS];
    pt_input input[PT_PAIRS] = {0};
    const int n = pt_pairs(pair, w->m, w->layer);
    status s = NB_OK;
    for (int i = 0; i < n && s == NB_OK; i++)
        s = pt_input_new(&input[i], pair[i].input, true, 0, 0, w->tape.precision);
    if (s == NB_OK)
        s = pt_walk_watch(w, (ag_tap){pt_gather, &(pt_inputs){input, n}}, pair[n - 1].input->name);
    for (int i = 0; i < n && s == NB_OK; i++)
        s = scale(&pair[i], &input[i]);
    w->m->params.version++;
    for (int i = 0; i < n; i++)
        pt_input_free(&input[i]);
    return s;
}

status pt_run_awq(md_model *m, const pt_options *o)
{
    pt_walk w;
    TRY(pt_walk_new(&w, m, o->data, &o->calibration));
    status s = NB_OK;
    while (w.layer < m->config.layers && s == NB_OK) {
        s = do_block(&w);
        if (s == NB_OK)
            s = pt_walk_next(&w);
    }
    pt_walk_free(&w);
    return s == NB_OK ? kd_find_ranges(m, FQ_START_IMPORTANCE, o->data, &o->calibration) : s;
}
