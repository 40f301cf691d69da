/* arrays.c - the list of named arrays that a reader gives, its index of names, and a cursor over a mapped file. */
#include "io/formats.h"
#include <stdlib.h>
#include <string.h>

bool fm_take(fm_cursor *c, const void **p, size_t bytes)
{
    if (bytes > c->left)
        return false;
    *p = c->at;
    c->at += bytes;
    c->left -= bytes;
    return true;
}

bool fm_take_u32(fm_cursor *c, uint32_t *x)
{
    const void *p;
    if (!fm_take(c, &p, sizeof *x))
        return false;
    memcpy(x, p, sizeof *x);
    return true;
}

bool fm_take_u64(fm_cursor *c, uint64_t *x)
{
    const void *p;
    if (!fm_take(c, &p, sizeof *x))
        return false;
    memcpy(x, p, sizeof *x);
    return true;
}

/* Room for one more in a list that doubles at powers of two; NULL when out of memory. */
static void *grown(void *list, int64_t n, size_t size)
{
    if (n & (n - 1)) /* not a power of two: there is room */
        return list;
    return nb_resize(list, n ? 2 * (size_t)n : 1, size);
}

fm_array *fm_arrays_add(fm_arrays *a)
{
    fm_array *list = grown(a->array, a->n, sizeof *list);
    if (!list)
        return NULL;
    a->array = list;
    list[a->n] = (fm_array){0};
    return &list[a->n++];
}

status fm_arrays_map(nb_mapped *file, fm_arrays *a, const char *path)
{
    nb_mapped *list = grown(a->file, a->n_files, sizeof *list);
    if (!list)
        return NB_NOMEM;
    a->file = list;
    TRY(nb_map(file, path));
    list[a->n_files++] = *file;
    return NB_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const fm_array *const *)a)->name, (*(const fm_array *const *)b)->name);
}

status fm_arrays_index(fm_arrays *a)
{
    a->by_name = nb_alloc((size_t)a->n, sizeof *a->by_name);
    if (!a->by_name)
        return NB_NOMEM;
    for (int64_t i = 0; i < a->n; i++)
        a->by_name[i] = &a->array[i];
    qsort(a->by_name, (size_t)a->n, sizeof *a->by_name, compare_names);
    for (int64_t i = 1; i < a->n; i++)
        if (!strcmp(a->by_name[i - 1]->name, a->by_name[i]->name))
            return nb_fail(NB_FORMAT, "%s: the array %s occurs twice", a->path, a->by_name[i]->name);
    return NB_OK;
}

const fm_array *fm_find(const fm_arrays *a, const char *name)
{
    fm_array key = {.name = name};
    const fm_array *wanted = &key;
    const fm_array **found =
        a->n ? bsearch(&wanted, a->by_name, (size_t)a->n, sizeof *a->by_name, compare_names) : NULL;
    return found ? *found : NULL;
}

status fm_need(const fm_array **found, const fm_arrays *a, const char *name, int n_dim, const int64_t *dim)
{
    char has[FM_SHAPE_TEXT], wants[FM_SHAPE_TEXT];
    const fm_array *x = fm_find(a, name);
    if (!x)
        return nb_fail(NB_FORMAT, "%s: has no array %s", a->path, name);
    bool same = x->n_dim == n_dim;
    for (int i = 0; same && i < n_dim; i++)
        same = x->dim[i] == dim[i];
    if (!same) {
        fm_array wanted = {.dtype = x->dtype, .n_dim = n_dim};
        memcpy(wanted.dim, dim, (size_t)n_dim * sizeof *dim);
        return nb_fail(NB_FORMAT, "%s: %s: found %s, wanted %s", a->path, name, fm_shape_text(has, x),
                       fm_shape_text(wants, &wanted));
    }
    *found = x;
    return NB_OK;
}

void fm_forget(const fm_arrays *a, const fm_array *array)
{
    const uintptr_t at = (uintptr_t)array->data;
    for (int64_t i = 0; i < a->n_files; i++) {
        const uintptr_t begin = (uintptr_t)a->file[i].data;
        if (at >= begin && at < begin + a->file[i].bytes)
            nb_map_forget(&a->file[i], array->data, array->bytes);
    }
}

void fm_arrays_free(fm_arrays *a)
{
    for (int64_t i = 0; i < a->n_files; i++)
        nb_unmap(&a->file[i]);
    free(a->file);
    free(a->array);
    free(a->by_name);
    free(a->path);
    fm_meta_free(&a->meta);
    nb_arena_free(&a->names);
    *a = (fm_arrays){0};
}
