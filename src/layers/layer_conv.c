/* layer_conv.c - act(norm(conv(x, w) + b)) with the weight and the result through their sites. */
#include "layers/layers.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static status named(ag_param **p, ly_build *build, const char *layer, const char *what, ag_group group, int64_t n, real value)
{
    char name[128];
    snprintf(name, sizeof name, "%s.%s", layer, what);
    *p = ag_param_new(build->params, name, group, 1, &n);
    for (int64_t i = 0; *p && i < n; i++)
        (*p)->x[i] = value;
    return *p ? NB_OK : NB_NOMEM;
}

/* He et al. 2015: deviation sqrt(2 / inputs) before a ReLU, sqrt(1 / inputs) else. */
static void start(ag_param *p, const kn_conv *c, kn_activation act, uint64_t seed)
{
    const double deviation = sqrt((act == KN_LINEAR ? 1 : 2) / (double)kn_conv_depth(c));
    const uint64_t stream = nb_hash(NB_HASH_START, p->name, strlen(p->name));
    for (int64_t i = 0; seed != LY_UNSET && i < p->count; i++)
        p->x[i] = (real)(deviation * nb_random_normal(seed, stream, (uint64_t)i));
}

static bool is_multiplied(const kn_conv *c, const kn_grid *g)
{
    return c->groups == 1 && g->bits >= 1 && g->bits <= 8 && !g->has_zero && (g->grain == KN_TENSOR || g->grain == KN_ROW);
}

status ly_conv_init(ly_conv *l, ly_build *build, const char *name, const kn_conv *c, kn_activation act, bool norm)
{
    char full[128];
    const int64_t depth = kn_conv_depth(c), dim[] = {c->N, depth};
    *l = (ly_conv){.c = *c, .act = act};
    snprintf(l->name, sizeof l->name, "%s", name);
    snprintf(full, sizeof full, "%s.weight", name);
    const fq_spec spec = fq_recipe_find(build->recipe, full, NULL);
    if (!build->codes_only || spec.grid.bits == 0) {
        if (!(l->w = ag_param_new(build->params, full, AG_WEIGHT, 2, dim)))
            return NB_NOMEM;
        start(l->w, c, act, build->seed);
    }
    if (!(l->w_site = fq_site_new(build->sites, build->recipe, full, NULL, l->w, c->N, depth, 0)))
        return NB_USAGE;
    l->w_site->multiplied = is_multiplied(c, &l->w_site->spec.grid);
    if (norm) {
        TRY(named(&l->norm_w, build, name, "norm.weight", AG_NORM, c->N, 1));
        TRY(named(&l->norm_b, build, name, "norm.bias", AG_NORM, c->N, 0));
        TRY(named(&l->mean, build, name, "norm.mean", AG_NORM, c->N, 0));
        TRY(named(&l->variance, build, name, "norm.variance", AG_NORM, c->N, 1));
        l->mean->frozen = l->variance->frozen = true;
    } else {
        TRY(named(&l->b, build, name, "bias", AG_BIAS, c->N, 0));
    }
    snprintf(full, sizeof full, "%s.output", name);
    l->output = fq_site_new(build->sites, build->recipe, full, NULL, NULL, 0, c->OH * c->OW * c->N, 0);
    return l->output ? NB_OK : NB_USAGE;
}

static ag_tensor *normalized(ag_tape *t, const ly_conv *l, ag_tensor *x, bool training)
{
    const real eps = (real)LY_NORM_EPS;
    char site[96];
    ag_tensor *y = ag_batch_norm(t, x, ag_use(t, l->norm_w), ag_use(t, l->norm_b), training ? NULL : l->mean->x,
                                 training ? NULL : l->variance->x, eps);
    snprintf(site, sizeof site, "%s.norm", l->name);
    if (y && training && t->tap.fn)
        t->tap.fn(t->tap.ctx, site, x, y);
    return l->act == KN_RELU ? ag_relu(t, y) : l->act == KN_RELU6 ? ag_relu6(t, y) : y;
}

ag_tensor *ly_conv_forward(ag_tape *t, const ly_conv *l, ag_tensor *x, bool training)
{
    ag_tensor *w = l->w_site->spec.grid.bits ? fq_weight(t, l->w_site, l->w) : ag_use(t, l->w);
    ag_tensor *y = ag_conv(t, x, w, l->b ? ag_use(t, l->b) : NULL, &l->c, l->norm_w ? KN_LINEAR : l->act);
    if (l->norm_w)
        y = normalized(t, l, y, training);
    return fq_apply(t, l->output, y);
}
