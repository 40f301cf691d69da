/* safetensors.c - reader and writer of one safetensors file (safetensors/README.md, safetensors/src/tensor.rs):
 *   0      u64    N, bytes of the header, at most 100,000,000
 *   8      N      JSON, begins with '{', may end in spaces:
 *                 {"__metadata__": {"k": "v"}, "NAME": {"dtype": "F32", "shape": [2,3], "data_offsets": [BEGIN, END]},
 * ...} 8 + N         elements, little-endian, C order; offsets count from here Sorted by offsets the arrays lie back to
 * back from 0 to the end of the file, and END - BEGIN is exactly an array's size. Nothing is aligned for sure. Shards
 * and folders: safetensors_folder.c.
 */
#include "io/safetensors.h"
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { MAX_HEADER = 100000000 };

static bool is_utf8(const uint8_t *text, size_t bytes)
{
    while (bytes) {
        utf8proc_int32_t code;
        utf8proc_ssize_t n = utf8proc_iterate(text, bytes > 4 ? 4 : (utf8proc_ssize_t)bytes, &code);
        if (n <= 0)
            return false;
        text += n;
        bytes -= (size_t)n;
    }
    return true;
}

static status read_metadata(fm_arrays *a, const char *path, const nb_json *object)
{
    for (const nb_json *item = nb_json_first(object); item; item = nb_json_next(item)) {
        const char *text = nb_json_string(item);
        if (!text)
            return nb_fail(NB_FORMAT, "%s: __metadata__: the value of %s is not a text", path, nb_json_key(item));
        fm_meta_put_string(&a->meta, nb_json_key(item), text);
    }
    return NB_OK;
}

static bool is_list(const nb_json *j)
{
    bool is_value = nb_json_is_null(j) || nb_json_is_number(j) || nb_json_string(j);
    return !is_value && !nb_json_key(nb_json_first(j)); /* what an object holds has keys */
}

/* Reads one entry; `data` is the byte buffer and `size` its length. */
static status read_entry(fm_arrays *a, const nb_json *entry, const uint8_t *data, size_t size)
{
    char text[FM_SHAPE_TEXT];
    const nb_json *shape = nb_json_get(entry, "shape"), *offsets = nb_json_get(entry, "data_offsets");
    const char *dtype = nb_json_string(nb_json_get(entry, "dtype")), *name = nb_json_key(entry);
    fm_array *x = fm_arrays_add(a);
    if (!x || !(x->name = nb_arena_string(&a->names, name)))
        return nb_fail(NB_NOMEM, "%s: out of memory", name);
    if (!dtype || !fm_dtype_of_name(&x->dtype, dtype))
        return nb_fail(NB_FORMAT, "%s: unknown dtype %s", name, dtype ? dtype : "(none)");
    if (!is_list(shape) || !is_list(offsets))
        return nb_fail(NB_FORMAT, "%s: shape and data_offsets must be lists", name);
    if (nb_json_count(shape) > FM_MAX_DIM)
        return nb_fail(NB_UNSUPPORTED, "%s: found %lld dimensions, at most %d are taken", name,
                       (long long)nb_json_count(shape), FM_MAX_DIM);
    for (const nb_json *d = nb_json_first(shape); d; d = nb_json_next(d))
        x->dim[x->n_dim++] = nb_json_int(d, -1);
    TRY(fm_array_measure(x));
    int64_t begin = nb_json_int(nb_json_at(offsets, 0), -1), end = nb_json_int(nb_json_at(offsets, 1), -1);
    if (nb_json_count(offsets) != 2 || begin < 0 || end < begin || (uint64_t)end > size)
        return nb_fail(NB_FORMAT, "%s: data_offsets [%lld,%lld] do not lie in the buffer of %zu bytes", name,
                       (long long)begin, (long long)end, size);
    if ((size_t)(end - begin) != x->bytes)
        return nb_fail(NB_FORMAT, "%s: %s needs %zu bytes, its data_offsets hold %lld", name, fm_shape_text(text, x),
                       x->bytes, (long long)(end - begin));
    x->data = data + begin;
    return NB_OK;
}

/* By place, empty arrays before the one that begins where they lie. */
static int compare_places(const void *a, const void *b)
{
    const fm_array *x = a, *y = b;
    uintptr_t p = (uintptr_t)x->data, q = (uintptr_t)y->data;
    if (p != q)
        return p < q ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* The arrays from `first` on fill the buffer without holes and without overlap. */
static status check_places(fm_arrays *a, int64_t first, const uint8_t *data, size_t size)
{
    const uint8_t *at = data;
    if (a->n > first)
        qsort(a->array + first, (size_t)(a->n - first), sizeof *a->array, compare_places);
    for (int64_t i = first; i < a->n; i++) {
        const uint8_t *begin = a->array[i].data;
        if (begin != at)
            return nb_fail(NB_FORMAT, "%s: begins at byte %td of the buffer, wanted %td (%s)", a->array[i].name,
                           begin - data, at - data, begin < at ? "overlap" : "hole");
        at = begin + a->array[i].bytes;
    }
    if ((size_t)(at - data) != size)
        return nb_fail(NB_FORMAT, "the arrays take %td bytes, the file has %zu", at - data, size);
    return NB_OK;
}

static status read_header(fm_arrays *a, const char *path, const nb_json *header, const uint8_t *data, size_t size)
{
    int64_t first = a->n;
    for (const nb_json *entry = nb_json_first(header); entry; entry = nb_json_next(entry))
        if (!strcmp(nb_json_key(entry), "__metadata__"))
            TRY(read_metadata(a, path, entry));
        else
            TRY(read_entry(a, entry, data, size));
    return check_places(a, first, data, size);
}

status fm_safetensors_add(fm_arrays *a, const char *path)
{
    nb_mapped file;
    TRY(fm_arrays_map(&file, a, path));
    fm_cursor c = {file.data, file.bytes};
    uint64_t bytes;
    const void *text;
    if (!fm_take_u64(&c, &bytes))
        return nb_fail(NB_FORMAT, "%s: %zu bytes are no safetensors file", path, file.bytes);
    if (bytes > MAX_HEADER || bytes < 2 || !fm_take(&c, &text, (size_t)bytes) || *(const char *)text != '{')
        return nb_fail(NB_FORMAT, "%s: no safetensors header of %llu bytes fits into its %zu bytes", path,
                       (unsigned long long)bytes, file.bytes);
    if (!is_utf8(text, (size_t)bytes))
        return nb_fail(NB_FORMAT, "%s: its header is not UTF-8", path);
    while (((const char *)text)[bytes - 1] == ' ')
        bytes--;
    nb_json *header = nb_json_parse(text, (size_t)bytes);
    if (!header)
        return nb_fail_in(NB_FORMAT, "%s: header", path);
    status s = read_header(a, path, header, c.at, c.left);
    nb_json_free(header);
    return s == NB_OK ? NB_OK : nb_fail_in(s, "%s", path);
}

/* Larger types first, so that every array is aligned to its type; then by name: the order of safetensors' own writer.
 */
static int compare_for_writing(const void *a, const void *b)
{
    const fm_array *x = *(const fm_array *const *)a, *y = *(const fm_array *const *)b;
    if (x->dtype != y->dtype)
        return x->dtype > y->dtype ? -1 : 1;
    return strcmp(x->name, y->name);
}

static status put_metadata(nb_writer *w, const char *path, const fm_meta *meta)
{
    nb_json_open(w, "__metadata__", '{');
    if (!meta || !fm_meta_get(meta, "format"))
        nb_json_put_string(w, "format", "pt");
    for (int64_t i = 0; meta && i < meta->n; i++) {
        const char *text = fm_value_string(&meta->value[i]);
        if (!text)
            return nb_fail(NB_USAGE, "%s: the metadata of safetensors are texts, %s is none", path, meta->value[i].key);
        nb_json_put_string(w, meta->value[i].key, text);
    }
    nb_json_close(w, '}');
    return NB_OK;
}

/* Appends the header's JSON for arrays in the order of `a`. */
static status put_header(nb_writer *w, const char *path, const fm_array **a, int64_t n, const fm_meta *meta)
{
    int64_t at = 0;
    nb_json_open(w, NULL, '{');
    TRY(put_metadata(w, path, meta));
    for (int64_t i = 0; i < n; i++) {
        fm_array x = *a[i];
        TRY(fm_array_measure(&x));
        if (x.dtype >= FM_STRING || !strcmp(x.name, "__metadata__") || (i && !strcmp(x.name, a[i - 1]->name)))
            return nb_fail(NB_USAGE, "%s: cannot hold an array %s of type %s%s", path, x.name, fm_dtype_name(x.dtype),
                           x.dtype < FM_STRING ? " (its name is taken)" : "");
        if (x.bytes != a[i]->bytes)
            return nb_fail(NB_USAGE, "%s: %s: says %zu bytes, needs %zu", path, x.name, a[i]->bytes, x.bytes);
        nb_json_open(w, x.name, '{');
        nb_json_put_string(w, "dtype", fm_dtype_name(x.dtype));
        nb_json_open(w, "shape", '[');
        for (int d = 0; d < x.n_dim; d++)
            nb_json_put_int(w, NULL, x.dim[d]);
        nb_json_close(w, ']');
        nb_json_open(w, "data_offsets", '[');
        nb_json_put_int(w, NULL, at);
        at += (int64_t)x.bytes;
        nb_json_put_int(w, NULL, at);
        nb_json_close(w, ']');
        nb_json_close(w, '}');
    }
    nb_json_close(w, '}');
    return NB_OK;
}

static status write_file(fm_sink *sink, const char *header, const fm_array **a, int64_t n, fm_source source)
{
    uint64_t text_bytes = strlen(header), bytes = (text_bytes + 7) & ~(uint64_t)7;
    TRY(fm_sink_raw(sink, &bytes, sizeof bytes));
    TRY(fm_sink_raw(sink, header, (size_t)text_bytes));
    TRY(fm_sink_raw(sink, "        ", (size_t)(bytes - text_bytes)));
    for (int64_t i = 0; i < n; i++)
        TRY(fm_sink_array(sink, a[i], source));
    return NB_OK;
}

status fm_safetensors_write(const char *path, const fm_array *array, int64_t n, const fm_meta *meta, fm_source source)
{
    nb_writer w = {0};
    fm_sink sink;
    TRY(fm_meta_check(meta, path));
    const fm_array **sorted = nb_alloc((size_t)n, sizeof *sorted);
    if (!sorted)
        return NB_NOMEM;
    for (int64_t i = 0; i < n; i++)
        sorted[i] = &array[i];
    qsort(sorted, (size_t)n, sizeof *sorted, compare_for_writing);
    status s = put_header(&w, path, sorted, n, meta);
    char *header = nb_json_text(&w);
    if (s == NB_OK && !header)
        s = nb_fail(NB_NOMEM, "%s: no memory for its header", path);
    if (s == NB_OK && (s = fm_sink_open(&sink, path)) == NB_OK)
        s = fm_sink_close(&sink, write_file(&sink, header, sorted, n, source));
    free(header);
    free(sorted);
    return s;
}
