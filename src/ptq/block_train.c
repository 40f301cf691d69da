/* block_train.c - the loop behind methods that train a block on its own output; block_train.h has the loss.
 *   windows: the first eighth (at most 16) is scored, the others are trained on in an order drawn anew for every pass over them
 */
#include "ptq/block_train.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOWS = 256, LENGTH = 512, LEAST_TOKENS = 512, MOST_TOKENS = 2048, EACH = 64 /* parameters, a token in a step */, STEPS = 200, SCORES = 4 /* in a block, beside the start's */, MOST_SCORED = 16 };

typedef struct {
    const pt_block_method *how;
    const pt_options *o;
    pt_walk walk;   /* x */
    real *y;        /* [windows, length, C] targets, then what the next float block reads */
    int64_t batch, scored, passed; /* windows of a mini-batch; not trained on; drawn from `order` */
    int64_t *order; /* [windows - scored] */
    int64_t epoch;
    double lr, scale_rate;
    ag_schedule schedule;
    pt_part part;
    pt_block b;
    real **best;        /* [b.trained.n] */
    bool *was_frozen;   /* [m->params.n] */
    ag_tape tape;
    real *bx, *by, *br; /* [batch, length, C]: input, target / |target|, 1 / |target| */
    double last;        /* L of the best values */
} trainer;

/* ---- weights of a block ------------------------------------------------------------------- */

int64_t pt_run_of_scale(const kn_codes *c, int64_t row, int64_t col)
{
    const int64_t rest = c->cols - col, group = c->grid.group;
    int64_t n = rest;
    if (c->grid.grain == KN_GROUP || c->grid.grain == KN_HEAD)
        n = group - col % group;
    else if (c->grid.grain == KN_BLOCK)
        n = group - (row * c->cols + col) % group;
    return n < rest ? n : rest;
}

status pt_block_scales(pt_block_weight *w)
{
    if (w->site->start) {
        fq_site_ranges(w->site, w->scale, NULL);
        return NB_OK;
    }
    const kn_codes *c = fq_site_codes(w->site, w->site->params);
    if (!c)
        return NB_NOMEM;
    memcpy(w->scale, c->scale, (size_t)w->site->n_scales * sizeof *w->scale);
    return NB_OK;
}

static status list(ag_params *t, ag_param *p)
{
    if (t->n == t->capacity) {
        const int64_t capacity = t->capacity ? 2 * t->capacity : 32;
        ag_param **more = nb_resize(t->p, (size_t)capacity, sizeof *more);
        if (!more)
            return NB_NOMEM;
        t->p = more;
        t->capacity = capacity;
    }
    t->p[t->n++] = p;
    return NB_OK;
}

status pt_block_train(pt_block *b, ag_param *p)
{
    return list(&b->trained, p);
}

status pt_block_watch(pt_block *b, ag_param *p)
{
    return p ? list(&b->watched, p) : NB_OK;
}

static void moments_free(ag_param *p)
{
    free(p->m);
    free(p->v);
    free(p->g);
    p->m = p->v = p->g = NULL;
    p->has_grad = false;
}

static void block_free(trainer *t)
{
    pt_block *b = &t->b;
    if (t->how->end)
        t->how->end(b);
    for (int64_t i = 0; i < b->trained.n; i++) {
        if (t->best)
            free(t->best[i]);
        moments_free(b->trained.p[i]);
    }
    for (int64_t i = 0; i < t->walk.m->params.n && t->was_frozen; i++) {
        ag_param *p = t->walk.m->params.p[i];
        p->frozen = t->was_frozen[i];
        if (pt_is_of_block(p->name, b->layer))
            moments_free(p);
    }
    for (int64_t i = 0; i < b->n; i++) {
        free(b->weight[i].start);
        free(b->weight[i].scale);
    }
    free(b->weight);
    free(t->best);
    free(t->was_frozen);
    free(b->trained.p);
    free(b->watched.p);
    ag_params_free(&b->own);
    *b = (pt_block){0};
    t->best = NULL;
    t->was_frozen = NULL;
}

/* An earlier method's codes stay; the floats behind them come as near to what they were as the cells of the codes allow. */
static status weight_new(pt_block_weight *w, fq_site *site, const ag_params *ps, const pt_floats *floats)
{
    const size_t n = (size_t)site->w->count;
    for (int64_t i = 0; floats && i < ps->n; i++)
        if (ps->p[i] == site->w)
            TRY(fq_site_loosen(site, ps, floats->x[i]));
    *w = (pt_block_weight){.site = site, .start = nb_alloc(n, sizeof(real)), .scale = nb_alloc((size_t)site->n_scales, sizeof(real))};
    if (!w->start || !w->scale)
        return NB_NOMEM;
    memcpy(w->start, site->w->x, n * sizeof(real));
    return pt_block_scales(w);
}

/* What is neither trained nor watched is frozen while the block is trained: no gradient is made for it. */
static status freeze(trainer *t)
{
    const ag_params *ps = &t->walk.m->params;
    t->was_frozen = nb_alloc((size_t)ps->n, sizeof *t->was_frozen);
    for (int64_t i = 0; t->was_frozen && i < ps->n; i++)
        t->was_frozen[i] = ps->p[i]->frozen;
    return t->was_frozen ? NB_OK : NB_NOMEM;
}

static status block_new(trainer *t)
{
    md_model *m = t->walk.m;
    pt_block *b = &t->b;
    *b = (pt_block){.m = m, .layer = t->walk.layer, .steps = t->schedule.steps};
    TRY(freeze(t));
    b->weight = nb_alloc_zeroed((size_t)m->sites.n, sizeof *b->weight);
    if (!b->weight)
        return NB_NOMEM;
    for (int64_t i = 0; i < m->sites.n; i++) {
        fq_site *site = m->sites.s[i];
        if (site->is_weight && site->w && site->spec.grid.bits && site->w->n_dim == 2 && pt_is_of_block(site->name, b->layer))
            TRY(weight_new(&b->weight[b->n++], site, &m->params, t->o->floats));
    }
    if (b->n == 0)
        return nb_fail(NB_USAGE, "recipe %s leaves the weights of block %lld in floats: there is nothing to train", m->recipe.name,
                       (long long)b->layer);
    TRY(t->how->begin(b));
    t->best = nb_alloc_zeroed((size_t)b->trained.n, sizeof *t->best);
    if (!t->best)
        return NB_NOMEM;
    for (int64_t i = 0; i < b->trained.n; i++)
        if (!(t->best[i] = nb_alloc((size_t)b->trained.p[i]->count, sizeof(real))))
            return NB_NOMEM;
    return NB_OK;
}

static void keep_best(trainer *t, bool restore)
{
    const ag_params *ps = &t->b.trained;
    for (int64_t i = 0; i < ps->n; i++) {
        real *to = restore ? ps->p[i]->x : t->best[i];
        memcpy(to, restore ? t->best[i] : ps->p[i]->x, (size_t)ps->p[i]->count * sizeof(real));
    }
}

/* ---- the loss ----------------------------------------------------------------------------- */

static void compose(trainer *t, bool hard)
{
    t->b.hard = hard;
    if (t->how->compose)
        t->how->compose(&t->b);
    t->walk.m->params.version++;
}

/* Window `from` of the walk as window `to` of the mini-batch. */
static void fill(trainer *t, int64_t to, int64_t from)
{
    const int64_t T = t->walk.length, C = t->walk.m->config.dim;
    memcpy(t->bx + to * T * C, t->walk.x + from * T * C, (size_t)(T * C) * sizeof(real));
#pragma omp parallel for
    for (int64_t i = 0; i < T; i++) {
        const real *y = t->y + (from * T + i) * C;
        real *r = t->br + (to * T + i) * C, *g = t->by + (to * T + i) * C;
        const double squares = kn_sum_squares(y, C);
        const real inv = i > 0 && squares > 0 ? (real)sqrt((double)C * (double)T / ((double)(T - 1) * squares)) : 0;
        for (int64_t c = 0; c < C; c++) {
            r[c] = inv;
            g[c] = inv * y[c];
        }
    }
}

/* L of the n windows that were filled in; NULL: the tape has failed. */
static ag_tensor *loss(trainer *t, int64_t n, bool no_grad)
{
    ag_tape *tape = &t->tape;
    const int64_t dim[3] = {n, t->walk.length, t->walk.m->config.dim};
    ag_reset(tape);
    tape->no_grad = no_grad;
    tape->weights_off = t->how->soft && !no_grad;
    tape->precision = t->o->calibration.precision;
    ag_tensor *x = md_block_forward(tape, t->walk.m, t->b.layer, ag_leaf(tape, t->bx, NULL, 3, dim), NULL);
    return ag_mse(tape, ag_mul(tape, x, ag_leaf(tape, t->br, NULL, 3, dim)), ag_leaf(tape, t->by, NULL, 3, dim));
}

/* L of the windows that are not trained on. */
static status score(trainer *t, double *mean)
{
    *mean = 0;
    compose(t, true);
    for (int64_t i = 0, n; i < t->scored; i += n) {
        n = t->scored - i < t->batch ? t->scored - i : t->batch;
        for (int64_t k = 0; k < n; k++)
            fill(t, k, i + k);
        ag_tensor *l = loss(t, n, true);
        TRY(ag_status(&t->tape));
        *mean += (double)*ag_value(l) * (double)n / (double)t->scored;
    }
    return isfinite(*mean) ? NB_OK : nb_fail(NB_FORMAT, "block %lld: its error is not finite", (long long)t->b.layer);
}

/* ---- training ----------------------------------------------------------------------------- */

static void draw(trainer *t)
{
    const int64_t first = t->scored < t->walk.windows ? t->scored : 0, n = t->walk.windows - first;
    for (int64_t k = 0; k < t->batch; k++) {
        if (t->passed % n == 0)
            nb_random_permutation(t->order, n, t->o->seed, 1 + (uint64_t)t->epoch++);
        fill(t, k, first + t->order[t->passed++ % n]);
    }
}

static status update(trainer *t)
{
    pt_block *b = &t->b;
    const double factor = ag_schedule_at(&t->schedule, b->step);
    if (t->how->update) {
        t->how->update(b, t->lr * factor, t->scale_rate * factor);
        ag_params_clear_grad(&b->trained);
        return NB_OK;
    }
    ag_optimizer a = ag_adamw(t->lr * factor);
    a.rate[AG_SCALE] = t->lr > 0 ? t->scale_rate / t->lr : 0;
    return ag_optimizer_step(&a, &b->trained, b->step, NULL);
}

static status step(trainer *t)
{
    draw(t);
    compose(t, false);
    ag_tensor *l = loss(t, t->batch, false);
    TRY(ag_status(&t->tape));
    TRY(ag_backward(&t->tape, l));
    if (t->how->pull)
        t->how->pull(&t->b);
    status s = update(t);
    ag_params_clear_grad(&t->walk.m->params);
    return s;
}

static status tell(const trainer *t)
{
    char text[96];
    const int64_t layers = t->walk.m->config.layers, steps = t->schedule.steps;
    (void)snprintf(text, sizeof text, "block %lld of %lld, error %.5f of %.5f", (long long)t->walk.layer + 1, (long long)layers, t->last, t->b.first);
    return nb_progress_report(t->o->calibration.progress, t->walk.layer * steps + t->b.step, layers * steps, text)
               ? NB_OK
               : nb_fail(NB_INTERRUPTED, t->o->part ? "stopped; the same command goes on behind block %lld" : "stopped in block %lld",
                         (long long)t->walk.layer);
}

static bool is_listed(const ag_params *list_of, const ag_param *p)
{
    for (int64_t i = 0; i < list_of->n; i++)
        if (list_of->p[i] == p)
            return true;
    return false;
}

static status train_block(trainer *t)
{
    pt_block *b = &t->b;
    TRY(block_new(t));
    TRY(score(t, &t->b.first));
    t->last = t->b.first;
    keep_best(t, false);
    for (int64_t i = 0; i < t->walk.m->params.n; i++) {
        ag_param *p = t->walk.m->params.p[i];
        p->frozen = !is_listed(&b->trained, p) && !is_listed(&b->watched, p);
    }
    for (b->step = 1; b->step <= b->steps; b->step++) {
        TRY(tell(t));
        TRY(step(t));
        if (b->step * SCORES / b->steps == (b->step - 1) * SCORES / b->steps)
            continue;
        double now;
        TRY(score(t, &now));
        if (now < t->last) {
            t->last = now;
            keep_best(t, false);
        }
    }
    keep_best(t, true);
    compose(t, true);
    return NB_OK;
}

status pt_floats_copy(pt_floats *f, const md_model *m)
{
    *f = (pt_floats){.x = nb_alloc_zeroed((size_t)m->params.n, sizeof *f->x), .n = m->params.n};
    bool failed = !f->x;
    for (int64_t i = 0; i < f->n && !failed; i++) {
        const ag_param *p = m->params.p[i];
        if ((f->x[i] = nb_alloc_aligned((size_t)p->count, sizeof(real))))
            memcpy(f->x[i], p->x, (size_t)p->count * sizeof(real));
        else
            failed = true;
    }
    if (failed)
        pt_floats_free(f);
    return failed ? NB_NOMEM : NB_OK;
}

void pt_floats_free(pt_floats *f)
{
    for (int64_t i = 0; i < f->n && f->x; i++)
        free(f->x[i]);
    free(f->x);
    *f = (pt_floats){0};
}

/* Values of the block's parameters and of o->floats in each other's places. */
static void exchange(trainer *t)
{
    ag_params *ps = &t->walk.m->params;
    if (!t->o->floats)
        return;
    for (int64_t i = 0; i < ps->n; i++)
        if (pt_is_of_block(ps->p[i]->name, t->walk.layer)) {
            real *x = ps->p[i]->x;
            ps->p[i]->x = t->o->floats->x[i];
            t->o->floats->x[i] = x;
        }
    ps->version++;
}

/* y <- the block in floats, before anything of it changes. */
static status targets(trainer *t)
{
    pt_walk *w = &t->walk;
    real *x = w->x;
    w->weights = w->activations = false;
    w->x = t->y;
    exchange(t);
    status s = pt_walk_block(w, t->y, (ag_tap){0});
    exchange(t);
    w->x = x;
    w->weights = w->activations = true;
    return s;
}

static status train_all(trainer *t)
{
    md_model *m = t->walk.m;
    memcpy(t->y, t->walk.x, (size_t)(t->walk.windows * t->walk.length * m->config.dim) * sizeof(real));
    while (t->walk.layer < m->config.layers) {
        bool found;
        TRY(targets(t));
        TRY(pt_part_load(m, &t->part, t->walk.layer, &found));
        t->passed = t->epoch = 0;
        status s = found ? NB_OK : train_block(t);
        if (!found)
            block_free(t);
        TRY(s);
        if (!found)
            TRY(pt_part_save(m, &t->part, t->walk.layer));
        TRY(pt_walk_next(&t->walk));
    }
    return NB_OK;
}

/* ---- settings ----------------------------------------------------------------------------- */

static char *key_of(const trainer *t)
{
    nb_writer w = {0};
    pt_part_key(&w, t->walk.m, t->o, t->how->name, t->walk.ids, t->walk.windows, t->walk.length);
    nb_json_put_int(&w, "steps", t->schedule.steps);
    nb_json_put_number(&w, "lr", t->lr);
    nb_json_put_number(&w, "scale_lr", t->scale_rate);
    nb_json_close(&w, '}');
    return nb_json_text(&w);
}

/* More parameters want more tokens for a gradient that is as good. stories260K, blocks of 46k, q4_0: KL by autoround 0.0454 with 2048 tokens, 0.0442
 * with 1024, 0.0455 with 512; by blockap 0.0443, 0.0442, 0.0445. */
static int64_t tokens_of_step(const md_model *m)
{
    int64_t n = 0;
    for (int64_t i = 0; i < m->params.n; i++)
        n += pt_is_of_block(m->params.p[i]->name, 0) ? m->params.p[i]->count : 0;
    return n / EACH < LEAST_TOKENS ? LEAST_TOKENS : n / EACH > MOST_TOKENS ? MOST_TOKENS : n / EACH;
}

static status settle(trainer *t)
{
    const pt_walk *w = &t->walk;
    const int64_t C = w->m->config.dim;
    t->schedule = t->how->schedule;
    t->schedule.steps = t->o->block_steps > 0 ? t->o->block_steps : STEPS;
    t->lr = t->o->block_lr > 0 ? t->o->block_lr : t->how->lr > 0 ? t->how->lr : 1 / (double)t->schedule.steps;
    t->scale_rate = t->o->block_scale_lr > 0 ? t->o->block_scale_lr : t->how->scale_rate > 0 ? t->how->scale_rate : t->lr;
    if (w->windows < 1 || w->length < 2)
        return nb_fail(NB_USAGE, "%s: holds no window of two tokens", t->o->data->path);
    const int64_t tokens = tokens_of_step(w->m);
    t->batch = tokens / w->length > 1 ? tokens / w->length : 1;
    t->scored = w->windows / 8 < 1 ? 1 : w->windows / 8 < MOST_SCORED ? w->windows / 8 : MOST_SCORED;
    const size_t n = (size_t)(t->batch * w->length * C), all = (size_t)(w->windows * w->length * C);
    t->y = nb_alloc(all, sizeof(real));
    t->order = nb_alloc((size_t)w->windows, sizeof *t->order);
    t->bx = nb_alloc_aligned(n, sizeof(real));
    t->by = nb_alloc_aligned(n, sizeof(real));
    t->br = nb_alloc_aligned(n, sizeof(real));
    t->part = (pt_part){t->o->part, t->how->name, key_of(t)};
    return t->y && t->order && t->bx && t->by && t->br && t->part.key ? NB_OK : NB_NOMEM;
}

status pt_start_ranges(md_model *m, const pt_options *o)
{
    return fq_weights_started(&m->sites) && !fq_sites_need_calibration(&m->sites, NULL, 0) ? NB_OK : kd_find_ranges(m, FQ_START_IMPORTANCE, o->data, &o->calibration);
}

status pt_train_blocks(md_model *m, const pt_options *o, const pt_block_method *how)
{
    trainer t = {.how = how, .o = o};
    TRY(pt_start_ranges(m, o));
    kd_calibration c = o->calibration;
    c.samples = c.samples > 0 ? c.samples : WINDOWS;
    c.length = c.length > 0 ? c.length : LENGTH < m->config.ctx ? LENGTH : m->config.ctx;
    TRY(pt_walk_new(&t.walk, m, o->data, &c));
    t.walk.progress = NULL; /* told here, in steps */
    status s = settle(&t);
    if (s == NB_OK)
        s = train_all(&t);
    ag_tape_free(&t.tape);
    pt_walk_free(&t.walk);
    free(t.y);
    free(t.order);
    free(t.bx);
    free(t.by);
    free(t.br);
    free(t.part.key);
    return s;
}
