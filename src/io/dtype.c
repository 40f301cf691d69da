/* dtype.c - the types of elements, and the size of an array:
 *   bytes = prod(dim) / block elements * block bytes, blocks along the last dimension.
 */
#include "io/formats.h"
#include <string.h>

typedef struct {
    const char *id, *name; /* name: safetensors' */
    int64_t block;
    size_t bytes;
    int ggml;
} dtype_row;

static const dtype_row dtypes[] = {
#define X(id, name, block, bytes, ggml) {#id, name, block, bytes, ggml},
    FM_DTYPE_LIST(X)
#undef X
};

const char *fm_dtype_name(fm_dtype t)
{
    return (unsigned)t < FM_DTYPE_COUNT ? dtypes[t].id : "unknown type";
}

int64_t fm_dtype_block(fm_dtype t)
{
    return dtypes[t].block;
}

size_t fm_dtype_bytes(fm_dtype t)
{
    return dtypes[t].bytes;
}

int fm_dtype_ggml(fm_dtype t)
{
    return dtypes[t].ggml;
}

bool fm_dtype_of_ggml(fm_dtype *t, int64_t ggml)
{
    for (int i = 0; i < FM_DTYPE_COUNT && ggml >= 0; i++)
        if (dtypes[i].ggml == ggml) {
            *t = (fm_dtype)i;
            return true;
        }
    return false;
}

bool fm_dtype_of_name(fm_dtype *t, const char *safetensors_name)
{
    for (int i = 0; i < FM_DTYPE_COUNT; i++)
        if (dtypes[i].name && !strcmp(dtypes[i].name, safetensors_name)) {
            *t = (fm_dtype)i;
            return true;
        }
    return false;
}

int64_t fm_count(const fm_array *a)
{
    int64_t n = 1;
    for (int i = 0; i < a->n_dim; i++)
        n *= a->dim[i];
    return n;
}

/* The product of the dimensions; false when one is negative or a partial product overflows (a 0 anywhere is 0). */
static bool count_checked(int64_t *n, const fm_array *a)
{
    *n = 1;
    for (int i = 0; i < a->n_dim; i++)
        if (a->dim[i] < 0 || !fm_multiply(n, *n, a->dim[i]))
            return false;
    return true;
}

status fm_array_measure(fm_array *a)
{
    char text[FM_SHAPE_TEXT];
    int64_t n, bytes;
    if (a->n_dim < 0 || a->n_dim > FM_MAX_DIM)
        return nb_fail(NB_FORMAT, "%s: found %d dimensions, at most %d are taken", a->name, a->n_dim, FM_MAX_DIM);
    if ((unsigned)a->dtype >= FM_DTYPE_COUNT || a->dtype == FM_STRING)
        return nb_fail(NB_FORMAT, "%s: an array cannot hold type %s", a->name, fm_dtype_name(a->dtype));
    if (!count_checked(&n, a) || !fm_multiply(&bytes, n, (int64_t)fm_dtype_bytes(a->dtype)))
        return nb_fail(NB_FORMAT, "%s: %s is too large", a->name, fm_shape_text(text, a));
    int64_t block = fm_dtype_block(a->dtype), row = a->n_dim ? a->dim[a->n_dim - 1] : 1;
    if (row % block != 0)
        return nb_fail(NB_FORMAT, "%s: rows of %lld elements are not whole blocks of %lld (%s)", a->name,
                       (long long)row, (long long)block, fm_dtype_name(a->dtype));
    a->bytes = (size_t)(bytes / block);
    return NB_OK;
}

const char *fm_shape_text(char text[FM_SHAPE_TEXT], const fm_array *a)
{
    int at = snprintf(text, FM_SHAPE_TEXT, "%s [", fm_dtype_name(a->dtype));
    for (int i = 0; i < a->n_dim && i < FM_MAX_DIM; i++)
        at += snprintf(text + at, (size_t)(FM_SHAPE_TEXT - at), "%s%lld", i ? "," : "", (long long)a->dim[i]);
    (void)snprintf(text + at, (size_t)(FM_SHAPE_TEXT - at), "]");
    return text;
}
