/* metadata.c - the list of key and value that files carry beside their arrays. */
#include "io/formats.h"
#include <stdlib.h>
#include <string.h>

double fm_value_number(const fm_value *v, int64_t i, double otherwise)
{
    double x;
    if (!v || i < 0 || i >= v->n || v->dtype == FM_STRING)
        return otherwise;
    return fm_load_number(&x, v->dtype, (const char *)v->data + (size_t)i * fm_dtype_bytes(v->dtype)) ? x : otherwise;
}

int64_t fm_value_int(const fm_value *v, int64_t i, int64_t otherwise)
{
    int64_t x;
    if (!v || i < 0 || i >= v->n || v->dtype == FM_STRING)
        return otherwise;
    return fm_load_int(&x, v->dtype, (const char *)v->data + (size_t)i * fm_dtype_bytes(v->dtype)) ? x : otherwise;
}

fm_text fm_value_text(const fm_value *v, int64_t i)
{
    if (!v || i < 0 || i >= v->n || v->dtype != FM_STRING)
        return (fm_text){0};
    return ((const fm_text *)v->data)[i];
}

const char *fm_value_string(const fm_value *v)
{
    if (!v || v->is_array || v->dtype != FM_STRING)
        return NULL;
    fm_text t = fm_value_text(v, 0);
    return memchr(t.text, 0, t.bytes) ? NULL : t.text;
}

const fm_value *fm_meta_get(const fm_meta *m, const char *key)
{
    for (int64_t i = 0; i < m->n; i++)
        if (!strcmp(m->value[i].key, key))
            return &m->value[i];
    return NULL;
}

bool fm_meta_add(fm_meta *m, fm_value value)
{
    if (m->n == m->capacity) {
        int64_t capacity = m->capacity ? 2 * m->capacity : 16;
        fm_value *grown = nb_resize(m->value, (size_t)capacity, sizeof *grown);
        if (!grown) {
            m->failed = true;
            return false;
        }
        m->value = grown;
        m->capacity = capacity;
    }
    m->value[m->n++] = value;
    return true;
}

/* A copy in m's arena, followed by a NUL; NULL (and m failed) when out of memory. */
static void *copied(fm_meta *m, const void *data, size_t bytes)
{
    char *copy = nb_arena_alloc(&m->arena, bytes + 1);
    if (!copy) {
        m->failed = true;
        return NULL;
    }
    if (bytes)
        memcpy(copy, data, bytes);
    copy[bytes] = 0;
    return copy;
}

static void put(fm_meta *m, const char *key, fm_dtype t, bool is_array, const void *data, int64_t n)
{
    const char *own_key = copied(m, key, strlen(key));
    void *own = copied(m, data, (size_t)n * (t == FM_STRING ? sizeof(fm_text) : fm_dtype_bytes(t)));
    if (!own_key || !own)
        return;
    fm_text *text = own;
    for (int64_t i = 0; t == FM_STRING && i < n; i++) {
        text[i].text = copied(m, text[i].text, text[i].bytes);
        if (!text[i].text)
            return;
    }
    (void)fm_meta_add(m, (fm_value){own_key, t, is_array, n, own});
}

void fm_meta_put(fm_meta *m, const char *key, fm_dtype t, const void *number)
{
    put(m, key, t, false, number, 1);
}

void fm_meta_put_array(fm_meta *m, const char *key, fm_dtype t, const void *data, int64_t n)
{
    put(m, key, t, true, data, n);
}

void fm_meta_put_u32(fm_meta *m, const char *key, uint32_t x)
{
    put(m, key, FM_U32, false, &x, 1);
}

void fm_meta_put_f32(fm_meta *m, const char *key, float x)
{
    put(m, key, FM_F32, false, &x, 1);
}

void fm_meta_put_bool(fm_meta *m, const char *key, bool x)
{
    uint8_t byte = x;
    put(m, key, FM_BOOL, false, &byte, 1);
}

void fm_meta_put_string(fm_meta *m, const char *key, const char *text)
{
    fm_text t = {text, strlen(text)};
    put(m, key, FM_STRING, false, &t, 1);
}

void fm_meta_put_strings(fm_meta *m, const char *key, const fm_text *text, int64_t n)
{
    put(m, key, FM_STRING, true, text, n);
}

void fm_meta_put_value(fm_meta *m, const fm_value *v)
{
    put(m, v->key, v->dtype, v->is_array, v->data, v->n);
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

status fm_meta_check(const fm_meta *m, const char *path)
{
    if (!m || m->n == 0)
        return m && m->failed ? nb_fail(NB_NOMEM, "%s: no memory for its metadata", path) : NB_OK;
    if (m->failed)
        return nb_fail(NB_NOMEM, "%s: no memory for its metadata", path);
    const char **key = nb_alloc((size_t)m->n, sizeof *key);
    if (!key)
        return NB_NOMEM;
    for (int64_t i = 0; i < m->n; i++)
        key[i] = m->value[i].key;
    qsort(key, (size_t)m->n, sizeof *key, compare_keys);
    status s = NB_OK;
    for (int64_t i = 1; i < m->n && s == NB_OK; i++)
        if (!strcmp(key[i - 1], key[i]))
            s = nb_fail(NB_FORMAT, "%s: the key %s occurs twice", path, key[i]);
    free(key);
    return s;
}

void fm_meta_free(fm_meta *m)
{
    free(m->value);
    nb_arena_free(&m->arena);
    *m = (fm_meta){0};
}
