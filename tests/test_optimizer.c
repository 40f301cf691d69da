/* test_optimizer.c - AdamW and SGD against PyTorch, clipping, threads; schedules. */
#include "autograd/autograd.h"
#include "coded.h"
#include "suite.h"
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

static void give_gradient(ag_param *p, const double *g)
{
    if (!p->g)
        p->g = malloc((size_t)p->count * sizeof(real));
    for (int64_t i = 0; i < p->count; i++)
        p->g[i] = (real)g[i];
    p->has_grad = true;
}

typedef struct {
    const char *name;
    ag_optimizer o;
    double w[3], b[2];
} optimizer_case;

/* PyTorch 2.15, in double:
 *   w = torch.tensor([0.5, -1.25, 2.0], requires_grad=True); b = torch.tensor([0.1, -0.2], requires_grad=True)
 *   o = torch.optim.AdamW([dict(params=[w], weight_decay=0.1), dict(params=[b], weight_decay=0.0)], lr=0.02,
 *                         betas=(0.9, 0.95), eps=1e-6)        |  torch.optim.SGD([w, b], lr=0.02, momentum=0.8)
 *   for t in range(1, 6):
 *       w.grad = torch.tensor([0.3*t, -0.1, 0.02*t*t]); b.grad = torch.tensor([-0.5+0.2*t, 0.0])
 *       if t == 5: torch.nn.utils.clip_grad_norm_([w, b], 1.0)
 *       o.step()                                                                                              */
static const optimizer_case optimizer_cases[] = {
    {"AdamW",
     {.lr = 0.02, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-6, .decay = 0.1},
     {0.399394563, -1.138469278, 1.891402945},
     {0.136717800, -0.2}},
    {"SGD", {.sgd = true, .lr = 0.02, .beta1 = 0.8}, {0.339228533, -1.227688942, 1.967608871}, {0.104374311, -0.2}},
};

START_TEST(optimizers_equal_pytorch)
{
    const optimizer_case *c = &optimizer_cases[_i];
    ag_optimizer o = c->o;
    ag_params ps = {0};
    ag_param *w = ag_param_new(&ps, "w", AG_WEIGHT, 1, (int64_t[]){3}),
             *b = ag_param_new(&ps, "b", AG_BIAS, 1, (int64_t[]){2});
    memcpy(w->x, (real[]){(real)0.5, (real)-1.25, 2}, 3 * sizeof(real));
    memcpy(b->x, (real[]){(real)0.1, (real)-0.2}, 2 * sizeof(real));
    for (int t = 1; t <= 5; t++) {
        uint64_t version = ps.version;
        double norm, gw[] = {0.3 * t, -0.1, 0.02 * t * t}, gb[] = {-0.5 + 0.2 * t, 0};
        give_gradient(w, gw);
        give_gradient(b, gb);
        o.clip = t == 5 ? 1 : 0;
        ck_assert_int_eq(ag_optimizer_step(&o, &ps, t, &norm), NB_OK);
        ck_assert(fabs(norm - sqrt(gw[0] * gw[0] + 0.01 + gw[2] * gw[2] + gb[0] * gb[0])) < 1e-6);
        ck_assert(!w->has_grad && ps.version > version);
    }
    near(c->name, "w", w->x, c->w, 3, 2e-6);
    near(c->name, "b", b->x, c->b, 2, 2e-6);
    ck_assert(c->o.sgd == (w->v == NULL));
    ag_params_free(&ps);
}
END_TEST

/* Learned scales neither shrink the others' gradients nor are shrunk by them; frozen parameters and those without a
 * gradient stay. */
START_TEST(groups_are_clipped_apart_and_the_frozen_stay)
{
    ag_params ps = {0};
    ag_param *p[4];
    const char *names[] = {"w", "s", "frozen", "idle"};
    for (int i = 0; i < 4; i++)
        p[i] = ag_param_new(&ps, names[i], i == 1 ? AG_SCALE : AG_WEIGHT, 1, (int64_t[]){1});
    give_gradient(p[0], (double[]){3});
    give_gradient(p[1], (double[]){0.5});
    give_gradient(p[2], (double[]){100});
    p[2]->frozen = true;
    ag_optimizer o = {.sgd = true, .lr = 0.1, .clip = 1, .rate = {[AG_SCALE] = 2}};
    double norm;
    ck_assert_int_eq(ag_optimizer_step(&o, &ps, 1, &norm), NB_OK);
    ck_assert(norm == 3);
    near("clip", "w", p[0]->x, (double[]){-0.1}, 1, 1e-8); /* 3 clipped to 1 */
    near("clip", "s", p[1]->x, (double[]){-0.1}, 1, 1e-8); /* 0.5 whole, at twice the rate */
    ck_assert(p[2]->x[0] == 0 && p[3]->x[0] == 0 && !p[3]->m);
    ag_params_free(&ps);
}
END_TEST

START_TEST(a_gradient_that_is_not_finite_changes_nothing)
{
    ag_params ps = {0};
    ag_param *a = ag_param_new(&ps, "a", AG_WEIGHT, 1, (int64_t[]){2}),
             *b = ag_param_new(&ps, "b", AG_WEIGHT, 1, (int64_t[]){1});
    ag_optimizer o = ag_adamw(0.1);
    give_gradient(a, (double[]){1, 2});
    give_gradient(b, (double[]){_i ? NAN : INFINITY});
    uint64_t version = ps.version;
    ck_assert_int_eq(ag_optimizer_step(&o, &ps, 1, NULL), NB_FORMAT);
    ck_assert(a->x[0] == 0 && a->x[1] == 0 && b->x[0] == 0 && ps.version == version);
    ag_params_free(&ps);
}
END_TEST

/* Norm, clipping and update give the same bits with one thread and with three. */
START_TEST(a_step_does_not_depend_on_threads)
{
    enum { N = 70001 };
    static double g[N];
    real *x[2], norm_bits[2];
    for (int i = 0; i < N; i++)
        g[i] = 2 * nb_random_unit(5, 6, (uint64_t)i) - 1;
    int threads = omp_get_max_threads();
    ag_params ps[2] = {{0}};
    for (int k = 0; k < 2; k++) {
        ag_param *p = ag_param_new(&ps[k], "p", AG_WEIGHT, 1, (int64_t[]){N});
        ag_optimizer o = ag_adamw(0.01);
        double norm;
        omp_set_num_threads(k ? 3 : 1);
        for (int t = 1; t <= 3; t++) {
            give_gradient(p, g);
            ck_assert_int_eq(ag_optimizer_step(&o, &ps[k], t, &norm), NB_OK);
        }
        x[k] = p->x;
        norm_bits[k] = (real)norm;
    }
    omp_set_num_threads(threads);
    ck_assert(norm_bits[0] == norm_bits[1] && same_bits(x[0], x[1], N));
    ag_params_free(&ps[0]);
    ag_params_free(&ps[1]);
}
END_TEST

/* Moments in bf16 are right on average, though a single step moves v by less than bf16 can show; scales keep theirs in fp32. */
START_TEST(moments_in_bf16_follow_those_in_fp32)
{
    enum { N = 4096, STEPS = 300 };
    static double g[N];
    ag_params ps[2] = {{0}};
    ag_param *p[2], *s = NULL;
    for (int k = 0; k < 2; k++) {
        ag_optimizer o = ag_adamw(1e-3);
        o.bf16_moments = k == 1;
        p[k] = ag_param_new(&ps[k], "p", AG_WEIGHT, 1, (int64_t[]){N});
        s = ag_param_new(&ps[k], "s", AG_SCALE, 1, (int64_t[]){1});
        for (int t = 1; t <= STEPS; t++) {
            for (int i = 0; i < N; i++)
                g[i] = 0.01 * (1 + 0.1 * nb_random_normal(3, (uint64_t)t, (uint64_t)i));
            give_gradient(p[k], g);
            give_gradient(s, (double[]){0.1});
            ck_assert_int_eq(ag_optimizer_step(&o, &ps[k], t, NULL), NB_OK);
        }
    }
    ck_assert(p[0]->m && !p[0]->m16 && !p[1]->m && p[1]->m16 && p[1]->v16 && s->m && !s->m16);
    double v[2] = {0}, m[2] = {0}, x[2] = {0};
    for (int i = 0; i < N; i++) {
        v[0] += (double)p[0]->v[i];
        m[0] += (double)p[0]->m[i];
        v[1] += (double)nb_bf16_to(p[1]->v16[i]);
        m[1] += (double)nb_bf16_to(p[1]->m16[i]);
        x[0] += (double)p[0]->x[i];
        x[1] += (double)p[1]->x[i];
    }
    /* sums of 4096 roundings of at most 1/128 each, in a walk of a few independent steps */
    ck_assert_double_eq_tol(v[1] / v[0], 1, 2e-3);
    ck_assert_double_eq_tol(m[1] / m[0], 1, 2e-3);
    ck_assert_double_eq_tol(x[1] / x[0], 1, 2e-3);
    ag_params_free(&ps[0]);
    ag_params_free(&ps[1]);
}
END_TEST

static const struct {
    ag_schedule s;
    int64_t step;
    double want;
} schedule_cases[] = {
    {{AG_CONSTANT, 100, 10, 0, 0}, 1, 0.1},
    {{AG_CONSTANT, 100, 10, 0, 0}, 10, 1},
    {{AG_CONSTANT, 100, 0, 0, 0}, 1, 1},
    {{AG_CONSTANT, 100, 10, 0, 0}, 100, 1},
    {{AG_LINEAR, 100, 20, 0, 0}, 21, 1},
    {{AG_LINEAR, 100, 20, 0, 0}, 61, 0.5},
    {{AG_LINEAR, 100, 20, 0, 0}, 100, 1 - 79.0 / 80},
    {{AG_LINEAR, 100, 20, 0, 0.1}, 61, 0.55},
    {{AG_COSINE, 100, 0, 0, 0}, 1, 1},
    {{AG_COSINE, 100, 0, 0, 0}, 51, 0.5},
    {{AG_COSINE, 100, 0, 0, 0.2}, 51, 0.6},
    {{AG_WSD, 100, 3, 0, 0}, 60, 1},
    {{AG_WSD, 100, 3, 0, 0}, 61, 1},
    {{AG_WSD, 100, 3, 0, 0}, 71, 0.5},
    {{AG_WSD, 100, 3, 0.5, 0}, 51 + 8, 0.6},
    {{AG_WSD, 100, 3, 0.5, 0}, 101, 0},
    {{AG_LINEAR, 5, 10, 0, 0}, 5, 0.5}, /* a warm-up longer than the run */
};

START_TEST(schedules_follow_their_formulas)
{
    double f = ag_schedule_at(&schedule_cases[_i].s, schedule_cases[_i].step);
    ck_assert_msg(fabs(f - schedule_cases[_i].want) < 1e-12, "%d: %.12g", _i, f);
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

int main(void)
{
    Suite *s = suite_create("optimizer");
    TCase *tc = tcase_create("optimizer");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, optimizers_equal_pytorch, 0, COUNT(optimizer_cases));
    tcase_add_test(tc, groups_are_clipped_apart_and_the_frozen_stay);
    tcase_add_loop_test(tc, a_gradient_that_is_not_finite_changes_nothing, 0, 2);
    tcase_add_test(tc, a_step_does_not_depend_on_threads);
    tcase_add_test(tc, moments_in_bf16_follow_those_in_fp32);
    tcase_add_loop_test(tc, schedules_follow_their_formulas, 0, COUNT(schedule_cases));
    suite_add_tcase(s, tc);
    return run_suite(s);
}
