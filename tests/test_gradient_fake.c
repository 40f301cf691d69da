/* test_gradient_fake.c - gradients of learned ranges against central differences, in double.
 *
 * Rounding has no derivative; held fixed it has. With e = level - x/s and the clipped set of the point in question kept,
 *   y(x, u, v) = s (x/s + e) inside, s * bound outside, s * level for signs;  s and the zero point follow u and v
 * is differentiable, and the site's backward pass must be its gradient: <dL/dp, d> against (L(p + hd) - L(p - hd)) / 2h for a
 * random projection L = sum r y, to 1e-6 relative. The reference is written from the formulas, on scalars.
 */
#include "fakequant/fakequant.h"
#include "suite.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COUNT = 2048 };

typedef struct {
    const char *spec;
    int64_t rows, cols, head_size;
    bool activation;
} gradient_case;

static const gradient_case cases[] = {
    {"int4 row f32 learned", 5, 37, 0, false},
    {"int8 narrow row f32 learned", 3, 64, 0, false},
    {"int3 row f32 learned", 1, 300, 0, false},
    {"int3 row f32 learned identity", 4, 19, 0, false},
    {"int4 row f32 learned llmqat", 4, 19, 0, false},
    {"int4 group:8 f32 learned", 3, 30, 0, false},
    {"int4 block:7 f32 learned", 3, 30, 0, false},
    {"int4 tensor f32 learned", 6, 11, 0, false},
    {"int4 row f32 learned:lsq", 5, 37, 0, false},
    {"int4 row f32 learned:pact", 5, 37, 0, false},
    {"int4 asym row f32 learned", 5, 37, 0, false},
    {"int4 asym row f32 learned:lsq", 5, 37, 0, false},
    {"int4 asym row f32 learned:pact", 5, 37, 0, false},
    {"int16 row f32 learned", 2, 37, 0, false},
    {"seq2 row f32 learned", 5, 37, 0, false},
    {"seq2 group:5 f32 learned", 1, 1, 0, false},
    {"seq3 row f32 learned", 5, 37, 0, false},
    {"ternary row f32 learned", 5, 37, 0, false},
    {"ternary tensor f32 learned:lsq", 5, 37, 0, false},
    {"sign row f32 learned", 5, 37, 0, false},
    {"int8 tensor f32 learned", 6, 20, 0, true},
    {"int4 head f32 learned", 6, 20, 5, true},
    {"int4 group:6 f32 learned:lsq", 6, 20, 0, true},
    {"int4 asym head f32 learned:lsq", 7, 12, 4, true},
    {"int4 asym tensor f32 learned:pact", 7, 12, 0, true},
    {"int8 asym tensor f32 learned:lsq llmqat", 7, 12, 0, true},
};

typedef struct {
    const gradient_case *c;
    fq_recipe recipe;
    ag_params params;
    fq_sites sites;
    fq_site *site;
    ag_tape tape;
    int64_t n;
    real x[MAX_COUNT], g[MAX_COUNT], r[MAX_COUNT];
    double level[MAX_COUNT], e[MAX_COUNT], zero_e[MAX_COUNT];
    bool inside[MAX_COUNT];
} fixture;

static int64_t scale_index(const fixture *f, int64_t i)
{
    const kn_grid *g = &f->site->spec.grid;
    int64_t row = i / f->c->cols, col = i % f->c->cols;
    switch (g->grain) {
    case KN_TENSOR:
        return 0;
    case KN_ROW:
        return row;
    case KN_BLOCK:
        return i / g->group;
    default:
        return col / g->group + (f->c->activation ? 0 : row * ((f->c->cols + g->group - 1) / g->group));
    }
}

/* Scale and latent zero of scale i at parameters u, v. */
static void range_at(const fixture *f, int64_t i, double u, double v, double *scale, double *zero)
{
    const fq_site *s = f->site;
    const double s0 = s->start[i], z0 = s->start_zero ? s->start_zero[i] : 0, lo = s->spec.grid.lo,
                 hi = s->spec.grid.hi;
    *scale = s0 * exp(u);
    *zero = z0 + (hi - lo) * v;
    if (s->spec.learning == FQ_PACT && s->start_zero) {
        double max = (hi - z0) * s0 * exp(u), min = (lo - z0) * s0 * exp(v);
        *scale = (max - min) / (hi - lo);
        *zero = lo - min / *scale;
    }
}

static double learned_at(const ag_param *p, int64_t i)
{
    return p ? p->x[i] : 0;
}

/* Notes what is held fixed. */
static void hold(fixture *f, const real *y)
{
    const kn_grid *g = &f->site->spec.grid;
    for (int64_t i = 0; i < f->n; i++) {
        int64_t k = scale_index(f, i);
        double s, z;
        range_at(f, k, learned_at(f->site->u, k), learned_at(f->site->v, k), &s, &z);
        double zero = g->has_zero ? fmin(fmax(rint(z), g->lo), g->hi) : 0, r = f->x[i] / s;
        f->zero_e[i] = zero - z;
        f->level[i] = rint(y[i] / s);
        f->e[i] = f->level[i] - r;
        if (g->levels == KN_LEVELS_HALF_STEP)
            f->inside[i] = fabs(r) <= 0.99 * (1 << g->bits);
        else if (g->levels == KN_LEVELS_SIGN)
            f->inside[i] = fabs(r) <= 1;
        else if (g->lo == -1 && g->hi == 1)
            f->inside[i] = fabs(r) <= 0.99 * 1.5;
        else
            f->inside[i] = r >= g->lo - zero && r <= g->hi - zero;
        ck_assert_double_eq_tol(y[i], f->level[i] * s, 1e-12 * (1 + fabs(y[i])));
    }
}

static double value(const fixture *f, int64_t i, double x, double u, double v)
{
    double s, z;
    range_at(f, scale_index(f, i), u, v, &s, &z);
    const kn_grid *g = &f->site->spec.grid;
    if (f->inside[i] && g->levels != KN_LEVELS_SIGN)
        return s * (x / s + f->e[i]);
    if (!g->has_zero)
        return s * f->level[i];
    double zero = z + f->zero_e[i], bound = f->level[i] > 0 ? g->hi : g->lo;
    return s * (bound - zero);
}

/* L where one parameter list moves along d by h: which 0: x (of the straight-through estimator), 1: u, 2: v */
static double loss(const fixture *f, int which, const double *d, double h)
{
    double sum = 0;
    for (int64_t i = 0; i < f->n; i++) {
        int64_t k = scale_index(f, i);
        double u = learned_at(f->site->u, k), v = learned_at(f->site->v, k);
        sum += f->r[i] * value(f, i, f->x[i], u + (which == 1 ? h * d[k] : 0), v + (which == 2 ? h * d[k] : 0));
    }
    return sum;
}

static void set_up(fixture *f, const gradient_case *c)
{
    char text[128];
    f->c = c;
    f->n = c->rows * c->cols;
    snprintf(text, sizeof text, "* %s", c->spec);
    ck_assert_msg(fq_recipe_parse(&f->recipe, "test", text, strlen(text)) == NB_OK, "%s", nb_fail_message());
    f->sites.params = &f->params;
    ag_param *w = NULL;
    for (int64_t i = 0; i < f->n; i++) {
        f->x[i] = 1.5 * nb_random_normal(1, 1, (uint64_t)i) + (c->activation ? 0.4 : 0);
        f->r[i] = nb_random_normal(1, 2, (uint64_t)i);
    }
    if (!c->activation) {
        w = ag_param_new(&f->params, "w", AG_WEIGHT, 2, (int64_t[]){c->rows, c->cols});
        memcpy(w->x, f->x, (size_t)f->n * sizeof(real));
    }
    f->site = fq_site_new(&f->sites, &f->recipe, "site", NULL, w, c->activation ? 0 : c->rows, c->cols, c->head_size);
    ck_assert_msg(f->site != NULL, "%s", nb_fail_message());
    if (c->activation) {
        ag_tensor *x = ag_leaf(&f->tape, f->x, NULL, 2, (int64_t[]){c->rows, c->cols});
        fq_observe(&f->sites, "site", x, x);
        ck_assert(fq_observe_end(&f->sites) == NB_OK);
    } else {
        ck_assert(fq_start_weights(&f->sites, FQ_START_ABSMAX, NULL, NULL) == NB_OK);
    }
    ck_assert(f->site->started);
    /* off the start, and so that something is clipped */
    for (int64_t i = 0; i < f->site->n_scales; i++) {
        f->site->u->x[i] = -0.3 - 0.2 * nb_random_unit(1, 3, (uint64_t)i);
        if (f->site->v)
            f->site->v->x[i] = 0.3 * nb_random_unit(1, 4, (uint64_t)i) - 0.15;
    }
    f->params.version++;
}

static void run(fixture *f)
{
    const int64_t dim[2] = {f->c->rows, f->c->cols};
    ag_reset(&f->tape);
    ag_tensor *y = f->c->activation ? fq_apply(&f->tape, f->site, ag_leaf(&f->tape, f->x, f->g, 2, dim))
                                    : fq_weight(&f->tape, f->site, f->site->w);
    ag_tensor *l = ag_dot(&f->tape, y, f->r);
    ck_assert_msg(ag_status(&f->tape) == NB_OK, "%s", nb_fail_message());
    hold(f, ag_value(y));
    ck_assert(ag_backward(&f->tape, l) == NB_OK);
}

static void tear_down(fixture *f)
{
    ag_tape_free(&f->tape);
    fq_sites_free(&f->sites);
    ag_params_free(&f->params);
    fq_recipe_free(&f->recipe);
    free(f);
}

/* LSQ's factor, by its definition. */
static double lsq(const fixture *f, int64_t k)
{
    const kn_grid *g = &f->site->spec.grid;
    double n = 0;
    for (int64_t i = 0; i < f->n; i++)
        n += scale_index(f, i) == k;
    return f->site->spec.learning == FQ_LSQ ? 1 / sqrt(n * (g->has_zero ? g->hi - g->lo : g->hi)) : 1;
}

static void compare(const fixture *f, int which, const ag_param *p)
{
    const double h = 1e-5;
    double d[MAX_COUNT], analytic = 0;
    for (int64_t k = 0; k < p->count; k++) {
        d[k] = nb_random_normal(2, (uint64_t)which, (uint64_t)k);
        analytic += p->g[k] / lsq(f, k) * d[k];
    }
    double numeric = (loss(f, which, d, h) - loss(f, which, d, -h)) / (2 * h);
    ck_assert_msg(fabs(analytic - numeric) <= 1e-6 * (fabs(numeric) + 1e-3), "%s: %s: %.12g, differences say %.12g",
                  f->c->spec, p->name, analytic, numeric);
}

START_TEST(learned_gradient_equals_differences)
{
    fixture *f = calloc(1, sizeof *f);
    set_up(f, &cases[_i]);
    run(f);
    compare(f, 1, f->site->u);
    if (f->site->v)
        compare(f, 2, f->site->v);
    const real *g = f->c->activation ? f->g : f->site->w->g;
    int64_t outside = 0;
    for (int64_t i = 0; i < f->n; i++) {
        bool pass = f->site->spec.ste == FQ_STE_IDENTITY ||
                    (f->site->spec.ste == FQ_STE_LLMQAT ? fabs(f->x[i]) < 2 : f->inside[i]);
        ck_assert_msg(g[i] == (pass ? f->r[i] : 0), "%s: x[%d]", f->c->spec, (int)i);
        outside += !f->inside[i];
    }
    ck_assert_msg(outside > 0 || f->n == 1, "nothing was clipped");
    tear_down(f);
}
END_TEST

START_TEST(second_backward_adds_the_same_again)
{
    fixture *f = calloc(1, sizeof *f);
    set_up(f, &cases[_i]);
    run(f);
    double u = f->site->u->g[0], v = f->site->v ? f->site->v->g[0] : 0;
    const real *g = f->c->activation ? f->g : f->site->w->g;
    double x = g[f->n - 1];
    run(f);
    ck_assert_double_eq_tol(f->site->u->g[0], 2 * u, 1e-12 * fabs(u));
    ck_assert(!f->site->v || fabs(f->site->v->g[0] - 2 * v) <= 1e-12 * fabs(v));
    ck_assert(g[f->n - 1] == 2 * x);
    tear_down(f);
}
END_TEST

int main(void)
{
    const int n = (int)(sizeof cases / sizeof *cases);
    Suite *s = suite_create("gradient_fake");
    TCase *tc = tcase_create("learned ranges");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, learned_gradient_equals_differences, 0, n);
    tcase_add_loop_test(tc, second_backward_adds_the_same_again, 0, n);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
