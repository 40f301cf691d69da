/* sensitivity.c - how far a change of some weights moves a model's predictions.
 *   KL = mean over tokens t of sum_v p_v (log p_v - log q_v),   p before, q after the change, the whole model in floats otherwise
 * Kept from before: what enters each block, so that a change in block l costs the blocks from l on; and p.
 */
#include "ptq/ptq.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int32_t *ids;
    real *into;      /* [layers + 1, T, C]: into each block, and what the last one gives */
    real *p;         /* [T, V] */
    double *entropy; /* [T]: sum_v p log p */
} window;

struct pt_sensitivity {
    md_model *m;
    int64_t n, T, C, V;
    window *w;
    double *lse;
    ag_tape tape;
};

void pt_sensitivity_free(pt_sensitivity *s)
{
    for (int64_t i = 0; s && s->w && i < s->n; i++) {
        free(s->w[i].ids);
        free(s->w[i].into);
        free(s->w[i].p);
        free(s->w[i].entropy);
    }
    if (!s)
        return;
    free(s->w);
    free(s->lse);
    ag_tape_free(&s->tape);
    free(s);
}

/* Logits [T, V] of a window from block `layer` on, whose input is x; keep: what enters the blocks is written down. */
static const real *logits_from(pt_sensitivity *s, window *w, int64_t layer, ag_tensor *x, bool keep)
{
    const int64_t L = s->m->config.layers, size = s->T * s->C;
    for (int64_t l = layer; l <= L && x; l++) {
        if (keep && ag_value(x))
            memcpy(w->into + l * size, ag_value(x), (size_t)size * sizeof(real));
        if (l < L)
            x = md_block_forward(&s->tape, s->m, l, x, NULL);
    }
    if (!x)
        return NULL;
    const md_output out = md_finish(&s->tape, s->m, x);
    ag_tensor *z = ag_linear(&s->tape, out.x, out.w, out.b);
    return z ? ag_value(z) : NULL;
}

static ag_tensor *embed(pt_sensitivity *s, const window *w)
{
    return md_embed(&s->tape, s->m, &(md_input){.B = 1, .T = s->T, .ids = w->ids});
}

static status look(pt_sensitivity *s, window *w)
{
    ag_reset(&s->tape);
    const real *z = logits_from(s, w, 0, embed(s, w), true);
    if (!z)
        return ag_status(&s->tape);
    kn_logsumexp(s->lse, z, s->T, s->V);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < s->T; t++) {
        double entropy = 0;
        for (int64_t v = 0; v < s->V; v++) {
            const double l = (double)z[t * s->V + v] - s->lse[t], p = exp(l);
            w->p[t * s->V + v] = (real)p;
            entropy += p * l;
        }
        w->entropy[t] = entropy;
    }
    return NB_OK;
}

static status open_window(pt_sensitivity *s, window *w, fm_tokens *data, int64_t from)
{
    const int64_t L = s->m->config.layers;
    w->ids = nb_alloc((size_t)s->T, sizeof *w->ids);
    w->into = nb_alloc_aligned((size_t)((L + 1) * s->T * s->C), sizeof(real));
    w->p = nb_alloc_aligned((size_t)(s->T * s->V), sizeof(real));
    w->entropy = nb_alloc((size_t)s->T, sizeof *w->entropy);
    if (!w->ids || !w->into || !w->p || !w->entropy)
        return NB_NOMEM;
    TRY(fm_tokens_read(data, w->ids, from, s->T));
    return look(s, w);
}

static status open_windows(pt_sensitivity *s, fm_tokens *data)
{
    const int64_t all = data->n / s->T;
    s->lse = nb_alloc((size_t)s->T, sizeof *s->lse);
    s->w = nb_alloc_zeroed((size_t)s->n, sizeof *s->w);
    if (!s->lse || !s->w)
        return NB_NOMEM;
    for (int64_t i = 0; i < s->n; i++)
        TRY(open_window(s, &s->w[i], data, i * all / s->n * s->T));
    return NB_OK;
}

status pt_sensitivity_new(pt_sensitivity **out, md_model *m, fm_tokens *data, int64_t windows, int64_t length)
{
    *out = NULL;
    if (m->folded)
        return nb_fail(NB_USAGE, "sensitivity needs the floats of a model, this one is folded");
    if (data->n < length)
        return nb_fail(NB_USAGE, "%s: %lld tokens, at least one window of %lld is wanted", data->path, (long long)data->n, (long long)length);
    pt_sensitivity *s = nb_alloc_zeroed(1, sizeof *s);
    if (!s)
        return NB_NOMEM;
    *s = (pt_sensitivity){.m = m, .T = length, .C = m->config.dim, .V = m->config.vocab};
    s->n = windows < data->n / length ? windows : data->n / length;
    s->tape = (ag_tape){.no_grad = true, .quantize_off = true};
    const status st = open_windows(s, data);
    if (st == NB_OK)
        *out = s;
    else
        pt_sensitivity_free(s);
    return st;
}

status pt_sensitivity_kl(double *kl, pt_sensitivity *s, int64_t layer)
{
    double sum = 0;
    *kl = 0;
    for (int64_t i = 0; i < s->n; i++) {
        window *w = &s->w[i];
        ag_reset(&s->tape);
        const int64_t dim[3] = {1, s->T, s->C};
        ag_tensor *x = layer < 0 ? embed(s, w) : ag_leaf(&s->tape, w->into + layer * s->T * s->C, NULL, 3, dim);
        const real *z = logits_from(s, w, layer < 0 ? 0 : layer, x, false);
        if (!z)
            return ag_status(&s->tape);
        kn_logsumexp(s->lse, z, s->T, s->V);
        double part = 0;
#pragma omp parallel for schedule(static) reduction(+ : part)
        for (int64_t t = 0; t < s->T; t++) {
            double expected = 0;
            for (int64_t v = 0; v < s->V; v++)
                expected += (double)w->p[t * s->V + v] * (double)z[t * s->V + v];
            part += w->entropy[t] - expected + s->lse[t];
        }
        sum += part;
    }
    sum /= (double)(s->n * s->T);
    *kl = sum > 0 ? sum : 0;
    return NB_OK;
}
