/* picture_smooth.c - SmoothQuant (Xiao et al. 2023) between neighbouring layers of a network for pictures, channel c:
 *   s_c = max|x_c|^alpha / max|w_c|^(1-alpha), at least 1e-5;   row c and its bias / s_c, what reads it * s_c
 * x is the float result of the first, w all weights that read the channel. alpha of each pair in turn: of 0, 0.1, .. 1 and "not at all" the
 * one with the least sum of squared differences between the quantized network's logits and the float one's.
 */
#include "ptq/picture_ptq.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ALPHAS = 11, TRIED = 250 };

static const md_net_run as_it_runs = {0};

/* largest [layer][channel] of |x| at the results of layers. */
typedef struct {
    const md_picture_net *m;
    real **largest;
} seen;

static void look(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    const seen *s = ctx;
    (void)out;
    for (int64_t i = 0; i < s->m->layers; i++) {
        if (s->m->layer[i].output != fq_site_find(&s->m->base.sites, site))
            continue;
        const real *x = ag_value(in);
        const int64_t N = s->m->layer[i].c.N;
        for (int64_t k = 0; x && k < ag_count(in); k++) {
            real *most = &s->largest[i][k % N];
            *most = (real)fmax((double)*most, fabs((double)x[k]));
        }
    }
}

/* Sum over the first pictures of |quantized logits - logits|^2. */
static status error_of(double *error, const md_picture_net *p, const real *logits, const fq_recipe *recipe,
                       const pt_picture_options *o)
{
    md_picture_net m = {0};
    ag_tape t = {0};
    real *memory = NULL;
    TRY(md_net_with_recipe(&m, p, recipe));
    status s = kd_picture_calibrate(&m, o->data, FQ_START_ABSMAX, TRIED, o->seed);
    const ag_tensor *y =
        s == NB_OK ? md_net_forward(&t, &m, pt_picture_leaf(&t, &memory, o, TRIED), &as_it_runs) : NULL;
    const real *v = y ? ag_value(y) : NULL;
    *error = 0;
    for (int64_t k = 0; v && k < ag_count(y); k++)
        *error += ((double)v[k] - (double)logits[k]) * ((double)v[k] - (double)logits[k]);
    if (s == NB_OK && !v)
        s = pt_picture_status(&t);
    ag_tape_free(&t);
    free(memory);
    md_net_free(&m);
    return s;
}

/* to <- 1 / from: a scaling undone. */
static void invert(real *to, const real *from, int64_t n)
{
    for (int64_t k = 0; k < n; k++)
        to[k] = 1 / from[k];
}

/* x [N] largest of the results; scratch [4 N]. The weights are kept and put back: / s * s would not be exact. */
static status smooth_pair(md_picture_net *p, int64_t i, const real *x, const real *logits, const fq_recipe *recipe,
                          const pt_picture_options *o)
{
    const int64_t N = p->layer[i].c.N;
    real *w = nb_alloc((size_t)(4 * N), sizeof *w), *rows = w + N, *s = rows + N, *best = s + N;
    double least = INFINITY, error;
    status e = w ? NB_OK : NB_NOMEM;
    if (e == NB_OK && o->alpha <= 0)
        e = error_of(&least, p, logits, recipe, o);
    for (int64_t c = 0; e == NB_OK && c < N; c++)
        best[c] = 1;
    if (e == NB_OK)
        md_net_extremes(rows, w, p, i);
    for (int a = 0; a < (o->alpha > 0 ? 1 : ALPHAS) && e == NB_OK; a++) {
        const double alpha = o->alpha > 0 ? o->alpha : (double)a / (ALPHAS - 1);
        for (int64_t c = 0; c < N; c++)
            s[c] = x[c] > 0 && w[c] > 0 ? (real)fmax(pow((double)x[c], alpha) / pow((double)w[c], 1 - alpha), 1e-5) : 1;
        if (o->alpha > 0) {
            memcpy(best, s, (size_t)N * sizeof *s);
            break;
        }
        md_net_scale_pair(p, i, s);
        e = error_of(&error, p, logits, recipe, o);
        if (e == NB_OK && error < least) {
            least = error;
            memcpy(best, s, (size_t)N * sizeof *s);
        }
        invert(rows, s, N);
        md_net_scale_pair(p, i, rows);
    }
    if (e == NB_OK)
        md_net_scale_pair(p, i, best);
    free(w);
    return e;
}

static status smooth_pairs(md_picture_net *p, real *const *largest, const fq_recipe *recipe,
                           const pt_picture_options *o)
{
    ag_tape t = {0};
    real *memory = NULL;
    const ag_tensor *y = md_net_forward(&t, p, pt_picture_leaf(&t, &memory, o, TRIED), &as_it_runs);
    const real *logits = y ? ag_value(y) : NULL;
    status s = logits ? NB_OK : pt_picture_status(&t);
    int64_t pairs = 0;
    for (int64_t i = 0; i + 1 < p->layers && s == NB_OK; i++)
        if (md_net_is_pair(p, i)) {
            pairs++;
            s = smooth_pair(p, i, largest[i], logits, recipe, o);
        }
    if (s == NB_OK && !pairs)
        s = nb_fail(NB_USAGE, "smoothquant: no two layers with ReLU or nothing between them");
    ag_tape_free(&t);
    free(memory);
    return s;
}

status pt_picture_smooth(md_picture_net *p, const fq_recipe *recipe, const pt_picture_options *o)
{
    if (!(o->alpha >= 0 && o->alpha <= 1))
        return nb_fail(NB_USAGE, "--alpha %g: between 0 (search) and 1", o->alpha);
    seen look_at = {p, nb_alloc_zeroed((size_t)p->layers, sizeof(real *))};
    status s = look_at.largest ? NB_OK : NB_NOMEM;
    for (int64_t i = 0; i < p->layers && s == NB_OK; i++)
        if (!(look_at.largest[i] = nb_alloc_zeroed((size_t)p->layer[i].c.N, sizeof(real))))
            s = NB_NOMEM;
    if (s == NB_OK)
        s = kd_picture_watch(p, o->data, o->samples, o->seed, (ag_tap){look, &look_at});
    if (s == NB_OK)
        s = smooth_pairs(p, look_at.largest, recipe, o);
    for (int64_t i = 0; look_at.largest && i < p->layers; i++)
        free(look_at.largest[i]);
    free(look_at.largest);
    return s;
}
