/* test_observers.c - static ranges and starts of learned ones from what activations were. */
#include "suite.h"
#include "world.h"
#include <math.h>
#include <stdlib.h>

static void show(world *m, real *x, int64_t rows, int64_t cols)
{
    ag_reset(&m->tape);
    ag_tensor *t = leaf(m, x, NULL, rows, cols);
    for (int64_t i = 0; i < m->sites.n; i++)
        fq_observe(&m->sites, m->sites.s[i]->name, t, t);
}

static double top_of(const fq_site *s, int64_t i)
{
    return (double)s->start[i] * s->spec.grid.hi;
}

START_TEST(moving_average_moves_once_a_step_from_its_first)
{
    world m;
    world_new(&m, "int8 narrow tensor static:average:0.25");
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 2, 0);
    show(&m, (real[]){1, 4}, 1, 2); /* two micro-batches of one step */
    show(&m, (real[]){-8, 4}, 1, 2);
    ck_assert(!s->started && fq_observe_end(&m.sites) == NB_OK && s->started);
    ck_assert_double_eq_tol(top_of(s, 0), 8, 1e-6);
    show(&m, (real[]){-4, 16}, 1, 2);
    ck_assert(fq_observe_end(&m.sites) == NB_OK); /* low -8 -> -7, high 4 -> 7 */
    ck_assert_double_eq_tol(top_of(s, 0), 7, 1e-6);
    ck_assert(fq_observe_end(&m.sites) == NB_OK); /* a step that saw nothing */
    ck_assert_double_eq_tol(top_of(s, 0), 7, 1e-6);
    m.sites.frozen = true;
    show(&m, (real[]){-400, 1600}, 1, 2);
    ck_assert(fq_observe_end(&m.sites) == NB_OK);
    ck_assert_double_eq_tol(top_of(s, 0), 7, 1e-6);
    world_free(&m);
}
END_TEST

START_TEST(min_max_is_of_everything_per_head)
{
    world m;
    world_new(&m, "int8 asym head static");
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 4, 2);
    show(&m, (real[]){-1, 2, 0, 0, 3, 0, (real)-0.5, 0}, 2, 4);
    show(&m, (real[]){0, 1, 7, NAN, 0, 0, INFINITY, -INFINITY}, 2, 4);
    ck_assert(fq_observe_end(&m.sites) == NB_OK && s->started);
    ck_assert_double_eq_tol((double)s->start[0] * 255, 4, 1e-5);
    ck_assert_double_eq_tol((double)s->start[1] * 255, 7.5, 1e-5);
    ck_assert(s->start_zero[0] == -64 && s->start_zero[1] == -111);
    world_free(&m);
}
END_TEST

static const char *const strange_specs[] = {"int8 tensor static",
                                            "int8 asym tensor static:average",
                                            "int8 asym tensor static:percentile",
                                            "int8 tensor static:mse",
                                            "int4 asym tensor static:kl",
                                            "int8 tensor static:kl",
                                            "int8 group:3 f16 static:mse",
                                            "int8 tensor static:admm",
                                            "int4 asym tensor static:admm",
                                            "seq2 tensor static:kl"};

START_TEST(strange_data_gives_a_finite_range)
{
    static const real strange[][4] = {{0, 0, 0, 0},
                                      {1, 1, 1, 1},
                                      {-2, -2, -2, -2},
                                      {NAN, NAN, 1, 1},
                                      {NAN, INFINITY, -INFINITY, NAN},
                                      {(real)1e-42, 0, 0, 0},
                                      {(real)3e38, (real)-3e38, 0, 1},
                                      {(real)1e-30, (real)1e30, 0, 0}};
    for (size_t k = 0; k < sizeof strange / sizeof *strange; k++) {
        world m;
        world_new(&m, strange_specs[_i]);
        fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 4, 0);
        real x[4];
        memcpy(x, strange[k], sizeof x);
        show(&m, x, 1, 4);
        show(&m, (real[]){0, 0, 0, 0}, 1, 4);
        show(&m, x, 2, 2); /* not this site's shape: ignored */
        ck_assert(fq_observe_end(&m.sites) == NB_OK && s->started);
        for (int64_t i = 0; i < s->n_scales; i++)
            ck_assert_msg(isfinite((double)s->start[i]) && s->start[i] >= 0, "%s, data %d: %g", strange_specs[_i],
                          (int)k, (double)s->start[i]);
        const real *y = ag_value(fq_apply(&m.tape, s, leaf(&m, x, NULL, 1, 4)));
        for (int i = 0; i < 4; i++)
            ck_assert(!isnan((double)y[i]));
        world_free(&m);
    }
}
END_TEST

START_TEST(a_learned_range_is_started_once)
{
    world m;
    world_new(&m, "int8 narrow tensor learned");
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 2, 0);
    char names[64];
    ck_assert(fq_sites_need_calibration(&m.sites, names, sizeof names));
    ck_assert_str_eq(names, "a");
    show(&m, (real[]){1, 2}, 1, 2);
    ck_assert(fq_observe_end(&m.sites) == NB_OK);
    ck_assert_double_eq_tol(top_of(s, 0), 2, 1e-6);
    ck_assert(!fq_sites_need_calibration(&m.sites, names, sizeof names) && !names[0]);
    show(&m, (real[]){1, 20}, 1, 2);
    ck_assert(fq_observe_end(&m.sites) == NB_OK);
    ck_assert_double_eq_tol(top_of(s, 0), 2, 1e-6);
    world_free(&m);
}
END_TEST

START_TEST(sites_without_ranges_are_named)
{
    world m;
    char names[40], name[16];
    world_new(&m, "int8 tensor static");
    for (int i = 0; i < 6; i++) {
        snprintf(name, sizeof name, "s%d", i);
        ck_assert(fq_site_new(&m.sites, &m.recipe, name, NULL, NULL, 0, 2, 0) != NULL);
    }
    ck_assert(fq_site_new(&m.sites, &m.recipe, "attn.probs", NULL, NULL, 0, 1, 0) != NULL);
    ck_assert(fq_sites_need_calibration(&m.sites, names, sizeof names));
    ck_assert_str_eq(names, "s0, s1, s2, s3 and 2 more");
    for (size_t n = 0; n < 12; n++) {
        char cut[40];
        memset(cut, '#', sizeof cut);
        ck_assert(fq_sites_need_calibration(&m.sites, cut, n) && cut[n] == '#');
    }
    world_free(&m);
}
END_TEST

static const char *const kept[] = {"int8 tensor static",
                                   "int8 asym head static:average:0.3",
                                   "int8 asym tensor static:kl",
                                   "int4 group:3 static:mse",
                                   "int8 asym tensor learned:lsq from:percentile",
                                   "int8 narrow token dynamic"};

START_TEST(restored_state_goes_on_as_if_never_stopped)
{
    world a, b;
    real x[3][16];
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < 16; i++)
            x[k][i] = (real)nb_random_normal(4, (uint64_t)k, (uint64_t)i) * (k ? 3 : 1);
    world_new(&a, kept[_i]);
    world_new(&b, kept[_i]);
    fq_site *s = fq_site_new(&a.sites, &a.recipe, "a", NULL, NULL, 0, 8, 4),
            *r = fq_site_new(&b.sites, &b.recipe, "a", NULL, NULL, 0, 8, 4);
    show(&a, x[0], 2, 8);
    ck_assert(fq_observe_end(&a.sites) == NB_OK);
    show(&a, x[1], 2, 8); /* in the middle of a step */
    const int64_t n = fq_site_state(s, NULL);
    double *state = nb_alloc((size_t)n + 1, sizeof *state), *again = nb_alloc((size_t)n + 1, sizeof *again);
    ck_assert((n == 0) == (s->n_scales == 0));
    ck_assert(fq_site_state(s, state) == n);
    ck_assert_msg(fq_site_restore(r, state, n) == NB_OK, "%s", nb_fail_message());
    ck_assert(fq_site_restore(r, state, n + 1) == NB_FORMAT);
    show(&a, x[2], 2, 8);
    show(&b, x[2], 2, 8);
    ck_assert(fq_observe_end(&a.sites) == NB_OK && fq_observe_end(&b.sites) == NB_OK);
    ck_assert(fq_site_state(s, state) == n && fq_site_state(r, again) == n &&
              !memcmp(state, again, (size_t)n * sizeof *state));
    ck_assert(!s->start || !memcmp(s->start, r->start, (size_t)s->n_scales * sizeof *s->start));
    free(state);
    free(again);
    world_free(&a);
    world_free(&b);
}
END_TEST

START_TEST(damaged_state_is_refused_or_harmless)
{
    world m;
    world_new(&m, "int8 asym tensor static:kl");
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 8, 4);
    real x[16];
    for (int i = 0; i < 16; i++)
        x[i] = (real)nb_random_normal(4, 0, (uint64_t)i);
    show(&m, x, 2, 8);
    const int64_t n = fq_site_state(s, NULL);
    double *state = nb_alloc((size_t)n, sizeof *state), *damaged = nb_alloc((size_t)n, sizeof *damaged);
    fq_site_state(s, state);
    static const double values[] = {NAN, INFINITY, -1, 0, 1e300, -1e-300, 5e-324};
    for (int64_t i = 0; i < 20; i++)
        for (int k = 0; k < 7; k++) {
            memcpy(damaged, state, (size_t)n * sizeof *state);
            damaged[i] = values[k];
            status e = fq_site_restore(s, damaged, n);
            ck_assert(e == NB_OK || (e == NB_FORMAT && strstr(nb_fail_message(), "site a")));
            ck_assert(k > 1 || e == NB_FORMAT);
            show(&m, x, 2, 8);
            ck_assert(fq_observe_end(&m.sites) == NB_OK);
        }
    free(state);
    free(damaged);
    world_free(&m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("observers");
    TCase *tc = tcase_create("observers");
    tcase_add_test(tc, moving_average_moves_once_a_step_from_its_first);
    tcase_add_test(tc, min_max_is_of_everything_per_head);
    LOOP(tc, strange_data_gives_a_finite_range, strange_specs);
    tcase_add_test(tc, a_learned_range_is_started_once);
    tcase_add_test(tc, sites_without_ranges_are_named);
    LOOP(tc, restored_state_goes_on_as_if_never_stopped, kept);
    tcase_add_test(tc, damaged_state_is_refused_or_harmless);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
