/* test_gptq.c - GPTQ against the paper's steps written down plainly in doubles; rounding where nothing is correlated; never worse than
 * rounding; folding gives its codes.
 */
#include "ptq/gptq.h"
#include "ptq/gptq_model.h"
#include "ptq/gptq_scales.h"
#include "runs_made.h"

enum { ROWS = 24, K = 96, SAMPLES = 300 };

/* Inputs whose channels go together and differ in size; one channel is never reached. */
static void made_hessian(pt_hessian *h, int64_t samples)
{
    real *x = malloc((size_t)(samples * K) * sizeof *x);
    for (int64_t m = 0; m < samples; m++) {
        const double common = nb_random_normal(1, 0, (uint64_t)m);
        for (int64_t k = 0; k < K; k++)
            x[m * K + k] = k == 7 ? 0
                                  : (real)((1 + (double)(k % 5)) * (0.7 * nb_random_normal(1, 1 + (uint64_t)k, (uint64_t)m) + common));
    }
    OK(pt_hessian_new(h, K));
    kn_gram(KN_FP32, h->H, x, samples, K, 0);
    for (int64_t i = 0; i < K * K; i++)
        h->H[i] /= (real)samples;
    free(x);
}

static void made_weight(real *w)
{
    for (int64_t i = 0; i < ROWS * K; i++)
        w[i] = (real)(nb_random_normal(2, 1, (uint64_t)i) * (i % 31 == 4 ? 3 : 1));
}

static void made_spec(fq_spec *s, const char *text)
{
    ck_assert_msg(fq_spec_parse(s, text) == NB_OK, "%s", nb_fail_message());
}

static int32_t code(const kn_codes *c, int64_t row, int64_t col)
{
    return c->q[row * c->ld + col];
}

/* ---- the paper's steps -------------------------------------------------------------------- */

/* Upper u with inverse(H + share mean(diag) I) = u' u: Gauss-Jordan, then Cholesky. */
static void reference_factor(double *u, const real *H, double share)
{
    double *a = calloc(2 * K * K, sizeof *a), mean = 0;
    for (int64_t i = 0; i < K; i++)
        mean += (double)H[i * K + i] / K;
    for (int64_t i = 0; i < K; i++) {
        for (int64_t j = 0; j < K; j++)
            a[i * 2 * K + j] = (double)H[i * K + j];
        a[i * 2 * K + i] = (H[i * K + i] == 0 ? 1 : (double)H[i * K + i]) + share * mean;
        a[i * 2 * K + K + i] = 1;
    }
    for (int64_t p = 0; p < K; p++) {
        const double d = a[p * 2 * K + p];
        for (int64_t j = 0; j < 2 * K; j++)
            a[p * 2 * K + j] /= d;
        for (int64_t i = 0; i < K; i++) {
            const double f = a[i * 2 * K + p];
            for (int64_t j = 0; j < 2 * K && i != p; j++)
                a[i * 2 * K + j] -= f * a[p * 2 * K + j];
        }
    }
    memset(u, 0, K * K * sizeof *u);
    for (int64_t i = 0; i < K; i++)
        for (int64_t j = i; j < K; j++) {
            double s = a[i * 2 * K + K + j];
            for (int64_t k = 0; k < i; k++)
                s -= u[k * K + i] * u[k * K + j];
            u[i * K + j] = i == j ? sqrt(s) : s / u[i * K + i];
        }
    free(a);
}

/* Codes by largest magnitude per group, found as the columns are reached, column by column without blocks. margin: how far from the middle
 * of two codes the number was, in steps. */
static void reference_gptq(int32_t *q, double *margin, const real *w, const double *u, const kn_grid *g)
{
    const int64_t group = g->grain == KN_ROW ? K : g->group;
    for (int64_t row = 0; row < ROWS; row++) {
        double x[K];
        real scale = 0;
        int32_t zero = 0;
        for (int64_t k = 0; k < K; k++)
            x[k] = (double)w[row * K + k];
        for (int64_t k = 0; k < K; k++) {
            if (k % group == 0) {
                real min = 0, max = 0;
                for (int64_t j = k; j < k + group && j < K; j++) {
                    min = (real)fmin((double)min, x[j]);
                    max = (real)fmax((double)max, x[j]);
                }
                kn_range_of(g, min, max, &scale, &zero);
            }
            q[row * K + k] = kn_encode_one(g, (real)x[k], kn_inverse(scale), zero);
            const double step = x[k] * (double)kn_inverse(scale);
            margin[row * K + k] = fabs(step - floor(step) - 0.5);
            const double e = (x[k] - (double)(q[row * K + k] - zero) * (double)scale) / u[k * K + k];
            for (int64_t j = k + 1; j < K; j++)
                x[j] -= e * u[k * K + j];
        }
    }
}

static const char *const reference_specs[] = {"int4 row f32 learned",           "int4 group:32 f16 learned",
                                              "int3 asym group:24 f32 learned", "int8 narrow group:16 f32 static",
                                              "int2 asym row f16 learned",      "int4 group:20 f16 learned"};

START_TEST(codes_equal_the_papers_steps)
{
    pt_hessian h;
    fq_spec spec;
    kn_codes c, nearest;
    real w[ROWS * K];
    int32_t q[ROWS * K];
    double u[K * K], margin[ROWS * K], error[2];
    made_spec(&spec, reference_specs[_i]);
    made_weight(w);
    made_hessian(&h, SAMPLES);
    OK(pt_hessian_factor(&h, 0.01, false));
    ck_assert_double_eq(h.damping, 0.01);
    reference_factor(u, h.H, 0.01);
    for (int64_t i = 0; i < K * K; i++)
        ck_assert_double_eq_tol((double)h.U[i], u[i], 1e-4 * fabs(u[i / K * (K + 1)]));
    reference_gptq(q, margin, w, u, &spec.grid);
    OK(kn_codes_new(&c, &spec.grid, ROWS, K));
    OK(pt_gptq(&c, &spec, w, &h, &(pt_gptq_options){.ranges = FQ_START_ABSMAX}, error));
    ck_assert(error[0] < error[1]);
    int64_t rows = 0;
    OK(kn_codes_new(&nearest, &spec.grid, ROWS, K));
    OK(fq_find_ranges(&nearest, &spec, w, FQ_START_ABSMAX, NULL));
    for (int64_t row = 0; row < ROWS; row++) {
        int64_t k = 0;
        while (k < K && code(&c, row, k) == q[row * K + k])
            k++;
        if (k < K && memcmp(c.q + row * c.ld, nearest.q + row * c.ld, K) == 0)
            continue; /* rounding was better there */
        rows += k == K;
        /* floats and doubles may part at a number in the middle of two codes; what follows in that row is other numbers */
        ck_assert_msg(k == K || margin[row * K + k] < 1e-4, "%s: row %lld, column %lld: %d, not %d, %g from a tie", reference_specs[_i],
                      (long long)row, (long long)k, code(&c, row, k), q[row * K + k], margin[row * K + k]);
    }
    ck_assert_int_ge(rows, ROWS - 2);
    kn_codes_free(&nearest);
    kn_codes_free(&c);
    pt_hessian_free(&h);
}
END_TEST

static const char *const specs[] = {"int4 row f32 learned",       "int4 group:32 f16 q4_0 learned", "int4 asym group:32 f16 static",
                                    "ternary row f16 learned",    "seq2 row learned",               "int5 tensor f32 static",
                                    "int4 block:40 f32 learned",  "int8 narrow group:32 f16 q8_0 learned", "sign row f16 learned",
                                    "int16 row f32 learned",      "int6 group:8 pow2 learned"};
enum { N_SPECS = sizeof specs / sizeof *specs };

START_TEST(uncorrelated_inputs_mean_rounding)
{
    fq_spec spec;
    kn_codes c, nearest;
    pt_hessian h;
    real w[ROWS * K];
    const size_t greedy = (size_t)_i % 2;
    made_spec(&spec, specs[_i / 2]);
    made_weight(w);
    OK(pt_hessian_new(&h, K));
    for (int64_t i = 0; i < K; i++)
        h.H[i * (K + 1)] = (real)(1 + i % 9);
    OK(pt_hessian_factor(&h, 0, greedy));
    OK(kn_codes_new(&c, &spec.grid, ROWS, K));
    OK(kn_codes_new(&nearest, &spec.grid, ROWS, K));
    OK(fq_find_ranges(&nearest, &spec, w, FQ_START_ABSMAX, NULL));
    OK(pt_gptq(&c, &spec, w, &h, &(pt_gptq_options){.ranges = FQ_START_ABSMAX, .greedy = greedy}, NULL));
    for (int64_t i = 0; i < c.n_scales; i++)
        ck_assert(c.scale[i] == nearest.scale[i] && (!c.zero || c.zero[i] == nearest.zero[i]));
    ck_assert_mem_eq(c.q ? (void *)c.q : (void *)c.q16, nearest.q ? (void *)nearest.q : (void *)nearest.q16,
                     (size_t)(ROWS * c.ld) * (c.q ? 1 : 2));
    kn_codes_free(&c);
    kn_codes_free(&nearest);
    pt_hessian_free(&h);
}
END_TEST

/* Every way to find ranges and orders, 2 to 16 bits: less error than before, and what is decoded gives its codes again. */
START_TEST(never_worse_than_rounding_and_values_keep_their_codes)
{
    static const pt_gptq_options how[] = {{.ranges = FQ_START_ABSMAX},
                                          {.ranges = FQ_START_MSE, .static_groups = true},
                                          {.ranges = FQ_START_IMPORTANCE, .rounds = 2},
                                          {.ranges = FQ_START_IMPORTANCE, .greedy = true}};
    fq_spec spec;
    pt_hessian h;
    real w[ROWS * K], v[ROWS * K];
    made_spec(&spec, specs[_i]);
    made_weight(w);
    made_hessian(&h, SAMPLES);
    for (int act_order = 0; act_order < 2; act_order++) {
        double least = INFINITY;
        OK(pt_hessian_factor(&h, 0, act_order));
        for (size_t k = 0; k < sizeof how / sizeof *how; k++) {
            kn_codes c, again;
            double error[2];
            OK(kn_codes_new(&c, &spec.grid, ROWS, K));
            OK(kn_codes_new(&again, &spec.grid, ROWS, K));
            OK(pt_gptq(&c, &spec, w, &h, &how[k], error));
            ck_assert_msg(error[0] <= error[1], "%s, way %d: %g, rounding %g", specs[_i], (int)k, error[0], error[1]);
            if (spec.grid.bits > 1 && spec.grid.bits < 8)
                ck_assert_msg(error[0] < 0.95 * error[1], "%s, way %d: %g, rounding %g", specs[_i], (int)k, error[0], error[1]);
            least = fmin(least, error[0]);
            kn_decode(v, &c, 0, ROWS);
            memcpy(again.scale, c.scale, (size_t)c.n_scales * sizeof *c.scale);
            if (c.zero)
                memcpy(again.zero, c.zero, (size_t)c.n_scales * sizeof *c.zero);
            kn_encode_with(&again, v);
            ck_assert_mem_eq(c.q ? (void *)c.q : (void *)c.q16, again.q ? (void *)again.q : (void *)again.q16,
                             (size_t)(ROWS * c.ld) * (c.q ? 1 : 2));
            kn_codes_free(&c);
            kn_codes_free(&again);
        }
        ck_assert_double_gt(least, 0);
    }
    pt_hessian_free(&h);
}
END_TEST

/* Rows of a vocabulary's size go in slices. */
START_TEST(a_row_is_the_same_among_many)
{
    enum { MANY = 4096 + 40, LAST = 8 };
    const pt_gptq_options how = {.ranges = FQ_START_ABSMAX, .rounds = 1};
    real *w = malloc((size_t)(MANY * K) * sizeof *w);
    fq_spec s;
    pt_hessian h;
    kn_codes all, last;
    double error[2], error_last[2];
    made_spec(&s, specs[_i]);
    if (!pt_ranges_by_row(&s.grid)) { /* ranges that rows share */
        free(w);
        return;
    }
    for (int64_t i = 0; i < MANY * K; i++)
        w[i] = (real)nb_random_normal(2, 2, (uint64_t)i);
    made_hessian(&h, SAMPLES);
    OK(pt_hessian_factor(&h, 0.01, false));
    OK(kn_codes_new(&all, &s.grid, MANY, K));
    OK(kn_codes_new(&last, &s.grid, LAST, K));
    OK(pt_gptq(&all, &s, w, &h, &how, error));
    OK(pt_gptq(&last, &s, w + (MANY - LAST) * K, &h, &how, error_last));
    for (int64_t r = 0; r < LAST; r++) {
        for (int64_t k = 0; k < K; k++)
            ck_assert_int_eq(pt_code(&all, (MANY - LAST + r) * all.ld + k), pt_code(&last, r * last.ld + k));
        ck_assert_int_eq(memcmp(all.scale + (MANY - LAST + r) * all.spans, last.scale + r * last.spans, (size_t)last.spans * sizeof *last.scale), 0);
        ck_assert(!all.zero || memcmp(all.zero + (MANY - LAST + r) * all.spans, last.zero + r * last.spans, (size_t)last.spans * sizeof *last.zero) == 0);
    }
    ck_assert(error[0] < error[1] && error[0] > MANY / LAST * 0.7 * error_last[0]);
    kn_codes_free(&all);
    kn_codes_free(&last);
    pt_hessian_free(&h);
    free(w);
}
END_TEST

START_TEST(few_samples_and_hopeless_ones)
{
    pt_hessian h;
    fq_spec spec;
    kn_codes c;
    real w[ROWS * K];
    double error[2];
    made_spec(&spec, "int4 row f32 learned");
    made_weight(w);
    made_hessian(&h, 5); /* of rank 5 */
    OK(pt_hessian_factor(&h, 0.01, true));
    ck_assert(h.damping >= 0.01);
    OK(kn_codes_new(&c, &spec.grid, ROWS, K));
    OK(pt_gptq(&c, &spec, w, &h, &(pt_gptq_options){.ranges = FQ_START_ABSMAX}, error));
    ck_assert_double_lt(error[0], 0.5 * error[1]);
    h.H[3] = h.H[3 * K] = 1e9F; /* no damping makes this positive */
    OK(pt_hessian_factor(&h, 0.01, false));
    ck_assert(isnan(h.damping));
    OK(pt_gptq(&c, &spec, w, &h, &(pt_gptq_options){.ranges = FQ_START_ABSMAX}, NULL));
    kn_codes_free(&c);
    pt_hessian_free(&h);
}
END_TEST

/* ---- models ------------------------------------------------------------------------------- */

static const char *const model_recipes[] = {"q4_0", "w4a8kv4", "w2a16", "w4all"};

START_TEST(folding_gives_the_codes)
{
    md_model m, folded;
    fm_tokens data;
    scratch_begin();
    open_model(&m, "float");
    generate(&m, scratch_path("data.h5"), 1024, 3, KD_START_HYBRID);
    md_free(&m);
    open_model(&m, model_recipes[_i]);
    OK(fm_tokens_open(&data, scratch_path("data.h5"), NULL, FM_SPLIT_NONE));
    pt_options o = {.data = &data, .calibration = {.samples = 16, .length = 32}, .gptq_rounds = 1};
    OK(_i == 1 ? pt_run_obq(&m, &o) : pt_run_gptq(&m, &o));
    OK(md_save_folded(&m, scratch_path("f.h5"), true));
    OK(md_open(&folded, scratch_path("f.h5"), &(md_open_options){0}));
    int64_t layers = 0;
    for (int64_t i = 0; i < m.sites.n; i++) {
        fq_site *s = m.sites.s[i], *t = fq_site_find(&folded.sites, s->name);
        if (!s->is_weight || !s->spec.grid.bits || strncmp(s->name, "layers.", 7) != 0)
            continue;
        real *v = malloc((size_t)(s->rows * s->cols) * sizeof *v);
        const kn_codes *c = fq_site_codes(t, NULL);
        ck_assert_ptr_nonnull(c);
        kn_decode(v, c, 0, s->rows);
        for (int64_t k = 0; k < s->rows * s->cols; k++) /* the latent is the value of the code that was folded */
            ck_assert_msg(v[k] == s->w->x[k], "%s: %g is folded as %g", s->name, (double)s->w->x[k], (double)v[k]);
        free(v);
        layers++;
    }
    ck_assert_int_ge(layers, 14);
    md_free(&folded);
    fm_tokens_close(&data);
    md_free(&m);
    scratch_end();
}
END_TEST

/* A token that stands first in every window and nowhere else. */
static void one_begins(fm_tokens *data, const md_model *m)
{
    enum { WINDOWS = 64, T = 32 };
    int32_t ids[WINDOWS * T];
    fm_tokens_writer w;
    const int64_t V = m->config.vocab;
    const fm_tokens_settings settings = {.vocab_size = V, .row_length = T, .seed = 1, .settings = "{}"};
    for (int i = 0; i < WINDOWS * T; i++)
        ids[i] = i % T == 0 ? (int32_t)V - 1 : (int32_t)(nb_random(3, 1, (uint64_t)i) % (uint64_t)(V - 1));
    OK(fm_tokens_writer_open(&w, scratch_path("data.h5"), &settings, true));
    OK(fm_tokens_writer_append(&w, ids, WINDOWS * T, NULL, 0));
    OK(fm_tokens_writer_finish(&w));
    fm_tokens_writer_close(&w);
    OK(fm_tokens_open(data, scratch_path("data.h5"), NULL, FM_SPLIT_NONE));
}

/* |x - y|^2 of the logits behind that token, latent floats. */
static double first_distance(md_model *a, md_model *b)
{
    enum { B = 1, T = 2 };
    int32_t ids[B * T];
    double sum = 0;
    real *z[2];
    md_model *m[] = {a, b};
    for (int i = 0; i < B * T; i++)
        ids[i] = (int32_t)a->config.vocab - 1;
    for (int k = 0; k < 2; k++) {
        ag_tape t = {.no_grad = true, .quantize_off = true};
        const md_output out = md_forward(&t, m[k], &(md_input){.B = B, .T = T, .ids = ids});
        ag_tensor *y = ag_linear(&t, out.x, out.w, out.b);
        OK(ag_status(&t));
        z[k] = malloc((size_t)ag_count(y) * sizeof **z);
        memcpy(z[k], ag_value(y), (size_t)ag_count(y) * sizeof **z);
        ag_tape_free(&t);
    }
    const int64_t V = a->config.vocab;
    for (int64_t i = 0; i < B * T * V; i++)
        sum += i / V % T == 0 ? pow((double)z[0][i] - (double)z[1][i], 2) : 0;
    free(z[0]);
    free(z[1]);
    return sum;
}

START_TEST(first_tokens_fare_as_they_weigh)
{
    md_model original, m;
    fm_tokens data;
    double error[2];
    scratch_begin();
    open_model(&original, "float");
    one_begins(&data, &original);
    for (int k = 0; k < 2; k++) {
        open_model(&m, "w3a16");
        OK(pt_run_gptq(&m, &(pt_options){.data = &data, .calibration = {.samples = 64, .length = 32}, .first_weight = k ? 300 : 1}));
        error[k] = first_distance(&original, &m);
        md_free(&m);
    }
    ck_assert_msg(error[1] < 0.5 * error[0], "%g where the first token counts, %g where it does not", error[1], error[0]);
    fm_tokens_close(&data);
    md_free(&original);
    scratch_end();
}
END_TEST

START_TEST(what_gptq_cannot_do_is_refused)
{
    md_model m;
    fm_tokens data;
    scratch_begin();
    open_model(&m, "float");
    generate(&m, scratch_path("data.h5"), 256, 3, KD_START_HYBRID);
    md_free(&m);
    open_model(&m, "llmqat-4-8-4");
    OK(fm_tokens_open(&data, scratch_path("data.h5"), NULL, FM_SPLIT_NONE));
    ck_assert_int_eq(pt_run_gptq(&m, &(pt_options){.data = &data}), NB_USAGE);
    ck_assert(strstr(nb_fail_message(), "dynamic"));
    ck_assert_int_eq(pt_run_gptq(&m, &(pt_options){0}), NB_USAGE);
    fm_tokens_close(&data);
    md_free(&m);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gptq");
    TCase *c = tcase_create("gptq");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, codes_equal_the_papers_steps, 0, 6);
    tcase_add_loop_test(c, uncorrelated_inputs_mean_rounding, 0, 2 * N_SPECS);
    tcase_add_loop_test(c, never_worse_than_rounding_and_values_keep_their_codes, 0, N_SPECS);
    tcase_add_loop_test(c, a_row_is_the_same_among_many, 0, N_SPECS);
    tcase_add_test(c, few_samples_and_hopeless_ones);
    tcase_add_loop_test(c, folding_gives_the_codes, 0, 4);
    tcase_add_test(c, first_tokens_fare_as_they_weigh);
    tcase_add_test(c, what_gptq_cannot_do_is_refused);
    suite_add_tcase(s, c);
    return run_suite(s);
}
