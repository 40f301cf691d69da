/* tokens_writer.c - a token file written batch by batch, then made of its batches in one piece.
 *   open     settings are copied; records are read up to the first that is not whole, the rest is cut off
 *   append   one record, one write; on failure the file is cut back to what it held
 *   finish   records are streamed into the HDF5 file, one in memory at a time
 */
#include "io/tokens_part.h"

#include "io/tokenizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ID_CHUNK = 1 << 16, DOCUMENT_CHUNK = 1 << 12 };

static void part_free(fm_part *p)
{
    if (!p)
        return;
    if (p->fd >= 0)
        (void)close(p->fd); /* gives the lock back */
    free(p->target);
    free(p->path);
    free(p->settings);
    free(p->tokenizer);
    free(p->record);
    free(p);
}

static status check_settings(const fm_tokens_settings *s, const char *settings)
{
    if (s->vocab_size < 1 || s->vocab_size > INT32_MAX)
        return nb_fail(NB_USAGE, "token file: a vocabulary of %lld", (long long)s->vocab_size);
    if (s->row_length < 0)
        return nb_fail(NB_USAGE, "token file: rows of %lld tokens", (long long)s->row_length);
    if (strlen(settings) > FM_H5_MAX_STRING)
        return nb_fail(NB_USAGE, "token file: settings of %zu bytes; at most %d are allowed", strlen(settings),
                       FM_H5_MAX_STRING);
    nb_json *j = nb_json_parse(settings, strlen(settings));
    if (!j)
        return nb_fail_in(NB_USAGE, "token file: settings");
    nb_json_free(j);
    return settings[0] == '{' ? NB_OK : nb_fail(NB_USAGE, "token file: settings are not a JSON object");
}

static status part_new(fm_part **part, const char *path, const fm_tokens_settings *s)
{
    const char *settings = s->settings ? s->settings : "{}";
    TRY(check_settings(s, settings));
    fm_part *p = nb_alloc_zeroed(1, sizeof *p);
    if (!p)
        return NB_NOMEM;
    *part = p;
    p->fd = -1;
    p->vocab_size = s->vocab_size;
    p->row_length = s->row_length;
    p->seed = s->seed;
    const fm_tokenizer *tk = s->tokenizer && s->tokenizer->kind != FM_TOKENIZER_NONE ? s->tokenizer : NULL;
    p->bos = tk ? tk->bos : -1;
    size_t n = strlen(path);
    p->target = nb_string(path);
    p->path = nb_alloc(n + sizeof ".part", 1);
    p->settings = nb_string(settings);
    if (!p->target || !p->path || !p->settings)
        return NB_NOMEM;
    memcpy(p->path, path, n);
    memcpy(p->path + n, ".part", sizeof ".part");
    if (tk) {
        TRY(fm_tokenizer_to_bytes(tk, &p->tokenizer, &p->tokenizer_bytes));
        p->tokenizer_hash = tk->hash;
    }
    if (p->tokenizer_bytes > UINT32_MAX / 2)
        return nb_fail(NB_USAGE, "%s: a tokenizer of %zu bytes", path, p->tokenizer_bytes);
    p->header_bytes = FM_PART_HEADER_BYTES + (int64_t)strlen(settings) + (int64_t)p->tokenizer_bytes + 4;
    return NB_OK;
}

/* Counts the whole records and cuts off what follows them. */
static status keep_whole_records(fm_tokens_writer *w)
{
    fm_part *p = w->part;
    int64_t file_bytes = fm_part_file_bytes(p);
    for (;;) {
        fm_part_record r;
        TRY(fm_part_read(p, &r, p->bytes, file_bytes));
        if (r.bytes == 0)
            break;
        p->bytes += r.bytes;
        w->n_batches++;
        w->n_tokens += r.n;
        w->n_documents += r.n_starts;
    }
    if (file_bytes > p->bytes && ftruncate(p->fd, (off_t)p->bytes) != 0)
        return nb_fail(NB_IO, "%s: cannot cut: %s", p->path, strerror(errno));
    return NB_OK;
}

status fm_tokens_writer_open(fm_tokens_writer *w, const char *path, const fm_tokens_settings *settings, bool restart)
{
    *w = (fm_tokens_writer){0};
    status s = part_new(&w->part, path, settings);
    if (s == NB_OK)
        s = fm_part_open(w->part, restart);
    if (s == NB_OK)
        s = keep_whole_records(w);
    if (s != NB_OK)
        fm_tokens_writer_close(w);
    return s;
}

void fm_tokens_writer_close(fm_tokens_writer *w)
{
    part_free(w->part);
    *w = (fm_tokens_writer){0};
}

/* ---- appending ---- */

static void put32(uint8_t *p, uint32_t x)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(x >> 8 * i);
}

/* Where documents begin when the caller does not say: writes them to start (NULL: counts only). */
static int64_t find_starts(const fm_tokens_writer *w, uint8_t *start, const int32_t *ids, int64_t n)
{
    const fm_part *p = w->part;
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        bool begins = (p->bos >= 0 && ids[i] == p->bos) || (p->row_length > 0 && i % p->row_length == 0) ||
                      (i == 0 && w->n_tokens == 0);
        if (begins && start)
            put32(start + 4 * count, (uint32_t)i);
        count += begins;
    }
    return count;
}

static status check_batch(const fm_tokens_writer *w, const int32_t *ids, int64_t n, const int64_t *start,
                          int64_t n_starts)
{
    const fm_part *p = w->part;
    if (n < 1 || n > UINT32_MAX / 4)
        return nb_fail(NB_USAGE, "%s: a batch of %lld tokens", p->path, (long long)n);
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= p->vocab_size)
            return nb_fail(NB_USAGE, "%s: id %d at %lld of the batch; the vocabulary has %lld", p->path, (int)ids[i],
                           (long long)i, (long long)p->vocab_size);
    if (!start)
        return NB_OK;
    for (int64_t i = 0; i < n_starts; i++)
        if (start[i] < 0 || start[i] >= n || (i > 0 && start[i] <= start[i - 1]))
            return nb_fail(NB_USAGE, "%s: document %lld of the batch begins at %lld", p->path, (long long)i,
                           (long long)start[i]);
    if (w->n_tokens == 0 && (n_starts < 1 || start[0] != 0))
        return nb_fail(NB_USAGE, "%s: the first document does not begin at 0", p->path);
    return NB_OK;
}

status fm_tokens_writer_append(fm_tokens_writer *w, const int32_t *ids, int64_t n, const int64_t *start,
                               int64_t n_starts)
{
    fm_part *p = w->part;
    TRY(check_batch(w, ids, n, start, n_starts));
    if (!start)
        n_starts = find_starts(w, NULL, ids, n);
    size_t id_bytes = fm_part_id_bytes(p->vocab_size);
    size_t starts_at = FM_PART_RECORD_BYTES + (size_t)n * id_bytes, crc_at = starts_at + (size_t)n_starts * 4;
    TRY(fm_part_reserve(p, crc_at + 4));
    put32(p->record, (uint32_t)n);
    put32(p->record + 4, (uint32_t)n_starts);
    uint8_t *at = p->record + FM_PART_RECORD_BYTES;
    for (int64_t i = 0; i < n; i++, at += id_bytes)
        for (size_t b = 0; b < id_bytes; b++)
            at[b] = (uint8_t)((uint32_t)ids[i] >> 8 * b);
    if (!start)
        (void)find_starts(w, p->record + starts_at, ids, n);
    for (int64_t i = 0; start && i < n_starts; i++)
        put32(p->record + starts_at + 4 * i, (uint32_t)start[i]);
    put32(p->record + crc_at, nb_crc32c(0, p->record, crc_at));
    status s = fm_part_write(p, p->record, crc_at + 4, p->bytes);
    if (s != NB_OK) {
        (void)!ftruncate(p->fd, (off_t)p->bytes); /* a torn record would be cut off at the next opening anyway */
        return s;
    }
    p->bytes += (int64_t)crc_at + 4;
    w->n_batches++;
    w->n_tokens += n;
    w->n_documents += n_starts;
    return NB_OK;
}

/* ---- finishing ---- */

static status append_documents(fm_h5 *f, const fm_part *p, const fm_part_record *r, int64_t offset, int64_t *last)
{
    int64_t start[256];
    for (int64_t i = 0; i < r->n_starts;) {
        int64_t n = 0;
        for (; n < 256 && i < r->n_starts; n++, i++) {
            int64_t at = fm_get32(r->start + 4 * i);
            if (at >= r->n || offset + at <= *last)
                return nb_fail(NB_FORMAT, "%s: a document begins at %lld of a batch of %lld tokens", p->path,
                               (long long)at, (long long)r->n);
            start[n] = *last = offset + at;
        }
        TRY(fm_h5_append(f, "documents", start, n));
    }
    return NB_OK;
}

static status write_attributes(fm_h5 *f, const fm_part *p)
{
    char hash[17];
    (void)snprintf(hash, sizeof hash, "%016llx", (unsigned long long)p->tokenizer_hash);
    TRY(fm_h5_put_int(f, "", "format_version", 1));
    TRY(fm_h5_put_int(f, "", "vocab_size", p->vocab_size));
    TRY(fm_h5_put_int(f, "", "row_length", p->row_length));
    TRY(fm_h5_put_int(f, "", "seed", p->seed));
    TRY(fm_h5_put_string(f, "", "settings", p->settings));
    if (!p->tokenizer)
        return NB_OK;
    TRY(fm_h5_put_string(f, "", "tokenizer_hash", hash));
    int64_t dim = (int64_t)p->tokenizer_bytes;
    return fm_h5_write(f, "tokenizer", FM_U8, 1, &dim, p->tokenizer);
}

static status write_tokens(fm_h5 *f, fm_part *p)
{
    TRY(write_attributes(f, p));
    TRY(fm_h5_stream(f, "ids", fm_part_id_bytes(p->vocab_size) == 2 ? FM_U16 : FM_U32, 0, NULL, ID_CHUNK));
    TRY(fm_h5_stream(f, "documents", FM_I64, 0, NULL, DOCUMENT_CHUNK));
    int64_t offset = 0, last = -1;
    for (int64_t at = p->header_bytes; at < p->bytes;) {
        fm_part_record r;
        TRY(fm_part_read(p, &r, at, p->bytes));
        if (r.bytes == 0)
            return nb_fail(NB_IO, "%s: a batch changed while the file was open", p->path);
        TRY(fm_h5_append(f, "ids", r.id, r.n));
        TRY(append_documents(f, p, &r, offset, &last));
        offset += r.n;
        at += r.bytes;
    }
    return NB_OK;
}

status fm_tokens_writer_finish(fm_tokens_writer *w)
{
    fm_part *p = w->part;
    fm_h5 f = {0};
    status s = fm_h5_create(&f, p->target, "tokens");
    if (s == NB_OK)
        s = write_tokens(&f, p);
    if (s == NB_OK)
        s = fm_h5_commit(&f);
    fm_h5_close(&f);
    if (s != NB_OK)
        return s;
    if (unlink(p->path) != 0)
        return nb_fail(NB_IO, "%s: cannot remove: %s", p->path, strerror(errno));
    fm_tokens_writer_close(w);
    return NB_OK;
}
