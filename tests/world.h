/* world.h - for tests: a recipe of one rule, parameters, sites and a tape. */
#ifndef NIBBLE_TESTS_WORLD_H
#define NIBBLE_TESTS_WORLD_H
#include "fakequant/fakequant.h"
#include <check.h>
#include <string.h>

typedef struct {
    fq_recipe recipe;
    ag_params params;
    fq_sites sites;
    ag_tape tape;
} world;

static inline void world_new(world *m, const char *spec)
{
    char text[256];
    *m = (world){0};
    snprintf(text, sizeof text, "* %s\n", spec);
    ck_assert_msg(fq_recipe_parse(&m->recipe, "test", text, strlen(text)) == NB_OK, "%s", nb_fail_message());
    m->sites.params = &m->params;
}

static inline void world_free(world *m)
{
    ag_tape_free(&m->tape);
    fq_sites_free(&m->sites);
    ag_params_free(&m->params);
    fq_recipe_free(&m->recipe);
}

/* A weight [rows, cols] of normal numbers, deviation 0.05, and its site. */
static inline fq_site *weight_site(world *m, const char *name, int64_t rows, int64_t cols, uint64_t seed)
{
    char full[64];
    snprintf(full, sizeof full, "%s.weight", name);
    ag_param *w = ag_param_new(&m->params, full, AG_WEIGHT, 2, (int64_t[]){rows, cols});
    ck_assert(w != NULL);
    for (int64_t i = 0; i < w->count; i++)
        w->x[i] = (real)(0.05 * nb_random_normal(seed, 1, (uint64_t)i));
    fq_site *s = fq_site_new(&m->sites, &m->recipe, full, NULL, w, rows, cols, 0);
    ck_assert_msg(s != NULL, "%s", nb_fail_message());
    return s;
}

static inline ag_tensor *leaf(world *m, real *x, real *g, int64_t rows, int64_t cols)
{
    return ag_leaf(&m->tape, x, g, 2, (int64_t[]){rows, cols});
}

#endif
