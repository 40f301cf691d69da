/* test_picture_ptq.c - quantization without training of networks for pictures: what each method promises, its order, what does not fit. */
#include "ptq/ptq.h"
#include "suite.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = 60, SIDE = 9, POINTS = SIDE * SIDE, CLASSES = 3 };
static uint8_t pixel[N * POINTS], label[N];

static fm_pictures made(void)
{
    for (int i = 0; i < N; i++) {
        label[i] = (uint8_t)(i % CLASSES);
        for (int k = 0; k < POINTS; k++) {
            const double u = nb_random_unit(3, (uint64_t)i, (uint64_t)k);
            pixel[i * POINTS + k] = u < 0.4 ? 0 : (uint8_t)(255 * u * (k % CLASSES == i % CLASSES ? 1 : 0.3));
        }
    }
    return (fm_pictures){.n = N, .height = SIDE, .width = SIDE, .classes = CLASSES, .pixel = pixel, .label = label};
}

static const char *const networks[] = {
    "input 9 9 1\nflatten\nlinear 24 relu\nlinear 12 relu\nlinear 3\n",
    ("input 9 9 1\nconv 6 3 pad 1 norm relu\nconv 6 3 pad 1 stride 2 depthwise norm relu\nmaxpool 2\nconv 8 1 norm "
     "relu\n"
     "conv 6 2 groups 2 relu\nflatten\nlinear 3\n"),
};
enum { NETWORKS = sizeof networks / sizeof *networks };

static void new_float(md_picture_net *m, const char *text)
{
    md_stages s;
    ck_assert_msg(md_stages_parse(&s, text, strlen(text), "test") == NB_OK, "%s", nb_fail_message());
    ck_assert_int_eq(md_net_build(m, &s, NULL, 5, false), NB_OK);
    for (int64_t i = 0; i < m->layers; i++) {
        const ly_conv *l = &m->layer[i];
        for (int64_t c = 0; c < l->c.N; c++) {
            const real v = (real)(0.2 * nb_random_normal(8, (uint64_t)i, (uint64_t)c));
            if (l->b)
                l->b->x[c] = v;
            if (l->mean)
                l->mean->x[c] = v;
        }
        for (int64_t k = 0; k < kn_conv_depth(&l->c); k++)
            l->w->x[k] *= 3; /* a channel that stands out */
    }
    md_stages_free(&s);
}

static status quantize(md_picture_net *m, const char *text, const char *recipe, const char *methods, int calibration,
                       double alpha)
{
    const fm_pictures data = made();
    const pt_picture_options o = {.data = &data, .samples = N, .seed = 1, .calibration = calibration, .alpha = alpha};
    md_picture_net from;
    fq_recipe r = {0};
    ck_assert_int_eq(fq_recipe_open(&r, recipe), NB_OK);
    new_float(&from, text);
    const status s = pt_picture_quantize(m, &from, &r, methods, &o);
    fq_recipe_free(&r);
    md_net_free(&from);
    return s;
}

/* Logits [N, CLASSES] of m; floats: without its codes. */
static void logits_of(real *logits, const md_picture_net *m, bool floats)
{
    static real x[N * POINTS];
    const int64_t dim[] = {N, POINTS};
    ag_tape t = {.no_grad = true, .quantize_off = floats};
    for (int i = 0; i < N * POINTS; i++)
        x[i] = (real)pixel[i] / 255;
    const ag_tensor *y = md_net_forward(&t, m, ag_leaf(&t, x, NULL, 2, dim), &(md_net_run){0});
    ck_assert_msg(y && ag_value(y), "%s", nb_fail_message());
    memcpy(logits, ag_value(y), N * CLASSES * sizeof *logits);
    ag_tape_free(&t);
}

static double distance(const real *a, const real *b)
{
    double sum = 0, all = 0;
    for (int i = 0; i < N * CLASSES; i++) {
        sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        all += (double)b[i] * (double)b[i];
    }
    return sqrt(sum / all);
}

/* Relative distance of the logits under methods from those of the float network; and of its own latent floats from them. */
static double error_of(const char *text, const char *recipe, const char *methods, int calibration, double alpha,
                       double *of_floats)
{
    md_picture_net plain, m;
    real wanted[N * CLASSES], got[N * CLASSES], latent[N * CLASSES];
    ck_assert_msg(quantize(&m, text, recipe, methods, calibration, alpha) == NB_OK, "%s: %s", methods,
                  nb_fail_message());
    new_float(&plain, text);
    logits_of(wanted, &plain, true);
    logits_of(got, &m, false);
    logits_of(latent, &m, true);
    if (of_floats)
        *of_floats = distance(latent, wanted);
    ck_assert(distance(got, wanted) > 0); /* something was quantized */
    md_net_free(&plain);
    md_net_free(&m);
    return distance(got, wanted);
}

START_TEST(eight_bits_are_near_the_floats_by_every_method)
{
    static const char *const chains[] = {"rtn",       "static",   "mse",         "dynamic",
                                         "easyquant", "equalize", "smoothquant", "smoothquant+mse+biascorrect"};
    for (size_t i = 0; i < sizeof chains / sizeof *chains; i++) {
        const double e = error_of(networks[_i], "w8a8", chains[i], PT_CALIBRATION_RECIPE, 0, NULL);
        ck_assert_msg(e < 0.1, "%s: %g", chains[i], e);
    }
    for (int c = FQ_MINMAX; c <= PT_CALIBRATION_EASYQUANT; c++) {
        const double e = error_of(networks[_i], "w8a8", "static", c, 0, NULL);
        ck_assert_msg(e < 0.2, "calibration %d: %g", c, e);
    }
}
END_TEST

START_TEST(scaling_keeps_the_function)
{
    static const char *const chains[] = {"equalize+rtn", "smoothquant+rtn", "equalize+smoothquant+rtn"};
    for (size_t i = 0; i < sizeof chains / sizeof *chains; i++)
        for (int a = 0; a < 3; a++) {
            double floats;
            error_of(networks[_i], "w4a4", chains[i], PT_CALIBRATION_RECIPE, 0.5 * a, &floats);
            ck_assert_msg(floats < 2e-6, "%s, alpha %g: %g", chains[i], 0.5 * a, floats); /* rounding of floats alone */
        }
}
END_TEST

START_TEST(searches_gain_over_rounding)
{
    const double rtn = error_of(networks[_i], "w4a4", "rtn", FQ_MINMAX, 0, NULL),
                 easyquant = error_of(networks[_i], "w4a4", "easyquant", PT_CALIBRATION_RECIPE, 0, NULL),
                 by_option = error_of(networks[_i], "w4a4", "static", PT_CALIBRATION_EASYQUANT, 0, NULL),
                 smooth = error_of(networks[_i], "w4a4", "smoothquant+rtn", FQ_MINMAX, 0, NULL);
    ck_assert_msg(easyquant < 0.9 * rtn, "easyquant %g, rtn %g", easyquant, rtn);
    ck_assert(easyquant == by_option);
    ck_assert_msg(smooth < rtn, "smoothquant %g, rtn %g", smooth, rtn);
}
END_TEST

/* Mean over the calibration pictures of each logit. */
static void means_of(double mean[CLASSES], const md_picture_net *m, bool floats)
{
    real logits[N * CLASSES];
    logits_of(logits, m, floats);
    memset(mean, 0, CLASSES * sizeof *mean);
    for (int i = 0; i < N * CLASSES; i++)
        mean[i % CLASSES] += (double)logits[i] / N;
}

START_TEST(corrected_biases_give_the_means_of_the_floats)
{
    double moved[2] = {0};
    md_picture_net plain;
    double wanted[CLASSES], got[CLASSES];
    new_float(&plain, networks[_i]);
    made();
    means_of(wanted, &plain, true);
    for (int k = 0; k < 2; k++) {
        md_picture_net m;
        ck_assert_int_eq(quantize(&m, networks[_i], "w4a8", k ? "rtn+biascorrect" : "rtn", FQ_MINMAX, 0), NB_OK);
        means_of(got, &m, false);
        for (int c = 0; c < CLASSES; c++)
            moved[k] = fmax(moved[k], fabs(got[c] - wanted[c]));
        if (k) {
            const fq_site *out = m.layer[m.layers - 1].output;
            real scale;
            int32_t zero;
            fq_site_ranges(out, &scale, &zero);
            ck_assert_msg(moved[1] < (double)scale, "%g, a step is %g", moved[1], (double)scale); /* logits are codes */
        }
        md_net_free(&m);
    }
    ck_assert_msg(moved[1] < 0.5 * moved[0], "%g, before %g", moved[1], moved[0]);
    md_net_free(&plain);
}
END_TEST

START_TEST(only_static_ranges_run_in_integers)
{
    const fm_pictures data = made();
    static const char *const chains[] = {"static", "easyquant", "mse+biascorrect", "dynamic"};
    for (int i = 0; i < 4; i++) {
        md_picture_net m;
        kd_picture_eval e;
        ck_assert_int_eq(quantize(&m, networks[_i], "w4a8", chains[i], PT_CALIBRATION_RECIPE, 0), NB_OK);
        ck_assert_msg(kd_picture_evaluate(&e, &m, &data, NULL, NULL) == NB_OK, "%s", nb_fail_message());
        ck_assert_msg(e.integer == (i != 3), "%s", chains[i]);
        ck_assert_msg(i != 3 || !strcmp(m.base.recipe.name, "w4a8+dynamic"), "%s", m.base.recipe.name);
        md_net_free(&m);
    }
}
END_TEST

START_TEST(what_does_not_fit_is_refused)
{
    static const struct {
        const char *methods, *words;
    } bad[] = {{"gptq", "language models"},
               {"nonsense", "no such method"},
               {"rtn+equalize", "in this order"},
               {"rtn+mse", "both decide"},
               {"", "which method"},
               {"rtn+rtn", "both decide"},
               {"equalize+equalize", "order"},
               {"biascorrect+rtn", "order"},
               {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "no such"}};
    md_picture_net m, from;
    fq_recipe r = {0};
    const pt_picture_options none = {.samples = 10, .calibration = PT_CALIBRATION_RECIPE};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_int_eq(quantize(&m, networks[0], "w8a8", bad[i].methods, PT_CALIBRATION_RECIPE, 0), NB_USAGE);
        ck_assert_msg(strstr(nb_fail_message(), bad[i].words) != NULL, "%s: %s", bad[i].methods, nb_fail_message());
    }
    ck_assert_int_eq(quantize(&m, networks[0], "w8a8", "smoothquant", PT_CALIBRATION_RECIPE, 1.5), NB_USAGE);
    ck_assert(strstr(nb_fail_message(), "--alpha"));
    ck_assert_int_eq(quantize(&m, networks[0], "w8a8", "mse", PT_CALIBRATION_EASYQUANT, 0), NB_USAGE);
    ck_assert_int_eq(quantize(&m, networks[0], "w8a8", "easyquant", FQ_KL, 0), NB_USAGE);
    ck_assert_int_eq(quantize(&m, "input 9 9 1\nlinear 3\n", "w8a8", "smoothquant", PT_CALIBRATION_RECIPE, 0),
                     NB_USAGE);
    new_float(&from, networks[0]);
    ck_assert_int_eq(fq_recipe_open(&r, "w8a8"), NB_OK);
    ck_assert_int_eq(pt_picture_quantize(&m, &from, &r, "rtn", &none), NB_USAGE);
    ck_assert(strstr(nb_fail_message(), "--data"));
    ck_assert_int_eq(pt_picture_quantize(&m, &from, &r, "dynamic+biascorrect", &none), NB_USAGE);
    ck_assert_msg(pt_picture_quantize(&m, &from, &r, "dynamic", &none) == NB_OK, "%s", nb_fail_message());
    md_net_free(&m);
    md_net_free(&from);
    ck_assert_int_eq(quantize(&from, networks[0], "w8a8", "rtn", PT_CALIBRATION_RECIPE, 0), NB_OK);
    ck_assert_int_eq(pt_picture_quantize(&m, &from, &r, "rtn", &none), NB_USAGE); /* has a recipe already */
    md_net_free(&from);
    fq_recipe_free(&r);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("picture_ptq");
    TCase *tc = tcase_create("methods");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, eight_bits_are_near_the_floats_by_every_method, 0, NETWORKS);
    tcase_add_loop_test(tc, scaling_keeps_the_function, 0, NETWORKS);
    tcase_add_loop_test(tc, searches_gain_over_rounding, 0, NETWORKS);
    tcase_add_loop_test(tc, corrected_biases_give_the_means_of_the_floats, 0, NETWORKS);
    tcase_add_loop_test(tc, only_static_ranges_run_in_integers, 0, NETWORKS);
    tcase_add_test(tc, what_does_not_fit_is_refused);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
