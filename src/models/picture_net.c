/* picture_net.c - networks for pictures: built from their stages, run on the tape, turned under a recipe. */
#include "models/models.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static status copy_stages(md_stages *to, const md_stages *from)
{
    char *text = md_stages_text(from);
    if (!text)
        return NB_NOMEM;
    const status s = md_stages_parse(to, text, strlen(text), "stages");
    free(text);
    return s;
}

static status build(md_picture_net *m, uint64_t seed, bool codes_only)
{
    ly_build b = {&m->base.params, &m->base.sites, &m->base.recipe, seed, codes_only};
    const md_stages *s = &m->stages;
    m->base.sites.params = &m->base.params;
    m->base.folded = codes_only;
    m->layer = nb_alloc_zeroed((size_t)s->n, sizeof *m->layer);
    if (!m->layer)
        return NB_NOMEM;
    m->input = fq_site_new(&m->base.sites, &m->base.recipe, "input", NULL, NULL, 0, s->height * s->width * s->channels, 0);
    if (!m->input)
        return NB_USAGE;
    for (int64_t i = 0; i < s->n; i++) {
        const md_stage *g = &s->stage[i];
        char name[32];
        if (g->kind != MD_STAGE_CONV)
            continue;
        snprintf(name, sizeof name, i + 1 == s->n ? "head" : "layers.%lld", (long long)m->layers);
        TRY(ly_conv_init(&m->layer[m->layers++], &b, name, &g->c, g->act, g->norm));
    }
    return NB_OK;
}

status md_net_build(md_picture_net *m, const md_stages *s, const fq_recipe *recipe, uint64_t seed, bool codes_only)
{
    *m = (md_picture_net){0};
    status e = copy_stages(&m->stages, s);
    char *text = e == NB_OK && recipe && recipe->n ? fq_recipe_text(recipe) : NULL;
    if (e == NB_OK && recipe && recipe->n)
        e = text ? fq_recipe_parse(&m->base.recipe, recipe->name, text, strlen(text)) : NB_NOMEM;
    free(text);
    if (e == NB_OK)
        e = build(m, seed, codes_only);
    if (e != NB_OK)
        md_net_free(m);
    return e;
}

void md_net_free(md_picture_net *m)
{
    free(m->layer);
    md_stages_free(&m->stages);
    md_free(&m->base);
    *m = (md_picture_net){0};
}

/* dst (without a norm) computes what src computes with its running moments. */
static void fold_norm(const ly_conv *dst, const ly_conv *src)
{
    const int64_t depth = kn_conv_depth(&src->c);
    for (int64_t n = 0; n < src->c.N; n++) {
        double factor = 1, add = src->b ? (double)src->b->x[n] : 0;
        if (src->norm_w) {
            factor = (double)src->norm_w->x[n] / sqrt((double)src->variance->x[n] + LY_NORM_EPS);
            add = (double)src->norm_b->x[n] - (double)src->mean->x[n] * factor;
        }
        for (int64_t d = 0; d < depth; d++)
            dst->w->x[n * depth + d] = (real)((double)src->w->x[n * depth + d] * factor);
        dst->b->x[n] = (real)add;
    }
}

status md_net_with_recipe(md_picture_net *dst, const md_picture_net *src, const fq_recipe *recipe)
{
    md_stages plain;
    if (src->base.folded || src->base.recipe.n)
        return nb_fail(NB_USAGE, "the network has a recipe already: %s", src->base.recipe.name);
    TRY(copy_stages(&plain, &src->stages));
    for (int64_t i = 0; i < plain.n; i++)
        plain.stage[i].norm = false;
    status s = md_net_build(dst, &plain, recipe, LY_UNSET, false);
    md_stages_free(&plain);
    TRY(s);
    for (int64_t i = 0; i < src->layers; i++)
        fold_norm(&dst->layer[i], &src->layer[i]);
    dst->base.params.version++;
    return NB_OK;
}

/* The layer of a stage that has one. */
static const ly_conv *layer_of(const md_picture_net *m, int64_t stage)
{
    int64_t layer = 0;
    for (int64_t i = 0; i < stage; i++)
        layer += m->stages.stage[i].kind == MD_STAGE_CONV;
    return &m->layer[layer];
}

ag_tensor *md_net_stage(ag_tape *t, const md_picture_net *m, int64_t stage, ag_tensor *x, const md_net_run *run)
{
    const md_stage *s = &m->stages.stage[stage];
    switch (s->kind) {
    case MD_STAGE_CONV:
        return ly_conv_forward(t, layer_of(m, stage), x, run->training);
    case MD_STAGE_MAX_POOL:
        return ag_max_pool(t, x, &s->c);
    case MD_STAGE_AVERAGE_POOL:
        return ag_average_pool(t, x, &s->c);
    case MD_STAGE_DROPOUT:
        return run->training && s->p > 0 ? ag_dropout(t, x, (real)s->p, nb_random(run->seed, 77, run->stream), (uint64_t)stage) : x;
    default:
        return x;
    }
}

ag_tensor *md_net_forward(ag_tape *t, const md_picture_net *m, ag_tensor *x, const md_net_run *run)
{
    x = fq_apply(t, m->input, x);
    for (int64_t i = 0; i < m->stages.n; i++) {
        ag_tensor *before = x;
        x = md_net_stage(t, m, i, x, run);
        if (x != before)
            ag_done(before);
    }
    return x;
}
