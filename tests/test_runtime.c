/* test_runtime.c - the runtime against the tape, bit for bit in integer schemes; batches, slots and threads change nothing; sampling. */
#include "runtime/runtime.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { T = 37, B = 2 };

static const md_config shapes[] = {
    {.architecture = "llama",
     .dim = 24,
     .hidden = 52,
     .layers = 2,
     .heads = 3,
     .kv_heads = 1,
     .head_size = 8,
     .vocab = 61,
     .ctx = 70,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .tied = true,
     .bos = 1,
     .eos = 2},
    {.architecture = "llama",
     .dim = 32,
     .hidden = 44,
     .layers = 1,
     .heads = 4,
     .kv_heads = 2,
     .head_size = 12,
     .vocab = 33,
     .ctx = 64,
     .norm_eps = 1e-6,
     .rope_theta = 500,
     .pairing = KN_ROPE_HALF,
     .qkv_bias = true,
     .bos = 1,
     .eos = -1},
    {.architecture = "llama",
     .dim = 64,
     .hidden = 172,
     .layers = 2,
     .heads = 8,
     .kv_heads = 4,
     .head_size = 8,
     .vocab = 512,
     .ctx = 128,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .tied = true,
     .bos = 1,
     .eos = 2},
    {.architecture = "llama",
     .dim = 36,
     .hidden = 48,
     .layers = 2,
     .heads = 6,
     .kv_heads = 2,
     .head_size = 12,
     .vocab = 63,
     .ctx = 70,
     .norm_eps = 1e-5,
     .rope_theta = 10000,
     .hadamard = true, /* heads whole, hidden as 4 * 12 */
     .bos = 1,
     .eos = 2},
    {.architecture = "gpt2",
     .dim = 36,
     .hidden = 52,
     .layers = 2,
     .heads = 3,
     .kv_heads = 3,
     .head_size = 12,
     .vocab = 63,
     .ctx = 70,
     .norm_eps = 1e-5,
     .tied = true,
     .qkv_bias = true,
     .out_bias = true,
     .bos = 1,
     .eos = 2},
};
typedef enum { EXACT, CLOSE, FLIPPING } agreement;
static const struct {
    const char *recipe;
    agreement bound; /* EXACT: an integer scheme, no library product in the forward */
} /* named, or the text of a recipe file */ recipes[] = {
    {"w4a8kv16", EXACT},
    {"w4a8kv8", EXACT},
    {"w4a8kv4", EXACT},
    {"w4a4kv4", EXACT},
    {"w8a8kv8", EXACT},
    {"w4all", EXACT},
    {"q8_0", EXACT},
    {"q4_0", EXACT},
    {"q4_0_all", EXACT},
    {"iq4_nl", EXACT},
    {"base w4a8kv8\nlayers.*.attn.probs int8\nlayers.*.mlp.act int8 token\n*.residual int8 token\n*.bias int8 row\n",
     EXACT},
    {"base w8a8kv8\n*.input int8 tensor f32 static:minmax\nlayers.*.attn.q float\nlayers.*.attn.[kv] int8 head f32 "
     "static\n",
     EXACT},
    {"base w4a8kv4\n*.input int8 asym token f32\nlayers.*.attn.[kv] float\n", EXACT},
    {"base w4a8kv8\nposition.weight int4 row f32 learned\n*.down.input int8 asym tensor f32 static:mse\n", EXACT},
    {"base w8a8kv8\n*.input int8 narrow token f32 outliers:0.5 dynamic\n", EXACT},
    {"base w4a16g32\n*.input int8 narrow token f32 outliers:0.5 dynamic\n", EXACT},
    {"int8", CLOSE},
    {"w4a16g32", CLOSE},
    {"w3a16", CLOSE},
    {"nf4dq", CLOSE},
    {"smooth-o3", CLOSE},
    {"w2a16", CLOSE},
    {"llmqat-4-8-4", FLIPPING},
    {"float", CLOSE}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, N_RECIPES = sizeof recipes / sizeof *recipes };

static void draw(int32_t *ids, int64_t n, int64_t V, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)(nb_random(seed, 5, (uint64_t)i) % (uint64_t)V);
}

/* Static ranges, from random tokens. */
static void calibrate(md_model *m)
{
    ag_tape t = {.no_grad = true, .quantize_off = true, .tap = {fq_observe, &m->sites}};
    int32_t ids[T];
    draw(ids, T, m->config.vocab, 4);
    md_forward(&t, m, &(md_input){.B = 1, .T = T, .ids = ids});
    ck_assert(ag_status(&t) == NB_OK && fq_observe_end(&m->sites) == NB_OK);
    ag_tape_free(&t);
}

static void build(md_model *m, const char *recipe, int shape, uint64_t seed)
{
    fq_recipe r;
    status s = strchr(recipe, '\n') ? fq_recipe_parse(&r, "test", recipe, strlen(recipe)) : fq_recipe_open(&r, recipe);
    ck_assert_msg(s == NB_OK, "%s", nb_fail_message());
    ck_assert_msg(md_build(m, &shapes[shape], &r, seed, false) == NB_OK, "%s", nb_fail_message());
    fq_recipe_free(&r);
    for (int64_t i = 0; i < m->params.n; i++) { /* weights large enough for attention and gates to matter */
        ag_param *p = m->params.p[i];
        for (int64_t j = 0; j < p->count; j++)
            p->x[j] = p->group == AG_WEIGHT ? p->x[j] * 10
                      : p->group == AG_BIAS ? (real)nb_random_normal(seed, 99, (uint64_t)j)
                                            : p->x[j];
    }
    m->params.version++;
    calibrate(m);
    ck_assert_msg(fq_start_weights(&m->sites, FQ_START_ABSMAX, NULL, NULL) == NB_OK, "%s", nb_fail_message());
}

/* logits [B*T, V] of the fake-quant forward */
static real *tape_logits(md_model *m, const int32_t *ids)
{
    ag_tape t = {.no_grad = true};
    md_input in = {.B = B, .T = T, .ids = ids};
    md_output out = md_forward(&t, m, &in);
    ag_tensor *z = ag_linear(&t, out.x, out.w, out.b);
    ck_assert_msg(ag_status(&t) == NB_OK, "%s", nb_fail_message());
    real *copy = malloc((size_t)ag_count(z) * sizeof *copy);
    memcpy(copy, ag_value(z), (size_t)ag_count(z) * sizeof *copy);
    ag_tape_free(&t);
    return copy;
}

/* The same from the runtime, `chunk` tokens of each sequence at a time, both sequences together. */
static real *runtime_logits(md_model *m, const int32_t *ids, int64_t chunk)
{
    rt_session *s;
    rt_options o = {.slots = 3};
    int64_t C = m->config.dim, V = m->config.vocab;
    real *hidden = malloc((size_t)(B * T * C) * sizeof *hidden), *z = malloc((size_t)(B * T * V) * sizeof *z),
         *rows = malloc((size_t)(B * T * V) * sizeof *rows);
    int32_t slot[B * T], token[B * T];
    ck_assert_msg(rt_open(&s, m, &o) == NB_OK, "%s", nb_fail_message());
    for (int64_t at = 0; at < T; at += chunk) {
        int64_t n = T - at < chunk ? T - at : chunk;
        for (int64_t b = 0; b < B; b++)
            for (int64_t i = 0; i < n; i++) {
                slot[b * n + i] = (int32_t)(2 - b); /* not in the order of the batch */
                token[b * n + i] = ids[b * T + at + i];
            }
        ck_assert_msg(rt_forward(s, B * n, slot, token, hidden) == NB_OK, "%s", nb_fail_message());
        ck_assert_msg(rt_head(s, rows, hidden, B * n) == NB_OK, "%s", nb_fail_message());
        for (int64_t b = 0; b < B; b++)
            memcpy(z + (b * T + at) * V, rows + b * n * V, (size_t)(n * V) * sizeof *z);
    }
    rt_close(s);
    free(hidden);
    free(rows);
    return z;
}

/* EXACT: every bit. CLOSE: float products, 1e-4 of the largest logit. FLIPPING: inputs are coded after float products, so that a last bit
 * turns a rounding somewhere and what follows from it: 1 % in root mean square. */
static void compare(const real *a, const real *b, int64_t n, agreement bound, const char *what, const char *recipe)
{
    double worst = 0, size = 0, squares = 0, differences = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (double)b[i];
        worst = fmax(worst, fabs(d));
        size = fmax(size, fabs((double)a[i]));
        differences += d * d;
        squares += (double)a[i] * (double)a[i];
    }
    const double relative = sqrt(differences / squares);
    ck_assert_msg(isfinite(size) && size > 0, "%s: %s: logits are %g", recipe, what, size);
    ck_assert_msg(bound == EXACT   ? worst == 0
                  : bound == CLOSE ? worst < 1e-4 * size
                                   : relative < 0.01,
                  "%s: %s: differ by %g of %g, %g in root mean square", recipe, what, worst, size, relative);
}

/* The model as it comes back from a folded file; a float one stays as it is. */
static void fold(md_model *folded, md_model *m)
{
    scratch_begin();
    ck_assert_msg(md_save_folded(m, scratch_path("m.h5"), false) == NB_OK, "%s", nb_fail_message());
    ck_assert_msg(md_open(folded, scratch_path("m.h5"), NULL) == NB_OK, "%s", nb_fail_message());
    scratch_end();
}

/* The runtime on the folded file against the tape on latent floats. */
START_TEST(runtime_equals_fake_quant_forward)
{
    int shape = _i % N_SHAPES, r = _i / N_SHAPES;
    const agreement bound = recipes[r].bound;
    md_model m, folded;
    int32_t ids[B * T];
    build(&m, recipes[r].recipe, shape, (uint64_t)_i + 1);
    draw(ids, B * T, m.config.vocab, 3);
    int64_t n = B * T * m.config.vocab;
    omp_set_num_threads(2);
    fold(&folded, &m);
    real *tape = tape_logits(&m, ids), *whole = runtime_logits(&folded, ids, T), *single = runtime_logits(&folded, ids, 1);
    md_store_floats(&m);
    real *seven = runtime_logits(&m, ids, 7);
    omp_set_num_threads(1);
    real *alone = runtime_logits(&folded, ids, 5), *tape_alone = tape_logits(&m, ids);
    omp_set_num_threads(2);
    compare(tape, whole, n, bound, "prefill against the tape", recipes[r].recipe);
    compare(whole, single, n, bound, "token by token against prefill", recipes[r].recipe);
    compare(whole, seven, n, bound, "seven at a time against prefill", recipes[r].recipe);
    compare(whole, alone, n, bound, "one thread against two", recipes[r].recipe);
    compare(tape, tape_alone, n, bound, "the tape on one thread", recipes[r].recipe);
    free(tape);
    free(whole);
    free(single);
    free(seven);
    free(alone);
    free(tape_alone);
    md_free(&m);
    md_free(&folded);
}
END_TEST

/* Weights that are bf16 numbers lose nothing; what products then round is their left operand alone. */
START_TEST(a_model_kept_in_bf16_runs_without_its_floats)
{
    enum { SHAPE = 2 };
    md_model m;
    int32_t ids[B * T];
    build(&m, "float", SHAPE, 5);
    draw(ids, B * T, m.config.vocab, 3);
    for (int64_t i = 0; i < m.params.n; i++)
        for (int64_t k = 0; k < m.params.p[i]->count; k++)
            m.params.p[i]->x[k] = nb_bf16_to(nb_bf16_from(m.params.p[i]->x[k]));
    const int64_t n = B * T * m.config.vocab;
    real *floats = runtime_logits(&m, ids, T), largest = 0;
    ck_assert_int_eq(rt_keep_bf16(&m), NB_OK);
    ck_assert_int_eq(!m.embed->x, kn_has_bf16());
    real *kept = runtime_logits(&m, ids, T), *single = runtime_logits(&m, ids, 1);
    for (int64_t i = 0; i < n; i++)
        largest = floats[i] > largest ? floats[i] : largest;
    for (int64_t i = 0; i < n; i++) {
        ck_assert_float_eq_tol(kept[i], floats[i], (real)0.02 * largest);
        ck_assert_float_eq_tol(single[i], floats[i], (real)0.02 * largest);
    }
    free(floats);
    free(kept);
    free(single);
    md_free(&m);
}
END_TEST

START_TEST(bad_requests_are_refused)
{
    md_model m;
    rt_session *s;
    rt_options o = {.slots = 2, .ctx = 8};
    real hidden[16 * 24];
    build(&m, "float", 0, 1);
    ck_assert(rt_open(&s, &m, &o) == NB_OK);
    ck_assert_int_eq(rt_ctx(s), 8);
    ck_assert(rt_forward(s, 1, (int32_t[]){2}, (int32_t[]){0}, hidden) == NB_USAGE);
    ck_assert(rt_forward(s, 1, NULL, (int32_t[]){61}, hidden) == NB_USAGE);
    ck_assert(rt_forward(s, 1, NULL, (int32_t[]){-1}, hidden) == NB_USAGE);
    ck_assert(rt_forward(s, 3, (int32_t[]){0, 1, 0}, (int32_t[]){1, 2, 3}, hidden) == NB_USAGE);
    ck_assert(rt_forward(s, 9, NULL, (int32_t[]){1, 2, 3, 4, 5, 6, 7, 8, 9}, hidden) == NB_USAGE);
    ck_assert_int_eq(rt_length(s, 0), 0);
    ck_assert(rt_forward(s, 8, NULL, (int32_t[]){1, 2, 3, 4, 5, 6, 7, 8}, hidden) == NB_OK);
    ck_assert(rt_forward(s, 1, NULL, (int32_t[]){1}, hidden) == NB_USAGE);
    rt_clear(s, 0);
    ck_assert(rt_forward(s, 1, NULL, (int32_t[]){1}, hidden) == NB_OK);
    rt_close(s);
    md_free(&m);
}
END_TEST

START_TEST(sampling_follows_its_distribution)
{
    const real z[] = {0, (real)0.69314718, (real)1.0986123, -50, (real)1.3862944}; /* odds 1 : 2 : 3 : 0 : 4 */
    enum { V = 5, N = 100000 };
    static const struct {
        rt_sampling how;
        double p[V];
    } cases[] = {{{.temperature = 1}, {.1, .2, .3, 0, .4}},
                 {{.temperature = 1, .top_k = 2}, {0, 0, 3. / 7, 0, 4. / 7}},
                 {{.temperature = 1, .top_p = 0.65}, {0, 0, 3. / 7, 0, 4. / 7}},
                 {{.temperature = 1, .top_p = 0.75}, {0, 2. / 9, 3. / 9, 0, 4. / 9}},
                 {{.temperature = 0.5}, {1. / 30, 4. / 30, 9. / 30, 0, 16. / 30}},
                 {{.temperature = 0}, {0, 0, 0, 0, 1}}};
    void *scratch = malloc(rt_sample_scratch(V));
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        double seen[V] = {0};
        for (int i = 0; i < N; i++)
            seen[rt_sample(z, V, &cases[c].how, (i + 0.5) / N, scratch)] += 1.0 / N;
        for (int v = 0; v < V; v++)
            ck_assert_msg(fabs(seen[v] - cases[c].p[v]) < 1e-4, "case %zu: token %d: %g, not %g", c, v, seen[v],
                          cases[c].p[v]);
    }
    free(scratch);
}
END_TEST

/* Runs of the kernel, the last of them short: the token is where the distribution function passes u. */
START_TEST(a_large_vocabulary_is_sampled_by_its_distribution)
{
    enum { V = 700, N = 2000 };
    real z[V];
    double cdf[V + 1] = {0};
    void *scratch = malloc(rt_sample_scratch(V));
    for (int v = 0; v < V; v++) {
        z[v] = (real)(3 * nb_random_normal(7, 0, (uint64_t)v));
        cdf[v + 1] = cdf[v] + exp((double)z[v] / 0.8);
    }
    for (int i = 0; i < N; i++) {
        const double u = (i + 0.5) / N;
        const int32_t id = rt_sample(z, V, &(rt_sampling){.temperature = 0.8}, u, scratch);
        ck_assert(id >= 0 && id < V);
        ck_assert_double_le(cdf[id] / cdf[V], u + 1e-5);
        ck_assert_double_ge(cdf[id + 1] / cdf[V], u - 1e-5);
    }
    free(scratch);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("runtime");
    TCase *tc = tcase_create("runtime");
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, runtime_equals_fake_quant_forward, 0, N_SHAPES * N_RECIPES);
    tcase_add_test(tc, a_model_kept_in_bf16_runs_without_its_floats);
    tcase_add_test(tc, bad_requests_are_refused);
    tcase_add_test(tc, sampling_follows_its_distribution);
    tcase_add_test(tc, a_large_vocabulary_is_sampled_by_its_distribution);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
