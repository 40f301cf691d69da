/* stored_logits.c - the teacher's distributions made once and read again every epoch: the k most likely tokens of each position and the mass of
 * the rest, which is spread evenly when read:  log p_v = top_log[v]  or  log(rest / (V - k)).
 *
 * File, HDF5 kind "logits": /top_id [windows * ctx, k] I32, /top_log [windows * ctx, k] F16, /rest [windows * ctx] F16 (the mass); attributes
 * ctx, top_k, source (a fingerprint of teacher and windows). While they are made they stand in NAME.part (stored_part.c), so making
 * them goes on where it was stopped. Rows stand in the order of the training windows. Top-k with a rest is
 * biased against the tail: the reported KL always uses the teacher itself.
 */
#include "distill/stored_part.h"
#include "distill/trainer.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 256 };

struct kd_stored {
    fm_h5 file;
    int64_t k, V;
    int32_t *id;   /* [B*T, k] of the batch at hand, as below */
    float *log;
    float *rest;   /* [B*T] */
};

void kd_stored_close(kd_stored *s)
{
    if (!s)
        return;
    fm_h5_close(&s->file);
    free(s->id);
    free(s->log);
    free(s->rest);
    free(s);
}

typedef struct {
    real *hidden, *logits;
    double *lse;
} maker;

/* The k largest of z [V], largest first, lowest id among equals; returns their probability mass. */
static double largest(int32_t *id, uint16_t *log_p, const real *z, int64_t V, int64_t k, double lse)
{
    int64_t n = 0;
    double mass = 0;
    for (int64_t v = 0; v < V; v++) {
        if (n == k && z[v] <= z[id[k - 1]])
            continue;
        int64_t at = n < k ? n++ : k - 1;
        for (; at > 0 && z[id[at - 1]] < z[v]; at--)
            id[at] = id[at - 1];
        id[at] = (int32_t)v;
    }
    for (int64_t i = 0; i < k; i++) {
        log_p[i] = nb_half_from((float)((double)z[id[i]] - lse));
        mass += exp((double)nb_half_to(log_p[i]));
    }
    return mass;
}

/* The parts of a record of `rows` rows. */
static void parts(void *record, int64_t rows, int64_t k, int32_t **id, uint16_t **log_p, uint16_t **rest)
{
    *id = record;
    *log_p = (uint16_t *)(void *)(*id + rows * k);
    *rest = *log_p + rows * k;
}

static status make_rows(kd_trainer *t, maker *m, void *record, int64_t k, int64_t rows)
{
    const int64_t V = t->teacher->config.vocab;
    int32_t *id;
    uint16_t *log_p, *rest;
    parts(record, rows, k, &id, &log_p, &rest);
    for (int64_t row = 0; row < rows; row += CHUNK) {
        int64_t n = rows - row < CHUNK ? rows - row : CHUNK;
        TRY(rt_head(t->session, m->logits, m->hidden + row * t->teacher->config.dim, n));
        kn_logsumexp(m->lse, m->logits, n, V);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            double mass = largest(id + (row + i) * k, log_p + (row + i) * k, m->logits + i * V, V, k, m->lse[i]);
            rest[row + i] = nb_half_from((float)fmax(1 - mass, 0));
        }
    }
    return NB_OK;
}

/* The records that are not there yet. */
static status make_all(kd_trainer *t, kd_part *p, maker *m)
{
    const int64_t B = p->batch, T = t->o.ctx;
    while (p->n * B < p->windows) {
        int64_t at = p->n * B, n = kd_part_windows(p, p->n);
        if (!nb_progress_report(&t->run->progress, at, p->windows, "storing the teacher's logits"))
            return nb_fail(NB_INTERRUPTED, "stopped while storing the teacher's logits, %lld of %lld windows; the same command goes on from there",
                           (long long)at, (long long)p->windows);
        for (int64_t b = 0; b < n; b++) {
            t->index[b] = at + b;
            rt_clear(t->session, b);
        }
        TRY(kd_read_rows(t, n));
        TRY(rt_forward(t->session, n * T, t->slot, t->ids, m->hidden));
        TRY(make_rows(t, m, p->record, p->k, n * T));
        TRY(kd_part_append(p, p->record));
    }
    return NB_OK;
}

static status write_all(kd_trainer *t, fm_h5 *f, kd_part *p)
{
    TRY(fm_h5_stream(f, "top_id", FM_I32, 1, &p->k, 1024));
    TRY(fm_h5_stream(f, "top_log", FM_F16, 1, &p->k, 1024));
    TRY(fm_h5_stream(f, "rest", FM_F16, 0, NULL, 4096));
    TRY(fm_h5_put_int(f, "", "ctx", p->ctx));
    TRY(fm_h5_put_int(f, "", "top_k", p->k));
    TRY(fm_h5_put_string(f, "", "source", t->source));
    for (int64_t i = 0; i < p->n; i++) {
        const int64_t rows = kd_part_windows(p, i) * p->ctx;
        int32_t *id;
        uint16_t *log_p, *rest;
        if (!kd_part_read(p, p->record, i))
            return nb_fail(NB_IO, "%s: a batch changed while the file was open", p->path);
        parts(p->record, rows, p->k, &id, &log_p, &rest);
        TRY(fm_h5_append(f, "top_id", id, rows));
        TRY(fm_h5_append(f, "top_log", log_p, rows));
        TRY(fm_h5_append(f, "rest", rest, rows));
    }
    return fm_h5_commit(f);
}

static status make_file(kd_trainer *t, const char *path, int64_t k)
{
    const int64_t V = t->teacher->config.vocab, rows = t->o.batch * t->o.ctx;
    fm_h5 f = {0};
    kd_part p = {.windows = t->train.n + t->mixed.n, .ctx = t->o.ctx, .k = k, .batch = t->o.batch, .fd = -1};
    maker m = {nb_alloc_aligned((size_t)(rows * t->teacher->config.dim), sizeof(real)), nb_alloc_aligned((size_t)(CHUNK * V), sizeof(real)),
               nb_alloc(CHUNK, sizeof *m.lse)};
    status s = m.hidden && m.logits && m.lse ? kd_part_open(&p, path, t->source) : NB_NOMEM;
    if (s == NB_OK)
        s = make_all(t, &p, &m);
    if (s == NB_OK)
        s = fm_h5_create(&f, path, "logits");
    if (s == NB_OK)
        s = write_all(t, &f, &p);
    fm_h5_close(&f);
    kd_part_close(&p, s == NB_OK);
    free(m.hidden);
    free(m.logits);
    free(m.lse);
    return s;
}

static status check(kd_trainer *t, kd_stored *s, const char *path)
{
    const int64_t rows = (t->train.n + t->mixed.n) * t->o.ctx, of_top[2] = {rows, s->k};
    int64_t ctx, k;
    const char *source;
    TRY(fm_h5_get_int(&s->file, "", "ctx", &ctx));
    TRY(fm_h5_get_int(&s->file, "", "top_k", &k));
    TRY(fm_h5_get_string(&s->file, "", "source", &source));
    if (ctx != t->o.ctx || k != s->k || strcmp(source, t->source) != 0)
        return nb_fail(NB_USAGE, "%s holds logits of another teacher, data, --ctx or --top-k: name another file or remove it", path);
    const fm_array *id = fm_find(&s->file.arrays, "top_id"), *p = fm_find(&s->file.arrays, "top_log"), *rest = fm_find(&s->file.arrays, "rest");
    if (!id || !p || !rest || id->n_dim != 2 || p->n_dim != 2 || rest->n_dim != 1 || id->dim[0] != of_top[0] || id->dim[1] != of_top[1] ||
        p->dim[0] != of_top[0] || p->dim[1] != of_top[1] || rest->dim[0] != rows)
        return nb_fail(NB_FORMAT, "%s: its arrays are not [%lld, %lld]", path, (long long)rows, (long long)s->k);
    return NB_OK;
}

status kd_stored_open(kd_trainer *t, const char *path)
{
    const size_t rows = (size_t)(t->o.batch * t->o.ctx), k = (size_t)t->o.top_k;
    if (t->o.top_k >= t->teacher->config.vocab)
        return nb_fail(NB_USAGE, "--top-k %lld: the vocabulary has %lld tokens", (long long)t->o.top_k, (long long)t->teacher->config.vocab);
    if (!nb_path_exists(path))
        TRY(make_file(t, path, t->o.top_k));
    kd_stored *s = t->stored = nb_alloc_zeroed(1, sizeof *s);
    if (!s)
        return NB_NOMEM;
    s->k = t->o.top_k;
    s->V = t->teacher->config.vocab;
    s->id = nb_alloc(rows * k, sizeof *s->id);
    s->log = nb_alloc(rows * k, sizeof *s->log);
    s->rest = nb_alloc(rows, sizeof *s->rest);
    if (!s->id || !s->log || !s->rest)
        return NB_NOMEM;
    TRY(fm_h5_open(&s->file, path, "logits"));
    return check(t, s, path);
}

status kd_stored_batch(kd_trainer *t)
{
    kd_stored *s = t->stored;
    const int64_t T = t->o.ctx, k = s->k;
    for (int64_t b = 0; b < t->o.batch; b++) {
        TRY(fm_h5_read(&s->file, "top_id", FM_I32, s->id + b * T * k, t->index[b] * T, T));
        TRY(fm_h5_read(&s->file, "top_log", FM_F32, s->log + b * T * k, t->index[b] * T, T));
        TRY(fm_h5_read(&s->file, "rest", FM_F32, s->rest + b * T, t->index[b] * T, T));
    }
    for (int64_t i = 0; i < t->o.batch * T * k; i++)
        if (s->id[i] < 0 || s->id[i] >= s->V || !(s->log[i] <= 0))
            return nb_fail(NB_FORMAT, "stored logits: token %d with log probability %g", (int)s->id[i], (double)s->log[i]);
    return NB_OK;
}

void kd_stored_rows(const kd_stored *s, real *dst, int64_t row, int64_t n)
{
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        real *z = dst + i * s->V;
        /* a rest of 0 is what a half of it cannot show: below 2^-25 */
        double rest = fmax((double)s->rest[row + i], 0x1p-25);
        real each = (real)log(rest / (double)(s->V - s->k));
        for (int64_t v = 0; v < s->V; v++)
            z[v] = each;
        for (int64_t j = 0; j < s->k; j++)
            z[s->id[(row + i) * s->k + j]] = (real)s->log[(row + i) * s->k + j];
    }
}
