/* gguf_write.c - writer of GGUF 3; the layout is in gguf_read.c. Strict where clients are: names and keys occur once,
 * names have at most 63 bytes, every array begins at a multiple of the alignment and its padding is written, after the
 * last too.
 */
#include "io/gguf.h"
#include <stdlib.h>
#include <string.h>

static status put_u32(fm_sink *s, uint32_t x)
{
    return fm_sink_raw(s, &x, sizeof x);
}

static status put_u64(fm_sink *s, uint64_t x)
{
    return fm_sink_raw(s, &x, sizeof x);
}

static status put_text(fm_sink *s, fm_text t)
{
    TRY(put_u64(s, t.bytes));
    return fm_sink_raw(s, t.text, t.bytes);
}

static status put_name(fm_sink *s, const char *name)
{
    return put_text(s, (fm_text){name, strlen(name)});
}

/* GGUF's number for a type of metadata. */
static status type_of(uint32_t *type, const fm_value *v)
{
    fm_dtype t;
    for (*type = 0; *type <= 12; (*type)++)
        if (fm_gguf_dtype(&t, *type) && t == v->dtype)
            return NB_OK;
    return nb_fail(NB_USAGE, "%s: the metadata of GGUF cannot hold type %s", v->key, fm_dtype_name(v->dtype));
}

static status put_value(fm_sink *s, const fm_value *v)
{
    uint32_t type;
    TRY(type_of(&type, v));
    TRY(put_name(s, v->key));
    if (v->is_array) {
        TRY(put_u32(s, GGUF_ARRAY));
        TRY(put_u32(s, type));
        TRY(put_u64(s, (uint64_t)v->n));
    } else {
        TRY(put_u32(s, type));
    }
    if (v->dtype != FM_STRING)
        return fm_sink_raw(s, v->data, (size_t)v->n * fm_dtype_bytes(v->dtype));
    for (int64_t i = 0; i < v->n; i++)
        TRY(put_text(s, fm_value_text(v, i)));
    return NB_OK;
}

static uint64_t padding_after(uint64_t bytes, uint64_t alignment)
{
    return (alignment - bytes % alignment) % alignment;
}

static status put_info(fm_sink *s, const fm_array *x, uint64_t offset)
{
    TRY(put_name(s, x->name));
    TRY(put_u32(s, (uint32_t)x->n_dim));
    for (int i = x->n_dim - 1; i >= 0; i--)
        TRY(put_u64(s, (uint64_t)x->dim[i]));
    TRY(put_u32(s, (uint32_t)fm_dtype_ggml(x->dtype)));
    return put_u64(s, offset);
}

static status check_array(const fm_array *a)
{
    fm_array x = *a;
    if (strlen(x.name) > GGUF_MAX_NAME)
        return nb_fail(NB_USAGE, "%s: a name of at most %d bytes is wanted", x.name, GGUF_MAX_NAME);
    TRY(fm_array_measure(&x));
    if (fm_dtype_ggml(x.dtype) < 0)
        return nb_fail(NB_USAGE, "%s: GGUF cannot hold type %s", x.name, fm_dtype_name(x.dtype));
    if (x.bytes != a->bytes)
        return nb_fail(NB_USAGE, "%s: says %zu bytes, needs %zu", x.name, a->bytes, x.bytes);
    return NB_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static status check_arrays(const fm_array *array, int64_t n)
{
    status s = NB_OK;
    const char **name = nb_alloc((size_t)n, sizeof *name);
    if (!name)
        return NB_NOMEM;
    for (int64_t i = 0; i < n && s == NB_OK; i++) {
        name[i] = array[i].name;
        s = check_array(&array[i]);
    }
    if (s == NB_OK)
        qsort(name, (size_t)n, sizeof *name, compare_names);
    for (int64_t i = 1; i < n && s == NB_OK; i++)
        if (!strcmp(name[i - 1], name[i]))
            s = nb_fail(NB_USAGE, "the array %s occurs twice", name[i]);
    free(name);
    return s;
}

static status write_file(fm_sink *s, const fm_array *array, int64_t n, const fm_meta *meta, fm_source source)
{
    uint64_t alignment, offset = 0;
    TRY(fm_gguf_alignment(&alignment, meta));
    TRY(fm_sink_raw(s, "GGUF", 4));
    TRY(put_u32(s, 3));
    TRY(put_u64(s, (uint64_t)n));
    TRY(put_u64(s, meta ? (uint64_t)meta->n : 0));
    for (int64_t i = 0; meta && i < meta->n; i++)
        TRY(put_value(s, &meta->value[i]));
    for (int64_t i = 0; i < n; i++) {
        TRY(put_info(s, &array[i], offset));
        offset += array[i].bytes + padding_after(array[i].bytes, alignment);
    }
    if (n > 0)
        TRY(fm_sink_zeros(s, (size_t)padding_after(s->written, alignment)));
    for (int64_t i = 0; i < n; i++) {
        TRY(fm_sink_array(s, &array[i], source));
        TRY(fm_sink_zeros(s, (size_t)padding_after(array[i].bytes, alignment)));
    }
    return NB_OK;
}

status fm_gguf_write(const char *path, const fm_array *array, int64_t n, const fm_meta *meta, fm_source source)
{
    fm_sink sink;
    status s = fm_meta_check(meta, path);
    if (s == NB_OK)
        s = check_arrays(array, n);
    if (s != NB_OK)
        return nb_fail_in(s, "%s", path);
    TRY(fm_sink_open(&sink, path));
    s = write_file(&sink, array, n, meta, source);
    return fm_sink_close(&sink, s);
}
