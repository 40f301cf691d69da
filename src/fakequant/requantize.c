/* requantize.c - codes of a value that stands for exact sums (ag_sums), by fixed-point requantization (kernels.h): what an integer
 * network computes, in the fake-quant forward.
 */
#include "fakequant/ranges.h"

bool fq_requantize(kn_codes *c, const fq_site *site, const ag_sums *from)
{
    kn_requant r;
    if (kn_requant_new(&r, from->channels) != NB_OK)
        return false;
    const fq_range_now now = fq_range_at(site, 0);
    c->scale[0] = now.scale;
    if (c->zero)
        c->zero[0] = now.zero;
    kn_requant_set(&r, from->w, from->scale_x, &c->grid, now.scale, c->zero ? now.zero : 0, from->act);
    kn_requantize(c->q, c->ld, from->sum, c->rows, from->points, &r);
    kn_requant_free(&r);
    return true;
}

bool fq_has_sums(const fq_site *site, const ag_tensor *x)
{
    const kn_grid *g = &site->spec.grid;
    return x->sums && site->spec.range != FQ_DYNAMIC && g->grain == KN_TENSOR && g->levels == KN_LEVELS_INT && g->bits <= 8;
}
