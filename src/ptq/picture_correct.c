/* picture_correct.c - empirical bias correction (Nagel et al. 2019, appendix D) of a network for pictures, layer by layer:
 *   b += mean over pictures and points of  conv(x, w) - conv(x', w')
 * x what the float layers before give, x' the quantized ones, corrected already, w' the values of the codes. So an error of the mean that came in is
 * taken back too.
 */
#include "ptq/picture_ptq.h"
#include <stdlib.h>

enum { CORRECTED = 250 };

/* moved [N]: b's, of sums that differ. */
static status differ(double *moved, const ag_tensor *y, const ag_tensor *z, int64_t N)
{
    const real *a = y ? ag_value(y) : NULL, *b = z ? ag_value(z) : NULL;
    if (!a || !b)
        return NB_NOMEM;
    for (int64_t k = 0; k < ag_count(y); k++)
        moved[k % N] += ((double)a[k] - (double)b[k]) * (double)N / (double)ag_count(y);
    return NB_OK;
}

/* One stage of both networks: *x of the float one, *z of the quantized one, whose bias is corrected on the way. */
static status do_layer(ag_tape *floats, ag_tape *coded, md_picture_net *m, int64_t stage, const ly_conv *l,
                       ag_tensor **x, ag_tensor **z)
{
    static const md_net_run run = {0};
    double *moved = nb_alloc_zeroed((size_t)l->c.N, sizeof *moved);
    status s = moved ? differ(moved, ag_conv(floats, *x, ag_use(floats, l->w), NULL, &l->c, KN_LINEAR),
                              ag_conv(coded, *z, fq_weight(coded, l->w_site, l->w), NULL, &l->c, KN_LINEAR), l->c.N)
                     : NB_NOMEM;
    *x = md_net_stage(floats, m, stage, *x, &run); /* with the bias as it was */
    for (int64_t n = 0; s == NB_OK && n < l->c.N; n++)
        l->b->x[n] += (real)moved[n];
    *z = md_net_stage(coded, m, stage, *z, &run);
    free(moved);
    return s;
}

status pt_picture_correct(md_picture_net *m, const pt_picture_options *o)
{
    ag_tape floats = {.quantize_off = true}, coded = {0};
    real *memory[2] = {NULL, NULL};
    ag_tensor *x = pt_picture_leaf(&floats, &memory[0], o, CORRECTED),
              *z = fq_apply(&coded, m->input, pt_picture_leaf(&coded, &memory[1], o, CORRECTED));
    status s = NB_OK;
    for (int64_t i = 0, layer = 0; i < m->stages.n && s == NB_OK && x && z; i++) {
        const ly_conv *l = m->stages.stage[i].kind == MD_STAGE_CONV ? &m->layer[layer++] : NULL;
        if (l) {
            s = do_layer(&floats, &coded, m, i, l, &x, &z);
        } else {
            x = md_net_stage(&floats, m, i, x, &(md_net_run){0});
            z = md_net_stage(&coded, m, i, z, &(md_net_run){0});
        }
    }
    if (s == NB_OK && (!x || !z))
        s = pt_picture_status(x ? &coded : &floats);
    m->base.params.version++;
    ag_tape_free(&floats);
    ag_tape_free(&coded);
    free(memory[0]);
    free(memory[1]);
    return s;
}
