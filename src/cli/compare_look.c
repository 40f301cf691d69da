/* compare_look.c - the diagrams of the report that look into the model: KL per layer, weights and their clip points, activations and theirs,
 * outlier channels, weights beside a normal distribution.
 */
#include "cli/compare.h"
#include "cli/plot.h"
#include "ptq/ptq.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { NAME = 160, SAMPLES = 1 << 17, BINS = 90, METHODS = 4, QUANTILES = 200, LARGE_WINDOWS = 2, WINDOWS = 8, KEPT = 16 };

typedef struct {
    const comparison *c;
    FILE *f;
    md_model m;          /* in floats */
    md_model q[2];       /* by the recipe, rounded to nearest and by importance */
    const char *recipe;
    fm_tokens data;
    kd_importance importance;
    fq_sites observed[METHODS]; /* one site each */
    char weight[NAME], input[NAME]; /* that are looked at closely */
    float *sample;       /* [SAMPLES] of the input's values */
    int64_t n_samples, seen;
} looker;

static const char *const range_name[METHODS] = {"minmax", "percentile:99.99", "mse", "kl"};

static int rising(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* ---- KL per layer --------------------------------------------------------------------------- */

/* The weights of a layer become what q decodes to, or (back) what q's latents are: the model's own. */
static status swap_layer(md_model *m, md_model *q, int64_t layer, bool back)
{
    char prefix[40];
    const int n = snprintf(prefix, sizeof prefix, "layers.%lld.", (long long)layer);
    for (int64_t i = 0; i < q->sites.n; i++) {
        fq_site *s = q->sites.s[i];
        ag_param *p = s->is_weight && s->spec.grid.bits && !strncmp(s->name, prefix, (size_t)n) ? ag_param_find(&m->params, s->name) : NULL;
        if (!p || !s->w)
            continue;
        const kn_codes *codes = fq_site_codes(s, &q->params);
        if (!codes)
            return NB_NOMEM;
        if (back)
            memcpy(p->x, s->w->x, (size_t)p->count * sizeof *p->x);
        else
            kn_decode(p->x, codes, 0, s->rows);
    }
    m->params.version++;
    return NB_OK;
}

static status draw_layers(looker *k)
{
    static const char *const name[2] = {"rounded to nearest", "by importance"};
    const int64_t L = k->m.config.layers;
    pt_sensitivity *s = NULL;
    double *x = nb_alloc((size_t)L, 3 * sizeof *x), *y[2] = {x + L, x + 2 * L}, most = 0;
    status st = x ? pt_sensitivity_new(&s, &k->m, &k->data, k->c->large ? LARGE_WINDOWS : WINDOWS, k->c->o->length) : NB_NOMEM;
    int64_t worst = 0;
    for (int64_t l = 0; l < L && st == NB_OK; l++) {
        x[l] = (double)l;
        for (int i = 0; i < 2 && st == NB_OK; i++) {
            st = swap_layer(&k->m, &k->q[i], l, false);
            if (st == NB_OK)
                st = pt_sensitivity_kl(&y[i][l], s, l);
            if (st == NB_OK)
                st = swap_layer(&k->m, &k->q[i], l, true);
            most = st == NB_OK && y[i][l] > most ? y[i][l] : most;
        }
        worst = st == NB_OK && y[0][l] > y[0][worst] ? l : worst;
        if (st == NB_OK && !nb_progress_report(&k->c->progress, k->c->n, k->c->n, "the report: KL per layer"))
            st = nb_fail(NB_INTERRUPTED, "interrupted");
    }
    pt_sensitivity_free(s);
    if (st == NB_OK) {
        char note[200];
        snprintf(note, sizeof note, "KL to the float model in nats per token when the weights of this layer alone are quantized by %.60s.", k->recipe);
        cl_plot p = {.title = "KL per layer", .x_name = "layer", .y_name = "KL, nats per token", .note = note};
        cl_plot_begin(&p, k->f, 0, L > 1 ? (double)(L - 1) : 1, 0, most * 1.05);
        for (int i = 0; i < 2; i++)
            cl_plot_line(&p, x, y[i], L, i, name[i]);
        cl_plot_end(&p);
        snprintf(k->weight, sizeof k->weight, "layers.%lld.mlp.down.weight", (long long)worst);
    }
    free(x);
    return st;
}

/* ---- one weight ----------------------------------------------------------------------------- */

static void draw_weight(looker *k)
{
    static const char *const name[2] = {"rounded to nearest", "by importance"};
    double x[BINS], y[2][BINS] = {{0}}, most = 0;
    fq_site *first = fq_site_find(&k->q[0].sites, k->weight);
    if (!first || !first->spec.grid.bits || first->spec.grid.bits > 8 || !first->w)
        return;
    const kn_grid *g = &first->spec.grid;
    const double mul = kn_mul(g), add = kn_add(g), lo = mul * g->lo + add, hi = mul * g->hi + add, margin = 0.3 * (hi - lo) + 0.5, from = lo - margin,
                 step = (hi - lo + 2 * margin) / BINS;
    for (int i = 0; i < 2; i++) {
        fq_site *s = fq_site_find(&k->q[i].sites, k->weight);
        const kn_codes *c = fq_site_codes(s, &k->q[i].params);
        if (!c)
            return;
        for (int64_t e = 0; e < s->rows * s->cols; e++) {
            const int64_t at = kn_scale_index(c, e / s->cols, e % s->cols);
            const double scale = (double)c->scale[at], v = scale != 0 ? (double)s->w->x[e] / scale + (c->zero ? c->zero[at] : 0) : 0;
            const int bin = (int)floor((v - from) / step);
            y[i][bin < 0 ? 0 : bin >= BINS ? BINS - 1 : bin] += 100 / (double)(s->rows * s->cols);
        }
        for (int b = 0; b < BINS; b++) {
            x[b] = from + (b + 0.5) * step;
            most = y[i][b] > most ? y[i][b] : most;
        }
    }
    char title[NAME + 40], note[240];
    snprintf(title, sizeof title, "Weights and clip points: %s", k->weight);
    snprintf(note, sizeof note, "Each weight by the scale of its group, so that codes are whole numbers from %g to %g; what lies half a step beyond is clipped.", lo, hi);
    cl_plot p = {.title = title, .x_name = "weight / scale", .y_name = "% of weights", .note = note};
    cl_plot_begin(&p, k->f, from, from + BINS * step, 0, most * 1.05);
    cl_plot_bars(&p, x, y[0], BINS, step * 0.9, 0, name[0]);
    cl_plot_line(&p, x, y[1], BINS, 1, name[1]);
    cl_plot_vertical(&p, lo - mul / 2, 3, "clip points");
    cl_plot_vertical(&p, hi + mul / 2, 3, NULL);
    cl_plot_end(&p);
}

/* ---- activations ---------------------------------------------------------------------------- */

static void watch(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    looker *k = ctx;
    kd_gather_importance(&k->importance, site, in, out);
    if (strcmp(site, k->input) != 0)
        return;
    for (int i = 0; i < METHODS; i++)
        fq_observe(&k->observed[i], site, in, out);
    const real *x = ag_value(in);
    for (int64_t i = 0; x && i < ag_count(in); i++, k->seen++) {
        const int64_t at = k->n_samples < SAMPLES ? k->n_samples++ : (int64_t)(nb_random(1, 1, (uint64_t)k->seen) % (uint64_t)(k->seen + 1));
        if (at < SAMPLES) /* of all values the same share (Vitter's reservoir) */
            k->sample[at] = (float)x[i];
    }
}

static status gather(looker *k)
{
    const kd_calibration o = {.samples = k->c->o->samples < KEPT ? k->c->o->samples : KEPT, .length = k->c->o->length, .seed = k->c->o->common.seed};
    const fq_site *w = fq_site_find(&k->q[0].sites, k->weight);
    if (!w || !kd_input_site(k->input, sizeof k->input, k->weight))
        k->input[0] = 0;
    for (int i = 0; i < METHODS && k->input[0]; i++) {
        char line[NAME + 80];
        fq_recipe r;
        const int n = snprintf(line, sizeof line, "* int8 narrow tensor static:%s\n", range_name[i]);
        TRY(fq_recipe_parse(&r, "range", line, (size_t)n));
        const fq_site *s = fq_site_new(&k->observed[i], &r, k->input, NULL, NULL, 0, w->cols, 0);
        fq_recipe_free(&r);
        if (!s)
            return NB_NOMEM;
    }
    k->sample = nb_alloc(SAMPLES, sizeof *k->sample);
    if (!k->sample)
        return NB_NOMEM;
    TRY(kd_importance_new(&k->importance, &k->m));
    TRY(kd_watch(&k->m, &k->data, &o, (ag_tap){watch, k}));
    for (int i = 0; i < METHODS && k->n_samples; i++)
        TRY(fq_observe_end(&k->observed[i]));
    return k->importance.failed ? NB_NOMEM : NB_OK;
}

static void draw_activations(looker *k)
{
    double x[BINS], y[BINS] = {0}, clip[METHODS], most = 0, top = 0;
    if (k->n_samples == 0)
        return;
    for (int i = 0; i < METHODS; i++) {
        real scale;
        fq_site_ranges(k->observed[i].s[0], &scale, NULL);
        clip[i] = 127 * (double)scale;
        top = clip[i] > top ? clip[i] : top;
    }
    const double step = 2 * top * 1.02 / BINS;
    for (int64_t i = 0; i < k->n_samples; i++) {
        const int b = (int)floor(((double)k->sample[i] + top * 1.02) / step);
        y[b < 0 ? 0 : b >= BINS ? BINS - 1 : b] += 100 / (double)k->n_samples;
    }
    for (int b = 0; b < BINS; b++) {
        x[b] = (b + 0.5) * step - top * 1.02;
        most = y[b] > most ? y[b] : most;
    }
    char title[NAME + 40];
    snprintf(title, sizeof title, "Activations and clip points: %s", k->input);
    cl_plot p = {.title = title, .x_name = "value", .y_name = "% of values", .log_y = true,
                 .note = "What goes into the weight above, on calibration data; where a static range of 8 bits would end by each method. Logarithmic."};
    cl_plot_begin(&p, k->f, -top * 1.02, top * 1.02, 100 / (double)k->n_samples / 2, most * 2);
    cl_plot_bars(&p, x, y, BINS, step * 0.9, 0, "values");
    for (int i = 0; i < METHODS; i++) {
        cl_plot_vertical(&p, clip[i], 1 + i, range_name[i]);
        cl_plot_vertical(&p, -clip[i], 1 + i, NULL);
    }
    cl_plot_end(&p);
}

/* ---- outlier channels ----------------------------------------------------------------------- */

/* Root mean squares of the channels [cols] of a site, rising; NULL where it was not seen. The caller frees them. */
static double *channels(const looker *k, const char *name, int64_t *n)
{
    for (int64_t i = 0; i < k->importance.n; i++) {
        const fq_site *s = k->m.sites.s[i];
        if (strcmp(s->name, name) != 0 || !k->importance.sum[i])
            continue;
        double *rms = nb_alloc((size_t)s->cols, sizeof *rms);
        for (int64_t c = 0; rms && c < s->cols; c++)
            rms[c] = sqrt(k->importance.sum[i][c] / (double)k->importance.rows[i]);
        *n = s->cols;
        return rms;
    }
    return NULL;
}

static status draw_outliers(looker *k)
{
    static const char *const kind[] = {"attn.input", "attn.out.input", "mlp.input", "mlp.down.input"};
    const int64_t L = k->m.config.layers;
    double *x = nb_alloc((size_t)L, 5 * sizeof *x), most = 1;
    if (!x)
        return NB_NOMEM;
    for (int64_t l = 0; l < L; l++) {
        x[l] = (double)l;
        for (int i = 0; i < 4; i++) {
            char name[NAME];
            int64_t n = 0;
            snprintf(name, sizeof name, "layers.%lld.%s", (long long)l, kind[i]);
            double *rms = channels(k, name, &n), ratio = NAN;
            if (rms) {
                qsort(rms, (size_t)n, sizeof *rms, rising);
                ratio = rms[n / 2] > 0 ? rms[n - 1] / rms[n / 2] : NAN;
            }
            free(rms);
            x[(i + 1) * L + l] = ratio;
            most = ratio > most ? ratio : most;
        }
    }
    cl_plot p = {.title = "Outlier channels", .x_name = "layer", .y_name = "largest / median channel", .log_y = true,
                 .note = "Root mean square of the largest channel by that of the median one, of what goes into each linear: far above 1, a scale for the whole "
                         "token is wasted on one channel."};
    cl_plot_begin(&p, k->f, 0, L > 1 ? (double)(L - 1) : 1, 1, most * 1.1);
    for (int i = 0; i < 4; i++)
        cl_plot_line(&p, x, x + (i + 1) * L, L, i, kind[i]);
    cl_plot_end(&p);
    free(x);
    return NB_OK;
}

/* ---- beside a normal distribution ----------------------------------------------------------- */

/* The quantile of the standard normal distribution, by halving: p = erfc(-z / sqrt 2) / 2. */
static double normal_quantile(double share)
{
    double lo = -9, hi = 9;
    for (int i = 0; i < 60; i++) {
        const double z = (lo + hi) / 2;
        if (erfc(-z / sqrt(2)) / 2 < share)
            lo = z;
        else
            hi = z;
    }
    return (lo + hi) / 2;
}

static status quantiles(double z[QUANTILES], const ag_param *w)
{
    const int64_t n = w->count < SAMPLES ? w->count : SAMPLES;
    double *v = nb_alloc((size_t)n, sizeof *v), mean = 0, square = 0;
    if (!v)
        return NB_NOMEM;
    for (int64_t i = 0; i < n; i++) {
        v[i] = (double)w->x[w->count / n * i];
        mean += v[i] / (double)n;
    }
    for (int64_t i = 0; i < n; i++)
        square += (v[i] - mean) * (v[i] - mean) / (double)n;
    qsort(v, (size_t)n, sizeof *v, rising);
    for (int i = 0; i < QUANTILES; i++)
        z[i] = (v[(int64_t)(((double)i + 0.5) / QUANTILES * (double)n)] - mean) / sqrt(square > 0 ? square : 1);
    free(v);
    return NB_OK;
}

static status draw_normal(looker *k)
{
    enum { CURVES = 4 };
    const fq_site *weight[CURVES] = {0};
    double x[QUANTILES], y[CURVES][QUANTILES], most = 3;
    int64_t n = 0, seen = 0;
    for (int64_t i = 0; i < k->m.sites.n; i++)
        n += k->m.sites.s[i]->is_weight && k->m.sites.s[i]->rows > 1;
    for (int64_t i = 0; i < k->m.sites.n; i++) {
        const fq_site *s = k->m.sites.s[i];
        if (!s->is_weight || s->rows < 2)
            continue;
        for (int c = 0; c < CURVES; c++)
            if (seen == c * (n - 1) / (CURVES - 1))
                weight[c] = s;
        seen++;
    }
    for (int i = 0; i < QUANTILES; i++)
        x[i] = normal_quantile(((double)i + 0.5) / QUANTILES);
    for (int c = 0; c < CURVES; c++) {
        const ag_param *w = weight[c] ? ag_param_find(&k->m.params, weight[c]->name) : NULL;
        weight[c] = w ? weight[c] : NULL;
        if (w)
            TRY(quantiles(y[c], w));
        for (int i = 0; i < QUANTILES && w; i++)
            most = fabs(y[c][i]) > most ? fabs(y[c][i]) : most;
    }
    cl_plot p = {.title = "Weights beside a normal distribution", .x_name = "quantile of the normal distribution", .y_name = "quantile of the weights",
                 .note = "Weights less their mean, by their deviation. On the diagonal they are normal; what bends away at the ends are heavy tails."};
    cl_plot_begin(&p, k->f, -3, 3, -most, most);
    cl_plot_line(&p, x, x, QUANTILES, CL_GREY, "normal");
    for (int c = 0; c < CURVES; c++)
        if (weight[c])
            cl_plot_line(&p, x, y[c], QUANTILES, c, weight[c]->name);
    cl_plot_end(&p);
    return NB_OK;
}

/* ---- all ------------------------------------------------------------------------------------ */

static status open_all(looker *k)
{
    const comparison *c = k->c;
    const kd_calibration o = {.samples = c->o->samples < KEPT ? c->o->samples : KEPT, .length = c->o->length, .seed = c->o->common.seed};
    TRY(cl_open_model(&k->m, c->model, &c->o->common, NULL, true));
    TRY(cl_open_data(&k->data, c->calibration, &c->o->common, &k->m));
    for (int i = 0; i < 2; i++) {
        TRY(cl_open_model(&k->q[i], c->model, &c->o->common, k->recipe, true));
        TRY(kd_find_ranges(&k->q[i], i == 0 ? FQ_START_ABSMAX : FQ_START_IMPORTANCE, &k->data, &o));
    }
    return NB_OK;
}

status compare_look(const comparison *c, FILE *f, const char *recipe)
{
    looker k = {.c = c, .f = f, .recipe = recipe};
    status s = open_all(&k);
    if (s == NB_OK)
        s = draw_layers(&k);
    if (s == NB_OK)
        s = gather(&k);
    if (s == NB_OK) {
        draw_weight(&k);
        draw_activations(&k);
        s = draw_outliers(&k);
    }
    if (s == NB_OK)
        s = draw_normal(&k);
    for (int i = 0; i < METHODS; i++)
        fq_sites_free(&k.observed[i]);
    kd_importance_free(&k.importance);
    free(k.sample);
    fm_tokens_close(&k.data);
    for (int i = 0; i < 2; i++)
        md_free(&k.q[i]);
    md_free(&k.m);
    return s;
}
