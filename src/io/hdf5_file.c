/* hdf5_file.c - our HDF5 files: the user block in front, checks of what the file says, conversion on reading, atomic
 * replacement on writing. libhdf5 itself is behind hdf5_door.h. The user block has 512 bytes, little-endian:
 *   0  8 bytes  magic "nibble\r\n"     8  u32  layout, 1        12  u32  0
 *   16 24 bytes kind, NUL-padded       40 u64  bytes of the rest
 *   48 u32      CRC-32C of the rest    52 u32  CRC-32C of bytes 0..51, then zeros
 */
#include "io/hdf5_door.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { USER_BLOCK = 512, LAYOUT = 1, KIND_BYTES = 24, BYTES_PER_OBJECT = 16, SLICE = 1 << 16 };

typedef struct {
    char magic[8];
    uint32_t layout, zero;
    char kind[KIND_BYTES];
    uint64_t bytes;
    uint32_t crc, own_crc;
    uint8_t zeros[USER_BLOCK - 56];
} user_block;
_Static_assert(sizeof(user_block) == USER_BLOCK, "the user block is laid out without gaps");
_Static_assert(offsetof(user_block, own_crc) == 52, "the user block is laid out without gaps");

/* ---- writing ---- */

/* Frees everything; what was not committed is given up. */
void fm_h5_close(fm_h5 *f)
{
    fm_medium *m = f->medium;
    bool closed = f->id <= 0 || fm_door_close(f->id) == NB_OK;
    if (m && closed) {
        nb_unmap(&m->file);
        free(m);
    } else if (m) { /* HDF5 may still touch it: it stays, and takes no more writes */
        m->fd = -1;
        m->error = EBADF;
    }
    nb_atomic_abort(&f->target);
    fm_arrays_free(&f->arrays);
    *f = (fm_h5){0};
}

/* Begins a zeroed f for path; on failure the caller closes it. */
static status begin(fm_h5 *f, const char *path)
{
    *f = (fm_h5){.medium = nb_alloc_zeroed(1, sizeof(fm_medium)), .arrays.path = nb_string(path)};
    return f->medium && f->arrays.path ? NB_OK : NB_NOMEM;
}

static status create(fm_h5 *f, const char *path)
{
    TRY(begin(f, path));
    TRY(nb_atomic_begin(&f->target, path));
    fm_medium *m = f->medium;
    m->fd = fileno(f->target.file);
    status s = fm_door_open(&f->id, m, path, USER_BLOCK);
    return s == NB_OK ? NB_OK : nb_fail_in(s, "%s", path);
}

status fm_h5_create(fm_h5 *f, const char *path, const char *kind)
{
    *f = (fm_h5){0};
    if (!*kind || strlen(kind) >= KIND_BYTES)
        return nb_fail(NB_USAGE, "%s: a kind has 1 to %d bytes, not %zu", path, KIND_BYTES - 1, strlen(kind));
    status s = create(f, path);
    if (s != NB_OK)
        fm_h5_close(f);
    else
        (void)snprintf(f->kind, sizeof f->kind, "%s", kind);
    return s;
}

/* What every writing call ends with: names the file, and remembers the first failure. */
static status wrote(fm_h5 *f, status s)
{
    const fm_medium *m = f->medium;
    if (m->error)
        s = nb_fail(NB_IO, "cannot write: %s", strerror(m->error));
    if (s != NB_OK)
        s = nb_fail_in(s, "%s", f->arrays.path);
    if (f->failed == NB_OK)
        f->failed = s;
    return s;
}

/* A path of plain parts: "adam/m/layers.0.attn.wq.weight". */
static status check_name(const char *name)
{
    size_t part = 0, dots = 0;
    for (const char *p = name;; p++) {
        if (*p && *p != '/') {
            part++;
            dots += *p == '.';
            continue;
        }
        if (part == 0 || (dots == part && part <= 2))
            return nb_fail(NB_USAGE, "\"%s\" is no name for a dataset", name);
        if (!*p)
            return NB_OK;
        part = dots = 0;
    }
}

static status write_array(fm_h5 *f, fm_array *a, int64_t chunk_rows)
{
    TRY(check_name(a->name));
    TRY(fm_array_measure(a));
    if (!a->data && a->bytes)
        return nb_fail(NB_USAGE, "%s: it has no data", a->name);
    return fm_door_write(f->id, a, chunk_rows);
}

status fm_h5_write(fm_h5 *f, const char *name, fm_dtype t, int n_dim, const int64_t *dim, const void *data)
{
    fm_array a = {.name = name, .dtype = t, .n_dim = n_dim, .data = data};
    if (n_dim < 0 || n_dim > FM_MAX_DIM)
        return wrote(f, nb_fail(NB_USAGE, "%s: %d dimensions, at most %d are taken", name, n_dim, FM_MAX_DIM));
    if (n_dim)
        memcpy(a.dim, dim, (size_t)n_dim * sizeof *dim);
    return wrote(f, write_array(f, &a, 0));
}

status fm_h5_stream(fm_h5 *f, const char *name, fm_dtype t, int n_row_dim, const int64_t *row_dim, int64_t chunk_rows)
{
    fm_array a = {.name = name, .dtype = t, .n_dim = n_row_dim + 1};
    if (n_row_dim < 0 || n_row_dim >= FM_MAX_DIM || chunk_rows < 1)
        return wrote(f, nb_fail(NB_USAGE, "%s: %d dimensions of a row, %lld rows of a chunk are not taken", name,
                                n_row_dim, (long long)chunk_rows));
    if (n_row_dim)
        memcpy(a.dim + 1, row_dim, (size_t)n_row_dim * sizeof *row_dim);
    return wrote(f, write_array(f, &a, chunk_rows));
}

status fm_h5_append(fm_h5 *f, const char *name, const void *data, int64_t rows)
{
    if (rows < 0)
        return wrote(f, nb_fail(NB_USAGE, "%s: %lld rows", name, (long long)rows));
    return rows ? wrote(f, fm_door_append(f->id, name, data, rows)) : NB_OK;
}

static const char *object_or_file(const char *object)
{
    return *object ? object : "/";
}

static status put(fm_h5 *f, const char *object, const char *key, fm_dtype t, const void *data, int64_t n, bool single)
{
    status s =
        n >= 0 && n <= FM_H5_MAX_STRING
            ? fm_door_put(f->id, object_or_file(object), key, t, data, n, single)
            : nb_fail(NB_USAGE, "the attribute %s: %lld elements do not fit, make it a dataset", key, (long long)n);
    return wrote(f, s);
}

status fm_h5_put_string(fm_h5 *f, const char *object, const char *key, const char *text)
{
    return put(f, object, key, FM_STRING, text, (int64_t)strlen(text), true);
}

status fm_h5_put_int(fm_h5 *f, const char *object, const char *key, int64_t x)
{
    return put(f, object, key, FM_I64, &x, 1, true);
}

status fm_h5_put_number(fm_h5 *f, const char *object, const char *key, double x)
{
    return put(f, object, key, FM_F64, &x, 1, true);
}

status fm_h5_put_ints(fm_h5 *f, const char *object, const char *key, const int64_t *x, int64_t n)
{
    return put(f, object, key, FM_I64, x, n, false);
}

status fm_h5_put_numbers(fm_h5 *f, const char *object, const char *key, const double *x, int64_t n)
{
    return put(f, object, key, FM_F64, x, n, false);
}

/* CRC of what lies behind the user block, read back from the file. */
static status sum_up(fm_medium *m, uint32_t *crc)
{
    uint8_t *buffer = nb_alloc(SLICE, 1);
    status s = buffer ? NB_OK : NB_NOMEM;
    *crc = 0;
    for (int64_t at = USER_BLOCK; at < m->end && s == NB_OK;) {
        int64_t want = m->end - at < SLICE ? m->end - at : SLICE;
        ssize_t n = pread(m->fd, buffer, (size_t)want, (off_t)at);
        if (n <= 0)
            s = nb_fail(NB_IO, "cannot read back what was written: %s", n < 0 ? strerror(errno) : "it is too short");
        else
            *crc = nb_crc32c(*crc, buffer, (size_t)n);
        at += n;
    }
    free(buffer);
    return s;
}

static status seal(fm_h5 *f)
{
    fm_medium *m = f->medium;
    TRY(fm_door_close(f->id));
    f->id = 0;
    if (m->error)
        return nb_fail(NB_IO, "cannot write: %s", strerror(m->error));
    user_block b = {.layout = LAYOUT, .bytes = (uint64_t)(m->end - USER_BLOCK)};
    memcpy(b.magic, FM_H5_MAGIC, sizeof b.magic);
    memcpy(b.kind, f->kind, sizeof b.kind);
    TRY(sum_up(m, &b.crc));
    b.own_crc = nb_crc32c(0, &b, offsetof(user_block, own_crc));
    if (pwrite(m->fd, &b, sizeof b, 0) != (ssize_t)sizeof b)
        return nb_fail(NB_IO, "cannot write: %s", strerror(errno));
    return nb_atomic_commit(&f->target);
}

status fm_h5_commit(fm_h5 *f)
{
    const fm_medium *m = f->medium;
    status s = f->failed;
    if (s != NB_OK)
        s = nb_fail(s, "%s: not replaced, because an earlier write failed%s%s", f->arrays.path, m->error ? ": " : "",
                    m->error ? strerror(m->error) : "");
    else if (!m || !f->target.path)
        s = nb_fail(NB_USAGE, "nothing was created that could be committed");
    else if ((s = seal(f)) != NB_OK)
        s = nb_fail_in(s, "%s", f->arrays.path);
    fm_h5_close(f);
    return s;
}

/* ---- opening ---- */

static status check_user_block(fm_h5 *f, const nb_mapped *file, const char *kind)
{
    user_block b;
    if (file->bytes < sizeof b || memcmp(file->data, FM_H5_MAGIC, sizeof b.magic) != 0)
        return nb_fail(NB_FORMAT, "not a file that nibble wrote");
    memcpy(&b, file->data, sizeof b);
    if (b.own_crc != nb_crc32c(0, &b, offsetof(user_block, own_crc)))
        return nb_fail(NB_FORMAT, "damaged: its first block has the wrong checksum");
    if (b.layout != LAYOUT)
        return nb_fail(NB_UNSUPPORTED, "layout %u of nibble's files, this program reads %d", b.layout, LAYOUT);
    static const uint8_t zeros[sizeof b.zeros];
    if (b.zero != 0 || b.kind[KIND_BYTES - 1] != 0 || memcmp(b.zeros, zeros, sizeof zeros) != 0)
        return nb_fail(NB_FORMAT, "its first block is not as it should be");
    if (kind && strcmp(kind, b.kind) != 0)
        return nb_fail(NB_FORMAT, "is a %s file, wanted a %s file", b.kind, kind);
    if (b.bytes != file->bytes - sizeof b)
        return nb_fail(NB_FORMAT, "damaged: %zu bytes behind the first block, wanted %llu", file->bytes - sizeof b,
                       (unsigned long long)b.bytes);
    if (b.crc != nb_crc32c(0, file->data + sizeof b, file->bytes - sizeof b))
        return nb_fail(NB_FORMAT, "damaged: the checksum is wrong");
    memcpy(f->kind, b.kind, sizeof f->kind);
    return NB_OK;
}

/* Lists a dataset whose elements are all in the file. */
static status take_dataset(void *ctx, const fm_stored *d)
{
    fm_h5 *f = ctx;
    const nb_mapped *file = &((const fm_medium *)f->medium)->file;
    fm_array x = d->array;
    TRY(fm_array_measure(&x));
    if (!d->is_plain || d->chunk == UINT64_MAX)
        return nb_fail(NB_UNSUPPORTED, "%s: its elements are filtered, not in this file, or in wrong chunks", x.name);
    if (d->held > file->bytes || x.bytes > d->held || (x.bytes && d->chunk > d->held))
        return nb_fail(NB_FORMAT, "%s: %zu bytes of elements, the file holds %llu of them", x.name, x.bytes,
                       (unsigned long long)d->held);
    if (d->offset != UINT64_MAX && x.bytes) {
        if (d->offset > file->bytes || x.bytes > file->bytes - d->offset)
            return nb_fail(NB_FORMAT, "%s: its elements lie outside the file", x.name);
        x.data = file->data + d->offset;
    }
    fm_array *listed = fm_arrays_add(&f->arrays);
    if (!listed || !(x.name = nb_arena_string(&f->arrays.names, x.name)))
        return nb_fail(NB_NOMEM, "%s: out of memory", d->array.name);
    *listed = x;
    return NB_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const fm_array *)a)->name, ((const fm_array *)b)->name);
}

static status open_mapped(fm_h5 *f, const char *kind)
{
    fm_medium *m = f->medium;
    TRY(check_user_block(f, &m->file, kind));
    TRY(fm_door_open(&f->id, m, f->arrays.path, 0));
    TRY(fm_door_list(f->id, (int64_t)(m->file.bytes / BYTES_PER_OBJECT), take_dataset, f));
    if (f->arrays.n)
        qsort(f->arrays.array, (size_t)f->arrays.n, sizeof *f->arrays.array, compare_names);
    return fm_arrays_index(&f->arrays);
}

status fm_h5_open(fm_h5 *f, const char *path, const char *kind)
{
    status s = begin(f, path);
    if (s == NB_OK)
        s = nb_map(&((fm_medium *)f->medium)->file, path);
    if (s == NB_OK && (s = open_mapped(f, kind)) != NB_OK)
        s = nb_fail_in(s, "%s", path);
    if (s != NB_OK)
        fm_h5_close(f);
    return s;
}

/* ---- reading ---- */

const fm_array *fm_h5_find(const fm_h5 *f, const char *name)
{
    return fm_find(&f->arrays, name);
}

/* dst[0..n) <- the elements of a piece of a dataset as type t. */
static status convert(void *dst, fm_dtype t, const fm_array *piece, int64_t n)
{
    if (t == FM_F32)
        return fm_to_float(dst, piece, 0, n);
    if (t == FM_I64)
        return fm_to_int(dst, piece, 0, n);
    if (t != FM_I32)
        return nb_fail(NB_USAGE, "%s: is of type %s and not read as %s", piece->name, fm_dtype_name(piece->dtype),
                       fm_dtype_name(t));
    int64_t x;
    int32_t *out = dst;
    for (int64_t i = 0; i < n; i++) {
        TRY(fm_to_int(&x, piece, i, 1));
        if (x < INT32_MIN || x > INT32_MAX)
            return nb_fail(NB_FORMAT, "%s: %lld does not fit into 32 bits", piece->name, (long long)x);
        out[i] = (int32_t)x;
    }
    return NB_OK;
}

/* The rows of a dataset stored in chunks, in slices through a buffer, so that memory stays bounded. */
static status read_slices(fm_h5 *f, const fm_array *a, fm_dtype t, void *dst, int64_t from, int64_t rows)
{
    int64_t row = fm_count(a) / a->dim[0], most = row < SLICE ? SLICE / row : 1;
    uint8_t *buffer = nb_alloc((size_t)(row * most), fm_dtype_bytes(a->dtype)), *out = dst;
    status s = buffer ? NB_OK : NB_NOMEM;
    for (int64_t n; rows > 0 && s == NB_OK; from += n, rows -= n) {
        n = rows < most ? rows : most;
        fm_array piece = {.name = a->name, .dtype = a->dtype, .n_dim = 1, .dim = {n * row}, .data = buffer};
        s = fm_door_read(f->id, a, buffer, from, n);
        if (s == NB_OK)
            s = convert(out, t, &piece, n * row);
        out += (size_t)(n * row) * fm_dtype_bytes(t);
    }
    free(buffer);
    return s;
}

static status read_rows(fm_h5 *f, const char *name, fm_dtype t, void *dst, int64_t from, int64_t rows)
{
    const fm_array *a = fm_h5_find(f, name);
    if (!a)
        return nb_fail(NB_FORMAT, "has no dataset %s", name);
    int64_t n_rows = a->n_dim ? a->dim[0] : 1;
    if (from < 0 || rows < 0 || from > n_rows || rows > n_rows - from)
        return nb_fail(NB_SHAPE, "%s: asked for %lld rows from %lld of %lld", name, (long long)rows, (long long)from,
                       (long long)n_rows);
    if (a->bytes == 0 || rows == 0)
        return NB_OK;
    int64_t row = fm_count(a) / n_rows;
    size_t row_bytes = a->bytes / (size_t)n_rows;
    if (!a->data && (t == a->dtype || a->n_dim == 0))
        return t == a->dtype ? fm_door_read(f->id, a, dst, from, rows)
                             : nb_fail(NB_UNSUPPORTED, "%s: a scalar is read as its own type", name);
    if (!a->data)
        return read_slices(f, a, t, dst, from, rows);
    const uint8_t *src = (const uint8_t *)a->data + (size_t)from * row_bytes;
    if (t == a->dtype) {
        memcpy(dst, src, (size_t)rows * row_bytes);
        return NB_OK;
    }
    fm_array piece = {.name = a->name, .dtype = a->dtype, .n_dim = 1, .dim = {rows * row}, .data = src};
    return convert(dst, t, &piece, rows * row);
}

status fm_h5_read(fm_h5 *f, const char *name, fm_dtype t, void *dst, int64_t from, int64_t rows)
{
    status s = read_rows(f, name, t, dst, from, rows);
    return s == NB_OK ? NB_OK : nb_fail_in(s, "%s", f->arrays.path);
}

status fm_h5_read_all(fm_h5 *f, const char *name, fm_dtype t, void *dst, int n_dim, const int64_t *dim)
{
    const fm_array *a;
    TRY(fm_need(&a, &f->arrays, name, n_dim, dim));
    return fm_h5_read(f, name, t, dst, 0, n_dim ? dim[0] : 1);
}

/* ---- attributes ---- */

int64_t fm_h5_attribute_count(fm_h5 *f, const char *object, const char *key)
{
    return fm_door_attribute_count(f->id, object_or_file(object), key);
}

static status get(fm_h5 *f, const char *object, const char *key, fm_dtype t, void *data, int64_t n)
{
    status s = fm_door_get(f->id, object_or_file(object), key, t, data, n);
    return s == NB_OK ? NB_OK : nb_fail_in(s, "%s%s%s", f->arrays.path, *object ? ": " : "", object);
}

status fm_h5_get_string(fm_h5 *f, const char *object, const char *key, const char **text)
{
    int64_t n = fm_h5_attribute_count(f, object, key);
    if (n > FM_H5_MAX_STRING + 1)
        return nb_fail(NB_FORMAT, "%s: the attribute %s is too long", f->arrays.path, key);
    char *copy = nb_arena_alloc(&f->arrays.names, n > 0 ? (size_t)n + 1 : 1);
    if (!copy)
        return nb_fail(NB_NOMEM, "%s: no memory for the attribute %s", f->arrays.path, key);
    TRY(get(f, object, key, FM_STRING, copy, n));
    copy[n] = 0;
    *text = copy;
    return NB_OK;
}

status fm_h5_get_int(fm_h5 *f, const char *object, const char *key, int64_t *x)
{
    return get(f, object, key, FM_I64, x, 1);
}

status fm_h5_get_number(fm_h5 *f, const char *object, const char *key, double *x)
{
    return get(f, object, key, FM_F64, x, 1);
}

status fm_h5_get_ints(fm_h5 *f, const char *object, const char *key, int64_t *x, int64_t n)
{
    return get(f, object, key, FM_I64, x, n);
}

status fm_h5_get_numbers(fm_h5 *f, const char *object, const char *key, double *x, int64_t n)
{
    return get(f, object, key, FM_F64, x, n);
}
