/* format_files.h - for tests of file formats: expectations, small files, and the two ways in which reading one is cut
 * short (its end missing, its memory missing).
 */
#ifndef NIBBLE_TESTS_FORMAT_FILES_H
#define NIBBLE_TESTS_FORMAT_FILES_H
#include "io/io.h"
#include "scratch.h"
#include <check.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
#define DATA     "../shared/data/"

static inline void must(status s)
{
    ck_assert_msg(s == NB_OK, "%s: %s", nb_status_name(s), nb_fail_message());
}

static inline void must_fail(status s, status wanted, const char *text)
{
    ck_assert_msg(s == wanted && strstr(nb_fail_message(), text), "%s: %s; wanted %s with '%s'", nb_status_name(s),
                  nb_fail_message(), nb_status_name(wanted), text);
}

static inline bool have(const char *path)
{
    bool found = nb_path_exists(path);
    if (!found)
        printf("skipped: no %s\n", path);
    return found;
}

/* The whole file as a copy of its own; the caller frees it. */
static inline uint8_t *load(const char *path, size_t *bytes)
{
    nb_mapped m;
    must(nb_map(&m, path));
    uint8_t *data = malloc(m.bytes + 1);
    ck_assert(data != NULL);
    memcpy(data, m.data, m.bytes);
    *bytes = m.bytes;
    nb_unmap(&m);
    return data;
}

static inline void same_files(const char *a, const char *b)
{
    size_t n, m;
    uint8_t *x = load(a, &n), *y = load(b, &m);
    ck_assert_uint_eq(n, m);
    ck_assert_msg(!memcmp(x, y, n), "%s and %s differ", a, b);
    free(x);
    free(y);
}

static inline void same_arrays(const fm_array *a, const fm_array *b)
{
    ck_assert_str_eq(a->name, b->name);
    ck_assert_msg(a->dtype == b->dtype && a->n_dim == b->n_dim && a->bytes == b->bytes, "%s differs", a->name);
    for (int i = 0; i < a->n_dim; i++)
        ck_assert_int_eq(a->dim[i], b->dim[i]);
    ck_assert(a->bytes == 0 || !memcmp(a->data, b->data, a->bytes));
}

/* Reads a file and gives it back at once. */
typedef status (*read_whole)(const char *path);

/* No shorter file than the one at path is accepted, at most `most` lengths tried, all of the first 300 among them. */
static inline void refuse_every_cut(const char *path, read_whole read, size_t most)
{
    size_t bytes;
    uint8_t *data = load(path, &bytes);
    size_t step = bytes / most + 1;
    for (size_t n = 0; n < bytes; n += n < 300 ? 1 : step) {
        const char *cut = scratch_write("cut", data, n);
        status s = read(cut);
        ck_assert_msg(s == NB_FORMAT || s == NB_UNSUPPORTED, "%zu of %zu bytes: %s", n, bytes, nb_status_name(s));
    }
    free(data);
}

/* With the k-th allocation and all after it failing, reading ends in NB_NOMEM, for every k until it succeeds. */
static inline void survive_without_memory(const char *path, read_whole read)
{
    status s = NB_NOMEM;
    for (int64_t k = 1; s != NB_OK; k++) {
        allocations_left = k;
        s = read(path);
        allocations_left = -1;
        ck_assert_msg(s == NB_OK || s == NB_NOMEM, "allocation %lld: %s: %s", (long long)k, nb_status_name(s),
                      nb_fail_message());
        ck_assert_int_lt(k, 10000);
    }
}

/* A source that gives too few or too many bytes of the array named in ctx. */
static inline status give_too_few(void *ctx, fm_sink *sink, const fm_array *a)
{
    return fm_put(sink, a->data, strcmp(a->name, ctx) ? a->bytes : a->bytes - 1);
}

static inline status give_too_many(void *ctx, fm_sink *sink, const fm_array *a)
{
    TRY(fm_put(sink, a->data, a->bytes));
    return strcmp(a->name, ctx) ? NB_OK : fm_put(sink, a->name, 1);
}

/* Gives each array of the fm_arrays in ctx by name, in pieces of 1000 bytes. */
static inline status give_from(void *ctx, fm_sink *sink, const fm_array *a)
{
    const fm_array *from = fm_find(ctx, a->name);
    if (!from || from->bytes != a->bytes)
        return nb_fail(NB_SHAPE, "%s: not as it was", a->name);
    for (size_t at = 0, n; at < a->bytes; at += n) {
        n = a->bytes - at < 1000 ? a->bytes - at : 1000;
        TRY(fm_put(sink, (const char *)from->data + at, n));
    }
    return NB_OK;
}

#endif
