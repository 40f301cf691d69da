/* test_passes.c - passes that move scales between layers change nothing but how well a model rounds: equalization, SmoothQuant, AWQ; biases take
 * back what rounding moves.
 */
#include "models_made.h"
#include "ptq/scaling.h"
#include "ptq/walk.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>

#define OK(e) ck_assert_msg((e) == NB_OK, "%s: %s", #e, nb_fail_message())
enum { ROWS = 8, T = 16 };

static const md_config gpt2 = {.architecture = "gpt2", .dim = 32, .hidden = 64, .layers = 2, .heads = 4, .kv_heads = 4, .head_size = 8,
                               .vocab = 40, .ctx = 32, .norm_eps = 1e-5, .tied = true, .qkv_bias = true, .out_bias = true, .bos = 1, .eos = 2};
enum { N_CONFIGS = N_MADE_SHAPES + 1 };

/* Norms that stand out, biases that are not 0, channels of different sizes. */
static void stirred(md_model *m, int config, const char *recipe)
{
    made_model(m, config < N_MADE_SHAPES ? &made_shapes[config] : &gpt2, recipe, 1);
    for (int64_t k = 0; k < m->params.n; k++) {
        ag_param *p = m->params.p[k];
        const real size = p->group == AG_WEIGHT ? (real)(1 / sqrt((double)p->dim[p->n_dim - 1])) : 1;
        for (int64_t i = 0; i < p->count && p->group != AG_SCALE; i++)
            p->x[i] = size * (real)nb_random_normal(5, (uint64_t)k, (uint64_t)i) * (i % 13 == 3 ? 6 : 1);
    }
    for (int64_t i = 0; i < m->sites.n; i++)
        m->sites.s[i]->started = m->sites.s[i]->started && !m->sites.s[i]->is_weight;
    m->params.version++;
}

static void made_data(fm_tokens *data, const md_model *m)
{
    fm_tokens_writer w;
    int32_t ids[ROWS * T];
    const fm_tokens_settings settings = {.vocab_size = m->config.vocab, .row_length = T, .seed = 1, .settings = "{}"};
    for (int64_t i = 0; i < ROWS * T; i++)
        ids[i] = (int32_t)(nb_random(3, 1, (uint64_t)i) % (uint64_t)m->config.vocab);
    OK(fm_tokens_writer_open(&w, scratch_path("data.h5"), &settings, true));
    OK(fm_tokens_writer_append(&w, ids, ROWS * T, NULL, 0));
    OK(fm_tokens_writer_finish(&w));
    fm_tokens_writer_close(&w);
    OK(fm_tokens_open(data, scratch_path("data.h5"), NULL, FM_SPLIT_NONE));
}

/* Logits [ROWS T, V]; quantize: through the sites. */
static float *logits(md_model *m, bool quantize)
{
    int32_t ids[ROWS * T];
    ag_tape t = {.no_grad = true, .quantize_off = !quantize};
    for (int64_t i = 0; i < ROWS * T; i++)
        ids[i] = (int32_t)(nb_random(3, 1, (uint64_t)i) % (uint64_t)m->config.vocab);
    md_output out = md_forward(&t, m, &(md_input){.B = ROWS, .T = T, .ids = ids});
    ag_tensor *z = ag_linear(&t, out.x, out.w, out.b);
    OK(ag_status(&t));
    float *y = malloc((size_t)ag_count(z) * sizeof *y);
    memcpy(y, ag_value(z), (size_t)ag_count(z) * sizeof *y);
    ag_tape_free(&t);
    return y;
}

/* |a - b| / |a|, and frees both. */
static double distance(float *a, float *b, const md_model *m)
{
    double squares = 0, differences = 0;
    for (int64_t i = 0; i < ROWS * T * m->config.vocab; i++) {
        const double d = (double)a[i] - (double)b[i];
        squares += (double)a[i] * (double)a[i];
        differences += d * d;
    }
    free(a);
    free(b);
    ck_assert_double_gt(squares, 0);
    return sqrt(differences / squares);
}

static const struct {
    const char *name, *recipe;
    status (*run)(md_model *m, const pt_options *o);
    pt_options o;
} passes[] = {{"equalize", "float", pt_run_equalize, {0}},
              {"smoothquant", "float", pt_run_smoothquant, {.smooth_all = true}},
              {"smoothquant by recipe", "w8a8kv16", pt_run_smoothquant, {.smooth_all = true}},
              {"smoothquant, alpha", "w8a8kv16", pt_run_smoothquant, {.alpha = 0.8}},
              {"smoothquant, keys", "w8a8kv8", pt_run_smoothquant, {.smooth_keys = true}},
              {"level", "float", pt_level_channels, {0}},
              {"awq", "w4a16g32", pt_run_awq, {0}}};
enum { N_PASSES = sizeof passes / sizeof *passes };

START_TEST(the_function_stays)
{
    const int config = _i % N_CONFIGS, pass = _i / N_CONFIGS;
    md_model m;
    fm_tokens data;
    scratch_begin();
    stirred(&m, config, passes[pass].recipe);
    made_data(&data, &m);
    float *before = logits(&m, false);
    real *norms = malloc((size_t)m.config.dim * sizeof *norms);
    memcpy(norms, m.block[0].attn.wv.w->x, (size_t)m.config.dim * sizeof *norms);
    pt_options o = passes[pass].o;
    o.data = &data;
    o.calibration = (kd_calibration){.samples = ROWS, .length = T};
    OK(passes[pass].run(&m, &o));
    ck_assert_msg(memcmp(norms, m.block[0].attn.wv.w->x, (size_t)m.config.dim * sizeof *norms) != 0, "%s changed nothing", passes[pass].name);
    const double d = distance(before, logits(&m, false), &m);
    ck_assert_msg(d < 1e-5, "%s, shape %d: %g", passes[pass].name, config, d);
    free(norms);
    fm_tokens_close(&data);
    md_free(&m);
    scratch_end();
}
END_TEST

typedef struct {
    real *largest;
    const char *site;
} extremes;

static void watch_largest(void *ctx, const char *site, const ag_tensor *in, const ag_tensor *out)
{
    const extremes *e = ctx;
    (void)out;
    for (int64_t i = 0; strcmp(site, e->site) == 0 && i < ag_count(in); i++)
        e->largest[i % ag_cols(in)] = (real)fmax((double)e->largest[i % ag_cols(in)], fabs((double)ag_value(in)[i]));
}

/* s = max|x|^alpha / max|w|^(1 - alpha), from what kd_watch shows and the weights as they were. */
START_TEST(smoothquant_scales_are_the_formula)
{
    md_model m;
    fm_tokens data;
    scratch_begin();
    stirred(&m, 5, "float");
    made_data(&data, &m);
    const int64_t C = m.config.dim;
    const kd_calibration c = {.samples = ROWS, .length = T};
    real largest[64] = {0}, norm[64], w[64] = {0};
    extremes e = {largest, "layers.0.attn.input"};
    ck_assert_int_le(C, 64);
    OK(kd_watch(&m, &data, &c, (ag_tap){watch_largest, &e}));
    const ly_attention *a = &m.block[0].attn;
    const ag_param *reader[] = {a->wq.w, a->wk.w, a->wv.w};
    for (int k = 0; k < 3; k++)
        for (int64_t i = 0; i < reader[k]->count; i++)
            w[i % C] = (real)fmax((double)w[i % C], fabs((double)reader[k]->x[i]));
    memcpy(norm, m.block[0].attn_norm.w->x, (size_t)C * sizeof *norm);
    OK(pt_run_smoothquant(&m, &(pt_options){.data = &data, .calibration = c, .alpha = 0.85}));
    for (int64_t j = 0; j < C; j++) {
        const double s = pow((double)largest[j], 0.85) / pow((double)w[j], 0.15);
        ck_assert_double_eq_tol((double)norm[j] / (double)m.block[0].attn_norm.w->x[j] / s, 1, 1e-6);
    }
    fm_tokens_close(&data);
    md_free(&m);
    scratch_end();
}
END_TEST

/* Levelled, every channel has the same largest magnitude: inputs 1 each, keys 1 in one of the two channels of a pair. */
START_TEST(levelled_channels_have_one_size)
{
    static const char *const sites[] = {"layers.0.attn.input", "layers.0.mlp.down.input", "layers.0.attn.k"};
    md_model m;
    fm_tokens data;
    scratch_begin();
    stirred(&m, _i ? 5 : 1, "float");
    made_data(&data, &m);
    const kd_calibration c = {.samples = ROWS, .length = T};
    OK(pt_level_channels(&m, &(pt_options){.data = &data, .calibration = c}));
    for (int k = 0; k < 3; k++) {
        real largest[256] = {0};
        extremes e = {largest, sites[k]};
        const int64_t n = fq_site_find(&m.sites, sites[k])->cols, D = m.config.head_size;
        ck_assert_int_le(n, 256);
        OK(kd_watch(&m, &data, &c, (ag_tap){watch_largest, &e}));
        for (int64_t i = 0; i < n; i++) {
            int64_t half[2] = {0};
            if (k == 2)
                pt_pair_halves(half, &m.block[0].attn, i % D % (D / 2));
            const double x = k == 2 ? fmax((double)largest[i / D * D + half[0]], (double)largest[i / D * D + half[1]]) : (double)largest[i];
            ck_assert_msg(fabs(x - 1) < 1e-3, "%s, channel %lld: %g", sites[k], (long long)i, x);
        }
    }
    fm_tokens_close(&data);
    md_free(&m);
    scratch_end();
}
END_TEST

/* One channel of the inputs of q, k, v and of gate, up is 60 times as large: 8-bit inputs lose the others, but for smoothing. Where all tokens share a
 * range they lose more elsewhere. */
START_TEST(smoothing_saves_inputs_from_outliers)
{
    static const char *const recipes[] = {"w8a8kv16", "smooth-o1", "smooth-o2", "smooth-o3"};
    md_model m;
    fm_tokens data;
    double d[2];
    scratch_begin();
    for (int smooth = 0; smooth < 2; smooth++) {
        stirred(&m, 5, recipes[_i]);
        for (int64_t l = 0; l < m.config.layers; l++)
            m.block[l].attn_norm.w->x[9] = m.block[l].mlp_norm.w->x[9] = 60;
        made_data(&data, &m);
        const pt_options o = {.data = &data, .calibration = {.samples = ROWS, .length = T}, .smooth_all = _i > 0};
        float *before = logits(&m, false);
        if (smooth)
            OK(pt_run_smoothquant(&m, &o));
        OK(kd_find_ranges(&m, FQ_START_ABSMAX, &data, &o.calibration));
        d[smooth] = distance(before, logits(&m, true), &m);
        fm_tokens_close(&data);
        md_free(&m);
    }
    ck_assert_msg(d[1] < (_i > 1 ? 0.85 : 0.6) * d[0], "%s: smoothed %g, not %g", recipes[_i], d[1], d[0]);
    scratch_end();
}
END_TEST

START_TEST(awq_rounds_better_where_inputs_stand_out)
{
    md_model m;
    fm_tokens data;
    double d[2];
    scratch_begin();
    for (int awq = 0; awq < 2; awq++) {
        stirred(&m, 5, "*.weight int3 row f32 learned\nembed.weight float\nhead.weight float\n");
        for (int64_t l = 0; l < m.config.layers; l++)
            for (int64_t i = 0; i < 3; i++)
                m.block[l].attn_norm.w->x[7 * i + 2] = m.block[l].mlp_norm.w->x[5 * i + 1] = 12;
        made_data(&data, &m);
        const pt_options o = {.data = &data, .calibration = {.samples = ROWS, .length = T}};
        float *before = logits(&m, false);
        OK(awq ? pt_run_awq(&m, &o) : kd_find_ranges(&m, FQ_START_IMPORTANCE, &data, &o.calibration));
        d[awq] = distance(before, logits(&m, true), &m);
        fm_tokens_close(&data);
        md_free(&m);
    }
    ck_assert_msg(d[1] < 0.9 * d[0], "awq %g, importance %g", d[1], d[0]);
    scratch_end();
}
END_TEST

START_TEST(equalized_rows_and_columns_have_one_size)
{
    md_model m;
    stirred(&m, 1, "float");
    OK(pt_run_equalize(&m, &(pt_options){0}));
    const ly_mlp *l = &m.block[0].mlp;
    for (int64_t i = 0; i < l->up.out; i++) {
        real column = 0;
        for (int64_t r = 0; r < l->down.out; r++)
            column = (real)fmax((double)column, fabs((double)l->down.w->x[r * l->down.in + i]));
        ck_assert_double_eq_tol((double)kn_absmax(l->up.w->x + i * l->up.in, l->up.in) / (double)column, 1, 1e-5);
    }
    md_free(&m);
}
END_TEST

/* The mean of the output of q over the data: as in floats, to what is lost behind it. */
START_TEST(biases_take_back_the_mean)
{
    md_model m;
    fm_tokens data;
    scratch_begin();
    stirred(&m, N_MADE_SHAPES, "layers.*.weight int3 row f32 learned\n");
    made_data(&data, &m);
    const pt_options o = {.data = &data, .calibration = {.samples = ROWS, .length = T}};
    OK(fq_start_weights(&m.sites, FQ_START_ABSMAX, NULL, NULL));
    m.params.version++;
    const ly_linear *q = &m.block[0].attn.wq;
    pt_input g;
    real v[64], before[64];
    OK(pt_input_new(&g, m.block[0].attn.input, false, 0, 0, KN_FP32));
    OK(kd_watch(&m, &data, &o.calibration, (ag_tap){pt_gather, &(pt_inputs){&g, 1}}));
    memcpy(before, q->b->x, (size_t)q->out * sizeof *before);
    OK(pt_run_biascorrect(&m, &o));
    for (int64_t r = 0; r < q->out; r++) {
        double is = (double)q->b->x[r], was = (double)before[r];
        kn_decode(v, fq_site_codes(q->w_site, &m.params), r, 1);
        for (int64_t j = 0; j < q->in; j++) {
            is += (double)v[j] * g.sum[j] / g.rows;
            was += (double)q->w->x[r * q->in + j] * g.sum[j] / g.rows;
        }
        ck_assert_double_eq_tol(is, was, 1e-4);
        ck_assert(before[r] != q->b->x[r]);
    }
    pt_input_free(&g);
    fm_tokens_close(&data);
    md_free(&m);
    stirred(&m, 0, "q4_0");
    ck_assert_int_eq(pt_run_biascorrect(&m, &o), NB_USAGE);
    md_free(&m);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("passes");
    TCase *c = tcase_create("passes");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, the_function_stays, 0, N_PASSES * N_CONFIGS);
    tcase_add_test(c, smoothquant_scales_are_the_formula);
    tcase_add_loop_test(c, levelled_channels_have_one_size, 0, 2);
    tcase_add_loop_test(c, smoothing_saves_inputs_from_outliers, 0, 4);
    tcase_add_test(c, awq_rounds_better_where_inputs_stand_out);
    tcase_add_test(c, equalized_rows_and_columns_have_one_size);
    tcase_add_test(c, biases_take_back_the_mean);
    suite_add_tcase(s, c);
    return run_suite(s);
}
