/* gguf_read.c - reader of GGUF 2 and 3 (ggml/include/gguf.h, ggml/src/gguf.cpp), little-endian:
 *   "GGUF"  u32 version  u64 n_tensors  u64 n_kv
 *   n_kv x {string key; i32 type; value}            string = u64 bytes, then the bytes
 *     type 0 u8 1 i8 2 u16 3 i16 4 u32 5 i32 6 f32 7 bool 8 string 9 array {i32 type; u64 n; n values} 10 u64 11 i64 12
 * f64 n_tensors x {string name; u32 n_dim; u64 ne[n_dim], the fastest first; i32 ggml type; u64 offset} zeros to a
 * multiple of general.alignment (default 32), then the arrays, each padded to that alignment; offset counts from the
 * first and must be the padded sum of all before: no holes, in order.
 */
#include "io/gguf.h"
#include <stdlib.h>
#include <string.h>

bool fm_gguf_dtype(fm_dtype *t, uint32_t type)
{
    static const fm_dtype of_type[] = {FM_U8,   FM_I8,     FM_U16,  FM_I16, FM_U32, FM_I32, FM_F32,
                                       FM_BOOL, FM_STRING, FM_BOOL, FM_U64, FM_I64, FM_F64};
    if (type >= sizeof of_type / sizeof *of_type || type == GGUF_ARRAY)
        return false;
    *t = of_type[type];
    return true;
}

/* A string as it lies in the file. */
static bool take_text(fm_cursor *c, fm_text *t)
{
    uint64_t bytes;
    const void *p;
    if (!fm_take_u64(c, &bytes) || bytes > c->left || !fm_take(c, &p, (size_t)bytes))
        return false;
    *t = (fm_text){p, (size_t)bytes};
    return true;
}

/* A copy that ends in NUL; NULL when out of memory. */
static char *copy_text(nb_arena *arena, fm_text t)
{
    char *copy = nb_arena_alloc(arena, t.bytes + 1);
    if (!copy)
        return NULL;
    memcpy(copy, t.text, t.bytes);
    copy[t.bytes] = 0;
    return copy;
}

static status take_name(fm_cursor *c, nb_arena *arena, const char **name, const char *what, int64_t i)
{
    fm_text t;
    if (!take_text(c, &t))
        return nb_fail(NB_FORMAT, "the name of %s %lld does not fit into the file", what, (long long)i);
    if (memchr(t.text, 0, t.bytes))
        return nb_fail(NB_FORMAT, "the name of %s %lld has a NUL in it", what, (long long)i);
    *name = copy_text(arena, t);
    return *name ? NB_OK : nb_fail(NB_NOMEM, "no memory for the name of %s %lld", what, (long long)i);
}

static status take_texts(fm_cursor *c, fm_value *v, nb_arena *arena)
{
    if ((uint64_t)v->n > c->left / sizeof(uint64_t))
        return nb_fail(NB_FORMAT, "%s: %lld texts do not fit into the file", v->key, (long long)v->n);
    fm_text *text = nb_arena_alloc(arena, (size_t)v->n * sizeof *text);
    if (!text)
        return nb_fail(NB_NOMEM, "%s: no memory for %lld texts", v->key, (long long)v->n);
    v->data = text;
    for (int64_t i = 0; i < v->n; i++)
        if (!take_text(c, &text[i]))
            return nb_fail(NB_FORMAT, "%s: text %lld does not fit into the file", v->key, (long long)i);
    if (!v->is_array && !(text->text = copy_text(arena, *text)))
        return nb_fail(NB_NOMEM, "%s: no memory for its text", v->key);
    return NB_OK;
}

static status take_value(fm_cursor *c, fm_value *v, nb_arena *arena)
{
    uint32_t type;
    uint64_t n = 1;
    if (!fm_take_u32(c, &type))
        return nb_fail(NB_FORMAT, "%s: the file ends in it", v->key);
    v->is_array = type == GGUF_ARRAY;
    if (v->is_array && (!fm_take_u32(c, &type) || !fm_take_u64(c, &n)))
        return nb_fail(NB_FORMAT, "%s: the file ends in it", v->key);
    if (!fm_gguf_dtype(&v->dtype, type))
        return nb_fail(NB_FORMAT, "%s: unknown type %u", v->key, type);
    if (n > c->left) /* every element takes a byte at least */
        return nb_fail(NB_FORMAT, "%s: %llu elements do not fit into the file", v->key, (unsigned long long)n);
    v->n = (int64_t)n;
    if (v->dtype == FM_STRING)
        return take_texts(c, v, arena);
    size_t size = fm_dtype_bytes(v->dtype);
    if (n > c->left / size || !fm_take(c, &v->data, (size_t)n * size))
        return nb_fail(NB_FORMAT, "%s: %llu elements do not fit into the file", v->key, (unsigned long long)n);
    return NB_OK;
}

static status take_metadata(fm_cursor *c, fm_meta *m, uint64_t n)
{
    if (n > c->left / 13) /* bytes of the smallest entry: empty key, one byte */
        return nb_fail(NB_FORMAT, "%llu keys do not fit into the file", (unsigned long long)n);
    for (uint64_t i = 0; i < n; i++) {
        fm_value v = {0};
        TRY(take_name(c, &m->arena, &v.key, "key", (int64_t)i));
        TRY(take_value(c, &v, &m->arena));
        if (!fm_meta_add(m, v))
            return NB_NOMEM;
    }
    return NB_OK;
}

/* One tensor's description; *offset as in the file. */
static status take_info(fm_cursor *c, fm_array *x, uint64_t *offset)
{
    uint32_t n_dim, type;
    uint64_t ne;
    if (!fm_take_u32(c, &n_dim) || n_dim > FM_MAX_DIM)
        return nb_fail(NB_FORMAT, "%s: too many dimensions", x->name);
    x->n_dim = (int)n_dim;
    for (int i = x->n_dim - 1; i >= 0; i--) {
        if (!fm_take_u64(c, &ne) || ne > INT64_MAX)
            return nb_fail(NB_FORMAT, "%s: dimension %d is too large", x->name, i);
        x->dim[i] = (int64_t)ne;
    }
    if (!fm_take_u32(c, &type) || !fm_take_u64(c, offset))
        return nb_fail(NB_FORMAT, "%s: the file ends in its description", x->name);
    if (!fm_dtype_of_ggml(&x->dtype, type))
        return nb_fail(NB_UNSUPPORTED, "%s: unknown ggml type %u", x->name, type);
    return fm_array_measure(x);
}

/* Reads the descriptions; the arrays' data become offsets, to be placed once the header's end is known. */
static status take_infos(fm_cursor *c, fm_arrays *a, uint64_t n, uint64_t alignment)
{
    uint64_t wanted = 0, offset;
    if (n > c->left / 24) /* bytes of the smallest description: empty name, no dimensions */
        return nb_fail(NB_FORMAT, "%llu tensors do not fit into the file", (unsigned long long)n);
    for (uint64_t i = 0; i < n; i++) {
        fm_array *x = fm_arrays_add(a);
        if (!x)
            return NB_NOMEM;
        TRY(take_name(c, &a->names, &x->name, "tensor", (int64_t)i));
        if (strlen(x->name) > GGUF_MAX_NAME)
            return nb_fail(NB_FORMAT, "%s: its name is longer than %d bytes", x->name, GGUF_MAX_NAME);
        TRY(take_info(c, x, &offset));
        if (offset != wanted)
            return nb_fail(NB_FORMAT, "%s: lies at offset %llu, wanted %llu", x->name, (unsigned long long)offset,
                           (unsigned long long)wanted);
        uint64_t padded = ((uint64_t)x->bytes + alignment - 1) / alignment * alignment; /* bytes < 2^63 */
        if (padded > INT64_MAX - wanted)
            return nb_fail(NB_FORMAT, "%s: its end overflows", x->name);
        wanted += padded;
    }
    return NB_OK;
}

/* Points the arrays at their data: `left` bytes from `at` on. The last one's padding may be missing. */
static status place_arrays(fm_arrays *a, const uint8_t *at, size_t left, uint64_t alignment)
{
    for (int64_t i = 0; i < a->n; i++) {
        fm_array *x = &a->array[i];
        if (x->bytes > left)
            return nb_fail(NB_FORMAT, "%s: needs %zu bytes, the file has %zu left", x->name, x->bytes, left);
        x->data = at;
        uint64_t padded = ((uint64_t)x->bytes + alignment - 1) / alignment * alignment;
        size_t step = padded < left ? (size_t)padded : left;
        at += step;
        left -= step;
    }
    return NB_OK;
}

status fm_gguf_alignment(uint64_t *alignment, const fm_meta *m)
{
    const fm_value *v = m ? fm_meta_get(m, "general.alignment") : NULL;
    int64_t x = fm_value_int(v, 0, 0);
    *alignment = GGUF_ALIGNMENT;
    if (!v)
        return NB_OK;
    if (v->dtype != FM_U32 || v->is_array || x < 1 || x > GGUF_MAX_ALIGNMENT || (x & (x - 1)) != 0)
        return nb_fail(NB_FORMAT, "general.alignment is not a power of two of type u32, at most %d",
                       GGUF_MAX_ALIGNMENT);
    *alignment = (uint64_t)x;
    return NB_OK;
}

static status read_bytes(fm_arrays *a, const void *data, size_t bytes)
{
    fm_cursor c = {data, bytes};
    const void *magic;
    uint32_t version;
    uint64_t n_tensors, n_kv, alignment;
    if (!fm_take(&c, &magic, 4) || memcmp(magic, "GGUF", 4) != 0)
        return nb_fail(NB_FORMAT, "no GGUF file: its magic is missing");
    if (!fm_take_u32(&c, &version) || (version != 2 && version != 3))
        return nb_fail(NB_UNSUPPORTED, "no version 2 or 3 of GGUF");
    if (!fm_take_u64(&c, &n_tensors) || !fm_take_u64(&c, &n_kv))
        return nb_fail(NB_FORMAT, "the file ends in its header");
    TRY(take_metadata(&c, &a->meta, n_kv));
    a->meta_bytes = bytes - c.left;
    TRY(fm_meta_check(&a->meta, "metadata"));
    TRY(fm_gguf_alignment(&alignment, &a->meta));
    TRY(take_infos(&c, a, n_tensors, alignment));
    size_t used = bytes - c.left;
    uint64_t padding = (alignment - used % alignment) % alignment;
    const void *skipped;
    if (n_tensors && (padding > c.left || !fm_take(&c, &skipped, (size_t)padding)))
        return nb_fail(NB_FORMAT, "the file ends before its tensors");
    TRY(place_arrays(a, c.at, c.left, alignment));
    return fm_arrays_index(a);
}

status fm_gguf_open(fm_arrays *a, const char *path)
{
    nb_mapped file;
    *a = (fm_arrays){.path = nb_string(path)};
    status s = a->path ? fm_arrays_map(&file, a, path) : NB_NOMEM;
    if (s == NB_OK && (s = read_bytes(a, file.data, file.bytes)) != NB_OK)
        s = nb_fail_in(s, "%s", path);
    if (s != NB_OK)
        fm_arrays_free(a);
    return s;
}

status fm_gguf_parse(fm_arrays *a, const void *data, size_t bytes, const char *name)
{
    *a = (fm_arrays){.path = nb_string(name)};
    status s = a->path ? NB_OK : NB_NOMEM;
    if (s == NB_OK && (s = read_bytes(a, data, bytes)) != NB_OK)
        s = nb_fail_in(s, "%s", name);
    if (s != NB_OK)
        fm_arrays_free(a);
    return s;
}

status fm_gguf_metadata(uint8_t **data, size_t *bytes, const fm_arrays *a)
{
    const uint32_t version = 3;
    const uint64_t n_arrays = 0;
    *bytes = a->meta_bytes;
    *data = nb_alloc(*bytes, 1);
    if (!*data)
        return NB_NOMEM;
    memcpy(*data, a->file->data, *bytes);
    memcpy(*data + GGUF_AT_VERSION, &version, sizeof version);
    memcpy(*data + GGUF_AT_ARRAYS, &n_arrays, sizeof n_arrays);
    return NB_OK;
}
