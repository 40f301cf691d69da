/* e2eqp.c - end-to-end training of scales alone, the codes stay (E2E-QP, second phase of EfficientQAT, Chen et al. 2024).
 *   w^ = s (q - zero),  s = store(s0 e^a);   dL/da = sum over what shares the scale of dL/dw^ w^
 *   L = KL(floats || model) of the next token, or cross-entropy where the floats are not given (as published)
 * AdamW without decay on a, half a cosine to a twentieth; L of windows that are not trained on decides which scales are kept, those of the start
 * among them. The blocks' weights are trained, embedding and head stay. Latents become the values of the codes: folding encodes them to the same codes.
 */
#include "ptq/block_train.h" /* scales of weights */
#include "ptq/blockwise.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOWS = 1024, BATCH_TOKENS = 2048, STEPS = 100, SCORES = 4, MOST_SCORED = 16, SAVES = 10 };
static const double standard_lr = 3e-3;

typedef struct {
    fq_site *site;
    kn_codes codes; /* q stays, scale moves */
    real *scale;    /* [n_scales] when it began */
    ag_param *a;    /* [n_scales] */
} coded;

typedef struct {
    md_model *m;
    const pt_options *o;
    coded *w; /* [n] */
    int64_t n;
    ag_params own; /* the a of all */
    real **best;   /* [n] */
    bool *was_frozen;
    int32_t *ids;                    /* [windows, length] */
    int64_t windows, length, scored; /* the first `scored` are not trained on */
    int64_t batch, *order;
    int32_t *now, *target, *slot; /* [batch, length] */
    real *hidden;                 /* [batch, length, C] the teacher's */
    rt_session *teacher;
    ag_schedule schedule;
    double lr, first, last;
    pt_part part;
    ag_tape tape;
} trainer;

/* ---- codes and scales --------------------------------------------------------------------- */

static bool is_in_layers(const fq_site *s)
{
    return strncmp(s->name, "layers.", 7) == 0;
}

static status codes_of(coded *w, fq_site *site, ag_params *own, const ag_params *ps)
{
    const kn_codes *c = fq_site_codes(site, ps);
    if (!c)
        return NB_NOMEM;
    if (!site->start || kn_has_super(&c->grid))
        return nb_fail(NB_UNSUPPORTED, "%s: its scales follow the floats or one another; e2eqp trains single ones (a recipe with learned or static, like q4_0)",
                       site->name);
    w->site = site;
    TRY(kn_codes_new(&w->codes, &c->grid, c->rows, c->cols));
    const size_t n = (size_t)c->n_scales, elements = (size_t)(c->rows * c->ld);
    if (c->q)
        memcpy(w->codes.q, c->q, elements * sizeof *c->q);
    if (c->q16)
        memcpy(w->codes.q16, c->q16, elements * sizeof *c->q16);
    memcpy(w->codes.scale, c->scale, n * sizeof *c->scale);
    if (c->zero)
        memcpy(w->codes.zero, c->zero, n * sizeof *c->zero);
    w->scale = nb_alloc(n, sizeof *w->scale);
    w->a = ag_param_new(own, site->name, AG_WEIGHT, 1, &c->n_scales);
    if (!w->scale || !w->a || !(w->a->g = nb_alloc_aligned(n, sizeof(real))))
        return NB_NOMEM;
    memcpy(w->scale, c->scale, n * sizeof *c->scale);
    memset(w->a->x, 0, n * sizeof(real));
    return NB_OK;
}

/* a -> scales -> latents */
static void compose(trainer *t)
{
    for (int64_t k = 0; k < t->n; k++) {
        coded *w = &t->w[k];
        for (int64_t i = 0; i < w->codes.n_scales; i++)
            w->codes.scale[i] = kn_store(&w->codes.grid, w->scale[i] * (real)exp((double)w->a->x[i]));
        kn_decode(w->site->w->x, &w->codes, 0, w->codes.rows);
    }
    t->m->params.version++;
}

/* One site's da. */
static void pull(coded *w)
{
    const kn_codes *c = &w->codes;
    const ag_param *p = w->site->w;
    memset(w->a->g, 0, (size_t)c->n_scales * sizeof(real));
    w->a->has_grad = true;
    for (int64_t row = 0; row < c->rows && p->has_grad; row++)
        for (int64_t col = 0, n; col < c->cols; col += n) {
            n = pt_run_of_scale(c, row, col);
            const real *g = p->g + row * c->cols + col, *x = p->x + row * c->cols + col;
            double sum = 0;
            for (int64_t i = 0; i < n; i++)
                sum += (double)g[i] * (double)x[i];
            w->a->g[kn_scale_index(c, row, col)] += (real)sum;
        }
}

/* The embedding's and head's latents too: while scales are trained the tape computes with latents. */
static status weights(trainer *t)
{
    md_model *m = t->m;
    t->w = nb_alloc_zeroed((size_t)m->sites.n, sizeof *t->w);
    t->best = nb_alloc_zeroed((size_t)m->sites.n, sizeof *t->best);
    if (!t->w || !t->best)
        return NB_NOMEM;
    for (int64_t i = 0; i < m->sites.n; i++) {
        fq_site *s = m->sites.s[i];
        if (!s->is_weight || !s->w || !s->spec.grid.bits || s->w->n_dim != 2)
            continue;
        if (!is_in_layers(s)) {
            const kn_codes *c = s->start ? fq_site_codes(s, &m->params) : NULL;
            if (c)
                kn_decode(s->w->x, c, 0, c->rows);
            continue;
        }
        coded *w = &t->w[t->n++];
        TRY(codes_of(w, s, &t->own, &m->params));
        if (!(t->best[t->n - 1] = nb_alloc_zeroed((size_t)w->codes.n_scales, sizeof(real))))
            return NB_NOMEM;
    }
    return t->n ? NB_OK : nb_fail(NB_USAGE, "recipe %s leaves the weights of all blocks in floats: there are no scales to train", m->recipe.name);
}

static void freeze_others(trainer *t)
{
    const ag_params *ps = &t->m->params;
    for (int64_t i = 0; i < ps->n; i++) {
        t->was_frozen[i] = ps->p[i]->frozen;
        ps->p[i]->frozen = true;
    }
    for (int64_t k = 0; k < t->n; k++)
        t->w[k].site->w->frozen = false;
}

/* ---- the loss ----------------------------------------------------------------------------- */

static status teacher_logits(void *ctx, real *dst, int64_t row, int64_t n)
{
    trainer *t = ctx;
    return rt_head(t->teacher, dst, t->hidden + row * t->m->config.dim, n);
}

static void fill(trainer *t, int64_t to, int64_t from)
{
    const int64_t T = t->length;
    const int32_t *ids = t->ids + from * T;
    memcpy(t->now + to * T, ids, (size_t)T * sizeof *ids);
    for (int64_t i = 0; i < T; i++)
        t->target[to * T + i] = i + 1 < T ? ids[i + 1] : -1;
}

/* L of the n windows that were filled in; NULL: the tape has failed. */
static status loss(trainer *t, ag_tensor **l, int64_t n, bool no_grad)
{
    if (t->teacher) {
        for (int64_t b = 0; b < n; b++)
            rt_clear(t->teacher, b);
        TRY(rt_forward(t->teacher, n * t->length, t->slot, t->now, t->hidden));
    }
    ag_reset(&t->tape);
    t->tape.no_grad = no_grad;
    t->tape.weights_off = true;
    t->tape.precision = t->o->calibration.precision;
    const ag_head_loss how = {.ce = t->teacher ? 0 : 1, .kl = t->teacher ? 1 : 0, .teacher = t->teacher ? teacher_logits : NULL, .ctx = t};
    const md_output out = md_forward(&t->tape, t->m, &(md_input){.B = n, .T = t->length, .ids = t->now});
    *l = ag_head(&t->tape, out.x, out.w, out.b, t->target, &how, NULL);
    return ag_status(&t->tape);
}

static status score(trainer *t, double *mean)
{
    *mean = 0;
    for (int64_t i = 0, n; i < t->scored; i += n) {
        ag_tensor *l;
        n = t->scored - i < t->batch ? t->scored - i : t->batch;
        for (int64_t k = 0; k < n; k++)
            fill(t, k, i + k);
        TRY(loss(t, &l, n, true));
        *mean += (double)*ag_value(l) * (double)n / (double)t->scored;
    }
    return isfinite(*mean) ? NB_OK : nb_fail(NB_FORMAT, "the loss is not finite; a lower --e2e-lr may help");
}

static void keep_best(trainer *t, bool restore)
{
    for (int64_t k = 0; k < t->n; k++)
        memcpy(restore ? t->w[k].a->x : t->best[k], restore ? t->best[k] : t->w[k].a->x, (size_t)t->w[k].codes.n_scales * sizeof(real));
}

/* ---- training ----------------------------------------------------------------------------- */

static status step(trainer *t, int64_t number)
{
    ag_tensor *l;
    const int64_t first = t->scored < t->windows ? t->scored : 0, n = t->windows - first;
    for (int64_t k = 0; k < t->batch; k++) {
        const int64_t at = (number - 1) * t->batch + k;
        if (k == 0 || at % n == 0) /* at a step's beginning too: a run that goes on has no order yet */
            nb_random_permutation(t->order, n, t->o->seed, 1 + (uint64_t)(at / n));
        fill(t, k, first + t->order[at % n]);
    }
    TRY(loss(t, &l, t->batch, false));
    TRY(ag_backward(&t->tape, l));
#pragma omp parallel for schedule(dynamic)
    for (int64_t k = 0; k < t->n; k++)
        pull(&t->w[k]);
    ag_params_clear_grad(&t->m->params);
    const ag_optimizer a = ag_adamw(t->lr * ag_schedule_at(&t->schedule, number));
    TRY(ag_optimizer_step(&a, &t->own, number, NULL));
    compose(t);
    return NB_OK;
}

/* ---- a run that was stopped ----------------------------------------------------------------- */

/* METHOD-0.h5: step, first, last; of every weight a, its moments, the best a. Writes them, or reads what stands there. */
static status each(trainer *t, fm_h5 *f, bool save)
{
    for (int64_t k = 0; k < t->n; k++) {
        ag_param *a = t->w[k].a;
        a->m = a->m ? a->m : nb_alloc_aligned((size_t)a->count, sizeof(real));
        a->v = a->v ? a->v : nb_alloc_aligned((size_t)a->count, sizeof(real));
        if (!a->m || !a->v)
            return NB_NOMEM;
        const struct {
            const char *what;
            real *x;
        } array[] = {{"a", a->x}, {"m", a->m}, {"v", a->v}, {"best", t->best[k]}};
        for (size_t i = 0; i < sizeof array / sizeof *array; i++) {
            char name[192];
            (void)snprintf(name, sizeof name, "%s/%s", array[i].what, a->name);
            TRY(save ? fm_h5_write(f, name, FM_F32, 1, a->dim, array[i].x) : fm_h5_read_all(f, name, FM_F32, array[i].x, 1, a->dim));
        }
    }
    return NB_OK;
}

/* The state behind step `done`, which is at least 1. */
static status keep(trainer *t, int64_t done)
{
    fm_h5 f = {0};
    if (!t->part.folder || done == 0)
        return NB_OK;
    status s = pt_part_create(&f, &t->part, 0);
    if (s == NB_OK)
        s = fm_h5_put_int(&f, "", "step", done);
    if (s == NB_OK)
        s = fm_h5_put_number(&f, "", "first", t->first);
    if (s == NB_OK)
        s = fm_h5_put_number(&f, "", "last", t->last);
    if (s == NB_OK)
        s = each(t, &f, true);
    if (s == NB_OK)
        s = fm_h5_commit(&f);
    fm_h5_close(&f);
    return s;
}

/* *done: steps that an earlier run made; 0: there was none. */
static status go_on(trainer *t, int64_t *done)
{
    fm_h5 f;
    bool found;
    *done = 0;
    TRY(pt_part_open(&f, &t->part, 0, &found));
    if (!found)
        return NB_OK;
    status s = fm_h5_get_int(&f, "", "step", done);
    if (s == NB_OK && (*done < 1 || *done > t->schedule.steps))
        s = nb_fail(NB_FORMAT, "%s: step %lld of %lld", t->part.folder, (long long)*done, (long long)t->schedule.steps);
    if (s == NB_OK)
        s = fm_h5_get_number(&f, "", "first", &t->first);
    if (s == NB_OK)
        s = fm_h5_get_number(&f, "", "last", &t->last);
    if (s == NB_OK)
        s = each(t, &f, false);
    fm_h5_close(&f);
    return s;
}

static char *key_of(const trainer *t)
{
    nb_writer w = {0};
    pt_part_key(&w, t->m, t->o, t->part.method, t->ids, t->windows, t->length);
    nb_json_put_int(&w, "steps", t->schedule.steps);
    nb_json_put_number(&w, "lr", t->lr);
    nb_json_put_bool(&w, "teacher", t->teacher != NULL);
    nb_json_close(&w, '}');
    return nb_json_text(&w);
}

/* ---- all steps ------------------------------------------------------------------------------ */

static status begin(trainer *t, int64_t *done)
{
    t->part.key = key_of(t);
    if (!t->part.key)
        return NB_NOMEM;
    TRY(go_on(t, done));
    compose(t);
    if (*done == 0) {
        TRY(score(t, &t->first));
        t->last = t->first;
    }
    return NB_OK;
}

static status take_step(trainer *t, int64_t i)
{
    const int64_t steps = t->schedule.steps;
    TRY(step(t, i));
    if (i * SCORES / steps != (i - 1) * SCORES / steps) {
        double now;
        TRY(score(t, &now));
        if (now < t->last) {
            t->last = now;
            keep_best(t, false);
        }
    }
    return i * SAVES / steps != (i - 1) * SAVES / steps ? keep(t, i) : NB_OK;
}

static status run(trainer *t)
{
    char text[64];
    const int64_t steps = t->schedule.steps;
    int64_t done;
    TRY(begin(t, &done));
    for (; done < steps; done++) {
        (void)snprintf(text, sizeof text, "%s %.4f of %.4f", t->teacher ? "kl" : "ce", t->last, t->first);
        if (!nb_progress_report(t->o->calibration.progress, done, steps, text)) {
            TRY(keep(t, done));
            return nb_fail(NB_INTERRUPTED, t->part.folder ? "stopped; the same command goes on behind step %lld of the scales"
                                                          : "stopped behind step %lld of the scales",
                           (long long)done);
        }
        TRY(take_step(t, done + 1));
    }
    return NB_OK;
}

/* Whatever happens, the best scales so far stand at the end. */
static status train(trainer *t)
{
    status s = run(t);
    keep_best(t, true);
    compose(t);
    for (int64_t k = 0; k < t->n; k++)
        fq_site_set(t->w[k].site, t->w[k].codes.scale, t->w[k].codes.zero);
    return s;
}

static status settle(trainer *t)
{
    kd_calibration c = t->o->calibration;
    c.samples = c.samples > 0 ? c.samples : WINDOWS;
    TRY(kd_even_windows(&t->ids, &t->windows, &t->length, t->m, t->o->data, &c));
    if (t->windows < 1 || t->length < 2)
        return nb_fail(NB_USAGE, "%s: holds no window of two tokens", t->o->data->path);
    t->schedule = (ag_schedule){.kind = AG_COSINE, .floor = 0.05, .steps = t->o->e2e_steps > 0 ? t->o->e2e_steps : STEPS};
    t->schedule.warmup = t->schedule.steps / 32 + 1;
    t->lr = t->o->e2e_lr > 0 ? t->o->e2e_lr : standard_lr;
    t->batch = BATCH_TOKENS / t->length > 1 ? BATCH_TOKENS / t->length : 1;
    t->scored = t->windows / 8 < 1 ? 1 : t->windows / 8 < MOST_SCORED ? t->windows / 8 : MOST_SCORED;
    const size_t n = (size_t)(t->batch * t->length);
    t->order = nb_alloc((size_t)t->windows, sizeof *t->order);
    t->now = nb_alloc(n, sizeof *t->now);
    t->target = nb_alloc(n, sizeof *t->target);
    t->slot = nb_alloc(n, sizeof *t->slot);
    t->hidden = nb_alloc_aligned(n * (size_t)t->m->config.dim, sizeof *t->hidden);
    t->was_frozen = nb_alloc((size_t)t->m->params.n, sizeof *t->was_frozen);
    if (!t->order || !t->now || !t->target || !t->slot || !t->hidden || !t->was_frozen)
        return NB_NOMEM;
    for (size_t i = 0; i < n; i++)
        t->slot[i] = (int32_t)((int64_t)i / t->length);
    const rt_options how = {.slots = t->batch, .ctx = t->length, .precision = t->o->calibration.precision};
    return t->o->teacher ? rt_open(&t->teacher, t->o->teacher, &how) : NB_OK;
}

static void trainer_free(trainer *t, bool frozen)
{
    for (int64_t i = 0; frozen && i < t->m->params.n; i++) {
        ag_param *p = t->m->params.p[i];
        p->frozen = t->was_frozen[i];
        free(p->g);
        p->g = NULL;
        p->has_grad = false;
    }
    for (int64_t k = 0; k < t->n; k++) {
        kn_codes_free(&t->w[k].codes);
        free(t->w[k].scale);
        free(t->best[k]);
    }
    free(t->w);
    free(t->best);
    free(t->was_frozen);
    free(t->ids);
    free(t->order);
    free(t->now);
    free(t->target);
    free(t->slot);
    free(t->hidden);
    free(t->part.key);
    ag_params_free(&t->own);
    rt_close(t->teacher);
    ag_tape_free(&t->tape);
}

status pt_e2eqp(md_model *m, const pt_options *o)
{
    trainer t = {.m = m, .o = o, .part = {.folder = o->part, .method = "e2eqp"}};
    bool frozen = false;
    if (m->folded)
        return nb_fail(NB_USAGE, "the model is folded: its floats are gone");
    if (!o->data)
        return nb_fail(NB_USAGE, "trained on what? (--data FILE, a text or a token file)");
    TRY(pt_start_ranges(m, o));
    status s = settle(&t);
    if (s == NB_OK)
        s = weights(&t);
    if (s == NB_OK) {
        frozen = true;
        freeze_others(&t);
        s = train(&t);
    }
    trainer_free(&t, frozen);
    return s;
}
