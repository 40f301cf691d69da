/* gptq_scales.h - codes one at a time, and scales by least squares for the codes of a row (private to ptq/). */
#ifndef NIBBLE_PTQ_GPTQ_SCALES_H
#define NIBBLE_PTQ_GPTQ_SCALES_H
#include "kernels/kernels.h"

static inline int32_t pt_code(const kn_codes *c, int64_t at)
{
    return c->q ? c->q[at] : c->q16[at];
}

static inline void pt_put_code(kn_codes *c, int64_t at, int32_t q)
{
    if (c->q)
        c->q[at] = (int8_t)q;
    else
        c->q16[at] = (int16_t)q;
}

static inline real pt_value(const kn_codes *c, int32_t q, int64_t scale)
{
    return (real)(kn_mul(&c->grid) * q + kn_add(&c->grid) - (c->zero ? c->zero[scale] : 0)) * c->scale[scale];
}

bool pt_ranges_by_row(const kn_grid *g); /* no range is of more than a row */
bool pt_fits_scales(const kn_grid *g);   /* pt_fit_row is for it */
/* Levels of a row's codes, scale 1: l [K]; and of n rows l [n, K] group by group times H [K, K]: lh [n, spans, K]. */
void pt_row_levels(real *l, const kn_codes *c, int64_t row);
void pt_levels_h(real *lh, const real *l, int64_t n, const kn_codes *c, const real *H);
/* Scales of one row, s = argmin (w - sum_g s_g l_g) (H + damping I) (w - sum_g s_g l_g)', l_g its levels in group g, 0 elsewhere. wh [K]: w (H + damping I).
 * Room for a [spans, spans + 1]. */
void pt_fit_row(kn_codes *c, int64_t row, const real *wh, const real *l, const real *lh, real damping, double *a);

#endif
