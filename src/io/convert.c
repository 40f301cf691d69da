/* convert.c - elements of any type as floats or integers. Integers beyond 2^24 round to the nearest float; blocks of
 * ggml's types are decoded in ggml_blocks.c.
 */
#include "io/formats.h"
#include <string.h>

bool fm_load_int(int64_t *x, fm_dtype t, const void *p)
{
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } v;
    if (fm_dtype_bytes(t) > sizeof v)
        return false;
    memcpy(&v, p, fm_dtype_bytes(t));
    switch (t) {
    case FM_BOOL:
        *x = v.u8 != 0;
        return true;
    case FM_U8:
        *x = v.u8;
        return true;
    case FM_I8:
        *x = v.i8;
        return true;
    case FM_U16:
        *x = v.u16;
        return true;
    case FM_I16:
        *x = v.i16;
        return true;
    case FM_U32:
        *x = v.u32;
        return true;
    case FM_I32:
        *x = v.i32;
        return true;
    case FM_I64:
        *x = v.i64;
        return true;
    case FM_U64:
        *x = v.i64;
        return v.u64 <= INT64_MAX;
    default:
        return false;
    }
}

bool fm_load_number(double *x, fm_dtype t, const void *p)
{
    float f;
    uint16_t h;
    uint64_t u;
    int64_t i;
    switch (t) {
    case FM_F64:
        memcpy(x, p, sizeof *x);
        return true;
    case FM_F32:
        memcpy(&f, p, sizeof f);
        break;
    case FM_F16:
        memcpy(&h, p, sizeof h);
        f = nb_half_to(h);
        break;
    case FM_BF16:
        memcpy(&h, p, sizeof h);
        f = nb_bf16_to(h);
        break;
    case FM_U64:
        memcpy(&u, p, sizeof u);
        *x = (double)u;
        return true;
    default:
        if (!fm_load_int(&i, t, p))
            return false;
        *x = (double)i;
        return true;
    }
    *x = (double)f;
    return true;
}

/* NB_SHAPE unless [from, from + n) lies inside the array, in whole blocks. */
static status check_range(const fm_array *a, int64_t from, int64_t n, int64_t block)
{
    if (!a->data && fm_count(a) != 0)
        return nb_fail(NB_USAGE, "%s: its elements are not in memory", a->name);
    if (from < 0 || n < 0 || from > fm_count(a) || n > fm_count(a) - from || from % block || n % block)
        return nb_fail(NB_SHAPE, "%s: asked for %lld elements from %lld of %lld in blocks of %lld", a->name,
                       (long long)n, (long long)from, (long long)fm_count(a), (long long)block);
    return NB_OK;
}

status fm_to_float(float *dst, const fm_array *a, int64_t from, int64_t n)
{
    int64_t block = fm_dtype_block(a->dtype);
    TRY(check_range(a, from, n, block));
    if (n == 0)
        return NB_OK;
    const fm_block_decoder decode = fm_block_decoder_of(a->dtype);
    size_t bytes = fm_dtype_bytes(a->dtype);
    const uint8_t *src = (const uint8_t *)a->data + (size_t)(from / block) * bytes;
    if (decode) {
        for (int64_t i = 0; i < n; i += block, src += bytes)
            decode(dst + i, src);
        return NB_OK;
    }
    if (a->dtype == FM_F32) {
        memcpy(dst, src, (size_t)n * bytes);
        return NB_OK;
    }
    double x;
    for (int64_t i = 0; i < n; i++, src += bytes) {
        if (block != 1 || !fm_load_number(&x, a->dtype, src))
            return nb_fail(NB_UNSUPPORTED, "%s: elements of type %s cannot be turned into floats", a->name,
                           fm_dtype_name(a->dtype));
        dst[i] = (float)x;
    }
    return NB_OK;
}

status fm_to_int(int64_t *dst, const fm_array *a, int64_t from, int64_t n)
{
    TRY(check_range(a, from, n, 1));
    const uint8_t *src = (const uint8_t *)a->data + (n ? (size_t)from * fm_dtype_bytes(a->dtype) : 0);
    for (int64_t i = 0; i < n; i++, src += fm_dtype_bytes(a->dtype))
        if (fm_dtype_block(a->dtype) != 1 || !fm_load_int(&dst[i], a->dtype, src))
            return nb_fail(NB_FORMAT, "%s: element %lld of type %s is not an integer of 64 bits", a->name,
                           (long long)(from + i), fm_dtype_name(a->dtype));
    return NB_OK;
}
