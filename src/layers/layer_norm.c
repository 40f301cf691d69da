/* layer_norm.c - RMSNorm and LayerNorm with their weights; float everywhere. */
#include "layers/layers.h"
#include <stdio.h>

status ly_norm_init(ly_norm *l, ly_build *build, const char *name, int64_t channels, bool layernorm, double eps)
{
    char full[128];
    *l = (ly_norm){.eps = (real)eps};
    snprintf(full, sizeof full, "%s.weight", name);
    l->w = ag_param_new(build->params, full, AG_NORM, 1, &channels);
    if (!l->w)
        return NB_NOMEM;
    for (int64_t i = 0; i < channels; i++)
        l->w->x[i] = 1;
    if (!layernorm)
        return NB_OK;
    snprintf(full, sizeof full, "%s.bias", name);
    l->b = ag_param_new(build->params, full, AG_NORM, 1, &channels);
    return l->b ? NB_OK : NB_NOMEM;
}

ag_tensor *ly_norm_forward(ag_tape *t, const ly_norm *l, ag_tensor *x)
{
    return l->b ? ag_layernorm(t, x, ag_use(t, l->w), ag_use(t, l->b), l->eps)
                : ag_rmsnorm(t, x, ag_use(t, l->w), l->eps);
}

void ly_norm_rows(real *y, const ly_norm *l, const real *x, int64_t M)
{
    if (l->b)
        kn_layernorm(y, NULL, NULL, x, l->w->x, l->b->x, M, l->w->count, l->eps);
    else
        kn_rmsnorm(y, NULL, x, l->w->x, M, l->w->count, l->eps);
}
