/* test_static.c - ranges of activations found beforehand or at run time: what is folded is what runs, weights stay as they were found, EasyQuant's
 * scales are those of a search written plainly.
 */
#include "logits.h"
#include "models_made.h"
#include "ptq/scaling.h"
#include "ptq/static.h"
#include "ptq/walk.h"
#include "scratch.h"
#include "suite.h"

#define OK(e) ck_assert_msg((e) == NB_OK, "%s: %s", #e, nb_fail_message())
enum { ROWS = 4, T = 8, LLAMA = 2, GPT2 = N_MADE_LLAMAS, METHODS = 7 };

/* Few rows, so that a plain search ends: wq, wk and wv of 8. */
static const md_config narrow = MADE(64, 24, 1, 1, 1, 8, 41, .tied = true);

static int32_t id_of(const md_model *m, int64_t i)
{
    return (int32_t)(nb_random(3, 1, (uint64_t)i) % (uint64_t)m->config.vocab);
}

static void made_data(fm_tokens *data, const md_model *m)
{
    fm_tokens_writer w;
    int32_t ids[ROWS * T];
    const fm_tokens_settings settings = {.vocab_size = m->config.vocab, .row_length = T, .seed = 1, .settings = "{}"};
    for (int64_t i = 0; i < ROWS * T; i++)
        ids[i] = id_of(m, i);
    OK(fm_tokens_writer_open(&w, scratch_path("data.h5"), &settings, true));
    OK(fm_tokens_writer_append(&w, ids, ROWS * T, NULL, 0));
    OK(fm_tokens_writer_finish(&w));
    fm_tokens_writer_close(&w);
    OK(fm_tokens_open(data, scratch_path("data.h5"), NULL, FM_SPLIT_NONE));
}

static pt_options options_of(fm_tokens *data)
{
    return (pt_options){.data = data, .calibration = {.samples = ROWS, .length = T}};
}

/* Logits of the first T ids through the sites, on the tape. */
static float *tape_logits(md_model *m)
{
    int32_t ids[T];
    ag_tape t = {.no_grad = true};
    for (int64_t i = 0; i < T; i++)
        ids[i] = id_of(m, i);
    md_output out = md_forward(&t, m, &(md_input){.B = 1, .T = T, .ids = ids});
    const ag_tensor *z = ag_linear(&t, out.x, out.w, out.b);
    OK(ag_status(&t));
    float *y = malloc((size_t)ag_count(z) * sizeof *y);
    memcpy(y, ag_value(z), (size_t)ag_count(z) * sizeof *y);
    ag_tape_free(&t);
    return y;
}

static float *runtime_logits(md_model *m)
{
    sequences s = {.n_sequences = 1};
    OK(fm_ids_reserve(&s.ids, T));
    for (int64_t i = 0; i < T; i++)
        s.ids.id[s.ids.n++] = id_of(m, i);
    s.start[1] = s.ids.n;
    float *z = our_logits(m, &s);
    fm_ids_free(&s.ids);
    return z;
}

static int64_t sites_with(const md_model *m, fq_range range)
{
    int64_t n = 0;
    for (int64_t i = 0; i < m->sites.n; i++)
        n += !m->sites.s[i]->is_weight && m->sites.s[i]->spec.grid.bits && m->sites.s[i]->spec.range == range;
    return n;
}

/* In an integer scheme the runtime on the folded file computes what the tape computes, to the bit: so it uses the ranges that were stored. */
START_TEST(the_runtime_uses_the_ranges_that_were_found)
{
    md_model m, folded;
    fm_tokens data;
    const bool gpt2 = _i >= METHODS;
    scratch_begin();
    made_model(&m, &made_shapes[gpt2 ? GPT2 : LLAMA], "w8a8kv8", 2);
    made_data(&data, &m);
    pt_options o = options_of(&data);
    o.calib_method = _i % METHODS;
    o.calib_asym = _i % 2;
    OK(pt_run_static(&m, &o));
    ck_assert_int_eq(sites_with(&m, FQ_DYNAMIC), 0);
    ck_assert_int_ge(sites_with(&m, FQ_STATIC), 4 * m.config.layers + 1);
    const fq_site *down = fq_site_find(&m.sites, "layers.0.mlp.down.input");
    ck_assert(down->n_scales == 1 && down->started && down->start[0] > 0);
    ck_assert_int_eq(down->spec.grid.has_zero, gpt2 || o.calib_asym);
    OK(md_save_folded(&m, scratch_path("folded.h5"), false));
    OK(md_open(&folded, scratch_path("folded.h5"), &(md_open_options){0}));
    float *tape = tape_logits(&m), *runs = runtime_logits(&folded);
    for (int64_t i = 0; i < T * m.config.vocab; i++)
        ck_assert_msg(tape[i] == runs[i], "method %d: logit %lld is %.9g, folded %.9g", o.calib_method, (long long)i, (double)tape[i], (double)runs[i]);
    free(tape);
    free(runs);
    md_free(&folded);
    fm_tokens_close(&data);
    md_free(&m);
    scratch_end();
}
END_TEST

static double distance(const float *a, const float *b, int64_t n)
{
    double squares = 0, differences = 0;
    for (int64_t i = 0; i < n; i++) {
        squares += (double)a[i] * (double)a[i];
        differences += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    }
    return sqrt(differences / squares);
}

/* SmoothQuant's O1, O2, O3: ranges as they say, and the folded model computes in one call what the tape does. */
START_TEST(levels_of_smoothquant_are_folded_and_run)
{
    static const char *const recipes[] = {"smooth-o1", "smooth-o2", "smooth-o3"};
    md_model m, folded;
    fm_tokens data;
    scratch_begin();
    made_model(&m, &made_shapes[LLAMA], recipes[_i], 2);
    made_data(&data, &m);
    const pt_options o = options_of(&data);
    OK(pt_run_smoothquant(&m, &o));
    OK(kd_find_ranges(&m, FQ_START_ABSMAX, &data, &o.calibration));
    const fq_site *input = fq_site_find(&m.sites, "layers.0.mlp.input"), *w = fq_site_find(&m.sites, "layers.0.mlp.up.weight");
    ck_assert(w->n_scales == 1 && w->multiplied);
    ck_assert(_i == 2 ? input->n_scales == 1 && input->started : input->spec.range == FQ_DYNAMIC);
    ck_assert_int_eq(input->spec.grid.grain, _i ? KN_TENSOR : KN_ROW);
    OK(md_save_folded(&m, scratch_path("folded.h5"), false));
    OK(md_open(&folded, scratch_path("folded.h5"), NULL));
    float *tape = tape_logits(&m), *runs = runtime_logits(&folded);
    ck_assert_double_lt(distance(tape, runs, T * m.config.vocab), 1e-5);
    free(tape);
    free(runs);
    md_free(&folded);
    md_free(&m);
    fm_tokens_close(&data);
    scratch_end();
}
END_TEST

/* Codes of every weight, one behind the other, by a hash. */
static uint64_t weight_codes(md_model *m)
{
    uint64_t h = NB_HASH_START;
    for (int64_t i = 0; i < m->sites.n; i++) {
        const kn_codes *c = fq_site_codes(m->sites.s[i], &m->params);
        for (int64_t r = 0; c && r < c->rows; r++)
            h = nb_hash(h, c->q + r * c->ld, (size_t)c->cols);
        h = c ? nb_hash(h, c->scale, (size_t)c->n_scales * sizeof *c->scale) : h;
    }
    return h;
}

START_TEST(weights_keep_the_ranges_of_a_pass_before)
{
    static const char *const recipes[] = {"w4a8kv8", "w4a16g32"};
    md_model m;
    fm_tokens data;
    scratch_begin();
    made_model(&m, &made_shapes[LLAMA], recipes[_i], 2);
    made_data(&data, &m);
    pt_options o = options_of(&data);
    OK(kd_find_ranges(&m, FQ_START_MSE, &data, &o.calibration));
    const uint64_t before = weight_codes(&m);
    OK(pt_run_dynamic(&m, &o));
    ck_assert(weight_codes(&m) == before);
    ck_assert_int_eq(sites_with(&m, FQ_STATIC), 0);
    ck_assert_int_ge(sites_with(&m, FQ_DYNAMIC), 4 * m.config.layers + 1); /* inputs in floats got 8 bits */
    o.calib_groups = true;
    OK(pt_run_static(&m, &o));
    ck_assert(weight_codes(&m) == before);
    const fq_site *input = fq_site_find(&m.sites, "layers.0.attn.input");
    ck_assert_int_eq(input->spec.grid.grain, _i ? KN_GROUP : KN_TENSOR);
    ck_assert_int_eq(input->n_scales, _i ? 2 : 1); /* of 64 channels */
    fm_tokens_close(&data);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(what_cannot_be_is_said)
{
    md_model m;
    fm_tokens data;
    scratch_begin();
    made_model(&m, &made_shapes[LLAMA], "w8a8kv16", 2);
    made_data(&data, &m);
    pt_options o = options_of(NULL);
    ck_assert_int_eq(pt_run_static(&m, &o), NB_USAGE);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "--data"));
    o.data = &data;
    o.calib_parameter = 30;
    o.calib_method = 2;
    ck_assert_int_eq(pt_run_static(&m, &o), NB_USAGE);
    ck_assert_ptr_nonnull(strstr(nb_fail_message(), "percentile"));
    o.calib_method = METHODS - 1;
    ck_assert_int_eq(pt_run_static(&m, &o), NB_USAGE);
    fm_tokens_close(&data);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(a_failing_allocation_leaves_a_model)
{
    md_model m;
    fm_tokens data;
    status s = NB_NOMEM;
    scratch_begin();
    made_data(&data, &(md_model){.config = narrow});
    for (int at = 0; s != NB_OK; at += at < 40 ? 1 : 53) {
        made_model(&m, &narrow, "w8a8kv8", 2);
        pt_options o = options_of(&data);
        o.calib_method = METHODS - 1;
        allocations_left = at + 1;
        s = pt_run_static(&m, &o);
        allocations_left = -1;
        ck_assert(s == NB_OK || strstr(nb_fail_message(), "out of memory"));
        md_free(&m);
    }
    fm_tokens_close(&data);
    scratch_end();
}
END_TEST

/* ---- levels from quantiles ------------------------------------------------------------------- */

START_TEST(quantiles_are_those_of_the_sorted_values)
{
    static const real x[] = {6, 7, 15, 36, 39, 40, 41, 42, 43, 47, 49};
    ck_assert(pt_quantile(x, 11, 0.25) == 15 && pt_quantile(x, 11, 0.5) == 40 && pt_quantile(x, 11, 0.75) == 43);
    ck_assert(pt_quantile(x, 11, 0) == 6 && pt_quantile(x, 11, 1) == 49);
}
END_TEST

START_TEST(every_level_of_quantiles_is_used_about_equally_often)
{
    enum { COUNT = 64 * 500 };
    real level[KN_OWN_LEVELS], *w = malloc(COUNT * sizeof *w);
    int64_t used[KN_OWN_LEVELS] = {0};
    kn_grid g = kn_grid_table(KN_TABLE_OWN, KN_BLOCK, 64, KN_SCALE_F32);
    kn_codes c;
    for (int64_t i = 0; i < COUNT; i++)
        w[i] = (real)nb_random_normal(11, 3, (uint64_t)i) * (i / 64 % 7 ? 1 : 20);
    OK(pt_quantile_levels(level, w, COUNT));
    memcpy(g.level, level, sizeof level);
    OK(kn_grid_check(&g));
    OK(kn_codes_new(&c, &g, 500, 64));
    kn_encode(&c, w);
    for (int64_t i = 0; i < COUNT; i++)
        used[c.q[i]]++;
    for (int i = 0; i < KN_OWN_LEVELS; i++) {
        ck_assert_msg(used[i] > COUNT / 60 && used[i] < COUNT / 10, "level %d of %g: %lld times of %d", i, (double)level[i], (long long)used[i], COUNT);
        ck_assert(fabs((double)level[i]) <= 1 && (i == 0 || level[i] > level[i - 1]));
    }
    kn_codes_free(&c);
    for (int64_t i = 0; i < COUNT; i++) /* few values, all equal or 0: levels still ascend */
        w[i] = _i == 0 ? 0 : _i == 1 ? 3 : (real)(i % 2);
    OK(pt_quantile_levels(g.level, w, COUNT));
    OK(kn_grid_check(&g));
    free(w);
}
END_TEST

START_TEST(levels_of_quantiles_are_kept_in_the_file)
{
    md_model m, folded;
    scratch_begin();
    made_model(&m, &made_shapes[LLAMA], "nf4", 2);
    OK(pt_run_quantile(&m, &(pt_options){0}));
    ck_assert_str_eq(m.recipe.name, "quantile");
    const fq_site *a = fq_site_find(&m.sites, "layers.0.attn.wq.weight"), *b = fq_site_find(&m.sites, "layers.0.mlp.up.weight");
    ck_assert(a->spec.grid.table == KN_TABLE_OWN && !kn_grid_equal(&a->spec.grid, &b->spec.grid));
    OK(md_save_folded(&m, scratch_path("folded.h5"), false));
    OK(md_open(&folded, scratch_path("folded.h5"), &(md_open_options){0}));
    ck_assert(weight_codes(&m) == weight_codes(&folded));
    ck_assert(fq_spec_equal(&fq_site_find(&folded.sites, a->name)->spec, &a->spec));
    md_free(&folded);
    md_free(&m);
    scratch_end();
}
END_TEST

/* ---- EasyQuant ------------------------------------------------------------------------------- */

static double cosine_of(const double *a, const double *b, int64_t n)
{
    double ab = 0, bb = 0;
    for (int64_t i = 0; i < n; i++) {
        ab += a[i] * b[i];
        bb += b[i] * b[i];
    }
    return bb > 0 ? ab / sqrt(bb) : -INFINITY;
}

static double rounded(double x, double scale)
{
    return fmin(fmax(rint(x / scale), -127), 127) * scale;
}

enum { TOKENS = ROWS * T, K = 64 };
/* y [n of a row's outputs, TOKENS] of decode(encode(x; sx)) and decode(encode(w; sw)) */
static void outputs(double *y, const real *x, const real *w, double sx, double sw)
{
    for (int64_t m = 0; m < TOKENS; m++) {
        y[m] = 0;
        for (int64_t k = 0; k < K; k++) {
            const double a = sx > 0 ? rounded((double)x[m * K + k], sx) : (double)x[m * K + k];
            y[m] += a * (sw > 0 ? rounded((double)w[k], sw) : (double)w[k]);
        }
    }
}

/* Cosine of all outputs under factors a and b. */
static double cosine_under(double a, const double *b, const real *x, const real *w, int64_t rows, double sx, const double *sw)
{
    double *y = malloc((size_t)(2 * rows * TOKENS) * sizeof *y), *z = y + rows * TOKENS, yy = 0;
    for (int64_t r = 0; r < rows; r++) {
        outputs(y + r * TOKENS, x, w + r * K, 0, 0);
        outputs(z + r * TOKENS, x, w + r * K, a * sx, b[r] * sw[r]);
    }
    for (int64_t i = 0; i < rows * TOKENS; i++)
        yy += y[i] * y[i];
    const double c = cosine_of(y, z, rows * TOKENS) / sqrt(yy);
    free(y);
    return c;
}

/* The search as it is stated, on one input with three readers of which all rows stand one behind the other. */
static void plain_search(double *a, double *b, const real *x, const real *w, int64_t rows, double sx, const double *sw)
{
    double *y = malloc((size_t)(2 * rows * TOKENS) * sizeof *y), *z = y + rows * TOKENS;
    bool moved = true;
    *a = 1;
    for (int64_t r = 0; r < rows; r++) {
        b[r] = 1;
        outputs(y + r * TOKENS, x, w + r * K, 0, 0);
    }
    for (int round = 0; round < 3 && moved; round++) {
        double best = -INFINITY, found = *a;
        moved = false;
        for (int64_t first = 0; first < rows; first += rows / 3) { /* one linear after the other */
            const int64_t n = rows / 3;
            for (int64_t r = first; r < first + n; r++)
                outputs(z + r * TOKENS, x, w + r * K, *a * sx, b[r] * sw[r]);
            for (int64_t r = first; r < first + n; r++) {
                double most = cosine_of(y + first * TOKENS, z + first * TOKENS, n * TOKENS);
                for (int i = 0; i < 100; i++) {
                    outputs(z + r * TOKENS, x, w + r * K, *a * sx, (0.5 + 1.5 * i / 99) * sw[r]);
                    const double c = cosine_of(y + first * TOKENS, z + first * TOKENS, n * TOKENS);
                    if (c > most) {
                        most = c;
                        b[r] = 0.5 + 1.5 * i / 99;
                        moved = true;
                    }
                }
                outputs(z + r * TOKENS, x, w + r * K, *a * sx, b[r] * sw[r]);
            }
        }
        for (int i = 0; i < 100; i++) {
            for (int64_t r = 0; r < rows; r++)
                outputs(z + r * TOKENS, x, w + r * K, (0.5 + 1.5 * i / 99) * sx, b[r] * sw[r]);
            const double c = cosine_of(y, z, rows * TOKENS);
            if (c > best) {
                best = c;
                found = 0.5 + 1.5 * i / 99;
            }
        }
        moved = moved || found != *a;
        *a = found;
    }
    free(y);
}

START_TEST(easyquant_finds_what_a_plain_search_finds)
{
    enum { N = 8, READERS = 3 };
    md_model m, start;
    fm_tokens data;
    pt_walk walk;
    scratch_begin();
    made_model(&m, &narrow, "w8a8kv16", 2);
    made_model(&start, &narrow, "w8a8kv16", 2);
    made_data(&data, &m);
    pt_options o = options_of(&data);
    OK(pt_make_static(&start, FQ_MINMAX, &o));
    OK(pt_run_easyquant(&m, &o));
    pt_pair pair[PT_PAIRS];
    pt_readers(pair, &start, 0);
    pt_input x;
    OK(pt_input_new(&x, pair[0].input, false, TOKENS, TOKENS, KN_FP32));
    OK(pt_walk_new(&walk, &start, &data, &o.calibration));
    OK(pt_walk_watch(&walk, (ag_tap){pt_gather, &(pt_inputs){&x, 1}}, NULL));
    pt_walk_free(&walk);
    ck_assert_int_eq(x.sampled, TOKENS);
    real w[READERS * N * K], scale[N];
    double a, b[READERS * N], sw[READERS * N];
    for (int k = 0; k < READERS; k++) {
        memcpy(w + k * N * K, pair[0].reader[k]->w->x, N * K * sizeof *w);
        fq_site_ranges(pair[0].reader[k]->w_site, scale, NULL);
        for (int r = 0; r < N; r++)
            sw[k * N + r] = (double)scale[r];
    }
    plain_search(&a, b, x.sample, w, READERS * N, (double)pair[0].input->start[0], sw);
    double own[READERS * N], ones[READERS * N];
    int moved = 0;
    for (int k = 0; k < READERS; k++) {
        fq_site_ranges(fq_site_find(&m.sites, pair[0].reader[k]->w_site->name), scale, NULL);
        for (int r = 0; r < N; r++) {
            ones[k * N + r] = 1;
            own[k * N + r] = sw[k * N + r] > 0 ? (double)scale[r] / sw[k * N + r] : 1;
            moved += fabs(own[k * N + r] - 1) > 1e-3;
        }
    }
    const double sx = (double)pair[0].input->start[0], factor = (double)fq_site_find(&m.sites, pair[0].input->name)->start[0] / sx;
    const double plain = cosine_under(a, b, x.sample, w, READERS * N, sx, sw), found = cosine_under(factor, own, x.sample, w, READERS * N, sx, sw),
                 before = cosine_under(1, ones, x.sample, w, READERS * N, sx, sw);
    ck_assert_int_gt(moved, N);
    ck_assert_msg(found - before > 0.99 * (plain - before) && plain > before, "1 - cosine: %.4g, plainly %.4g, before %.4g", 1 - found, 1 - plain, 1 - before);
    pt_input_free(&x);
    fm_tokens_close(&data);
    md_free(&m);
    md_free(&start);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("static");
    TCase *tc = tcase_create("static");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, the_runtime_uses_the_ranges_that_were_found, 0, 2 * METHODS);
    tcase_add_loop_test(tc, weights_keep_the_ranges_of_a_pass_before, 0, 2);
    tcase_add_loop_test(tc, levels_of_smoothquant_are_folded_and_run, 0, 3);
    tcase_add_test(tc, what_cannot_be_is_said);
    tcase_add_test(tc, a_failing_allocation_leaves_a_model);
    tcase_add_test(tc, easyquant_finds_what_a_plain_search_finds);
    tcase_add_test(tc, quantiles_are_those_of_the_sorted_values);
    tcase_add_loop_test(tc, every_level_of_quantiles_is_used_about_equally_often, 0, 3);
    tcase_add_test(tc, levels_of_quantiles_are_kept_in_the_file);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
