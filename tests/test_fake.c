/* test_fake.c - the operators of fake-quant: what passes a gradient, what is remembered and given back. */
#include "suite.h"
#include "world.h"
#include <math.h>
#include <omp.h>
#include <stdlib.h>

#define W4 "int4 row f32 learned"

static void count_tap(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    int *calls = ctx;
    ck_assert(site && in && out);
    ++*calls;
}

START_TEST(a_site_left_alone_gives_its_input_and_is_watched)
{
    static const char *const spec[] = {"float", "int8 narrow token", "int8 tensor static", "int8 tensor learned"};
    world m;
    int calls = 0;
    real x[6] = {1, 2, 3, 4, 5, 6};
    world_new(&m, spec[_i]);
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 3, 0);
    m.tape.tap = (ag_tap){count_tap, &calls};
    m.tape.quantize_off = _i == 1;
    ag_tensor *in = leaf(&m, x, NULL, 2, 3);
    ck_assert(fq_apply(&m.tape, s, in) == in && calls == 1);
    ck_assert(fq_apply(&m.tape, NULL, in) == in && calls == 1);
    ck_assert(fq_apply(&m.tape, s, NULL) == NULL);
    world_free(&m);
}
END_TEST

START_TEST(a_stored_float_is_rounded_and_passes_its_gradient)
{
    world m;
    world_new(&m, _i ? "float bf16" : "float f16");
    fq_site *s = weight_site(&m, "a", 5, 7, 3);
    ag_param *w = s->w;
    ag_tensor *y = fq_weight(&m.tape, s, w);
    ck_assert(y && y->n_dim == 2 && fq_site_codes(s, &m.params) == NULL);
    int moved = 0;
    for (int64_t i = 0; i < w->count; i++) {
        const float x = (float)w->x[i], wanted = _i ? nb_bf16_to(nb_bf16_from(x)) : nb_half_to(nb_half_from(x));
        ck_assert(ag_value(y)[i] == (real)wanted);
        moved += wanted != x;
    }
    ck_assert_int_gt(moved, 20);
    ck_assert(ag_backward(&m.tape, ag_sum(&m.tape, y)) == NB_OK);
    for (int64_t i = 0; i < w->count; i++)
        ck_assert(w->g[i] == 1);
    ag_reset(&m.tape);
    m.tape.quantize_off = true;
    y = fq_weight(&m.tape, s, w);
    ck_assert(y && memcmp(ag_value(y), w->x, (size_t)w->count * sizeof *w->x) == 0);
    world_free(&m);
}
END_TEST

static const struct {
    const char *spec;
    real pass[8]; /* of x below */
} masks[] = {
    {"int8 narrow token dynamic", {1, 1, 1, 1, 1, 1, 1, 1}},
    {"int8 narrow token dynamic clipped", {1, 1, 1, 1, 1, 1, 1, 1}},
    {"int8 narrow token dynamic llmqat", {0, 1, 1, 1, 1, 1, 0, 0}},
    {"int8 narrow tensor static", {0, 1, 1, 1, 1, 1, 0, 0}},
    {"int8 narrow tensor static identity", {1, 1, 1, 1, 1, 1, 1, 1}},
    {"int8 narrow tensor static llmqat", {0, 1, 1, 1, 1, 1, 0, 0}},
    {"int8 asym tensor static", {0, 1, 1, 1, 1, 1, 0, 0}},
    {"sign token clipped", {0, 1, 1, 1, 1, 1, 0, 0}},
};

START_TEST(gradient_passes_where_the_variant_lets_it)
{
    world m;
    real x[16] = {-3, (real)-1.25, -1, 0, (real)0.5, 1, 2, 5}, g[16] = {0}, r[16], twice[16];
    memcpy(x + 8, x, 8 * sizeof *x);
    for (int i = 0; i < 16; i++)
        r[i] = (real)(i + 1);
    world_new(&m, masks[_i].spec);
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 8, 0);
    if (s->start) { /* reaches from -1.27 to 1.27 */
        s->start[0] = (real)0.01;
        s->started = true;
    }
    for (int deep = 0; deep < 2;
         deep++) { /* the input a leaf, or another operator's result, whose gradient is handed over */
        ag_reset(&m.tape);
        memset(g, 0, sizeof g);
        ag_tensor *in = leaf(&m, x, g, 2, 8);
        ag_tensor *y = fq_apply(&m.tape, s, deep ? ag_scale(&m.tape, in, 1) : in);
        ck_assert_msg(y && y->codes && ag_backward(&m.tape, ag_dot(&m.tape, y, r)) == NB_OK, "%s", nb_fail_message());
        for (int i = 0; i < 16; i++)
            ck_assert_msg(g[i] == masks[_i].pass[i % 8] * r[i], "%s: x = %g", masks[_i].spec, (double)x[i]);
    }
    /* two readers of one input: both contributions arrive */
    ag_reset(&m.tape);
    memcpy(twice, g, sizeof g);
    memset(g, 0, sizeof g);
    ag_tensor *h = ag_scale(&m.tape, leaf(&m, x, g, 2, 8), 1);
    ag_tensor *sum = ag_add(&m.tape, fq_apply(&m.tape, s, h), fq_apply(&m.tape, s, h));
    ck_assert(ag_backward(&m.tape, ag_dot(&m.tape, sum, r)) == NB_OK);
    for (int i = 0; i < 16; i++)
        ck_assert(g[i] == 2 * twice[i]);
    world_free(&m);
}
END_TEST

START_TEST(learned_scale_stays_within_a_factor_of_two)
{
    world m;
    world_new(&m, W4);
    fq_site *s = weight_site(&m, "a", 1, 64, 3);
    real r[64], scale;
    ck_assert(fq_start_weights(&m.sites, FQ_START_ABSMAX, NULL, NULL) == NB_OK);
    for (int sign = -1; sign <= 1; sign += 2)
        for (int outward = 0; outward < 2; outward++) {
            s->u->x[0] = (real)sign * 5;
            m.params.version++;
            ag_params_clear_grad(&m.params);
            ag_reset(&m.tape);
            fq_site_ranges(s, &scale, NULL);
            ck_assert_double_eq_tol((double)(scale / s->start[0]), sign > 0 ? 2 : 0.5, 1e-6);
            ag_tensor *y = fq_weight(&m.tape, s, s->w);
            const real *v = ag_value(y);
            /* a loss that falls (outward) or rises along u */
            for (int i = 0; i < 64; i++)
                r[i] = (real)(sign * (outward ? -1 : 1)) *
                       (v[i] - (fabsf((float)s->w->x[i]) < 7 * (float)scale ? s->w->x[i] : 0));
            ck_assert(ag_backward(&m.tape, ag_dot(&m.tape, y, r)) == NB_OK);
            ck_assert_msg((s->u->g[0] == 0) == (outward == 1), "sign %d outward %d: %g", sign, outward,
                          (double)s->u->g[0]);
        }
    world_free(&m);
}
END_TEST

START_TEST(no_gradient_keeps_nothing_and_forgets_nothing)
{
    world m;
    world_new(&m, "int8 narrow tensor static");
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 8, 0);
    real x[8] = {-3, -1, 0, 1, 2, 3, 4, 5}, g[8] = {0};
    s->start[0] = (real)0.01;
    s->started = true;
    ag_tensor *y = fq_apply(&m.tape, s, leaf(&m, x, g, 1, 8));
    real with[8];
    memcpy(with, ag_value(y), sizeof with);
    ag_reset(&m.tape);
    m.tape.no_grad = true;
    y = fq_apply(&m.tape, s, leaf(&m, x, g, 1, 8));
    ck_assert(!memcmp(with, ag_value(y), sizeof with) && !y->needs_grad);
    world_free(&m);
}
END_TEST

START_TEST(codes_nobody_reads_again_are_given_back)
{
    world m;
    real x[8 * 64] = {1, 2, 3};
    world_new(&m, "int8 narrow token");
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 64, 0);
    m.tape.no_grad = true;
    ag_tensor *h = leaf(&m, x, NULL, 8, 64);
    size_t used = 0;
    for (int i = 0; i < 6; i++) {
        ag_tensor *q = fq_apply(&m.tape, s, h), *y = ag_scale(&m.tape, q, 1);
        ag_done(h);
        ag_done(q);
        h = y;
        ck_assert(!q->codes);
        if (i == 2)
            used = m.tape.memory.used;
    }
    ck_assert_msg(ag_value(h)[2] == 3, "%g", (double)ag_value(h)[2]);
    ck_assert_uint_le(m.tape.memory.used,
                      used + 3 * 2 * 1024); /* nodes alone: codes and value of a turn are over 2,500 */
    world_free(&m);
}
END_TEST

START_TEST(channels_that_do_not_fit_fail_with_both_numbers)
{
    world m;
    real x[6] = {0};
    world_new(&m, "int8 token");
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "layers.0.mlp.input", NULL, NULL, 0, 4, 0);
    ck_assert(fq_apply(&m.tape, s, leaf(&m, x, NULL, 2, 3)) == NULL);
    ck_assert(ag_status(&m.tape) == NB_SHAPE);
    ck_assert(strstr(nb_fail_message(), "layers.0.mlp.input: 3 channels, not 4") != NULL);
    world_free(&m);
}
END_TEST

START_TEST(textbook_values_come_out)
{
    static const int8_t absmax[] = {28, -12, -101, 28, -73, 19, 56, 127};
    real x[8] = {(real)1.2, (real)-0.5, (real)-4.3, (real)1.2, (real)-3.1, (real)0.8, (real)2.4, (real)5.4};
    real r[5] = {-3, -1, 0, 1, (real)3.2};
    world m;
    world_new(&m, "int8 narrow tensor");
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 8, 0);
    ck_assert(!memcmp(fq_apply(&m.tape, s, leaf(&m, x, NULL, 1, 8))->codes->q, absmax, 8));
    world_free(&m);
    world_new(&m, "int8 asym tensor");
    s = fq_site_new(&m.sites, &m.recipe, "a", NULL, NULL, 0, 5, 0);
    const kn_codes *c = fq_apply(&m.tape, s, leaf(&m, r, NULL, 1, 5))->codes;
    ck_assert_double_eq_tol((double)c->scale[0], 6.2 / 255, 1e-8);
    ck_assert_double_eq_tol(1 / (double)c->scale[0], 41.13, 5e-3);
    ck_assert_int_eq(c->zero[0], -5);
    ck_assert(c->q[0] == -128 && c->q[2] == -5 && c->q[4] == 127);
    world_free(&m);
}
END_TEST

START_TEST(activation_of_a_row_depends_on_that_row_alone)
{
    static const char *const spec[] = {"int8 narrow token", "int8 asym head f16", "int8 narrow group:32 f16 q8_0",
                                       "int8 head static"};
    real x[3 * 64], y[3 * 64], one[64];
    world m;
    world_new(&m, spec[_i]);
    fq_site *s = fq_site_new(&m.sites, &m.recipe, "attn.k", NULL, NULL, 0, 64, 16);
    for (int i = 0; i < 3 * 64; i++)
        x[i] = (real)nb_random_normal(1, 1, (uint64_t)i);
    for (int i = 0; s->start && i < 4; i++)
        s->start[i] = (real)(0.01 * (i + 1));
    s->started = s->start != NULL;
    memcpy(y, ag_value(fq_apply(&m.tape, s, leaf(&m, x, NULL, 3, 64))), sizeof y);
    kn_codes c;
    ck_assert(kn_codes_new(&c, &s->spec.grid, 3, 64) == NB_OK);
    for (int row = 2; row >= 0; row--) {
        fq_encode_activation(s, &c, x + row * 64, row, 1);
        kn_decode(one, &c, row, 1);
        ck_assert(!memcmp(one, y + row * 64, sizeof one));
    }
    kn_codes_free(&c);
    world_free(&m);
}
END_TEST

static const char *const threaded[] = {"int4 row f32 learned", "int4 tensor f32 learned:lsq",
                                       "int4 group:32 f16 learned", "int4 block:100 learned",
                                       "int8 asym row f32 learned:pact"};

START_TEST(gradients_do_not_depend_on_threads)
{
    enum { ROWS = 150, COLS = 200 };
    real *r = nb_alloc(ROWS * COLS, sizeof *r), *g = NULL, *u = NULL;
    world m;
    world_new(&m, threaded[_i]);
    fq_site *s = weight_site(&m, "a", ROWS, COLS, 1);
    for (int i = 0; i < ROWS * COLS; i++)
        r[i] = (real)nb_random_normal(2, 1, (uint64_t)i);
    ck_assert(fq_start_weights(&m.sites, FQ_START_MSE, NULL, NULL) == NB_OK);
    const size_t bytes = ROWS * COLS * sizeof *r, scales = (size_t)s->n_scales * sizeof *r;
    for (int threads = 1; threads <= 3; threads++) {
        omp_set_num_threads(threads);
        ag_reset(&m.tape);
        ag_params_clear_grad(&m.params);
        m.params.version++;
        ck_assert(ag_backward(&m.tape, ag_dot(&m.tape, fq_weight(&m.tape, s, s->w), r)) == NB_OK);
        if (threads == 1) {
            g = nb_alloc(1, bytes);
            u = nb_alloc(1, scales);
            memcpy(g, s->w->g, bytes);
            memcpy(u, s->u->g, scales);
        }
        ck_assert(!memcmp(g, s->w->g, bytes) && !memcmp(u, s->u->g, scales));
    }
    free(r);
    free(g);
    free(u);
    world_free(&m);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("fake");
    TCase *tc = tcase_create("operators");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, a_site_left_alone_gives_its_input_and_is_watched, 0, 4);
    tcase_add_loop_test(tc, a_stored_float_is_rounded_and_passes_its_gradient, 0, 2);
    LOOP(tc, gradient_passes_where_the_variant_lets_it, masks);
    LOOP(tc, gradients_do_not_depend_on_threads, threaded);
    tcase_add_test(tc, learned_scale_stays_within_a_factor_of_two);
    tcase_add_test(tc, no_gradient_keeps_nothing_and_forgets_nothing);
    tcase_add_test(tc, codes_nobody_reads_again_are_given_back);
    tcase_add_test(tc, channels_that_do_not_fit_fail_with_both_numbers);
    tcase_add_test(tc, textbook_values_come_out);
    tcase_add_loop_test(tc, activation_of_a_row_depends_on_that_row_alone, 0, 4);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
