/* test_fisher.c - GPTQ whose rows cost together against GPTQ of one long row; Fisher information against every label enumerated; the pass over a model.
 */
#include "ptq/descent.h"
#include "ptq/fisher.h"
#include "ptq/gptq_model.h"
#include "runs_made.h"

/* ---- rows that cost together -------------------------------------------------------------- */

enum { N = 10, K = 24 };

/* A Gram matrix of n channels that go together. */
static void made_gram(pt_hessian *h, int64_t n, uint64_t seed)
{
    enum { SAMPLES = 200 };
    real *x = malloc((size_t)(SAMPLES * n) * sizeof *x);
    for (int64_t i = 0; i < SAMPLES * n; i++)
        x[i] = (real)((1 + (double)(i % n % 3)) * (nb_random_normal(seed, 1, (uint64_t)i) + nb_random_normal(seed, 2, (uint64_t)(i / n))));
    OK(pt_hessian_new(h, n));
    kn_gram(KN_FP32, h->H, x, SAMPLES, n, 0);
    for (int64_t i = 0; i < n * n; i++)
        h->H[i] /= SAMPLES;
    free(x);
    OK(pt_hessian_factor(h, 1e-9, false));
}

/* Row r, column k of w is number k N + r of the long row. */
static void lay_out(real *row, const real *w)
{
    for (int64_t r = 0; r < N; r++)
        for (int64_t k = 0; k < K; k++)
            row[k * N + r] = w[r * K + k];
}

static void made_product(pt_hessian *h, const pt_hessian *in, const pt_hessian *out)
{
    OK(pt_hessian_new(h, N * K));
    for (int64_t i = 0; i < N * K; i++)
        for (int64_t j = 0; j < N * K; j++)
            h->H[i * N * K + j] = in->H[i / N * K + j / N] * out->H[i % N * N + j % N];
    OK(pt_hessian_factor(h, 1e-9, false));
}

static double cost(const real *w, const kn_codes *c, const pt_hessian *in, const pt_hessian *out)
{
    real v[N * K];
    double sum = 0;
    kn_decode(v, c, 0, N);
    for (int64_t i = 0; i < N * K; i++)
        for (int64_t j = 0; j < N * K; j++)
            sum += (double)(w[i] - v[i]) * (double)(w[j] - v[j]) * (double)out->H[i / K * N + j / K] * (double)in->H[i % K * K + j % K];
    return sum;
}

static void quantize(kn_codes *c, const char *spec, const real *w, int64_t rows, int64_t cols, const pt_hessian *h, const pt_hessian *outputs,
                     double error[2])
{
    fq_spec s;
    OK(fq_spec_parse(&s, spec));
    OK(kn_codes_new(c, &s.grid, rows, cols));
    OK(pt_gptq(c, &s, w, h, &(pt_gptq_options){.ranges = FQ_START_ABSMAX, .outputs = outputs, .rounds = cols == K}, error));
}

START_TEST(rows_that_cost_together_are_one_long_row)
{
    real w[N * K], row[N * K];
    pt_hessian in, out, both;
    kn_codes c, l, apart;
    double error[2], long_error[2];
    made_gram(&in, K, 1);
    made_gram(&out, N, 2);
    made_product(&both, &in, &out);
    for (int64_t i = 0; i < N * K; i++)
        w[i] = (real)nb_random_normal(3, (uint64_t)_i, (uint64_t)i);
    lay_out(row, w);
    quantize(&c, "int4 tensor f32 static", w, N, K, &in, &out, error);
    quantize(&l, "int4 tensor f32 static", row, 1, N * K, &both, NULL, long_error);
    quantize(&apart, "int4 tensor f32 static", w, N, K, &in, NULL, NULL);
    for (int64_t r = 0; r < N; r++)
        for (int64_t k = 0; k < K; k++)
            ck_assert_int_eq(c.q[r * c.ld + k], l.q[k * N + r]);
    ck_assert(c.scale[0] == l.scale[0]);
    ck_assert_double_eq_tol(error[0], long_error[0], 1e-3 * error[0]);
    ck_assert_double_eq_tol(error[0], cost(w, &c, &in, &out), 1e-3 * error[0]);
    ck_assert_double_lt(error[0], 0.95 * cost(w, &apart, &in, &out));
    kn_codes_free(&c);
    kn_codes_free(&l);
    kn_codes_free(&apart);
    pt_hessian_free(&in);
    pt_hessian_free(&out);
    pt_hessian_free(&both);
}
END_TEST

static const char *const specs[] = {"int4 group:8 f16 learned", "int3 asym group:12 f32 learned", "int4 row f16 learned", "int8 narrow group:16 f16 static",
                                    "int2 asym row f16 learned", "ternary row f16 learned"};
enum { N_SPECS = sizeof specs / sizeof *specs };

START_TEST(outputs_apart_change_nothing_and_together_cost_less)
{
    real w[N * K];
    pt_hessian in, out, apart;
    kn_codes plain, same, better, nearest;
    double error[2];
    made_gram(&in, K, 1);
    made_gram(&out, N, 2);
    OK(pt_hessian_new(&apart, N));
    for (int64_t r = 0; r < N; r++)
        apart.H[r * (N + 1)] = 2;
    OK(pt_hessian_factor(&apart, 1e-9, false));
    for (int64_t i = 0; i < N * K; i++)
        w[i] = (real)nb_random_normal(4, 1, (uint64_t)i);
    OK(pt_hessian_factor(&in, 0.01, false));
    fq_spec s;
    OK(fq_spec_parse(&s, specs[_i]));
    const pt_gptq_options how = {.ranges = FQ_START_ABSMAX};
    pt_gptq_options with = how;
    with.outputs = &apart;
    OK(kn_codes_new(&plain, &s.grid, N, K));
    OK(kn_codes_new(&same, &s.grid, N, K));
    OK(pt_gptq(&plain, &s, w, &in, &how, NULL));
    OK(pt_gptq(&same, &s, w, &in, &with, NULL));
    OK(kn_codes_new(&nearest, &s.grid, N, K));
    OK(fq_find_ranges(&nearest, &s, w, FQ_START_ABSMAX, NULL));
    for (int64_t r = 0; r < N; r++) { /* without outputs a row may keep plain rounding by itself */
        const int8_t *q = plain.q + r * plain.ld;
        ck_assert(memcmp(q, same.q + r * same.ld, K) == 0 || memcmp(q, nearest.q + r * nearest.ld, K) == 0);
    }
    kn_codes_free(&nearest);
    quantize(&better, specs[_i], w, N, K, &in, &out, error);
    ck_assert_double_eq_tol(error[0], cost(w, &better, &in, &out), 2e-3 * error[0]);
    ck_assert_msg(error[0] < 0.9 * cost(w, &plain, &in, &out), "%s: %g, apart %g", specs[_i], error[0], cost(w, &plain, &in, &out));
    kn_codes_free(&plain);
    kn_codes_free(&same);
    kn_codes_free(&better);
    pt_hessian_free(&in);
    pt_hessian_free(&out);
    pt_hessian_free(&apart);
}
END_TEST

/* Sweeps never cost more, and end where no code and no scale can move alone. */
START_TEST(descent_ends_where_nothing_moves_alone)
{
    real w[N * K];
    pt_hessian in, out;
    fq_spec s;
    kn_codes c;
    made_gram(&in, K, 1);
    made_gram(&out, N, 2);
    for (int64_t i = 0; i < N * K; i++)
        w[i] = (real)nb_random_normal(5, (uint64_t)_i, (uint64_t)i);
    OK(fq_spec_parse(&s, specs[_i]));
    OK(kn_codes_new(&c, &s.grid, N, K));
    OK(fq_find_ranges(&c, &s, w, FQ_START_ABSMAX, NULL));
    double last = cost(w, &c, &in, &out);
    const double first = last;
    for (int sweeps = 0; sweeps < 60; sweeps++) {
        OK(pt_descend(&c, w, &in, &out));
        const double now = cost(w, &c, &in, &out);
        ck_assert_msg(now <= last * (1 + 1e-6), "%s, sweep %d: %g after %g", specs[_i], sweeps, now, last);
        last = now;
    }
    ck_assert_double_lt(last, 0.7 * first);
    for (int64_t i = 0; i < N * c.ld; i++)
        for (int step = -1; step <= 1 && i % c.ld < K; step += 2) {
            const int8_t q = c.q[i];
            if (q + step < c.grid.lo || q + step > c.grid.hi)
                continue;
            c.q[i] = (int8_t)(q + step);
            ck_assert_double_gt(cost(w, &c, &in, &out), last * (1 - 1e-5));
            c.q[i] = q;
        }
    for (int64_t i = 0; i < c.n_scales; i++)
        for (int step = -1; step <= 1; step += 2) {
            const real scale = c.scale[i];
            c.scale[i] = scale * (1 + (real)step * (real)0.003);
            ck_assert_double_gt(cost(w, &c, &in, &out), last * (1 - 1e-4));
            c.scale[i] = scale;
        }
    kn_codes_free(&c);
    pt_hessian_free(&in);
    pt_hessian_free(&out);
}
END_TEST

/* ---- Fisher information ------------------------------------------------------------------- */

enum { V = 41, MOST = 64, DRAWS = 6000, ID = 5, OTHER = 9 };

/* expected [rows, rows] += share dW dW', which is g g' |x|^2 where one token came by. */
static void add_label(double *expected, const ag_param *p, double share)
{
    const int64_t rows = p->dim[0], cols = p->dim[1];
    for (int64_t r = 0; r < rows; r++)
        for (int64_t s = 0; s < rows; s++)
            for (int64_t k = 0; k < cols; k++)
                expected[r * rows + s] += share * (double)p->g[r * cols + k] * (double)p->g[s * cols + k];
}

/* For one token alone: sum over labels of their shares, or of equal ones, of what each label's gradient gives. */
static void enumerate(double *expected, md_model *m, ag_param *p, int32_t id, bool equal)
{
    const md_input in = {.B = 1, .T = 1, .ids = &id};
    double lse;
    real z[V];
    ag_tape t = {.quantize_off = true};
    md_output out = md_forward(&t, m, &in);
    const ag_tensor *logits = ag_linear(&t, out.x, out.w, out.b);
    OK(ag_status(&t));
    memcpy(z, ag_value(logits), sizeof z);
    kn_logsumexp(&lse, z, 1, V);
    memset(expected, 0, MOST * MOST * sizeof *expected);
    for (int32_t v = 0; v < V; v++) {
        ag_reset(&t);
        ag_params_clear_grad(&m->params);
        out = md_forward(&t, m, &in);
        OK(ag_backward(&t, ag_head(&t, out.x, out.w, out.b, &v, &(ag_head_loss){.ce = 1}, NULL)));
        add_label(expected, p, equal ? 1.0 / V : exp((double)z[v] - lse));
    }
    ag_tape_free(&t);
}

/* |a / mean diag a + I - h| / |h - I| */
static double distance(const double *a, const pt_hessian *h)
{
    const int64_t n = h->K;
    double mean = 0, d = 0, size = 0;
    for (int64_t r = 0; r < n; r++)
        mean += a[r * (n + 1)] / (double)n;
    for (int64_t i = 0; i < n * n; i++) {
        const double is = (double)h->H[i] - (i % (n + 1) == 0);
        d += pow(a[i] / mean - is, 2);
        size += is * is;
    }
    return sqrt(d / size);
}

START_TEST(every_label_as_often_as_the_model_says_it)
{
    static const char *const weight[] = {"layers.0.attn.wv.weight", "layers.0.attn.wo.weight", "layers.0.mlp.gate.weight",
                                         "layers.1.mlp.up.weight",  "layers.1.mlp.down.weight"};
    md_model m;
    pt_fisher *f;
    const pt_hessian *h;
    char input[64];
    int32_t *ids = malloc(DRAWS * sizeof *ids);
    double *expected = malloc(MOST * MOST * sizeof *expected), mean = 0;
    open_model(&m, "q4_0");
    for (int i = 0; i < DRAWS; i++)
        ids[i] = ID;
    OK(pt_fisher_new(&f, &m, ids, DRAWS, 1, &(kd_calibration){.seed = 1}));
    for (size_t i = 0; i < sizeof weight / sizeof *weight; i++) {
        ag_param *p = ag_param_find(&m.params, weight[i]);
        ck_assert(!p->frozen && p->dim[0] <= MOST);
        OK(pt_fisher_outputs(&h, f, weight[i]));
        ck_assert(h && h->K == p->dim[0]);
        enumerate(expected, &m, p, ID, false);
        const double near = distance(expected, h);
        enumerate(expected, &m, p, ID, true);
        ck_assert_msg(near < 0.05 && distance(expected, h) > 2 * near, "%s: %g, were labels equally likely %g", weight[i], near, distance(expected, h));
        ck_assert(kd_input_site(input, sizeof input, weight[i]) && pt_fisher_tokens(f, input));
    }
    for (int i = 0; i < DRAWS; i++)
        mean += (double)pt_fisher_tokens(f, input)[i] / DRAWS;
    ck_assert_double_eq_tol(mean, 1, 1e-4);
    OK(pt_fisher_outputs(&h, f, "embed.weight"));
    ck_assert_ptr_null(h);
    ck_assert_ptr_null(pt_fisher_tokens(f, "head.input"));
    pt_fisher_free(f);
    md_free(&m);
    free(expected);
    free(ids);
}
END_TEST

/* ids [DRAWS] as data in rows of two. */
static void open_pairs(fm_tokens *data, const int32_t *ids)
{
    const fm_tokens_settings settings = {.vocab_size = V, .row_length = 2, .seed = 1, .settings = "{}"};
    fm_tokens_writer w;
    OK(fm_tokens_writer_open(&w, scratch_path("data.h5"), &settings, true));
    OK(fm_tokens_writer_append(&w, ids, DRAWS, NULL, 0));
    OK(fm_tokens_writer_finish(&w));
    fm_tokens_writer_close(&w);
    OK(fm_tokens_open(data, scratch_path("data.h5"), NULL, FM_SPLIT_NONE));
}

/* Of one token and every label by its share: gg [C, C] the sum of g g', g what the label asks of the row looked up, and xx [C, C] that of (1 - share) x x', x what
 * the head reads. m is not tied: no other row of the embedding has a gradient. */
static void enumerate_ends(double *gg, double *xx, md_model *m, int32_t id)
{
    const md_input in = {.B = 1, .T = 1, .ids = &id};
    const int64_t C = m->config.dim;
    const ag_param *p = ag_param_find(&m->params, "embed.weight");
    real z[V], x[MOST];
    double lse;
    ag_tape t = {.quantize_off = true};
    md_output out = md_forward(&t, m, &in);
    const ag_tensor *logits = ag_linear(&t, out.x, out.w, out.b);
    OK(ag_status(&t));
    memcpy(z, ag_value(logits), sizeof z);
    memcpy(x, ag_value(out.x), (size_t)C * sizeof *x);
    kn_logsumexp(&lse, z, 1, V);
    memset(gg, 0, MOST * MOST * sizeof *gg);
    memset(xx, 0, MOST * MOST * sizeof *xx);
    for (int32_t v = 0; v < V; v++) {
        const double share = exp((double)z[v] - lse);
        ag_reset(&t);
        ag_params_clear_grad(&m->params);
        out = md_forward(&t, m, &in);
        OK(ag_backward(&t, ag_head(&t, out.x, out.w, out.b, &v, &(ag_head_loss){.ce = 1}, NULL)));
        for (int64_t i = 0; i < C * C; i++) {
            gg[i] += share * (double)p->g[id * C + i / C] * (double)p->g[id * C + i % C];
            xx[i] += share * (1 - share) * (double)x[i / C] * (double)x[i % C];
        }
    }
    ag_tape_free(&t);
}

/* |a - h| / |a| */
static double apart(const double *a, const pt_hessian *h)
{
    double d = 0, size = 0;
    for (int64_t i = 0; i < h->K * h->K; i++) {
        d += pow(a[i] - (double)h->H[i], 2);
        size += a[i] * a[i];
    }
    return sqrt(d / size);
}

START_TEST(rows_of_an_embedding_cost_where_they_are_looked_up_and_where_a_head_reads_them)
{
    md_model m;
    pt_fisher *f;
    const pt_hessian *h;
    int32_t *ids = malloc(DRAWS * sizeof *ids);
    double *gg = malloc(2 * MOST * MOST * sizeof *gg), *xx = gg + MOST * MOST, mean = 0;
    for (int i = 0; i < DRAWS; i++)
        ids[i] = ID;
    open_model(&m, "q4_0_all");
    ck_assert(m.config.tied && m.config.dim <= MOST);
    OK(pt_fisher_new(&f, &m, ids, DRAWS, 1, &(kd_calibration){.seed = 1}));
    ck_assert_ptr_null(pt_fisher_tokens(f, "head.input"));
    OK(md_untie(&m));
    enumerate_ends(gg, xx, &m, ID);
    for (int64_t i = 0; i < m.config.dim * m.config.dim; i++)
        xx[i] += gg[i];
    OK(pt_fisher_rows(&h, f, 0.01));
    ck_assert(h && h->K == m.config.dim && h->U);
    ck_assert_double_lt(apart(xx, h), 0.05);
    ck_assert_double_gt(apart(gg, h), 0.1);
    pt_fisher_free(f);
    OK(pt_fisher_new(&f, &m, ids, DRAWS, 1, &(kd_calibration){.seed = 1}));
    OK(pt_fisher_rows(&h, f, 0.01));
    ck_assert(h && h->K == m.config.dim);
    ck_assert_double_lt(apart(gg, h), 0.05);
    for (int i = 0; i < DRAWS; i++)
        mean += (double)pt_fisher_tokens(f, "head.input")[i] / DRAWS;
    ck_assert_double_eq_tol(mean, 1, 1e-4);
    pt_fisher_free(f);
    md_free(&m);
    open_model(&m, "q4_0"); /* ends of 8 bits */
    OK(pt_fisher_new(&f, &m, ids, 1, 1, &(kd_calibration){.seed = 1}));
    OK(pt_fisher_rows(&h, f, 0.01));
    ck_assert_ptr_null(h);
    pt_fisher_free(f);
    md_free(&m);
    free(ids);
    free(gg);
}
END_TEST

/* KL of one token's predictions before and after `p` changes by `step` at one place. */
static double kl_of_step(md_model *m, ag_param *p, int64_t at, real step, int32_t id)
{
    real z[2][V];
    double lse[2], kl = 0;
    for (int k = 0; k < 2; k++) {
        ag_tape t = {.quantize_off = true, .no_grad = true};
        const md_output out = md_forward(&t, m, &(md_input){.B = 1, .T = 1, .ids = &id});
        const ag_tensor *logits = ag_linear(&t, out.x, out.w, out.b);
        OK(ag_status(&t));
        memcpy(z[k], ag_value(logits), sizeof z[k]);
        kn_logsumexp(&lse[k], z[k], 1, V);
        ag_tape_free(&t);
        p->x[at] += k ? -step : step;
        m->params.version++;
    }
    for (int v = 0; v < V; v++)
        kl += exp((double)z[0][v] - lse[0]) * ((double)z[0][v] - lse[0] - (double)z[1][v] + lse[1]);
    return kl;
}

/* One kind of token, two a window: behind the last attention neither knows of the other; errors before it, the same in both, cost more together. */
START_TEST(a_small_error_costs_the_kl_it_makes)
{
    static const char *const weight[] = {"layers.1.attn.wo.weight", "layers.1.mlp.gate.weight", "layers.1.mlp.down.weight", "embed.weight", "layers.0.attn.wv.weight"};
    md_model m;
    fm_tokens data;
    pt_fisher *f;
    int32_t *ids = malloc(DRAWS * sizeof *ids);
    scratch_begin();
    open_model(&m, "q4_0");
    OK(md_untie(&m));
    for (int i = 0; i < DRAWS; i++)
        ids[i] = ID;
    open_pairs(&data, ids);
    OK(pt_fisher_new_costs(&f, &m, &data, &(kd_calibration){.samples = DRAWS / 2, .length = 2, .seed = 1}));
    for (size_t i = 0; i < sizeof weight / sizeof *weight; i++) {
        const fq_site *s = fq_site_find(&m.sites, weight[i]);
        real *value = malloc((size_t)s->w->count * sizeof *value);
        memcpy(value, s->w->x, (size_t)s->w->count * sizeof *value);
        double costs = 0, kls = 0;
        for (int64_t r = i == 3 ? ID : 0; r < (i == 3 ? ID + 1 : s->rows); r++) /* no other row is looked up */
            for (int64_t c = r % 5; c < s->cols; c += 5) {
                const int64_t at = r * s->cols + c;
                const real step = (real)0.02 * (real)fabs((double)s->w->x[at]) + (real)1e-3;
                value[at] += step;
                costs += pt_fisher_cost(f, s, value);
                value[at] = s->w->x[at];
                kls += kl_of_step(&m, s->w, at, step, ID);
            }
        ck_assert_msg(costs > (i < 3 ? 0.8 : 0.5) * kls && costs < 1.2 * kls, "%s: %g, KL %g", weight[i], costs, kls);
        free(value);
    }
    ck_assert(pt_fisher_squares(f, fq_site_find(&m.sites, "head.weight"))[0] > 0);
    pt_fisher_free(f);
    fm_tokens_close(&data);
    md_free(&m);
    free(ids);
    scratch_end();
}
END_TEST

/* Squares [cols] of what goes into a weight for one token alone, and their sum. */
static double squares(real *x2, md_model *m, const fq_site *weight, int32_t id)
{
    kd_importance h;
    double sum = 0;
    OK(kd_importance_new(&h, m));
    ag_tape t = {.quantize_off = true, .no_grad = true, .tap = {kd_gather_importance, &h}};
    md_forward(&t, m, &(md_input){.B = 1, .T = 1, .ids = &id});
    OK(ag_status(&t));
    memcpy(x2, kd_importance_of(&h, weight), (size_t)weight->cols * sizeof *x2);
    for (int64_t k = 0; k < weight->cols; k++)
        sum += (double)x2[k];
    ag_tape_free(&t);
    kd_importance_free(&h);
    return sum;
}

/* Two tokens, each as important as its labels' gradients are large. They come in pairs of one kind, which attention does not tell from one alone, and behind the last
 * block's down no token knows of another. */
START_TEST(importance_counts_tokens_by_their_gradients)
{
    static const char name[] = "layers.1.mlp.down.weight";
    static const int32_t id[2] = {ID, OTHER};
    md_model m;
    fm_tokens data;
    kd_importance h;
    int32_t *ids = malloc(DRAWS * sizeof *ids);
    double *expected = malloc(MOST * MOST * sizeof *expected), size[2] = {0}, sum = 0, sum_got = 0;
    real x2[2][MOST];
    scratch_begin();
    open_model(&m, "q4_0");
    const fq_site *site = fq_site_find(&m.sites, name);
    ag_param *p = ag_param_find(&m.params, name);
    for (int i = 0; i < DRAWS; i++)
        ids[i] = id[i / 2 % 2];
    open_pairs(&data, ids);
    OK(kd_importance_new(&h, &m));
    OK(pt_fisher_importance(&h, &m, &data, &(kd_calibration){.samples = DRAWS / 2, .length = 2, .seed = 1}));
    const real *got = kd_importance_of(&h, site);
    for (int k = 0; k < 2; k++) {
        const double x = squares(x2[k], &m, site, id[k]);
        enumerate(expected, &m, p, id[k], false);
        for (int64_t r = 0; r < site->rows; r++)
            size[k] += expected[r * (site->rows + 1)] / x;
    }
    ck_assert_double_gt(fabs(log(size[0] / size[1])), 0.2);
    for (int64_t c = 0; c < site->cols; c++) {
        sum += size[0] * (double)x2[0][c] + size[1] * (double)x2[1][c];
        sum_got += (double)got[c];
    }
    for (int64_t c = 0; c < site->cols; c++) {
        const double is = (double)got[c] / sum_got, should = (size[0] * (double)x2[0][c] + size[1] * (double)x2[1][c]) / sum;
        ck_assert_double_eq_tol(is, should, 0.05 * should + 1e-4);
    }
    ck_assert_ptr_nonnull(kd_importance_of(&h, fq_site_find(&m.sites, "embed.weight"))); /* the tied head */
    kd_importance_free(&h);
    fm_tokens_close(&data);
    md_free(&m);
    free(expected);
    free(ids);
    scratch_end();
}
END_TEST

/* ---- the pass ----------------------------------------------------------------------------- */

static double kl_of(const char *method, const char *recipe, fm_tokens *data, real *first)
{
    md_model m, floats;
    double kl;
    pt_sensitivity *s;
    open_model(&floats, "float");
    open_model(&m, recipe);
    pt_options o = pt_defaults();
    o.data = data;
    o.calibration = (kd_calibration){.samples = 64, .length = 32};
    OK(pt_method_find(method)->run(&m, &o));
    OK(pt_sensitivity_new(&s, &floats, data, 64, 32));
    for (int64_t i = 0; i < floats.params.n; i++)
        memcpy(floats.params.p[i]->x, ag_param_find(&m.params, floats.params.p[i]->name)->x, (size_t)floats.params.p[i]->count * sizeof(real));
    floats.params.version++;
    OK(pt_sensitivity_kl(&kl, s, 0));
    *first = ag_param_find(&m.params, "layers.0.attn.wq.weight")->x[0];
    pt_sensitivity_free(s);
    md_free(&m);
    md_free(&floats);
    return kl;
}

START_TEST(as_good_as_gptq_and_the_same_again)
{
    static const char *const recipe[] = {"w4a16g32", "q4_0", "q4_0_all"};
    md_model m;
    fm_tokens data;
    real first[3];
    scratch_begin();
    open_model(&m, "float");
    generate(&m, scratch_path("data.h5"), 4096, 3, KD_START_HYBRID);
    md_free(&m);
    OK(fm_tokens_open(&data, scratch_path("data.h5"), NULL, FM_SPLIT_NONE));
    const double plain = kl_of("gptq", recipe[_i], &data, first), fisher = kl_of("fisher", recipe[_i], &data, first + 1),
                 again = kl_of("yaqa", recipe[_i], &data, first + 2);
    ck_assert_msg(fisher > 0 && fisher < 1.1 * plain, "%s: %g, gptq %g", recipe[_i], fisher, plain); /* weights worth no more than others: about as good */
    ck_assert(fisher == again && first[1] == first[2]);
    fm_tokens_close(&data);
    scratch_end();
}
END_TEST

/* sum of e_v H e_v' over rows, e = w - v. */
static double cost_of_rows(const real *w, const real *v, int64_t rows, const pt_hessian *h)
{
    const int64_t C = h->K;
    double sum = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < C * C; i++)
            sum += (double)(w[r * C + i / C] - v[r * C + i / C]) * (double)h->H[i] * (double)(w[r * C + i % C] - v[r * C + i % C]);
    return sum;
}

START_TEST(an_embedding_of_few_bits_is_searched)
{
    md_model m, floats;
    fm_tokens data;
    pt_fisher *f;
    const pt_hessian *h;
    kn_codes nearest;
    int32_t *ids;
    int64_t windows, length;
    scratch_begin();
    open_model(&floats, "float");
    generate(&floats, scratch_path("data.h5"), 4096, 3, KD_START_HYBRID);
    md_free(&floats);
    OK(fm_tokens_open(&data, scratch_path("data.h5"), NULL, FM_SPLIT_NONE));
    open_model(&floats, "q4_0_all");
    open_model(&m, "q4_0_all");
    pt_options o = pt_defaults();
    o.data = &data;
    o.calibration = (kd_calibration){.samples = 64, .length = 32};
    OK(pt_method_find("fisher")->run(&m, &o));
    OK(kd_even_windows(&ids, &windows, &length, &floats, &data, &o.calibration));
    OK(pt_fisher_new(&f, &floats, ids, windows, length, &o.calibration));
    OK(pt_fisher_rows(&h, f, 0.01));
    const fq_site *site = fq_site_find(&floats.sites, "embed.weight");
    const real *w = site->w->x;
    real *v = malloc((size_t)site->w->count * sizeof *v);
    OK(kn_codes_new(&nearest, &site->spec.grid, site->rows, site->cols));
    OK(fq_find_ranges(&nearest, &site->spec, w, FQ_START_MSE, NULL));
    kn_decode(v, &nearest, 0, site->rows);
    const double searched = cost_of_rows(w, ag_param_find(&m.params, "embed.weight")->x, site->rows, h), plain = cost_of_rows(w, v, site->rows, h);
    ck_assert_msg(searched > 0 && searched < 0.95 * plain, "%g, by least error %g", searched, plain);
    kn_codes_free(&nearest);
    free(v);
    pt_fisher_free(f);
    free(ids);
    md_free(&m);
    md_free(&floats);
    fm_tokens_close(&data);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("fisher");
    TCase *c = tcase_create("fisher");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, rows_that_cost_together_are_one_long_row, 0, 8);
    tcase_add_loop_test(c, outputs_apart_change_nothing_and_together_cost_less, 0, N_SPECS);
    tcase_add_loop_test(c, descent_ends_where_nothing_moves_alone, 0, N_SPECS);
    tcase_add_test(c, every_label_as_often_as_the_model_says_it);
    tcase_add_test(c, rows_of_an_embedding_cost_where_they_are_looked_up_and_where_a_head_reads_them);
    tcase_add_test(c, a_small_error_costs_the_kl_it_makes);
    tcase_add_test(c, importance_counts_tokens_by_their_gradients);
    tcase_add_loop_test(c, as_good_as_gptq_and_the_same_again, 0, 3);
    tcase_add_test(c, an_embedding_of_few_bits_is_searched);
    suite_add_tcase(s, c);
    return run_suite(s);
}
