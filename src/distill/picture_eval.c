/* picture_eval.c - accuracy of a network for pictures, and its calibration: batches through the tape or the integers. */
#include "distill/picture.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 250 };

status kd_picture_fits(const md_picture_net *m, const fm_pictures *data)
{
    const md_stages *s = &m->stages;
    if (s->height != data->height || s->width != data->width || s->channels != 1)
        return nb_fail(NB_USAGE, "the network takes pictures of %lldx%lldx%lld, the data has %lldx%lldx1", (long long)s->height,
                       (long long)s->width, (long long)s->channels, (long long)data->height, (long long)data->width);
    if (data->classes > s->classes)
        return nb_fail(NB_USAGE, "the network has %lld classes, the data %lld", (long long)s->classes, (long long)data->classes);
    return NB_OK;
}

void kd_picture_values(real *x, const uint8_t *pixel, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (real)pixel[i] / 255;
}

static int64_t largest(const real *x, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

/* Adds rows of logits to the sums. */
static void score(kd_picture_eval *e, const real *logits, const fm_pictures *data, int64_t from, int64_t B, int64_t C, uint8_t *predicted)
{
    double lse[BATCH];
    kn_logsumexp(lse, logits, B, C);
    for (int64_t b = 0; b < B; b++) {
        const int64_t class = largest(logits + b * C, C);
        e->accuracy += class == data->label[from + b];
        e->nll += lse[b] - (double)logits[b * C + data->label[from + b]];
        if (predicted)
            predicted[from + b] = (uint8_t)class;
    }
}

static status on_tape(ag_tape *t, real *logits, const md_picture_net *m, real *x, int64_t B)
{
    const int64_t dim[] = {B, m->stages.height * m->stages.width * m->stages.channels};
    const md_net_run run = {0};
    ag_reset(t);
    t->no_grad = true;
    const ag_tensor *y = md_net_forward(t, m, ag_leaf(t, x, NULL, 2, dim), &run);
    const real *v = y ? ag_value(y) : NULL;
    if (!v)
        return ag_status(t);
    memcpy(logits, v, (size_t)(B * m->stages.classes) * sizeof *v);
    return NB_OK;
}

static status evaluate(kd_picture_eval *e, const md_picture_net *m, const rt_net *integers, const fm_pictures *data, uint8_t *predicted,
                       const nb_progress *progress)
{
    const int64_t C = m->stages.classes, in = data->height * data->width;
    ag_tape t = {0};
    real *x = nb_alloc((size_t)(BATCH * in), sizeof *x), *logits = nb_alloc((size_t)(BATCH * C), sizeof *logits);
    int8_t *codes = nb_alloc((size_t)(BATCH * C), 1);
    status s = x && logits && codes ? NB_OK : NB_NOMEM;
    for (int64_t from = 0; from < data->n && s == NB_OK; from += BATCH) {
        const int64_t B = data->n - from < BATCH ? data->n - from : BATCH;
        const uint8_t *pixel = data->pixel + from * in;
        if (integers) {
            s = rt_net_run(integers, codes, pixel, B, NULL, NULL);
            for (int64_t i = 0; i < B * C; i++)
                logits[i] = (real)(codes[i] - integers->out_zero) * integers->out_scale;
        } else {
            kd_picture_values(x, pixel, B * in);
            s = on_tape(&t, logits, m, x, B);
        }
        if (s == NB_OK)
            score(e, logits, data, from, B, C, predicted);
        if (s == NB_OK && !nb_progress_report(progress, from + B, data->n, ""))
            s = nb_fail(NB_INTERRUPTED, "interrupted");
    }
    ag_tape_free(&t);
    free(x);
    free(logits);
    free(codes);
    return s;
}

status kd_picture_evaluate(kd_picture_eval *e, md_picture_net *m, const fm_pictures *data, uint8_t *predicted, const nb_progress *progress)
{
    rt_net integers = {0};
    *e = (kd_picture_eval){.n = data->n};
    TRY(kd_picture_fits(m, data));
    e->integer = m->base.recipe.n && rt_net_new(&integers, m) == NB_OK;
    const double start = nb_seconds();
    const status s = evaluate(e, m, e->integer ? &integers : NULL, data, predicted, progress);
    e->seconds = nb_seconds() - start;
    e->accuracy /= (double)data->n;
    e->nll /= (double)data->n;
    rt_net_free(&integers);
    return s;
}

/* ---- calibration -------------------------------------------------------------------------- */

status kd_picture_sample(real *x, const fm_pictures *data, int64_t from, int64_t n, uint64_t seed)
{
    const int64_t in = data->height * data->width;
    int64_t *order = nb_alloc((size_t)data->n, sizeof *order);
    if (!order)
        return NB_NOMEM;
    nb_random_permutation(order, data->n, seed, 501);
    for (int64_t b = 0; b < n; b++)
        kd_picture_values(x + b * in, data->pixel + order[from + b] * in, in);
    free(order);
    return NB_OK;
}

status kd_picture_watch(md_picture_net *m, const fm_pictures *data, int64_t n, uint64_t seed, ag_tap tap)
{
    const int64_t in = data->height * data->width;
    TRY(kd_picture_fits(m, data));
    ag_tape t = {.quantize_off = true, .tap = tap};
    real *x = nb_alloc((size_t)(BATCH * in), sizeof *x), *logits = nb_alloc((size_t)(BATCH * m->stages.classes), sizeof *logits);
    status s = x && logits ? NB_OK : NB_NOMEM;
    n = n < data->n ? n : data->n;
    for (int64_t from = 0; from < n && s == NB_OK; from += BATCH) {
        const int64_t B = n - from < BATCH ? n - from : BATCH;
        s = kd_picture_sample(x, data, from, B, seed);
        if (s == NB_OK)
            s = on_tape(&t, logits, m, x, B);
        if (s == NB_OK)
            s = fq_observe_end(&m->base.sites);
    }
    ag_tape_free(&t);
    free(x);
    free(logits);
    return s;
}

status kd_picture_calibrate(md_picture_net *m, const fm_pictures *data, fq_start how, int64_t n, uint64_t seed)
{
    TRY(kd_picture_fits(m, data));
    TRY(fq_start_weights(&m->base.sites, how, NULL, NULL));
    return kd_picture_watch(m, data, n, seed, (ag_tap){fq_observe, &m->base.sites});
}
