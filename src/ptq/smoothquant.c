/* smoothquant.c - outliers of activations moved into weights (Xiao et al. 2023), channel j of a pair:
 *   s_j = max|x_j|^alpha / max|w_j|^(1-alpha),  at least 1e-5;  max|w_j| over all readers and rows, at least 1e-5
 * With a recipe alpha is searched per pair in 0, 0.1, .. 1 and "not at all": the least  sum |Q(x / s) Q(w s)' - x w'|^2 / max(1, |x w'|^2 / M)
 * over ROWS rows of inputs, M = STANDS_OUT times the median of |x w'|^2, both quantized as their sites say (static ranges from these rows); of large
 * matrices OUTPUTS rows stand for all. Without the divisor one token would decide, which heads park their attention on and which is thousands of
 * times as large. Without a recipe alpha is 0.5. Pairs: norm -> q, k, v and norm -> gate, up; those that the paper leaves alone, v -> o and up -> down, with
 * --smooth-all. An asymmetric spec of one-sided inputs is searched as it is. With --smooth-keys rows of k are divided and those of q multiplied by
 *   s_i = (largest |k| behind the rotation in the two channels of pair i)^alpha     (QServe's SmoothAttention, Lin et al. 2024)
 */
#include "ptq/scaling.h"
#include "ptq/walk.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 256, OUTPUTS = 256, ALPHAS = 11, STANDS_OUT = 100 };

/* Which rows of a reader are looked at. */
static int64_t step_of(const ly_linear *l)
{
    return l->out > OUTPUTS ? l->out / OUTPUTS : 1;
}

static int64_t rows_of(const ly_linear *l)
{
    return (l->out + step_of(l) - 1) / step_of(l);
}

static void scales_of(real *s, const pt_pair *p, const real *x, const real *w, double alpha)
{
    for (int64_t j = 0; j < p->channels; j++) {
        const double a = fmax((double)x[j], 1e-5), b = fmax((double)w[j], 1e-5);
        s[j] = (real)fmax(pow(a, alpha) / pow(b, 1 - alpha), 1e-5);
    }
}

/* largest [channels] of |x| and of |w|. */
static void extremes(real *x, real *w, const pt_pair *p, const pt_input *g)
{
    memset(x, 0, (size_t)p->channels * sizeof *x);
    memset(w, 0, (size_t)p->channels * sizeof *w);
    for (int64_t j = 0; j < g->C; j++) {
        real *most = &x[pt_pair_channel(p, j)];
        *most = g->largest[j] > *most ? g->largest[j] : *most;
    }
    for (int k = 0; k < p->n; k++)
        for (int64_t i = 0; i < p->reader[k]->w->count; i++) {
            real *most = &w[pt_pair_channel(p, i % p->reader[k]->in)];
            const real v = p->reader[k]->w->x[i], size = v < 0 ? -v : v;
            *most = size > *most ? size : *most;
        }
}

/* y [n, C] <- its values through a spec; left alone where that has no bits. */
static status through(real *y, const fq_spec *spec, int64_t n, int64_t C)
{
    kn_codes c;
    if (!spec->grid.bits)
        return NB_OK;
    TRY(kn_codes_new(&c, &spec->grid, n, C));
    status s = NB_OK;
    if (spec->range == FQ_DYNAMIC)
        kn_encode(&c, y);
    else
        s = fq_find_ranges(&c, spec, y, FQ_START_ABSMAX, NULL);
    if (s == NB_OK)
        kn_decode(y, &c, 0, n);
    kn_codes_free(&c);
    return s;
}

/* A static range of an activation is shared by its rows: as for a weight of one row. */
static status inputs_through(real *x, const fq_site *site, int64_t n, int64_t C)
{
    fq_spec spec = site->spec;
    const bool shared = spec.range != FQ_DYNAMIC && (spec.grid.grain == KN_GROUP || spec.grid.grain == KN_HEAD);
    if (shared) {
        spec.grid.grain = KN_TENSOR;
        spec.grid.group = 0;
    }
    return through(x, &spec, n, C);
}

/* off [n] += |Q(x / s) Q(w s)' - x w'|^2 of each row and size [n] += |x w'|^2, of one reader; x [n, K] as it came, q [n, K] through its site. */
static status reader_error(double *off, double *size, const ly_linear *l, const pt_pair *p, const real *s, const real *x, const real *q, int64_t n)
{
    const int64_t K = l->in, N = rows_of(l), step = step_of(l);
    real *w = nb_alloc((size_t)(2 * N), (size_t)K * sizeof *w), *y = nb_alloc((size_t)(2 * n), (size_t)N * sizeof *y);
    status e = w && y ? NB_OK : NB_NOMEM;
    for (int64_t i = 0; e == NB_OK && i < N * K; i++) {
        w[i] = l->w->x[i / K * step * K + i % K];
        w[N * K + i] = w[i] * s[pt_pair_channel(p, i % K)];
    }
    if (e == NB_OK)
        e = through(w + N * K, &l->w_site->spec, N, K);
    if (e == NB_OK) {
        kn_product_nt(KN_FP32, y, x, w, n, N, K, 0);
        kn_product_nt(KN_FP32, y + n * N, q, w + N * K, n, N, K, 0);
        for (int64_t i = 0; i < n * N; i++) {
            const double d = (double)y[i] - (double)y[n * N + i];
            off[i / N] += d * d * (double)step;
            size[i / N] += (double)y[i] * (double)y[i] * (double)step;
        }
    }
    free(w);
    free(y);
    return e;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static status pair_error(double *error, const pt_pair *p, const pt_input *g, const real *s)
{
    const int64_t n = g->sampled, K = g->C;
    double *off = nb_alloc_zeroed((size_t)(3 * n), sizeof *off), *size = off ? off + n : NULL, *sorted = off ? off + 2 * n : NULL;
    real *q = nb_alloc((size_t)n, (size_t)K * sizeof *q);
    if (!q || !off) {
        free(q);
        free(off);
        return NB_NOMEM;
    }
    for (int64_t i = 0; i < n * K; i++)
        q[i] = g->sample[i] / s[pt_pair_channel(p, i % K)];
    status e = inputs_through(q, p->input, n, K);
    for (int k = 0; k < p->n && e == NB_OK; k++)
        e = reader_error(off, size, p->reader[k], p, s, g->sample, q, n);
    memcpy(sorted, size, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_size);
    *error = 0;
    for (int64_t r = 0; r < n; r++)
        *error += off[r] / fmax(1, sorted[n / 2] > 0 ? size[r] / (STANDS_OUT * sorted[n / 2]) : 0);
    free(q);
    free(off);
    return e;
}

static status search(real *best, real *s, const pt_pair *p, const pt_input *g, const real *x, const real *w)
{
    double least, error;
    for (int64_t j = 0; j < p->channels; j++)
        best[j] = 1;
    TRY(pair_error(&least, p, g, best));
    for (int i = 0; i < ALPHAS; i++) {
        scales_of(s, p, x, w, (double)i / (ALPHAS - 1));
        TRY(pair_error(&error, p, g, s));
        if (error < least) {
            least = error;
            memcpy(best, s, (size_t)p->channels * sizeof *s);
        }
    }
    return NB_OK;
}

static bool is_quantized(const pt_pair *p)
{
    return p->input->spec.grid.bits != 0 || p->reader[0]->w_site->spec.grid.bits != 0;
}

static status smooth(const pt_pair *p, const pt_input *g, const pt_options *o)
{
    const int64_t n = p->channels;
    real *s = nb_alloc((size_t)n, 4 * sizeof *s), *x = s + n, *w = x + n, *trial = w + n;
    if (!s)
        return NB_NOMEM;
    extremes(x, w, p, g);
    status e = NB_OK;
    if (o->alpha > 0 || !is_quantized(p))
        scales_of(s, p, x, w, o->alpha > 0 ? o->alpha : 0.5);
    else
        e = search(s, trial, p, g, x, w);
    if (e == NB_OK)
        pt_scale_pair(p, s);
    free(s);
    return e;
}

/* The pairs that are wanted, to the front. */
static int wanted(pt_pair *pair, int n, const pt_options *o)
{
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (pair[i].norm || o->smooth_all)
            pair[kept++] = pair[i];
    return kept;
}

static status do_block(pt_walk *w, const pt_options *o)
{
    pt_pair pair[PT_PAIRS];
    pt_input input[PT_PAIRS] = {0};
    const int n = wanted(pair, pt_pairs(pair, w->m, w->layer), o);
    status s = NB_OK;
    for (int i = 0; i < n && s == NB_OK; i++)
        s = pt_input_new(&input[i], pair[i].input, false, ROWS, w->windows * w->length, w->tape.precision);
    if (s == NB_OK)
        s = pt_walk_watch(w, (ag_tap){pt_gather, &(pt_inputs){input, n}}, pair[n - 1].input->name);
    for (int i = 0; i < n && s == NB_OK; i++)
        s = smooth(&pair[i], &input[i], o);
    w->m->params.version++;
    for (int i = 0; i < n; i++)
        pt_input_free(&input[i]);
    return s;
}

/* Channels of keys by their largest magnitudes, all of one layer in a run over the data: the function stays, so no block waits for another. */
static status smooth_keys(md_model *m, const pt_options *o)
{
    const int64_t L = m->config.layers, D = m->config.head_size, G = m->config.kv_heads;
    pt_input *g = nb_alloc_zeroed((size_t)L, sizeof *g);
    real *s = nb_alloc((size_t)(G * D), sizeof *s);
    status e = g && s ? NB_OK : NB_NOMEM;
    for (int64_t l = 0; l < L && e == NB_OK; l++)
        e = pt_input_new(&g[l], m->block[l].attn.k, false, 0, 0, KN_FP32);
    if (e == NB_OK)
        e = kd_watch(m, o->data, &o->calibration, (ag_tap){pt_gather, &(pt_inputs){g, (int)L}});
    for (int64_t l = 0; l < L && e == NB_OK; l++) {
        for (int64_t i = 0; i < G * (D / 2); i++) {
            const real *x = g[l].largest + i / (D / 2) * D;
            int64_t half[2];
            pt_pair_halves(half, &m->block[l].attn, i % (D / 2));
            s[i] = (real)pow(fmax(fmax((double)x[half[0]], (double)x[half[1]]), 1e-5), o->alpha > 0 ? o->alpha : 0.5);
        }
        pt_scale_keys(&m->block[l].attn, s);
    }
    m->params.version++;
    for (int64_t l = 0; g && l < L; l++)
        pt_input_free(&g[l]);
    free(g);
    free(s);
    return e;
}

status pt_run_smoothquant(md_model *m, const pt_options *o)
{
    pt_walk w;
    if (o->smooth_keys && m->config.hadamard)
        return nb_fail(NB_USAGE, "--smooth-keys: heads are turned by Hadamard matrices behind their rotation (rotate --online), channels are mixed there");
    if (o->alpha < 0 || o->alpha > 1)
        return nb_fail(NB_USAGE, "--alpha %g: between 0 (search) and 1", o->alpha);
    TRY(pt_walk_new(&w, m, o->data, &o->calibration));
    status s = NB_OK;
    while (w.layer < m->config.layers && s == NB_OK) {
        s = do_block(&w, o);
        if (s == NB_OK)
            s = pt_walk_next(&w);
    }
    pt_walk_free(&w);
    return s == NB_OK && o->smooth_keys ? smooth_keys(m, o) : s;
}

status pt_level_channels(md_model *m, const pt_options *o)
{
    pt_options all = *o;
    all.alpha = 1;
    all.smooth_all = true;
    all.smooth_keys = !m->config.hadamard;
    return pt_run_smoothquant(m, &all);
}

const pt_setting pt_smoothquant_settings[] = {
    {"--alpha", "A", PT_NUMBER, offsetof(pt_options, alpha), "0",
     "smoothquant: how much of the difficulty goes into weights, 0 to 1; 0: searched per pair by the recipe, 0.5 without one"},
    {"--smooth-all", NULL, PT_FLAG, offsetof(pt_options, smooth_all), NULL, "smoothquant: v -> o and up -> down too, not only what norms scale"},
    {"--smooth-keys", NULL, PT_FLAG, offsetof(pt_options, smooth_keys), NULL,
     "smoothquant: channels of keys too, made up for in the queries (QServe); for a cache of few bits"},
    {0}};
