/* tokens.c - ids with document boundaries, from a token file (io.h tells its layout) or from a text.
 *   A token file stays on disk: a slice is read when it is asked for and its ids are checked then. The list of
 * documents is checked once, at opening. A text is tokenized whole, into 2 or 4 bytes a token.
 */
#include "io/io.h"

#include <stdlib.h>
#include <string.h>

void fm_tokens_close(fm_tokens *t)
{
    fm_h5_close(&t->file);
    fm_tokenizer_free(&t->tokenizer);
    free(t->path);
    free(t->id16);
    free(t->id32);
    free(t->start);
    *t = (fm_tokens){0};
}

/* ---- a token file ---- */

static status read_attributes(fm_tokens *t)
{
    int64_t version;
    TRY(fm_h5_get_int(&t->file, "", "format_version", &version));
    if (version != 1)
        return nb_fail(NB_UNSUPPORTED, "%s: token file of version %lld; 1 is known", t->path, (long long)version);
    TRY(fm_h5_get_int(&t->file, "", "vocab_size", &t->vocab_size));
    TRY(fm_h5_get_int(&t->file, "", "row_length", &t->row_length));
    TRY(fm_h5_get_int(&t->file, "", "seed", &t->seed));
    TRY(fm_h5_get_string(&t->file, "", "settings", &t->settings));
    if (t->vocab_size < 1 || t->vocab_size > INT32_MAX || t->row_length < 0)
        return nb_fail(NB_FORMAT, "%s: a vocabulary of %lld, rows of %lld tokens", t->path, (long long)t->vocab_size,
                       (long long)t->row_length);
    return NB_OK;
}

static status need_list(const fm_tokens *t, const char *name, int64_t *n, fm_dtype first, fm_dtype second)
{
    const fm_array *a = fm_h5_find(&t->file, name);
    if (!a)
        return nb_fail(NB_FORMAT, "%s: has no %s", t->path, name);
    if (a->n_dim != 1 || (a->dtype != first && a->dtype != second))
        return nb_fail(NB_FORMAT, "%s: %s is %s with %d dimensions; one of %s or %s is wanted", t->path, name,
                       fm_dtype_name(a->dtype), a->n_dim, fm_dtype_name(first), fm_dtype_name(second));
    *n = a->dim[0];
    return NB_OK;
}

static status read_tokenizer(fm_tokens *t)
{
    if (!fm_h5_find(&t->file, "tokenizer"))
        return NB_OK;
    int64_t bytes = 0;
    TRY(need_list(t, "tokenizer", &bytes, FM_U8, FM_U8));
    uint8_t *data = nb_alloc((size_t)bytes, 1);
    if (!data)
        return NB_NOMEM;
    status s = fm_h5_read(&t->file, "tokenizer", FM_U8, data, 0, bytes);
    if (s == NB_OK && (s = fm_tokenizer_from_bytes(&t->tokenizer, data, (size_t)bytes)) != NB_OK)
        s = nb_fail_in(s, "%s", t->path);
    free(data);
    if (s != NB_OK)
        return s;
    char hash[17];
    const char *stored;
    (void)snprintf(hash, sizeof hash, "%016llx", (unsigned long long)t->tokenizer.hash);
    TRY(fm_h5_get_string(&t->file, "", "tokenizer_hash", &stored));
    if (strcmp(stored, hash) != 0)
        return nb_fail(NB_FORMAT, "%s: its tokenizer has hash %s, tokenizer_hash says %.40s", t->path, hash, stored);
    return NB_OK;
}

static status check_documents(fm_tokens *t)
{
    if (t->n_documents > t->n || (t->n > 0 && t->n_documents == 0))
        return nb_fail(NB_FORMAT, "%s: %lld documents of %lld tokens", t->path, (long long)t->n_documents,
                       (long long)t->n);
    int64_t last = -1;
    for (int64_t from = 0; from < t->n_documents;) {
        int64_t start[512], n = t->n_documents - from < 512 ? t->n_documents - from : 512;
        TRY(fm_h5_read(&t->file, "documents", FM_I64, start, from, n));
        for (int64_t i = 0; i < n; i++) {
            if ((from + i == 0 && start[i] != 0) || start[i] <= last || start[i] >= t->n)
                return nb_fail(NB_FORMAT, "%s: document %lld begins at %lld, the one before at %lld, of %lld tokens",
                               t->path, (long long)(from + i), (long long)start[i], (long long)last, (long long)t->n);
            last = start[i];
        }
        from += n;
    }
    return NB_OK;
}

static status open_file(fm_tokens *t, const fm_tokenizer *tk)
{
    TRY(fm_h5_open(&t->file, t->path, "tokens"));
    TRY(read_attributes(t));
    TRY(need_list(t, "ids", &t->n, FM_U16, FM_U32));
    TRY(need_list(t, "documents", &t->n_documents, FM_I64, FM_I64));
    TRY(check_documents(t));
    TRY(read_tokenizer(t));
    if (tk && t->tokenizer.kind != FM_TOKENIZER_NONE && tk->hash != t->tokenizer.hash)
        return nb_fail(NB_USAGE,
                       "%s: was made with another tokenizer (%lld tokens, hash %016llx) than the one given "
                       "(%lld, %016llx)",
                       t->path, (long long)t->tokenizer.vocab_size, (unsigned long long)t->tokenizer.hash,
                       (long long)tk->vocab_size, (unsigned long long)tk->hash);
    return NB_OK;
}

/* ---- a text ---- */

/* Makes room for `more` elements after n in an array of capacity *capacity. */
static void *grow(void *p, int64_t n, int64_t more, int64_t *capacity, size_t size)
{
    if (p && more <= *capacity - n)
        return p;
    *capacity = n + more + n / 2 + 1024;
    return nb_resize(p, (size_t)*capacity, size);
}

typedef struct {
    int64_t ids, documents;
} capacities;

static status add_document(fm_tokens *t, capacities *c, const fm_ids *ids)
{
    int64_t *start = grow(t->start, t->n_documents, 1, &c->documents, sizeof *start);
    if (!start)
        return NB_NOMEM;
    t->start = start;
    t->start[t->n_documents++] = t->n;
    bool is_wide = t->vocab_size > 65536;
    void *list = grow(is_wide ? (void *)t->id32 : t->id16, t->n, ids->n, &c->ids, is_wide ? 4 : 2);
    if (!list)
        return NB_NOMEM;
    if (is_wide)
        t->id32 = list;
    else
        t->id16 = list;
    for (int64_t i = 0; i < ids->n; i++) {
        if (is_wide)
            t->id32[t->n + i] = (uint32_t)ids->id[i];
        else
            t->id16[t->n + i] = (uint16_t)ids->id[i];
    }
    t->n += ids->n;
    return NB_OK;
}

static status tokenize(fm_tokens *t, const fm_tokenizer *tk, fm_documents *documents, fm_ids *ids)
{
    capacities c = {0};
    for (;;) {
        fm_text document;
        TRY(fm_documents_next(documents, &document));
        if (!document.text)
            return NB_OK;
        ids->n = 0;
        TRY(fm_tokenizer_encode(tk, ids, document.text, document.bytes, FM_ADD_BOS));
        if (ids->n > 0)
            TRY(add_document(t, &c, ids));
    }
}

static status copy_tokenizer(fm_tokenizer *copy, const fm_tokenizer *tk)
{
    uint8_t *data;
    size_t bytes;
    TRY(fm_tokenizer_to_bytes(tk, &data, &bytes));
    status s = fm_tokenizer_from_bytes(copy, data, bytes);
    free(data);
    return s;
}

static status open_text(fm_tokens *t, const fm_tokenizer *tk, fm_split split)
{
    if (!tk || tk->kind == FM_TOKENIZER_NONE)
        return nb_fail(NB_USAGE, "%s: is a text and needs a tokenizer", t->path);
    t->from_text = true;
    t->settings = "{}";
    t->vocab_size = tk->vocab_size;
    TRY(copy_tokenizer(&t->tokenizer, tk));
    fm_documents *documents;
    TRY(fm_documents_open(&documents, t->path, split));
    fm_ids ids = {0};
    status s = tokenize(t, tk, documents, &ids);
    fm_ids_free(&ids);
    fm_documents_close(documents);
    return s;
}

/* ---- both ---- */

status fm_tokens_open(fm_tokens *t, const char *path, const fm_tokenizer *tk, fm_split split)
{
    *t = (fm_tokens){0};
    fm_file_kind kind;
    TRY(fm_file_kind_of(&kind, path));
    t->path = nb_string(path);
    if (!t->path)
        return NB_NOMEM;
    status s;
    if (kind == FM_FILE_HDF5)
        s = open_file(t, tk);
    else if (kind == FM_FILE_UNKNOWN)
        s = open_text(t, tk, split);
    else
        s = nb_fail(NB_USAGE, "%s: is a model; a token file or a text is wanted", path);
    if (s != NB_OK)
        fm_tokens_close(t);
    return s;
}

status fm_tokens_read(fm_tokens *t, int32_t *ids, int64_t from, int64_t n)
{
    if (n == 0 && from >= 0 && from <= t->n)
        return NB_OK;
    if (from < 0 || n < 0 || from > t->n || n > t->n - from)
        return nb_fail(NB_SHAPE, "%s: %lld tokens from %lld of %lld", t->path, (long long)n, (long long)from,
                       (long long)t->n);
    if (t->id16)
        for (int64_t i = 0; i < n; i++)
            ids[i] = t->id16[from + i];
    else if (t->id32)
        for (int64_t i = 0; i < n; i++)
            ids[i] = (int32_t)t->id32[from + i];
    else
        TRY(fm_h5_read(&t->file, "ids", FM_I32, ids, from, n));
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= t->vocab_size)
            return nb_fail(NB_FORMAT, "%s: token %lld is %d; the vocabulary has %lld", t->path, (long long)(from + i),
                           (int)ids[i], (long long)t->vocab_size);
    return NB_OK;
}

status fm_tokens_documents(fm_tokens *t, int64_t *start, int64_t from, int64_t n)
{
    if (from < 0 || n < 0 || from > t->n_documents + 1 || n > t->n_documents + 1 - from)
        return nb_fail(NB_SHAPE, "%s: %lld documents from %lld of %lld", t->path, (long long)n, (long long)from,
                       (long long)t->n_documents);
    if (n > 0 && from + n == t->n_documents + 1)
        start[--n] = t->n;
    if (n == 0)
        return NB_OK;
    if (!t->from_text)
        return fm_h5_read(&t->file, "documents", FM_I64, start, from, n);
    memcpy(start, t->start + from, (size_t)n * sizeof *start);
    return NB_OK;
}
