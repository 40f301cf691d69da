/* windows.c - cutting documents into windows of at most ctx tokens. */
#include "distill/windows.h"
#include <stdlib.h>
#include <string.h>

static status add(kd_windows *w, int64_t start, int64_t length)
{
    if (length < 2)
        return NB_OK;
    if (w->n == w->capacity) {
        int64_t capacity = w->capacity ? 2 * w->capacity : 1024;
        int64_t *s = nb_resize(w->start, (size_t)capacity, sizeof *s);
        if (!s)
            return NB_NOMEM;
        w->start = s;
        int32_t *l = nb_resize(w->length, (size_t)capacity, sizeof *l);
        if (!l)
            return NB_NOMEM;
        w->length = l;
        w->capacity = capacity;
    }
    w->start[w->n] = start;
    w->length[w->n++] = (int32_t)length;
    return NB_OK;
}

static status add_document(kd_windows *w, int64_t from, int64_t to, int64_t ctx, bool cut)
{
    for (int64_t at = from; at < to; at += ctx) {
        if (cut && at > from) {
            w->cut_tokens += to - at;
            break;
        }
        TRY(add(w, at, to - at < ctx ? to - at : ctx));
    }
    return NB_OK;
}

status kd_windows_new(kd_windows *w, fm_tokens *data, int64_t ctx, bool cut)
{
    enum { BATCH = 512 };
    int64_t start[BATCH + 1];
    status s = NB_OK;
    *w = (kd_windows){0};
    if (ctx < 2)
        return nb_fail(NB_USAGE, "windows of %lld tokens: at least 2 are needed to score one", (long long)ctx);
    if (data->row_length > 0) {
        for (int64_t at = 0; at < data->n && s == NB_OK; at += data->row_length)
            s = add_document(w, at, at + data->row_length < data->n ? at + data->row_length : data->n, ctx, cut);
    } else {
        for (int64_t d = 0; d < data->n_documents && s == NB_OK; d += BATCH) {
            int64_t n = data->n_documents - d < BATCH ? data->n_documents - d : BATCH;
            s = fm_tokens_documents(data, start, d, n + 1);
            for (int64_t i = 0; i < n && s == NB_OK; i++)
                s = add_document(w, start[i], start[i + 1], ctx, cut);
        }
    }
    if (s == NB_OK && w->n == 0)
        s = nb_fail(NB_USAGE, "%s holds no document of 2 tokens or more", data->path);
    if (s != NB_OK)
        kd_windows_free(w);
    return s;
}

void kd_windows_free(kd_windows *w)
{
    free(w->start);
    free(w->length);
    *w = (kd_windows){0};
}

status kd_windows_read(const kd_windows *w, fm_tokens *data, const int64_t *index, int64_t n, int64_t ctx, int32_t *ids, int32_t *length)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t at = index[i];
        length[i] = w->length[at];
        TRY(fm_tokens_read(data, ids + i * ctx, w->start[at], length[i]));
        memset(ids + i * ctx + length[i], 0, (size_t)(ctx - length[i]) * sizeof *ids);
    }
    return NB_OK;
}

status kd_windows_hash(uint64_t *h, const kd_windows *w, fm_tokens *data, int64_t ctx)
{
    int32_t *ids = nb_alloc((size_t)ctx, sizeof *ids);
    status s = ids ? NB_OK : NB_NOMEM;
    *h = NB_HASH_START;
    for (int64_t i = 0; i < w->n && s == NB_OK; i++) {
        s = fm_tokens_read(data, ids, w->start[i], w->length[i]);
        *h = nb_hash(nb_hash(*h, &w->length[i], sizeof *w->length), ids, (size_t)w->length[i] * sizeof *ids);
    }
    free(ids);
    return s;
}
