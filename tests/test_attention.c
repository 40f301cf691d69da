/* test_attention.c - causal attention against double precision; the batch against token by token, bit for bit; gradients
 * against differences.
 */
#include "kernels/kernels_isa.h"
#include "suite.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

typedef struct {
    int B, T, H, G, D;
    int qbits, kbits, vbits; /* 0: float */
    bool zero, quantize_probs;
} attention_case;
static const attention_case cases[] = {
    {1, 1, 1, 1, 1, 0, 0, 0, false, false},    {2, 5, 2, 1, 3, 0, 0, 0, false, false},
    {2, 70, 4, 2, 8, 0, 0, 0, false, false},   {1, 130, 2, 2, 48, 0, 0, 0, false, true},
    {1, 193, 3, 1, 64, 0, 0, 0, false, false}, {1, 67, 2, 1, 80, 0, 0, 0, false, false},
    {1, 20, 2, 1, 128, 8, 8, 8, true, false},  {2, 70, 4, 2, 8, 8, 8, 8, true, false},
    {2, 70, 4, 2, 8, 8, 4, 4, true, false},    {1, 131, 2, 1, 48, 8, 4, 8, false, true},
    {1, 65, 2, 1, 7, 8, 8, 4, true, true},     {1, 64, 2, 2, 13, 8, 4, 4, true, false},
    {1, 77, 2, 1, 16, 0, 4, 4, true, false},   {1, 77, 2, 1, 16, 8, 0, 4, false, false},
    {1, 40, 1, 1, 33, 8, 2, 3, true, true},    {1, 70, 9, 1, 64, 0, 0, 0, false, false},
    {1, 66, 8, 2, 64, 8, 0, 4, false, true},
};

typedef struct {
    const attention_case *p;
    float *x[3], *value[3]; /* q, k, v as given, and as coded */
    kn_codes codes[3];
    kn_operand operand[3];
    float *o, *lse;
} attention_data;

static void data_new(attention_data *to, const attention_case *p)
{
    attention_data d = {.p = p};
    const int heads[] = {p->H, p->G, p->G}, bits[] = {p->qbits, p->kbits, p->vbits};
    const int64_t M = p->B * p->T;
    for (int i = 0; i < 3; i++) {
        const int64_t n = M * heads[i] * p->D;
        d.x[i] = nb_alloc((size_t)n, sizeof(float));
        d.value[i] = nb_alloc((size_t)n, sizeof(float));
        for (int64_t j = 0; j < n; j++)
            d.x[i][j] = (float)nb_random_normal(5, (uint64_t)i, (uint64_t)j);
        memcpy(d.value[i], d.x[i], (size_t)n * sizeof(float));
        d.operand[i].x = d.x[i];
        if (bits[i]) {
            const kn_grid g = kn_grid_int(bits[i], i == 0, i > 0 && p->zero, KN_HEAD, p->D, KN_SCALE_F16);
            ck_assert_int_eq(kn_codes_new(&d.codes[i], &g, M, heads[i] * p->D), NB_OK);
            kn_encode(&d.codes[i], d.x[i]);
            kn_decode(d.value[i], &d.codes[i], 0, M);
            d.operand[i] = (kn_operand){.codes = &to->codes[i]};
        }
    }
    d.o = nb_alloc((size_t)(M * p->H * p->D), sizeof(float));
    d.lse = nb_alloc((size_t)(M * p->H), sizeof(float));
    *to = d;
}

static void data_free(attention_data *d)
{
    for (int i = 0; i < 3; i++) {
        free(d->x[i]);
        free(d->value[i]);
        kn_codes_free(&d->codes[i]);
    }
    free(d->o);
    free(d->lse);
}

/* One query in double: o [D], returns lse. */
static double reference(const attention_data *d, int b, int t, int h, double *o)
{
    const attention_case *p = d->p;
    const int g = h / (p->H / p->G);
    double s[256], max = -1e300, sum = 0;
    const float *q = d->value[0] + ((b * p->T + t) * p->H + h) * p->D;
    for (int j = 0; j <= t; j++) {
        const float *k = d->value[1] + ((b * p->T + j) * p->G + g) * p->D;
        s[j] = 0;
        for (int i = 0; i < p->D; i++)
            s[j] += (double)q[i] * k[i];
        s[j] /= sqrt(p->D);
        max = fmax(max, s[j]);
    }
    for (int j = 0; j <= t; j++)
        sum += exp(s[j] - max);
    for (int i = 0; i < p->D; i++)
        o[i] = 0;
    for (int j = 0; j <= t; j++) {
        double w = exp(s[j] - max) / sum;
        if (p->quantize_probs)
            w = rint(w * 255) / 255;
        for (int i = 0; i < p->D; i++)
            o[i] += w * d->value[2][((b * p->T + j) * p->G + g) * p->D + i];
    }
    return max + log(sum);
}

START_TEST(attention_matches_double_precision)
{
    const attention_case *p = &cases[_i];
    attention_data d;
    data_new(&d, p);
    const int32_t lengths[2] = {p->T, (p->T + 1) / 2};
    ck_assert_int_eq(kn_attention(d.o, d.lse, d.operand[0], d.operand[1], d.operand[2], lengths, p->B, p->T, p->H, p->G,
                                  p->D, p->quantize_probs),
                     NB_OK);
    int flips = 0;
    for (int b = 0; b < p->B; b++)
        for (int t = 0; t < p->T; t++)
            for (int h = 0; h < p->H; h++) {
                double o[128];
                const int64_t row = (b * p->T + t) * p->H + h;
                double lse = reference(&d, b, t, h, o);
                if (t >= lengths[b]) {
                    memset(o, 0, sizeof o);
                    lse = 0;
                }
                ck_assert_double_eq_tol((double)d.lse[row], lse, 1e-5);
                for (int i = 0; i < p->D; i++) {
                    const double e = fabs((double)d.o[row * p->D + i] - o[i]);
                    ck_assert_double_le(e, p->quantize_probs ? 0.02 : 1e-5);
                    flips += e > 1e-5; /* a probability at a rounding boundary may fall to the other side */
                }
            }
    ck_assert_int_le(flips, p->B * p->T * p->H * p->D / 200);
    data_free(&d);
}
END_TEST

/* The heads of kv head g at one token: kn_attend_heads writes what kn_attend wrote. */
static void together(const attention_data *d, const float *o, const kn_cache *c, int t, int64_t row, int g,
                     float *scratch)
{
    const attention_case *p = d->p;
    const int64_t heads = p->H / p->G, first = row * p->H + g * heads;
    float found[9 * 128];
    ck_assert_int_le(heads, 9);
    kn_attend_heads(found, c, c, t, heads, d->operand[0].x ? d->x[0] + first * p->D : NULL, d->operand[0].codes, row,
                    g * heads, p->quantize_probs, scratch);
    ck_assert_mem_eq(found, o + first * p->D, (size_t)(heads * p->D) * sizeof *found);
}

/* All queries of the case in pieces of `step` tokens: put, then attend. */
static void by_pieces(const attention_data *d, float *o, float *lse, int step, kn_precision floats)
{
    const attention_case *p = d->p;
    const int64_t D = p->D, capacity = (p->T + 63) / 64 * 64;
    const kn_grid k = d->operand[1].codes ? d->codes[1].grid : (kn_grid){0};
    const kn_grid v = d->operand[2].codes ? d->codes[2].grid : (kn_grid){0};
    void *memory = nb_alloc_aligned_zeroed(kn_cache_bytes(&k, &v, floats, D, capacity), 1);
    for (int b = 0; b < p->B; b++)
        for (int g = 0; g < p->G; g++) {
            kn_cache c;
            kn_cache_lay(&c, &k, &v, floats, D, capacity, memory);
            float *scratch = nb_alloc((size_t)kn_attend_scratch(&c), sizeof(float));
            for (int t = 0; t < p->T; t += step) {
                const int n = t + step < p->T ? step : p->T - t;
                const int64_t row = b * p->T + t, H = p->H;
                kn_cache_put(&c, n, d->operand[1].x ? d->x[1] + row * p->G * D : NULL,
                             d->operand[2].x ? d->x[2] + row * p->G * D : NULL, p->G * D, d->operand[1].codes,
                             d->operand[2].codes, row, g);
                for (int64_t h = g * (H / p->G); h < (g + 1) * (H / p->G); h++) {
                    float l[256];
                    kn_attend(o + (row * H + h) * D, H * D, l, &c, t, n,
                              d->operand[0].x ? d->x[0] + (row * H + h) * D : NULL, H * D, d->operand[0].codes, row, h,
                              p->quantize_probs, scratch);
                    for (int i = 0; i < n; i++)
                        lse[(row + i) * H + h] = l[i];
                }
                if (n == 1) /* heads together: over the same outputs, which must not change by it */
                    together(d, o, &c, t, row, g, scratch);
            }
            free(scratch);
        }
    free(memory);
}

START_TEST(prefill_equals_token_by_token)
{
    const attention_case *p = &cases[_i];
    attention_data d;
    data_new(&d, p);
    const size_t n = (size_t)(p->B * p->T * p->H), bytes = n * (size_t)p->D * sizeof(float);
    float *o = nb_alloc(bytes, 1), *lse = nb_alloc(n, sizeof(float));
    static const int steps[] = {1, 7, 64, 200};
    const int before = omp_get_max_threads();
    for (int i = 0; i < COUNT(steps); i++) {
        omp_set_num_threads(1 + i);
        ck_assert_int_eq(kn_attention(d.o, d.lse, d.operand[0], d.operand[1], d.operand[2], NULL, p->B, p->T, p->H,
                                      p->G, p->D, p->quantize_probs),
                         NB_OK);
        by_pieces(&d, o, lse, steps[i], KN_FP32);
        ck_assert_mem_eq(o, d.o, bytes);
        ck_assert_mem_eq(lse, d.lse, n * sizeof(float));
    }
    omp_set_num_threads(before);
    free(o), free(lse);
    data_free(&d);
}
END_TEST

/* Keys and values that are bf16 numbers lose nothing in a cache of these. */
START_TEST(a_cache_in_bf16_holds_rounded_values)
{
    const attention_case *p = &cases[_i];
    attention_data d;
    data_new(&d, p);
    const size_t n = (size_t)(p->B * p->T * p->H), bytes = n * (size_t)p->D * sizeof(float);
    float *o = nb_alloc(bytes, 1), *lse = nb_alloc(n, sizeof(float));
    for (int i = 0; i < p->B * p->T * p->G * p->D; i++)
        for (int k = 1; k <= 2; k++)
            d.x[k][i] = nb_bf16_to(nb_bf16_from(d.x[k][i]));
    for (int step = 1; step <= 7; step += 6) {
        by_pieces(&d, d.o, d.lse, step, KN_FP32);
        by_pieces(&d, o, lse, step, KN_BF16);
        ck_assert_mem_eq(o, d.o, bytes);
        ck_assert_mem_eq(lse, d.lse, n * sizeof(float));
    }
    free(o), free(lse);
    data_free(&d);
}
END_TEST

/* A job by every table: what the scalar one writes, n numbers. */
static void same_in_tables(kn_attend_job *job, int64_t n)
{
    float *wanted = nb_alloc((size_t)n, 4), *found = nb_alloc((size_t)n, 4);
    job->o = wanted;
    kn_table_scalar.attend(job);
    job->o = found;
#define X(name, test)                                                                                                  \
    if (kn_isa_named(#name)) {                                                                                         \
        memset(found, 0, (size_t)n * 4);                                                                               \
        kn_table_##name.attend(job);                                                                                   \
        ck_assert_mem_eq(found, wanted, (size_t)n * 4);                                                                \
    }
    KN_TABLES(X)
#undef X
    free(wanted), free(found);
}

static void tables_alike(const attention_data *d, kn_precision floats)
{
    const attention_case *p = d->p;
    const int64_t D = p->D, H = p->H, capacity = (p->T + 63) / 64 * 64;
    const kn_grid k = d->operand[1].codes ? d->codes[1].grid : (kn_grid){0};
    const kn_grid v = d->operand[2].codes ? d->codes[2].grid : (kn_grid){0};
    void *memory = nb_alloc_aligned_zeroed(kn_cache_bytes(&k, &v, floats, D, capacity), 1);
    kn_cache c;
    kn_cache_lay(&c, &k, &v, floats, D, capacity, memory);
    kn_cache_put(&c, p->T, d->operand[1].x, d->operand[2].x, p->G * D, d->operand[1].codes, d->operand[2].codes, 0, 0);
    float *scratch = nb_alloc((size_t)kn_attend_scratch(&c), 4);
    kn_attend_job job = {.ldo = D,
                         .cache = &c,
                         .n = p->T,
                         .q = d->operand[0].x,
                         .ldq = H * D,
                         .quantize_probs = p->quantize_probs,
                         .scratch = scratch};
    if (d->operand[0].codes) {
        job.codes = d->codes[0].q;
        job.ld_codes = d->codes[0].ld;
        job.q_scale = d->codes[0].scale;
        job.ld_scale = d->codes[0].spans;
    }
    same_in_tables(&job, p->T * D);
    job.together = true; /* the heads of the first kv head at the last position */
    job.first = p->T - 1;
    job.n = H / p->G;
    job.ldq = job.ld_codes = D;
    job.ld_scale = 1;
    same_in_tables(&job, job.n * D);
    free(scratch), free(memory);
}

START_TEST(tables_attend_alike)
{
    attention_data d;
    data_new(&d, &cases[_i]);
    tables_alike(&d, KN_FP32);
    tables_alike(&d, KN_BF16);
    data_free(&d);
}
END_TEST

START_TEST(a_query_does_not_see_later_keys)
{
    const attention_case p = {1, 40, 2, 1, 8, 0, 0, 0, false, false};
    attention_data d;
    data_new(&d, &p);
    for (int i = 20 * p.D; i < 40 * p.D; i++) /* keys and values from position 20 on */
        d.x[1][i] = d.x[2][i] = i % 2 ? NAN : INFINITY;
    ck_assert_int_eq(
        kn_attention(d.o, d.lse, d.operand[0], d.operand[1], d.operand[2], NULL, 1, p.T, p.H, p.G, p.D, false), NB_OK);
    for (int i = 0; i < 20 * p.H * p.D; i++)
        ck_assert(isfinite(d.o[i]));
    for (int h = 0; h < p.H; h++)
        ck_assert(!isfinite(d.o[(20 * p.H + h) * p.D + 1]));
    data_free(&d);
}
END_TEST

static const attention_case gradient_cases[] = {
    {1, 1, 1, 1, 1, 0, 0, 0, false, false},
    {2, 70, 4, 2, 8, 0, 0, 0, false, false},
    {1, 130, 2, 1, 5, 0, 0, 0, false, false},
    {1, 300, 2, 1, 48, 0, 0, 0, false, false},
};

static double loss(attention_data *d, const float *weight, const int32_t *lengths)
{
    const attention_case *p = d->p;
    double sum = 0;
    kn_attention(d->o, d->lse, d->operand[0], d->operand[1], d->operand[2], lengths, p->B, p->T, p->H, p->G, p->D,
                 false);
    for (int64_t i = 0; i < (int64_t)p->B * p->T * p->H * p->D; i++)
        sum += (double)d->o[i] * weight[i];
    return sum;
}

START_TEST(gradients_match_differences)
{
    const attention_case *p = &gradient_cases[_i];
    attention_data d;
    data_new(&d, p);
    const int32_t lengths[2] = {p->T, (p->T + 1) / 2};
    const int64_t M = p->B * p->T, n = M * p->H * p->D, nk = M * p->G * p->D;
    float *weight = nb_alloc((size_t)n, 4),
          *g[3] = {nb_alloc((size_t)n, 4), nb_alloc((size_t)nk, 4), nb_alloc((size_t)nk, 4)};
    for (int64_t i = 0; i < n; i++)
        weight[i] = (float)nb_random_normal(9, 1, (uint64_t)i);
    loss(&d, weight, lengths);
    float *o = nb_alloc((size_t)n, 4), *lse = nb_alloc((size_t)(M * p->H), 4);
    memcpy(o, d.o, (size_t)n * 4);
    memcpy(lse, d.lse, (size_t)(M * p->H) * 4);
    for (int twice = 1; twice <= 2; twice++) { /* gradients are added */
        for (int64_t i = 0; twice == 1 && i < n; i++)
            g[0][i] = g[1][i % nk] = g[2][i % nk] = 0;
        ck_assert_int_eq(kn_attention_backward(KN_FP32, g[0], g[1], g[2], weight, o, lse, d.x[0], d.x[1], d.x[2], lengths, p->B,
                                               p->T, p->H, p->G, p->D),
                         NB_OK);
        for (int i = 0; i < 3; i++)
            for (int k = 0; k < 6; k++) {
                const int64_t at = (int64_t)(nb_random(3, (uint64_t)i, (uint64_t)k) % (uint64_t)(i ? nk : n));
                const float keep = d.x[i][at], h = 1e-2f;
                d.x[i][at] = keep + h;
                const double above = loss(&d, weight, lengths);
                d.x[i][at] = keep - h;
                const double below = loss(&d, weight, lengths), slope = (above - below) / (2 * (double)h);
                d.x[i][at] = keep;
                ck_assert_double_eq_tol((double)g[i][at], twice * slope, 3e-3 * (1 + fabs(slope)));
            }
    }
    free(weight), free(g[0]), free(g[1]), free(g[2]), free(o), free(lse);
    data_free(&d);
}
END_TEST

/* In bf16 (in fp32 where the CPU has no tiles of it) gradients are those of fp32 to bf16's rounding of what is summed, scores of any size. */
static const attention_case bf16_cases[] = {
    {2, 130, 4, 2, 64, 0, 0, 0, false, false},
    {1, 300, 2, 1, 48, 0, 0, 0, false, false},
    {3, 64, 3, 3, 33, 0, 0, 0, false, false},
    {1, 513, 1, 1, 128, 0, 0, 0, false, false},
};

START_TEST(gradients_in_bf16_are_near_those_in_fp32)
{
    const attention_case *p = &bf16_cases[_i];
    attention_data d;
    data_new(&d, p);
    const int32_t lengths[3] = {p->T, (p->T + 1) / 2, 1};
    const int64_t M = p->B * p->T, n = M * p->H * p->D, nk = M * p->G * p->D, size[3] = {n, nk, nk};
    float *weight = nb_alloc((size_t)n, 4), *g[2][3];
    for (int64_t i = 0; i < n; i++) {
        weight[i] = (float)nb_random_normal(9, 1, (uint64_t)i);
        d.x[0][i] *= 6;
    }
    loss(&d, weight, lengths);
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < 3; i++)
            g[k][i] = nb_alloc_zeroed((size_t)size[i], 4);
        ck_assert_int_eq(kn_attention_backward(k ? KN_BF16 : KN_FP32, g[k][0], g[k][1], g[k][2], weight, d.o, d.lse, d.x[0], d.x[1],
                                               d.x[2], lengths, p->B, p->T, p->H, p->G, p->D),
                         NB_OK);
    }
    for (int i = 0; i < 3; i++) {
        double wrong = 0, all = 0;
        for (int64_t k = 0; k < size[i]; k++) {
            wrong += pow((double)g[1][i][k] - (double)g[0][i][k], 2);
            all += pow((double)g[0][i][k], 2);
        }
        ck_assert_msg(wrong < 1.5e-4 * all, "gradient %d: relative error %g", i, sqrt(wrong / all));
        free(g[0][i]), free(g[1][i]);
    }
    free(weight);
    data_free(&d);
}
END_TEST

START_TEST(operands_that_do_not_fit_are_refused)
{
    const attention_case p = {1, 4, 2, 1, 8, 8, 8, 8, false, false};
    attention_data d;
    data_new(&d, &p);
    const kn_operand none = {0}, both = {.x = d.x[0], .codes = &d.codes[0]};
    ck_assert_int_eq(kn_attention(d.o, NULL, none, d.operand[1], d.operand[2], NULL, 1, 4, 2, 1, 8, false), NB_SHAPE);
    ck_assert_int_eq(kn_attention(d.o, NULL, both, d.operand[1], d.operand[2], NULL, 1, 4, 2, 1, 8, false), NB_SHAPE);
    ck_assert_int_eq(kn_attention(d.o, NULL, d.operand[1], d.operand[1], d.operand[2], NULL, 1, 4, 2, 1, 8, false),
                     NB_SHAPE);
    ck_assert_int_eq(kn_attention(d.o, NULL, d.operand[0], d.operand[1], d.operand[2], NULL, 1, 4, 3, 2, 8, false),
                     NB_SHAPE);
    data_free(&d);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("attention");
    TCase *c = tcase_create("attention");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, attention_matches_double_precision, 0, COUNT(cases));
    tcase_add_loop_test(c, prefill_equals_token_by_token, 0, COUNT(cases));
    tcase_add_loop_test(c, a_cache_in_bf16_holds_rounded_values, 0, COUNT(cases));
    tcase_add_loop_test(c, tables_attend_alike, 0, COUNT(cases));
    tcase_add_test(c, a_query_does_not_see_later_keys);
    tcase_add_loop_test(c, gradients_match_differences, 0, COUNT(gradient_cases));
    tcase_add_loop_test(c, gradients_in_bf16_are_near_those_in_fp32, 0, 4);
    tcase_add_test(c, operands_that_do_not_fit_are_refused);
    suite_add_tcase(s, c);
    return run_suite(s);
}
