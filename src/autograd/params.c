/* params.c - the one list of parameters: created by name in the order the model is built; saving, loading, optimizing,
 * folding and counting walk it. */
#include "autograd/autograd.h"
#include <stdlib.h>
#include <string.h>

static void param_free(ag_param *p)
{
    if (!p)
        return;
    free(p->name);
    free(p->x);
    if (!p->borrowed)
        free(p->g);
    free(p->m);
    free(p->v);
    free(p->m16);
    free(p->v16);
    free(p);
}

ag_param *ag_param_find(const ag_params *ps, const char *name)
{
    for (int64_t i = 0; i < ps->n; i++)
        if (!strcmp(ps->p[i]->name, name))
            return ps->p[i];
    return NULL;
}

ag_param *ag_param_new(ag_params *ps, const char *name, ag_group group, int n_dim, const int64_t *dim)
{
    if (ag_param_find(ps, name)) {
        nb_fail(NB_USAGE, "parameter %s exists already", name);
        return NULL;
    }
    if (ps->n == ps->capacity) {
        int64_t capacity = ps->capacity ? 2 * ps->capacity : 64;
        ag_param **p = nb_resize(ps->p, (size_t)capacity, sizeof *p);
        if (!p)
            return NULL;
        ps->p = p;
        ps->capacity = capacity;
    }
    ag_param *p = nb_alloc_zeroed(1, sizeof *p);
    if (!p)
        return NULL;
    int64_t n = 1;
    for (int i = 0; i < n_dim; i++) {
        if (dim[i] <= 0 || dim[i] > (INT64_MAX >> 4) / n) {
            nb_fail(NB_SHAPE, "parameter %s: dimension %d is %lld", name, i, (long long)dim[i]);
            free(p);
            return NULL;
        }
        n *= p->dim[i] = dim[i];
    }
    p->group = group;
    p->n_dim = n_dim;
    p->count = n;
    p->name = nb_string(name);
    p->x = nb_alloc_aligned_zeroed((size_t)n, sizeof(real));
    if (!p->name || !p->x) {
        param_free(p);
        return NULL;
    }
    ps->version++;
    return ps->p[ps->n++] = p;
}

int64_t ag_params_count(const ag_params *ps)
{
    int64_t n = 0;
    for (int64_t i = 0; i < ps->n; i++)
        n += ps->p[i]->group == AG_SCALE ? 0 : ps->p[i]->count;
    return n;
}

ag_tensor *ag_use(ag_tape *t, ag_param *p)
{
    if (!p || t->err)
        return NULL;
    const bool wanted = !p->frozen && !t->no_grad;
    const ag_tape *home = t->home ? t->home : t;
    if (wanted && !home->step_gradients && !p->g && !(p->g = nb_alloc_aligned((size_t)p->count, sizeof(real)))) {
        t->err = NB_NOMEM;
        return NULL;
    }
    ag_tensor *a = ag_leaf(t, p->x, NULL, p->n_dim, p->dim);
    if (!a)
        return NULL;
    a->needs_grad = wanted;
    a->param = p;
    return a;
}

void ag_params_clear_grad(ag_params *ps)
{
    for (int64_t i = 0; i < ps->n; i++) {
        ag_param *p = ps->p[i];
        p->has_grad = false;
        if (p->borrowed)
            p->g = NULL;
        p->borrowed = false;
    }
}

void ag_params_free(ag_params *ps)
{
    for (int64_t i = 0; i < ps->n; i++)
        param_free(ps->p[i]);
    free(ps->p);
    *ps = (ag_params){0};
}
