/* walk.c - layer by layer: x_0 = embed(ids), x_(l+1) = block_l(x_l), at most TOKENS tokens in one forward. */
#include "ptq/walk.h"
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 4096 };

/* A caller's tap, and where the block is left. */
typedef struct {
    ag_tap tap;
    const char *until;
    bool reached;
} watching;

static void pass_on(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    watching *a = ctx;
    if (a->reached)
        return;
    if (a->tap.fn)
        a->tap.fn(a->tap.ctx, site, in, out);
    a->reached = a->until && strcmp(site, a->until) == 0;
    if (a->reached && !in->tape->err)
        in->tape->err = NB_INTERRUPTED; /* operators that follow return NULL */
}

static int64_t batch(const pt_walk *w, int64_t i)
{
    return w->windows - i < w->at_once ? w->windows - i : w->at_once;
}

static void begin(pt_walk *w, bool weights)
{
    ag_reset(&w->tape);
    w->tape.weights_off = !weights;
    w->tape.activations_off = !w->activations;
}

/* Windows [i, i + n) through the block; y NULL: only watched. */
static status forward(pt_walk *w, real *y, int64_t i, int64_t n, watching *a)
{
    const int64_t dim[3] = {n, w->length, w->m->config.dim}, at = i * w->length * dim[2];
    begin(w, w->weights);
    a->reached = false;
    w->tape.tap = a->tap.fn || a->until ? (ag_tap){pass_on, a} : (ag_tap){0};
    ag_tensor *x = ag_leaf(&w->tape, w->x + at, NULL, 3, dim);
    const ag_tensor *out = w->layer < w->m->config.layers ? md_block_forward(&w->tape, w->m, w->layer, x, NULL)
                                                         : md_finish(&w->tape, w->m, x).x;
    w->tape.tap = (ag_tap){0};
    if (a->reached && w->tape.err == NB_INTERRUPTED)
        return NB_OK;
    const real *v = out ? ag_value(out) : NULL;
    TRY(ag_status(&w->tape));
    if (v && y)
        memcpy(y + at, v, (size_t)(n * w->length * dim[2]) * sizeof *y);
    return NB_OK;
}

static status run(pt_walk *w, real *y, watching *a)
{
    if (w->layer > w->m->config.layers)
        return nb_fail(NB_USAGE, "there is nothing behind the head");
    for (int64_t i = 0; i < w->windows; i += batch(w, i)) {
        if (!nb_progress_report(w->progress, w->layer, w->m->config.layers, NULL))
            return nb_fail(NB_INTERRUPTED, "interrupted");
        TRY(forward(w, y, i, batch(w, i), a));
    }
    ag_reset(&w->tape);
    return NB_OK;
}

status pt_walk_embed(pt_walk *w)
{
    const int64_t C = w->m->config.dim;
    for (int64_t i = 0; i < w->windows; i += batch(w, i)) {
        begin(w, true);
        const md_input in = {.B = batch(w, i), .T = w->length, .ids = w->ids + i * w->length};
        const ag_tensor *x = md_embed(&w->tape, w->m, &in);
        const real *v = x ? ag_value(x) : NULL;
        TRY(ag_status(&w->tape));
        if (v)
            memcpy(w->x + i * w->length * C, v, (size_t)(in.B * in.T * C) * sizeof *v);
    }
    ag_reset(&w->tape);
    return NB_OK;
}

status pt_walk_new(pt_walk *w, md_model *m, fm_tokens *data, const kd_calibration *c)
{
    *w = (pt_walk){.m = m, .progress = c->progress};
    if (m->folded)
        return nb_fail(NB_USAGE, "the model is folded: its floats are gone");
    if (!data)
        return nb_fail(NB_USAGE, "calibrated on what? (--data FILE, a text or a token file)");
    w->tape.no_grad = true;
    w->tape.precision = c->precision;
    status s = kd_even_windows(&w->ids, &w->windows, &w->length, m, data, c);
    if (s == NB_OK) {
        w->at_once = TOKENS / w->length > 1 ? TOKENS / w->length : 1;
        w->x = nb_alloc((size_t)w->windows, (size_t)(w->length * m->config.dim) * sizeof *w->x);
        s = w->x ? pt_walk_embed(w) : NB_NOMEM;
    }
    if (s != NB_OK)
        pt_walk_free(w);
    return s;
}

status pt_walk_watch(pt_walk *w, ag_tap tap, const char *until)
{
    watching a = {.tap = tap, .until = until};
    return run(w, NULL, &a);
}

status pt_walk_block(pt_walk *w, real *y, ag_tap tap)
{
    watching a = {.tap = tap};
    return run(w, y, &a);
}

status pt_walk_next(pt_walk *w)
{
    TRY(pt_walk_block(w, w->x, (ag_tap){0}));
    w->layer++;
    return nb_progress_report(w->progress, w->layer, w->m->config.layers, NULL) ? NB_OK : nb_fail(NB_INTERRUPTED, "interrupted");
}

void pt_walk_free(pt_walk *w)
{
    ag_tape_free(&w->tape);
    free(w->x);
    free(w->ids);
    *w = (pt_walk){0};
}
