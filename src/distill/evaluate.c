/* evaluate.c - likelihood of data under a model, and its distance to a teacher, window by window.
 *   nll = mean over scored tokens of -log q(x_t | x_<t);  kl = mean_t sum_v p_v (log p_v - log q_v), p the teacher's
 */
#include "distill/scores.h"
#include "distill/windows.h"
#include <math.h>
#include <stdlib.h>

enum { CHUNK = 256, SAVE_SECONDS = 20 };

typedef struct {
    md_model *model;
    rt_session *session;
    real *hidden, *logits; /* [rows, C], [CHUNK, V] */
    double *lse;           /* [CHUNK] */
} side;

typedef struct {
    double nll, teacher_nll;
    float kl;
    bool same_top, scored;
} row_result;

typedef struct {
    side model, teacher; /* teacher.model NULL: none */
    int64_t V, ctx, per_batch, rows;
    int64_t skip; /* first so many rows of a window are not scored */
    int32_t bos;  /* what every window begins with instead of its first token; -1: that */
    int32_t *ids, *length, *slot, *place; /* slot: a row's window in the batch, place: where it stands there */
    row_result *row; /* [CHUNK] */
    kd_scores scores;
} evaluator;

static void side_free(side *s)
{
    rt_close(s->session);
    free(s->hidden);
    free(s->logits);
    free(s->lse);
}

static status side_open(side *s, md_model *m, const evaluator *e, kn_precision precision)
{
    rt_options o = {.slots = e->per_batch, .ctx = e->ctx, .precision = precision};
    s->model = m;
    TRY(rt_open(&s->session, m, &o));
    s->hidden = nb_alloc_aligned((size_t)(e->rows * m->config.dim), sizeof(real));
    s->logits = nb_alloc_aligned((size_t)(CHUNK * m->config.vocab), sizeof(real));
    s->lse = nb_alloc(CHUNK, sizeof *s->lse);
    return s->hidden && s->logits && s->lse ? NB_OK : NB_NOMEM;
}

static status side_run(side *s, int64_t windows, int64_t rows, const int32_t *slot, const int32_t *ids)
{
    for (int64_t i = 0; i < windows; i++)
        rt_clear(s->session, i);
    return rt_forward(s->session, rows, slot, ids, s->hidden);
}

static int64_t top(const real *z, int64_t V)
{
    int64_t best = 0;
    for (int64_t v = 1; v < V; v++)
        if (z[v] > z[best])
            best = v;
    return best;
}

static void score(evaluator *e, row_result *r, int64_t i, int32_t target)
{
    const real *z = e->model.logits + i * e->V, *zt = e->teacher.logits + i * e->V;
    r->nll = e->model.lse[i] - (double)z[target];
    if (!e->teacher.model)
        return;
    double kl = 0, lt = e->teacher.lse[i], shift = e->model.lse[i] - lt;
    for (int64_t v = 0; v < e->V; v++)
        kl += exp((double)zt[v] - lt) * ((double)zt[v] - (double)z[v] + shift);
    r->teacher_nll = lt - (double)zt[target];
    r->kl = (float)(kl > 0 ? kl : 0);
    r->same_top = top(z, e->V) == top(zt, e->V);
}

/* Scores a batch of windows whose tokens lie in rows, window after window without padding. */
static status score_batch(evaluator *e, int64_t first, int64_t rows)
{
    for (int64_t from = 0; from < rows; from += CHUNK) {
        int64_t n = rows - from < CHUNK ? rows - from : CHUNK;
        bool any = false;
        for (int64_t i = 0; i < n; i++) {
            const int64_t k = from + i;
            e->row[i].scored = e->place[k] >= e->skip && k + 1 < rows && e->slot[k] == e->slot[k + 1];
            any = any || e->row[i].scored;
        }
        if (!any)
            continue;
        TRY(rt_head(e->model.session, e->model.logits, e->model.hidden + from * e->model.model->config.dim, n));
        kn_logsumexp(e->model.lse, e->model.logits, n, e->V);
        if (e->teacher.model) {
            TRY(rt_head(e->teacher.session, e->teacher.logits, e->teacher.hidden + from * e->teacher.model->config.dim, n));
            kn_logsumexp(e->teacher.lse, e->teacher.logits, n, e->V);
        }
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++)
            if (e->row[i].scored)
                score(e, &e->row[i], i, e->ids[from + i + 1]);
        for (int64_t i = 0; i < n; i++) {
            const int64_t window = first + e->slot[from + i];
            if (!e->row[i].scored)
                continue;
            e->scores.nll[window] += e->row[i].nll;
            e->scores.tokens[window]++;
            if (e->teacher.model) {
                e->scores.sum_kl += (double)e->row[i].kl;
                e->scores.sum_teacher += e->row[i].teacher_nll;
                e->scores.same += e->row[i].same_top;
                TRY(kd_scores_keep(&e->scores, e->row[i].kl));
            }
        }
    }
    return NB_OK;
}

static int rising(const void *a, const void *b)
{
    const float *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static void summarize(kd_eval *r, kd_scores *e, bool has_teacher)
{
    const int64_t windows = e->windows;
    double sum = 0, square = 0;
    for (int64_t i = 0; i < windows; i++) {
        sum += e->nll[i];
        r->tokens += e->tokens[i];
    }
    double n = (double)r->tokens;
    r->windows = windows;
    r->nll = sum / n;
    for (int64_t i = 0; i < windows; i++) {
        double d = e->nll[i] - r->nll * (double)e->tokens[i];
        square += d * d;
    }
    double error = windows > 1 ? sqrt(square * (double)windows / (double)(windows - 1)) / n : 0;
    r->ppl = exp(r->nll);
    r->ppl_low = exp(r->nll - 1.96 * error);
    r->ppl_high = exp(r->nll + 1.96 * error);
    if (!has_teacher)
        return;
    r->has_teacher = true;
    r->kl = e->sum_kl / n;
    r->teacher_nll = e->sum_teacher / n;
    r->same_top = (double)e->same / n;
    qsort(e->kl, (size_t)e->n_kl, sizeof *e->kl, rising);
    r->kl_median = (double)e->kl[e->n_kl / 2];
    r->kl_p99 = (double)e->kl[(int64_t)(0.99 * (double)(e->n_kl - 1))];
}

static status run(evaluator *e, const kd_windows *w, fm_tokens *data, const kd_eval_options *o)
{
    const int64_t windows = e->scores.windows;
    int64_t total = 0, done = 0;
    double saved = nb_seconds();
    for (int64_t i = 0; i < windows; i++) {
        total += w->length[i];
        done += i < e->scores.done ? w->length[i] : 0;
    }
    for (int64_t first = e->scores.done; first < windows; first += e->per_batch) {
        int64_t n = windows - first < e->per_batch ? windows - first : e->per_batch, rows = 0;
        for (int64_t i = 0; i < n; i++) {
            e->length[i] = w->length[first + i];
            TRY(fm_tokens_read(data, e->ids + rows, w->start[first + i], e->length[i]));
            if (e->bos >= 0)
                e->ids[rows] = e->bos;
            for (int64_t t = 0; t < e->length[i]; t++, rows++) {
                e->slot[rows] = (int32_t)i;
                e->place[rows] = (int32_t)t;
            }
        }
        TRY(side_run(&e->model, n, rows, e->slot, e->ids));
        if (e->teacher.model)
            TRY(side_run(&e->teacher, n, rows, e->slot, e->ids));
        TRY(score_batch(e, first, rows));
        done += rows;
        e->scores.done = first + n;
        const bool goes_on = nb_progress_report(o->progress, done, total, "evaluating");
        if (o->part && (!goes_on || nb_seconds() - saved > SAVE_SECONDS)) {
            TRY(kd_scores_save(&e->scores, o->part, o->part_key));
            saved = nb_seconds();
        }
        if (!goes_on)
            return nb_fail(NB_INTERRUPTED, "evaluation stopped at %lld of %lld tokens", (long long)done, (long long)total);
    }
    return NB_OK;
}

static status evaluate(kd_eval *r, evaluator *e, md_model *m, md_model *teacher, fm_tokens *data, const kd_windows *w, const kd_eval_options *o)
{
    int64_t windows = 0, tokens = 0;
    while (windows < w->n && (o->max_tokens <= 0 || tokens < o->max_tokens))
        tokens += w->length[windows++];
    e->per_batch = e->ctx >= 2048 ? 1 : 2048 / e->ctx;
    if (e->per_batch > windows)
        e->per_batch = windows;
    e->rows = e->per_batch * e->ctx;
    TRY(side_open(&e->model, m, e, o->precision));
    if (teacher)
        TRY(side_open(&e->teacher, teacher, e, KN_FP32));
    e->ids = nb_alloc((size_t)e->rows, sizeof *e->ids);
    e->slot = nb_alloc((size_t)e->rows, sizeof *e->slot);
    e->place = nb_alloc((size_t)e->rows, sizeof *e->place);
    e->length = nb_alloc((size_t)e->per_batch, sizeof *e->length);
    e->row = nb_alloc_zeroed(CHUNK, sizeof *e->row);
    if (!e->ids || !e->slot || !e->place || !e->length || !e->row)
        return NB_NOMEM;
    TRY(kd_scores_new(&e->scores, windows));
    if (o->part)
        TRY(kd_scores_load(&e->scores, o->part, o->part_key));
    TRY(run(e, w, data, o));
    r->cut_tokens = w->cut_tokens;
    summarize(r, &e->scores, teacher != NULL);
    return NB_OK;
}

status kd_evaluate_windows(kd_eval *r, md_model *m, md_model *teacher, fm_tokens *data, const kd_windows *w, int64_t ctx,
                           const kd_eval_options *o)
{
    double start = nb_seconds();
    evaluator e = {.V = m->config.vocab, .ctx = ctx, .bos = -1};
    if (o->windows > 0) {
        e.skip = ctx / 2;
        e.bos = m->tokenizer.kind != FM_TOKENIZER_NONE && m->tokenizer.add_bos ? m->config.bos : -1;
    }
    *r = (kd_eval){0};
    status s = evaluate(r, &e, m, teacher, data, w, o);
    side_free(&e.model);
    side_free(&e.teacher);
    free(e.ids);
    free(e.slot);
    free(e.place);
    free(e.length);
    free(e.row);
    kd_scores_free(&e.scores);
    r->seconds = nb_seconds() - start;
    return s;
}

/* The first `most` windows of exactly ctx tokens. */
static status keep_full(kd_windows *w, const fm_tokens *data, int64_t ctx, int64_t most)
{
    int64_t n = 0;
    for (int64_t i = 0; i < w->n && n < most; i++)
        if (w->length[i] == ctx) {
            w->start[n] = w->start[i];
            w->length[n++] = w->length[i];
        }
    w->n = n;
    return n ? NB_OK : nb_fail(NB_USAGE, "%s holds no window of %lld tokens (--ctx)", data->path, (long long)ctx);
}

status kd_evaluate(kd_eval *r, md_model *m, md_model *teacher, fm_tokens *data, const kd_eval_options *o)
{
    int64_t limit = m->config.ctx, V = m->config.vocab;
    kd_windows w;
    *r = (kd_eval){0};
    if (teacher && teacher->config.vocab != V)
        return nb_fail(NB_USAGE, "the teacher's vocabulary has %lld tokens, the model's %lld",
                       (long long)teacher->config.vocab, (long long)V);
    if (data->vocab_size > V)
        return nb_fail(NB_USAGE, "%s: a vocabulary of %lld tokens, the model's has %lld", data->path,
                       (long long)data->vocab_size, (long long)V);
    if (teacher && teacher->config.ctx < limit)
        limit = teacher->config.ctx;
    int64_t ctx = o->ctx ? o->ctx : data->row_length > 0 && data->row_length < limit ? data->row_length : limit;
    if (ctx > limit)
        return nb_fail(NB_USAGE, "windows of %lld tokens: the model's context is %lld", (long long)ctx, (long long)limit);
    TRY(kd_windows_new(&w, data, ctx, o->cut));
    status s = o->windows > 0 ? keep_full(&w, data, ctx, o->windows) : NB_OK;
    if (s == NB_OK)
        s = kd_evaluate_windows(r, m, teacher, data, &w, ctx, o);
    kd_windows_free(&w);
    return s;
}
