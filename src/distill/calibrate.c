/* calibrate.c - looking at a float model while it reads: windows in a random order, watched by a tap; the second moments of the
 * inputs of linears; ranges of weights and activations, and offsets of keys, from them. */
#include "distill/importance.h"
#include "distill/windows.h"
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 128, LENGTH = 256, TOKENS = 4096 /* at once */ };

/* ---- windows under a tap ------------------------------------------------------------------ */

/* Windows index[0..n), all of `length` tokens. */
static status watch_batch(md_model *m, ag_tape *tape, fm_tokens *data, const kd_windows *w, const int64_t *index,
                          int64_t n, int64_t length, int32_t *ids)
{
    int32_t *unused = ids + n * length; /* lengths again */
    TRY(kd_windows_read(w, data, index, n, length, ids, unused));
    ag_reset(tape);
    md_forward(tape, m, &(md_input){.B = n, .T = length, .ids = ids});
    return ag_status(tape);
}

typedef struct {
    md_model *m;
    fm_tokens *data;
    const kd_windows *w;
    int64_t ctx;
    const kd_calibration *o;
} reading;

/* A moving average is of batches, other ranges of all that is seen. */
static bool moves_on(const md_model *m, const ag_tape *tape)
{
    for (int64_t i = 0; i < m->sites.n && tape->tap.fn == fq_observe; i++)
        if (m->sites.s[i]->observer && m->sites.s[i]->spec.method == FQ_MOVING_AVERAGE)
            return true;
    return false;
}

static status watch_all(const reading *r, ag_tape *tape, int64_t *order)
{
    const int64_t samples = r->o->samples < r->w->n ? r->o->samples : r->w->n,
                  most = TOKENS / r->ctx > 1 ? TOKENS / r->ctx : 1;
    int32_t *ids = nb_alloc((size_t)(most * (r->ctx + 1)), sizeof *ids);
    status s = ids ? NB_OK : NB_NOMEM;
    nb_random_permutation(order, r->w->n, r->o->seed, 0); /* a trainer's first epoch: its own first batches */
    for (int64_t i = 0, n; i < samples && s == NB_OK; i += n) { /* neighbours of one length go together: no padding */
        const int64_t length = r->w->length[order[i]];
        for (n = 1; n < most && i + n < samples && r->w->length[order[i + n]] == length;)
            n++;
        if (!nb_progress_report(r->o->progress, i, samples, "calibration"))
            s = nb_fail(NB_INTERRUPTED, "interrupted");
        else
            s = watch_batch(r->m, tape, r->data, r->w, order + i, n, length, ids);
        if (s == NB_OK && moves_on(r->m, tape))
            s = fq_observe_end(&r->m->sites);
    }
    free(ids);
    return s;
}

static status watch(const reading *r, ag_tap tap)
{
    ag_tape tape = {.no_grad = true, .quantize_off = true, .precision = r->o->precision, .tap = tap};
    int64_t *order = nb_alloc((size_t)r->w->n, sizeof *order);
    status s = order ? watch_all(r, &tape, order) : NB_NOMEM;
    ag_tape_free(&tape);
    free(order);
    return s;
}

int64_t kd_calibration_length(const kd_calibration *o, const md_model *m)
{
    return o->length > 0 ? o->length : LENGTH < m->config.ctx ? LENGTH : m->config.ctx;
}

/* Resolves the defaults and cuts the windows; the caller frees *w. */
static status cut(kd_calibration *of, kd_windows *w, const md_model *m, fm_tokens *data, const kd_calibration *o)
{
    *of = *o;
    *w = (kd_windows){0};
    of->samples = o->samples > 0 ? o->samples : SAMPLES;
    of->length = kd_calibration_length(o, m);
    if (of->length > m->config.ctx)
        return nb_fail(NB_USAGE, "samples of %lld tokens, the model's context is %lld", (long long)of->length,
                       (long long)m->config.ctx);
    return kd_windows_new(w, data, of->length, false);
}

status kd_watch(md_model *m, fm_tokens *data, const kd_calibration *o, ag_tap tap)
{
    kd_calibration of;
    kd_windows w;
    TRY(cut(&of, &w, m, data, o));
    status s = watch(&(reading){m, data, &w, of.length, &of}, tap);
    kd_windows_free(&w);
    return s;
}

/* The length at which at most `samples` windows hold most tokens: few long ones or many short ones. */
static int64_t even_length(const kd_windows *w, int64_t samples, int64_t longest)
{
    int64_t best = 0, length = longest, *count = nb_alloc_zeroed((size_t)longest + 1, sizeof *count);
    for (int64_t i = 0; count && i < w->n; i++)
        count[w->length[i]]++;
    for (int64_t l = longest, n = 0; count && l >= 2; l--) {
        n += count[l];
        const int64_t tokens = l * (n < samples ? n : samples);
        if (tokens > best) {
            best = tokens;
            length = l;
        }
    }
    free(count);
    return count ? length : 0;
}

static status read_even(int32_t *ids, int64_t *windows, int64_t length, fm_tokens *data, const kd_windows *w, const kd_calibration *o)
{
    int64_t *order = nb_alloc((size_t)w->n, sizeof *order), n = 0;
    status s = order ? NB_OK : NB_NOMEM;
    if (order)
        nb_random_permutation(order, w->n, o->seed, 0);
    for (int64_t i = 0; i < w->n && n < o->samples && s == NB_OK; i++)
        if (w->length[order[i]] >= length)
            s = fm_tokens_read(data, ids + n++ * length, w->start[order[i]], length);
    free(order);
    *windows = n;
    return s;
}

status kd_even_windows(int32_t **ids, int64_t *windows, int64_t *length, const md_model *m, fm_tokens *data, const kd_calibration *o)
{
    kd_calibration of;
    kd_windows w;
    *ids = NULL;
    TRY(cut(&of, &w, m, data, o));
    of.samples = of.samples < w.n ? of.samples : w.n;
    *length = even_length(&w, of.samples, of.length);
    *ids = *length ? nb_alloc((size_t)of.samples, (size_t)*length * sizeof **ids) : NULL;
    status s = *ids ? read_even(*ids, windows, *length, data, &w, &of) : NB_NOMEM;
    kd_windows_free(&w);
    if (s != NB_OK) {
        free(*ids);
        *ids = NULL;
    }
    return s;
}

/* ---- importance --------------------------------------------------------------------------- */

status kd_importance_new(kd_importance *h, const md_model *m)
{
    const size_t n = (size_t)m->sites.n;
    *h = (kd_importance){.config = &m->config, .sites = &m->sites, .n = m->sites.n};
    h->sum = nb_alloc_zeroed(n, sizeof *h->sum);
    h->rows = nb_alloc_zeroed(n, sizeof *h->rows);
    h->mean = nb_alloc_zeroed(n, sizeof *h->mean);
    if (h->sum && h->rows && h->mean)
        return NB_OK;
    kd_importance_free(h);
    return NB_NOMEM;
}

void kd_importance_free(kd_importance *h)
{
    for (int64_t i = 0; i < h->n; i++) {
        if (h->sum)
            free(h->sum[i]);
        if (h->mean)
            free(h->mean[i]);
    }
    free(h->sum);
    free(h->rows);
    free(h->mean);
    *h = (kd_importance){0};
}

/* A thread owns its columns. */
void kd_add_squares(double *sum, const real *x, const real *f, int64_t M, int64_t C)
{
    enum { COLUMNS = 64 };
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < C; first += COLUMNS)
        for (int64_t m = 0; m < M; m++)
            for (int64_t c = first; c < C && c < first + COLUMNS; c++)
                sum[c] += (f ? (double)f[m] : 1) * (double)x[m * C + c] * (double)x[m * C + c];
}

void kd_add_importance(kd_importance *h, const char *site, const real *x, const real *f, int64_t M, int64_t C)
{
    for (int64_t i = 0; i < h->n && x; i++) {
        if (h->sites->s[i]->is_weight || strcmp(h->sites->s[i]->name, site) != 0)
            continue;
        if (!h->sum[i] && !(h->sum[i] = nb_alloc_zeroed((size_t)C, sizeof **h->sum))) {
            h->failed = true;
            return;
        }
        kd_add_squares(h->sum[i], x, f, M, C);
        h->rows[i] += M;
        return;
    }
}

void kd_gather_importance(void *importance, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    (void)out;
    kd_add_importance(importance, site, ag_value(in), NULL, ag_rows(in), ag_cols(in));
}

bool kd_input_site(char *name, size_t bytes, const char *weight)
{
    static const struct {
        const char *tail, *input;
    } map[] = {{".wq.weight", ".input"},   {".wk.weight", ".input"},     {".wv.weight", ".input"},
               {".wo.weight", ".out.input"}, {".gate.weight", ".input"}, {".up.weight", ".input"},
               {".down.weight", ".down.input"}, {"head.weight", "head.input"}, {"embed.weight", "head.input"}};
    snprintf(name, bytes, "%s", weight);
    for (size_t i = 0; i < sizeof map / sizeof *map; i++) {
        const size_t n = strlen(weight), k = strlen(map[i].tail);
        if (n >= k && !strcmp(weight + n - k, map[i].tail)) {
            snprintf(name + n - k, bytes - (n - k), "%s", map[i].input);
            return true;
        }
    }
    return false;
}

static bool is_looked_up_only(const kd_importance *h, const fq_site *weight)
{
    return !strcmp(weight->name, "embed.weight") && fq_site_find(h->sites, "head.weight");
}

int64_t kd_input_of(const kd_importance *h, const fq_site *weight)
{
    char name[160];
    (void)kd_input_site(name, sizeof name, weight->name);
    for (int64_t i = 0; i < h->n && !is_looked_up_only(h, weight); i++) {
        const fq_site *s = h->sites->s[i];
        if (!s->is_weight && strcmp(s->name, name) == 0 && s->cols == weight->cols)
            return i;
    }
    return -1;
}

const real *kd_importance_of(void *importance, const fq_site *weight)
{
    kd_importance *h = importance;
    const int64_t i = kd_input_of(h, weight);
    if (i < 0 || !h->sum[i])
        return NULL;
    if (!h->mean[i])
        h->mean[i] = nb_alloc((size_t)weight->cols, sizeof **h->mean);
    for (int64_t c = 0; h->mean[i] && c < weight->cols; c++)
        h->mean[i][c] = (real)(h->sum[i][c] / (double)h->rows[i]);
    h->failed = h->failed || !h->mean[i];
    return h->mean[i];
}

static status start_by_importance(const reading *r)
{
    kd_importance h;
    if (r->o->importance) {
        status given = fq_start_weights(&r->m->sites, FQ_START_IMPORTANCE, kd_importance_of, r->o->importance);
        return given == NB_OK && r->o->importance->failed ? NB_NOMEM : given;
    }
    TRY(kd_importance_new(&h, r->m));
    status s = watch(r, (ag_tap){kd_gather_importance, &h});
    if (s == NB_OK && !h.failed)
        s = fq_start_weights(&r->m->sites, FQ_START_IMPORTANCE, kd_importance_of, &h);
    if (s == NB_OK && h.failed)
        s = NB_NOMEM;
    kd_importance_free(&h);
    return s;
}

/* ---- offsets of keys ---------------------------------------------------------------------- */

typedef struct {
    const md_model *model;
    double *sum; /* [layers, kv channels] */
    int64_t rows;
} key_means;

static void gather_keys(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    key_means *s = ctx;
    (void)out;
    for (int64_t l = 0; l < s->model->config.layers; l++) {
        const ly_attention *a = &s->model->block[l].attn;
        const int64_t M = ag_rows(in), C = a->kv_heads * a->head_size;
        if (strcmp(a->k->name, site) != 0)
            continue;
        const real *x = ag_value(in);
        for (int64_t m = 0; x && m < M; m++)
            for (int64_t c = 0; c < C; c++)
                s->sum[l * C + c] += (double)x[m * C + c];
        s->rows += l == 0 ? M : 0;
    }
}

static bool has_offsets(const md_model *m)
{
    for (int64_t l = 0; l < m->config.layers; l++)
        if (m->block[l].attn.k_offset)
            return true;
    return false;
}

/* The tap sees k - b, so what it finds is added to the offset that is there. */
static status start_offsets(const reading *r)
{
    const md_config *c = &r->m->config;
    const int64_t C = c->kv_heads * c->head_size;
    if (!has_offsets(r->m))
        return NB_OK;
    key_means s = {r->m, nb_alloc_zeroed((size_t)(c->layers * C), sizeof *s.sum), 0};
    status st = s.sum ? watch(r, (ag_tap){gather_keys, &s}) : NB_NOMEM;
    for (int64_t l = 0; l < c->layers && st == NB_OK; l++) {
        ag_param *b = r->m->block[l].attn.k_offset;
        for (int64_t i = 0; b && i < C; i++)
            b->x[i] += (real)(s.sum[l * C + i] / (double)s.rows);
    }
    free(s.sum);
    return st;
}

/* ---- all ranges --------------------------------------------------------------------------- */

static status find_input_ranges(const reading *r)
{
    TRY(start_offsets(r));
    if (fq_sites_need_calibration(&r->m->sites, NULL, 0)) {
        TRY(watch(r, (ag_tap){fq_observe, &r->m->sites}));
        TRY(fq_observe_end(&r->m->sites));
    }
    r->m->params.version++;
    return NB_OK;
}

static status find_ranges(const reading *r, fq_start how)
{
    TRY(how == FQ_START_IMPORTANCE ? start_by_importance(r) : fq_start_weights(&r->m->sites, how, NULL, NULL));
    return find_input_ranges(r);
}

status kd_find_ranges_in(md_model *m, fq_start how, fm_tokens *data, const kd_windows *w, int64_t ctx, const kd_calibration *o)
{
    const reading r = {m, data, w, ctx, o};
    return fq_weights_started(&m->sites) ? find_input_ranges(&r) : find_ranges(&r, how);
}

/* No site may be left without ranges. */
static status all_seen(const md_model *m, const fm_tokens *data)
{
    char names[256];
    return fq_sites_need_calibration(&m->sites, names, sizeof names)
               ? nb_fail(NB_UNSUPPORTED, "%s: %s saw no data", data->path, names)
               : NB_OK;
}

status kd_find_input_ranges(md_model *m, fm_tokens *data, const kd_calibration *o)
{
    kd_calibration of;
    kd_windows w;
    if (!fq_sites_need_calibration(&m->sites, NULL, 0) && !has_offsets(m))
        return NB_OK;
    TRY(cut(&of, &w, m, data, o));
    status s = find_input_ranges(&(reading){m, data, &w, of.length, &of});
    kd_windows_free(&w);
    return s == NB_OK ? all_seen(m, data) : s;
}

status kd_find_ranges(md_model *m, fq_start how, fm_tokens *data, const kd_calibration *o)
{
    char names[256];
    kd_calibration of;
    kd_windows w;
    const bool watched = fq_sites_need_calibration(&m->sites, names, sizeof names);
    const bool gathers = how == FQ_START_IMPORTANCE && !o->importance;
    if (!data && (watched || gathers))
        return nb_fail(watched ? NB_UNSUPPORTED : NB_USAGE, "the ranges of %s come from data (--data FILE, a text or a token file)",
                       watched ? names : "weights by importance");
    if (!data) {
        m->params.version++;
        return how == FQ_START_IMPORTANCE ? start_by_importance(&(reading){.m = m, .o = o})
                                          : fq_start_weights(&m->sites, how, NULL, NULL);
    }
    TRY(cut(&of, &w, m, data, o));
    status s = find_ranges(&(reading){m, data, &w, of.length, &of}, how);
    kd_windows_free(&w);
    return s == NB_OK ? all_seen(m, data) : s;
}
