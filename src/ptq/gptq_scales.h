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
/* Scales of one row, s = argmin (w - sum_g s_g l_g) H (w - sum_g s_g l_g)' with levels l_g of group g for its codes. H [K, K]; wh [K]: w H. Room for l and lh
 * [spans, K] and a [spans, spans + 1]. */
void pt_fit_row(kn_codes *c, const real *H, int64_t row, const real *wh, real *l, real *lh, double *a);

#endif
