/* layer_linear.c - y = x w' + b with the weight and the bias through their sites. */
#include "layers/layers.h"
#include <stdio.h>
#include <string.h>

/* A parameter [rows, cols] (one dimension where rows is 1) named "NAME.what" and its site; normal start values. */
static status parameter(ag_param **p, fq_site **site, ly_build *build, const char *name, const char *what,
                        const char *alias, int64_t rows, int64_t cols, double deviation)
{
    char full[128];
    snprintf(full, sizeof full, "%s.%s", name, what);
    bool bias = rows == 1 && !strcmp(what, "bias");
    fq_spec spec = fq_recipe_find(build->recipe, full, alias);
    *p = NULL;
    if (!build->codes_only || spec.grid.bits == 0) {
        const int64_t dim[2] = {bias ? cols : rows, cols};
        *p = ag_param_new(build->params, full, bias ? AG_BIAS : AG_WEIGHT, bias ? 1 : 2, dim);
        if (!*p)
            return NB_NOMEM;
        const uint64_t stream = nb_hash(NB_HASH_START, full, strlen(full));
        const int64_t count = deviation > 0 && build->seed != LY_UNSET ? (*p)->count : 0;
        real *x = (*p)->x;
#pragma omp parallel for schedule(static) if (count > 1 << 12)
        for (int64_t i = 0; i < count; i++)
            x[i] = (real)(deviation * nb_random_normal(build->seed, stream, (uint64_t)i));
    }
    *site = fq_site_new(build->sites, build->recipe, full, alias, *p, rows, cols, 0);
    return *site ? NB_OK : NB_USAGE;
}

status ly_linear_init(ly_linear *l, ly_build *build, const char *name, const char *alias, int64_t in, int64_t out,
                      bool bias, double deviation)
{
    *l = (ly_linear){.in = in, .out = out};
    TRY(parameter(&l->w, &l->w_site, build, name, "weight", alias, out, in, deviation));
    return bias ? parameter(&l->b, &l->b_site, build, name, "bias", NULL, 1, out, 0) : NB_OK;
}

static ag_tensor *through_site(ag_tape *t, fq_site *site, ag_param *p)
{
    return site->spec.grid.bits || fq_is_stored_float(&site->spec) ? fq_weight(t, site, p) : ag_use(t, p);
}

ag_tensor *ly_weight(ag_tape *t, const ly_linear *l)
{
    return through_site(t, l->w_site, l->w);
}

ag_tensor *ly_bias(ag_tape *t, const ly_linear *l)
{
    if (!l->b_site)
        return NULL;
    ag_tensor *b = through_site(t, l->b_site, l->b);
    return b && b->n_dim == 2 ? ag_reshape(t, b, 1, &l->out) : b;
}

ag_tensor *ly_linear_forward(ag_tape *t, const ly_linear *l, ag_tensor *x)
{
    ag_tensor *b = ly_bias(t, l);
    return l->b_site && !b ? NULL : ag_linear(t, x, ly_weight(t, l), b);
}
