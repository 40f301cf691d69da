/* folded_scales.c - scales of codes in a folded file:
 *   /tensor/NAME/scales   [n_scales]      F32, F16, BF16 as stored; a power of two as its exponent in I8, -128 for a scale of 0
 *   two levels of groups (super6, super8): scale = super * scales, these I8
 *   /tensor/NAME/supers   F16 [n_supers]
 *   two levels of blocks (dynamic8): scale = map[scales] * super + mean, these U8 (map: kn_dynamic_map)
 *   /tensor/NAME/supers   F32 [n_supers]
 *   /tensor/NAME/mean     F32 [1]
 */
#include "models/bind.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FULL_NAME = MD_NAME + 32, SCALE_ZERO = -128 };

fm_dtype md_scale_dtype(const kn_grid *g)
{
    static const fm_dtype of[] = {
        [KN_SCALE_F32] = FM_F32, [KN_SCALE_F16] = FM_F16,   [KN_SCALE_BF16] = FM_BF16,
        [KN_SCALE_POW2] = FM_I8, [KN_SCALE_SUPER6] = FM_I8, [KN_SCALE_SUPER8] = FM_I8, [KN_SCALE_DYNAMIC8] = FM_U8};
    return of[g->scale];
}

static fm_dtype super_dtype(const kn_grid *g)
{
    return g->scale == KN_SCALE_DYNAMIC8 ? FM_F32 : FM_F16;
}

int64_t md_scale_bytes(const kn_grid *g, int64_t rows, int64_t cols)
{
    const int64_t supers = kn_supers(g, rows, cols) + (g->scale == KN_SCALE_DYNAMIC8); /* and the mean */
    return kn_codes_scales(g, rows, cols) * (int64_t)fm_dtype_bytes(md_scale_dtype(g)) + supers * (int64_t)fm_dtype_bytes(super_dtype(g));
}

static const char *dataset(char text[FULL_NAME], const char *tensor, const char *what)
{
    (void)snprintf(text, FULL_NAME, "tensor/%s/%s", tensor, what);
    return text;
}

/* ---- writing ------------------------------------------------------------------------------ */

static bool store_scale(void *dst, const kn_grid *g, float x)
{
    int exponent;
    uint16_t h;
    switch (g->scale) {
    case KN_SCALE_F32:
        memcpy(dst, &x, sizeof x);
        return isfinite(x);
    case KN_SCALE_F16:
    case KN_SCALE_BF16:
        h = g->scale == KN_SCALE_F16 ? nb_half_from(x) : nb_bf16_from(x);
        memcpy(dst, &h, sizeof h);
        return isfinite(x) && x == (g->scale == KN_SCALE_F16 ? nb_half_to(h) : nb_bf16_to(h));
    default:
        if (x != 0 && (!(x > 0) || frexpf(x, &exponent) != 0.5f))
            return false;
        *(int8_t *)dst = (int8_t)(x == 0 ? SCALE_ZERO : exponent - 1);
        return true;
    }
}

static float read_scale(const kn_grid *g, const uint8_t *src)
{
    float x;
    uint16_t h;
    switch (g->scale) {
    case KN_SCALE_F32:
        memcpy(&x, src, sizeof x);
        return x;
    case KN_SCALE_F16:
    case KN_SCALE_BF16:
        memcpy(&h, src, sizeof h);
        return g->scale == KN_SCALE_F16 ? nb_half_to(h) : nb_bf16_to(h);
    default:
        return (int8_t)*src == SCALE_ZERO ? 0 : ldexpf(1, (int8_t)*src);
    }
}

static status save_supers(fm_h5 *f, const char *tensor, const kn_codes *c)
{
    char name[FULL_NAME];
    const int64_t n = kn_supers(&c->grid, c->rows, c->cols);
    uint16_t *super = nb_alloc((size_t)n, sizeof *super);
    int8_t *part = nb_alloc((size_t)c->n_scales, 1);
    status s = super && part ? NB_OK : NB_NOMEM;
    if (s == NB_OK) {
        kn_split_scales(super, part, &c->grid, c->scale, c->rows, c->spans);
        s = fm_h5_write(f, dataset(name, tensor, "supers"), FM_F16, 1, &n, super);
    }
    if (s == NB_OK)
        s = fm_h5_write(f, dataset(name, tensor, "scales"), FM_I8, 1, &c->n_scales, part);
    free(super);
    free(part);
    return s;
}

static status save_dynamic(fm_h5 *f, const char *tensor, const kn_codes *c)
{
    char name[FULL_NAME];
    const int64_t n = kn_supers(&c->grid, c->rows, c->cols), one = 1;
    TRY(fm_h5_write(f, dataset(name, tensor, "supers"), FM_F32, 1, &n, c->super));
    TRY(fm_h5_write(f, dataset(name, tensor, "mean"), FM_F32, 1, &one, c->mean));
    return fm_h5_write(f, dataset(name, tensor, "scales"), FM_U8, 1, &c->n_scales, c->scale_code);
}

status md_save_scales(fm_h5 *f, const char *tensor, const kn_codes *c)
{
    char name[FULL_NAME];
    if (kn_has_super(&c->grid))
        return save_supers(f, tensor, c);
    if (c->scale_code)
        return save_dynamic(f, tensor, c);
    const size_t bytes = fm_dtype_bytes(md_scale_dtype(&c->grid));
    uint8_t *stored = nb_alloc((size_t)c->n_scales, bytes);
    status s = stored ? NB_OK : NB_NOMEM;
    for (int64_t i = 0; i < c->n_scales && s == NB_OK; i++)
        if (!store_scale(stored + (size_t)i * bytes, &c->grid, c->scale[i]))
            s = nb_fail(NB_UNSUPPORTED, "%s: scale %lld is %g, which its storage does not hold", tensor, (long long)i,
                        (double)c->scale[i]);
    if (s == NB_OK)
        s = fm_h5_write(f, dataset(name, tensor, "scales"), md_scale_dtype(&c->grid), 1, &c->n_scales, stored);
    free(stored);
    return s;
}

/* ---- reading ------------------------------------------------------------------------------ */

static status load_supers(kn_codes *c, fm_h5 *f, const char *tensor)
{
    char name[FULL_NAME];
    const int64_t n = kn_supers(&c->grid, c->rows, c->cols), each = KN_SUPER / c->grid.group, runs = n / c->rows;
    uint16_t *super = nb_alloc((size_t)n, sizeof *super);
    int8_t *part = nb_alloc((size_t)c->n_scales, 1);
    status s = super && part ? NB_OK : NB_NOMEM;
    if (s == NB_OK)
        s = fm_h5_read_all(f, dataset(name, tensor, "supers"), FM_F16, super, 1, &n);
    if (s == NB_OK)
        s = fm_h5_read_all(f, dataset(name, tensor, "scales"), FM_I8, part, 1, &c->n_scales);
    for (int64_t i = 0; i < c->n_scales && s == NB_OK; i++) {
        c->scale[i] = (real)part[i] * (real)nb_half_to(super[i / c->spans * runs + i % c->spans / each]);
        if (!isfinite(c->scale[i]))
            s = nb_fail(NB_FORMAT, "scale %lld is %g", (long long)i, (double)c->scale[i]);
    }
    free(super);
    free(part);
    return s;
}

static status load_dynamic(kn_codes *c, fm_h5 *f, const char *tensor)
{
    char name[FULL_NAME];
    const int64_t n = kn_supers(&c->grid, c->rows, c->cols), one = 1;
    TRY(fm_h5_read_all(f, dataset(name, tensor, "supers"), FM_F32, c->super, 1, &n));
    TRY(fm_h5_read_all(f, dataset(name, tensor, "mean"), FM_F32, c->mean, 1, &one));
    TRY(fm_h5_read_all(f, dataset(name, tensor, "scales"), FM_U8, c->scale_code, 1, &c->n_scales));
    kn_join_dynamic(c);
    for (int64_t i = 0; i < c->n_scales; i++)
        if (!isfinite(c->scale[i]))
            return nb_fail(NB_FORMAT, "scale %lld is %g", (long long)i, (double)c->scale[i]);
    return NB_OK;
}

status md_load_scales(kn_codes *c, fm_h5 *f, const char *tensor)
{
    char name[FULL_NAME];
    if (kn_has_super(&c->grid))
        return load_supers(c, f, tensor);
    if (c->scale_code)
        return load_dynamic(c, f, tensor);
    const fm_dtype t = md_scale_dtype(&c->grid);
    uint8_t *stored = nb_alloc((size_t)c->n_scales, fm_dtype_bytes(t));
    status s = stored ? fm_h5_read_all(f, dataset(name, tensor, "scales"), t, stored, 1, &c->n_scales) : NB_NOMEM;
    int64_t bad = INT64_MAX;
#pragma omp parallel for schedule(static) reduction(min : bad) if (c->n_scales > 1 << 13)
    for (int64_t i = 0; i < (s == NB_OK ? c->n_scales : 0); i++) {
        c->scale[i] = read_scale(&c->grid, stored + (size_t)i * fm_dtype_bytes(t));
        if (!isfinite(c->scale[i]))
            bad = i < bad ? i : bad;
    }
    if (s == NB_OK && bad < INT64_MAX)
        s = nb_fail(NB_FORMAT, "scale %lld is %g", (long long)bad, (double)c->scale[bad]);
    free(stored);
    return s;
}
