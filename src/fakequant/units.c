/* units.c - a coded matrix in runs that share a scale, and scales as they are now.
 *   log, LSQ:  scale = store(s0 e^u),  zero = clamp(rne(z0 + (hi - lo) v))
 *   PACT with a zero point:  max = (hi - z0) s0 e^u,  min = (lo - z0) s0 e^v,  scale = store((max - min) / (hi - lo)),
 *     zero = clamp(rne(lo - min / scale))
 */
#include "fakequant/ranges.h"
#include <math.h>

int64_t fq_units(const kn_codes *c)
{
    return c->grid.grain == KN_BLOCK ? c->n_scales : c->grid.grain == KN_TENSOR ? c->rows : c->rows * c->spans;
}

void fq_unit(const kn_codes *c, int64_t unit, int64_t *begin, int64_t *end)
{
    const int64_t group = c->grid.group, n = c->rows * c->cols;
    if (c->grid.grain == KN_BLOCK) {
        *begin = unit * group;
        *end = *begin + group < n ? *begin + group : n;
    } else if (c->grid.grain == KN_TENSOR || c->grid.grain == KN_ROW) {
        *begin = unit * c->cols;
        *end = *begin + c->cols;
    } else {
        int64_t row = unit / c->spans, col = unit % c->spans * group;
        *begin = row * c->cols + col;
        *end = row * c->cols + (col + group < c->cols ? col + group : c->cols);
    }
}

int64_t fq_unit_scale(const kn_codes *c, int64_t unit)
{
    return c->grid.grain == KN_TENSOR ? 0 : unit;
}

bool fq_is_ternary(const kn_grid *g)
{
    return g->levels == KN_LEVELS_INT && g->lo == -1 && g->hi == 1 && !g->has_zero;
}

/* e^u with u held within its limit */
static double factor(const ag_param *p, int64_t i)
{
    const double limit = (double)FQ_LARGEST_LOG;
    double u = p ? (double)p->x[i] : 0;
    return exp(u > limit ? limit : u < -limit ? -limit : u);
}

fq_range_now fq_range_at(const fq_site *site, int64_t i)
{
    const kn_grid *g = &site->spec.grid;
    const double s0 = (double)site->start[i], z0 = site->start_zero ? (double)site->start_zero[i] : 0;
    const double steps = (double)g->hi - (double)g->lo;
    fq_range_now now = {0};
    if (g->has_zero && site->spec.learning == FQ_PACT && site->spec.range == FQ_LEARNED) {
        double max = ((double)g->hi - z0) * s0 * factor(site->u, i),
               min = ((double)g->lo - z0) * s0 * factor(site->v, i);
        now.max = (real)max;
        now.min = (real)min;
        now.scale = kn_store(g, (real)((max - min) / steps));
        now.zero_latent = (double)g->lo - min * (double)kn_inverse(now.scale);
    } else {
        now.scale = kn_store(g, (real)(s0 * factor(site->u, i)));
        now.zero_latent = z0 + (site->v ? steps * (double)site->v->x[i] : 0);
    }
    if (g->has_zero) {
        double z = rint(now.zero_latent);
        now.zero = z > g->hi ? g->hi : z >= g->lo ? (int32_t)z : g->lo;
    }
    return now;
}

void fq_site_ranges(const fq_site *site, real *scale, int32_t *zero)
{
#pragma omp parallel for schedule(static) if (site->n_scales > FQ_PARALLEL / 8)
    for (int64_t i = 0; i < (site->start ? site->n_scales : 0); i++) {
        const fq_range_now now = fq_range_at(site, i);
        scale[i] = now.scale;
        if (zero)
            zero[i] = now.zero;
    }
    if (site->is_weight && site->start)
        kn_store_scales(&site->spec.grid, scale, site->rows, site->rows ? site->n_scales / site->rows : 0);
}
