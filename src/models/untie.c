/* untie.c - a model built anew around the floats it holds: with a head of its own (head.weight <- embed.weight, with its own site and rules; what
 * else the model holds stays, ranges of the two matrices start anew, as their rules may differ now), with Hadamard matrices, or under another recipe.
 */
#include "models/bind.h"
#include <stdlib.h>
#include <string.h>

static bool is_vocabulary(const char *name)
{
    return !strncmp(name, "embed.", 6) || !strncmp(name, "head.weight", 11);
}

static status copy_site(fq_site *to, const fq_site *from)
{
    const int64_t n = from ? fq_site_state(from, NULL) : 0;
    if (n == 0 || fq_site_state(to, NULL) != n || is_vocabulary(to->name))
        return NB_OK;
    double *state = nb_alloc((size_t)n, sizeof *state);
    if (!state)
        return NB_NOMEM;
    (void)fq_site_state(from, state);
    status s = fq_site_restore(to, state, n);
    free(state);
    return s;
}

static status copy(md_model *to, const md_model *from)
{
    for (int64_t i = 0; i < to->params.n; i++) {
        ag_param *p = to->params.p[i];
        bool head = !strcmp(p->name, "head.weight") && from->config.tied;
        const ag_param *old = ag_param_find(&from->params, head ? "embed.weight" : p->name);
        if (old && old->count == p->count && (head || !is_vocabulary(p->name) || !strcmp(p->name, "embed.weight") || !strcmp(p->name, "head.weight")))
            memcpy(p->x, old->x, (size_t)p->count * sizeof(real));
    }
    for (int64_t i = 0; i < to->sites.n; i++)
        for (int64_t k = 0; k < from->sites.n; k++)
            if (!strcmp(to->sites.s[i]->name, from->sites.s[k]->name))
                TRY(copy_site(to->sites.s[i], from->sites.s[k]));
    to->params.version++;
    return NB_OK;
}

status md_with_recipe(md_model *to, const md_model *from, const fq_recipe *recipe)
{
    if (from->folded)
        return nb_fail(NB_USAGE, "another recipe needs the floats of a model, this one is folded");
    TRY(md_build(to, &from->config, recipe, MD_UNSET, false));
    for (int64_t i = 0; i < to->params.n; i++) {
        ag_param *p = to->params.p[i];
        const ag_param *old = ag_param_find(&from->params, p->name);
        if (p->group != AG_SCALE && old && old->count == p->count)
            memcpy(p->x, old->x, (size_t)p->count * sizeof(real));
    }
    to->params.version++;
    return NB_OK;
}

status md_loosen(md_model *m, const md_model *floats)
{
    for (int64_t i = 0; i < m->sites.n; i++) {
        fq_site *s = m->sites.s[i];
        if (!s->is_weight || !s->w || !s->spec.grid.bits || !s->started)
            continue;
        const ag_param *p = ag_param_find(&floats->params, s->w->name);
        if (!p || p->count != s->w->count)
            return nb_fail(NB_USAGE, "%s: codes of another model: there is no such weight of %lld numbers in the float one", s->w->name,
                           (long long)s->w->count);
        TRY(fq_site_loosen(s, &m->params, p->x));
    }
    m->params.version++;
    return NB_OK;
}

void md_replace(md_model *m, md_model *by)
{
    md_carry(by, m);
    md_free(m);
    *m = *by;
    *by = (md_model){0};
}

static status build_anew(md_model *m, const md_config *c)
{
    md_model own;
    TRY(md_build(&own, c, &m->recipe, 0, false));
    status s = copy(&own, m);
    if (s != NB_OK) {
        md_free(&own);
        return s;
    }
    md_replace(m, &own);
    return NB_OK;
}

status md_untie(md_model *m)
{
    md_config c = m->config;
    if (m->folded)
        return nb_fail(NB_USAGE, "a folded model stays tied: untie it before folding");
    if (!c.tied)
        return NB_OK;
    c.tied = false;
    return build_anew(m, &c);
}

status md_turn(md_model *m)
{
    md_config c = m->config;
    if (m->folded)
        return nb_fail(NB_USAGE, "a folded model stays as it is: turn it before folding");
    c.hadamard = true;
    return build_anew(m, &c);
}
