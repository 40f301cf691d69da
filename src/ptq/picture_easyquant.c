/* picture_easyquant.c - EasyQuant (Wu et al. 2020) of a network for pictures: easyquant_search.c layer by layer, a convolution as the product of
 * its patches, of which some are drawn. Between two convolutions pools stand: the site of the first is searched for what the pools leave of it.
 */
#include "ptq/easyquant.h"
#include "ptq/picture_ptq.h"
#include <stdlib.h>

enum { SEARCHED = 128, FEW_ROWS = 64, MANY_ROWS = 256, PATCHES = 701 /* stream of random numbers */ };

/* The window of point o, group by group: p [groups][K*K][C / groups] as rows of weights have it; zeros beyond the margin. */
static void patch(real *p, const kn_conv *c, const real *x, int64_t o)
{
    const int64_t C = c->C / c->groups, KK = c->K * c->K;
    for (int64_t k = 0; k < KK; k++) {
        const int64_t y = o / c->OW * c->stride + k / c->K * c->dilation - c->pad,
                      z = o % c->OW * c->stride + k % c->K * c->dilation - c->pad;
        const bool inside = y >= 0 && y < c->H && z >= 0 && z < c->W;
        for (int64_t i = 0; i < c->C; i++)
            p[(i / C * KK + k) * C + i % C] = inside ? x[(y * c->W + z) * c->C + i] : 0;
    }
}

static status search(fq_site *input, const ly_conv *l, const ag_tensor *x, const ag_tensor *raw, uint64_t seed)
{
    const kn_conv *c = &l->c;
    const int64_t points = c->OH * c->OW, K = kn_conv_depth(c) * c->groups, all = ag_rows(x) * points,
                  fit = (1 << 24) / (c->N * kn_conv_depth(c)),
                  wanted = fit < FEW_ROWS    ? FEW_ROWS
                           : fit > MANY_ROWS ? MANY_ROWS
                                             : fit,
                  rows = wanted < all ? wanted : all;
    const real *a = ag_value(x), *b = ag_value(raw);
    real *memory = nb_alloc((size_t)(2 * rows), (size_t)K * sizeof *memory);
    if (!memory || !a || !b) {
        free(memory);
        return NB_NOMEM;
    }
    for (int64_t r = 0; r < rows; r++) {
        const int64_t at = rows == all ? r : (int64_t)(nb_random_unit(seed, PATCHES, (uint64_t)r) * (double)all);
        patch(memory + r * K, c, a + at / points * ag_cols(x), at % points);
        patch(memory + (rows + r) * K, c, b + at / points * ag_cols(raw), at % points);
    }
    const status s =
        pt_easyquant(input, memory, memory + rows * K, rows, K, &(pt_scaled){l->w_site, l->w->x, c->groups}, 1);
    free(memory);
    return s;
}

/* act(conv(x, w) + b), before the site of the result. */
static ag_tensor *before_site(ag_tape *t, const ly_conv *l, ag_tensor *x)
{
    return x ? ag_conv(t, x, fq_weight(t, l->w_site, l->w), l->b ? ag_use(t, l->b) : NULL, &l->c, l->act) : NULL;
}

/* The stages [from, to), none of which is a convolution. */
static ag_tensor *between(ag_tape *t, const md_picture_net *m, int64_t from, int64_t to, ag_tensor *x)
{
    for (int64_t i = from; i < to && x; i++)
        x = md_net_stage(t, m, i, x, &(md_net_run){0});
    return x;
}

status pt_picture_easyquant(md_picture_net *m, const pt_picture_options *o)
{
    ag_tape floats = {.quantize_off = true}, coded = {0};
    real *memory[2] = {NULL, NULL};
    ag_tensor *x = pt_picture_leaf(&floats, &memory[0], o, SEARCHED),
              *raw = pt_picture_leaf(&coded, &memory[1], o, SEARCHED);
    fq_site *site = m->input;
    status s = x && raw ? NB_OK : NB_NOMEM;
    for (int64_t i = 0, layer = 0, from = 0; i < m->stages.n && s == NB_OK; i++) {
        if (m->stages.stage[i].kind != MD_STAGE_CONV)
            continue;
        const ly_conv *l = &m->layer[layer++];
        ag_tensor *pooled = between(&coded, m, from, i, raw);
        x = between(&floats, m, from, i, x);
        s = x && pooled ? search(site, l, x, pooled, o->seed + (uint64_t)layer) : NB_NOMEM;
        m->base.params.version++;
        x = before_site(&floats, l, x);
        raw = s == NB_OK ? before_site(&coded, l, between(&coded, m, from, i, fq_apply(&coded, site, raw))) : NULL;
        if (s == NB_OK && (!x || !raw))
            s = pt_picture_status(x ? &coded : &floats);
        site = l->output;
        from = i + 1;
    }
    ag_tape_free(&floats);
    ag_tape_free(&coded);
    free(memory[0]);
    free(memory[1]);
    return s;
}
