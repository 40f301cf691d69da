/* picture_correct.c - bias correction (Nagel et al. 2019) of a network for pictures, layer by layer:
 *   b += mean over pictures and points of  conv(x, w) - conv(x, w'),   w' the values of the codes, x what the quantized layers before give
 */
#include "ptq/picture.h"
#include <stdlib.h>

enum { CORRECTED = 250 };

static status correct(ag_tape *t, const ly_conv *l, ag_tensor *x)
{
    const int64_t N = l->c.N;
    if (!l->b || !l->w || !l->w_site->spec.grid.bits)
        return NB_OK;
    ag_tensor *y = ag_conv(t, x, ag_use(t, l->w), NULL, &l->c, KN_LINEAR), *z = ag_conv(t, x, fq_weight(t, l->w_site, l->w), NULL, &l->c, KN_LINEAR);
    const real *a = y ? ag_value(y) : NULL, *b = z ? ag_value(z) : NULL;
    double *moved = nb_alloc_zeroed((size_t)N, sizeof *moved);
    if (!a || !b || !moved) {
        free(moved);
        return pt_picture_status(t);
    }
    for (int64_t k = 0; k < ag_count(y); k++)
        moved[k % N] += (double)a[k] - (double)b[k];
    for (int64_t n = 0; n < N; n++)
        l->b->x[n] += (real)(moved[n] * (double)N / (double)ag_count(y));
    free(moved);
    return NB_OK;
}

status pt_picture_correct(md_picture_net *m, const pt_picture_options *o)
{
    ag_tape t = {0};
    real *memory = NULL;
    ag_tensor *x = fq_apply(&t, m->input, pt_picture_leaf(&t, &memory, o, CORRECTED));
    status s = x ? NB_OK : pt_picture_status(&t);
    for (int64_t i = 0, layer = 0; i < m->stages.n && s == NB_OK; i++) {
        if (m->stages.stage[i].kind == MD_STAGE_CONV)
            s = correct(&t, &m->layer[layer++], x);
        if (s == NB_OK && !(x = md_net_stage(&t, m, i, x, &(md_net_run){0})))
            s = pt_picture_status(&t);
    }
    m->base.params.version++;
    ag_tape_free(&t);
    free(memory);
    return s;
}
