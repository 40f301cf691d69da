/* test_kernels.c - every table of loops computes the scalar table's bits; row kernels against double-precision
 * references; results do not depend on threads. Products are in test_products.c and test_linear_int.c.
 */
#include "isa_tables.h"
#include "suite.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { LONGEST = 1030, SPACE = 3 * LONGEST + 64 };

/* ---- elementwise functions, reductions, codes: one length n ---- */

typedef struct {
    const float *a, *b, *c;
    float *y; /* SPACE elements, filled alike before each call */
    int64_t n;
} operands;

static const kn_rounding int8_rounding = {.inv = 20, .step = 1, .zero = 3, .lo = -128, .hi = 127};
static const kn_rounding int16_rounding = {.inv = 9000, .step = 1, .lo = -32768, .hi = 32767};
static const kn_rounding half_rounding = {.inv = 2, .step = 0.5f, .shift = 0.5f, .lo = -2, .hi = 1};
static const kn_rounding sign_rounding = {.inv = 2, .lo = -1, .hi = 1, .sign = true};

#define RUN(name, call)                                                                                                \
    static void run_##name(const kn_table *t, const operands *o)                                                       \
    {                                                                                                                  \
        call;                                                                                                          \
    }
RUN(exponential, t->exponential(o->y, o->a, o->n))
RUN(silu, t->silu(o->y, o->a, o->n))
RUN(silu_backward, t->silu_backward(o->y, o->b, o->a, o->n))
RUN(gelu_tanh, t->gelu_tanh(o->y, o->a, o->n))
RUN(gelu_tanh_backward, t->gelu_tanh_backward(o->y, o->b, o->a, o->n))
RUN(swiglu, t->swiglu(o->y, o->a, o->b, o->n))
RUN(swiglu_backward, t->swiglu_backward(o->y, o->y + LONGEST, o->c, o->a, o->b, o->n))
RUN(swiglu_backward_gate, t->swiglu_backward(o->y, NULL, o->c, o->a, o->b, o->n))
RUN(add_to, t->add_to(o->y, o->a, o->n))
RUN(sum2, t->sum2(o->y, o->a, o->b, o->n))
RUN(axpy, t->axpy(o->y, o->a, 0.37f, o->n))
static const kn_adamw_factors step_factors = {0.01f, 0.999f, 0.9f, 0.1f, 0, 0.05f, 1.3f, 1e-6f, 0.7f};
RUN(adamw, t->adamw(o->y, o->y + LONGEST, o->y + 2 * LONGEST, o->a, o->n, &step_factors))
/* m and v behind x, finite before */
RUN(adamw_bf16, uint16_t *m = (uint16_t *)(void *)(o->y + LONGEST); t->to_bf16(m, o->a, o->n);
    t->to_bf16(m + LONGEST, o->b, o->n); t->adamw_bf16(o->y, m, m + LONGEST, o->c, o->n, &step_factors, 12345))
static void run_flips(const kn_table *t, const operands *o)
{
    int16_t *f = (int16_t *)(void *)(o->y + LONGEST), *m = f + LONGEST;
    int8_t *last = (int8_t *)(m + LONGEST), *q = last + LONGEST;
    for (int64_t i = 0; i < o->n; i++) {
        f[i] = (int16_t)(i % 5 ? (int)(fabsf(o->a[i]) * 5000) % KN_PIN_FLIP : -1);
        m[i] = (int16_t)((int)(o->b[i] * 6000) % (8 * KN_PIN_MEAN));
        last[i] = (int8_t)(i % 3 - 1);
        q[i] = (int8_t)(i % 7 - 3);
    }
    t->hold_pinned(o->y, f, m, o->n, 2, 1, 0.37f);
    o->y[0] = t->count_flips(f, m, last, q, o->n, 9000) ? 1 : 0;
}
RUN(sum_squares, o->y[0] = t->sum_squares(o->a, o->n))
RUN(sum_abs, o->y[0] = t->sum_abs(o->a, o->n))
RUN(absmax, o->y[0] = t->absmax(o->a, o->n))
RUN(min_max, t->min_max(o->y, o->y + 1, o->a, o->n))
RUN(softmax, if (o->n) t->softmax(o->y, o->a, 1, o->n))
RUN(logsumexp, if (o->n) t->logsumexp((double *)(void *)o->y, o->a, 1, o->n))
RUN(exp_sums, if (o->n) o->y[LONGEST] = t->exp_sums(o->y, o->a, o->n, 0.7f))
RUN(encode8, t->encode8((int8_t *)o->y, o->a, o->n, &int8_rounding))
RUN(encode8_half, t->encode8((int8_t *)o->y, o->a, o->n, &half_rounding))
RUN(encode8_sign, t->encode8((int8_t *)o->y, o->a, o->n, &sign_rounding))
RUN(encode16, t->encode16((int16_t *)(void *)o->y, o->a, o->n, &int16_rounding))
RUN(decode8, t->decode8(o->y, (const int8_t *)o->a, o->n, 0.01f, 2, 1))
RUN(decode16, t->decode16(o->y, (const int16_t *)(const void *)o->a, o->n, 0.01f, 1, -3))
RUN(rounding_error, o->y[0] = t->rounding_error(o->a, NULL, o->n, &int8_rounding, 0.05f, 1, -3))
RUN(rounding_error_weighted, o->y[0] = t->rounding_error(o->a, o->b, o->n, &half_rounding, 0.5f, 2, 1))
RUN(to_bf16, t->to_bf16((uint16_t *)(void *)o->y, o->a, o->n))
RUN(rmsnorm, if (o->n) t->rmsnorm(o->y, o->y + SPACE - 3, o->a, o->b, 3, o->n / 3 + 1, 1e-5f))
RUN(rmsnorm_dx, if (o->n) t->rmsnorm_dx(o->y, o->a, o->b, o->c, o->c, 3, o->n / 3 + 1))
RUN(rmsnorm_dw, t->rmsnorm_dw(o->y, o->a, o->b, o->c, o->n / 7, 7, 7))
RUN(layernorm,
    if (o->n) t->layernorm(o->y, o->y + SPACE - 3, o->y + SPACE - 6, o->a, o->b, o->c, 3, o->n / 3 + 1, 1e-5f))
RUN(layernorm_dx, if (o->n) t->layernorm_dx(o->y, o->a, o->b, o->c, o->b, o->c, 3, o->n / 3 + 1))
RUN(layernorm_dw, t->layernorm_dw(o->y, o->y + 16, o->a, o->b, o->b, o->c, o->n / 5, 5, 5))
RUN(rope, t->rope(o->y, o->a, o->b, o->c, o->n / 16, 16, false, false))
RUN(rope_odd, t->rope(o->y, o->a, o->b, o->c, o->n / 12, 12, false, true))
RUN(rope_small, t->rope(o->y, o->a, o->b, o->c, o->n / 8, 8, false, true))
RUN(rope_half, t->rope(o->y, o->a, o->b, o->c, o->n / 6, 6, true, true))
RUN(attend_backward_row, t->attend_backward_row(o->y, o->y + LONGEST, o->n, o->n / 2, 0.7f, 0.2f, 0.35f))
static const struct {
    const char *name;
    void (*run)(const kn_table *t, const operands *o);
} functions[] = {
#define F(name)                                                                                                        \
    {                                                                                                                  \
#name, run_##name                                                                                              \
    }
    F(exponential),
    F(silu),
    F(silu_backward),
    F(gelu_tanh),
    F(gelu_tanh_backward),
    F(swiglu),
    F(swiglu_backward),
    F(swiglu_backward_gate),
    F(add_to),
    F(sum2),
    F(axpy),
    F(adamw),
    F(adamw_bf16),
    F(flips),
    F(sum_squares),
    F(sum_abs),
    F(absmax),
    F(min_max),
    F(softmax),
    F(logsumexp),
    F(exp_sums),
    F(encode8),
    F(encode8_half),
    F(encode8_sign),
    F(encode16),
    F(decode8),
    F(decode16),
    F(rounding_error),
    F(rounding_error_weighted),
    F(to_bf16),
    F(rmsnorm),
    F(rmsnorm_dx),
    F(rmsnorm_dw),
    F(layernorm),
    F(layernorm_dx),
    F(layernorm_dw),
    F(rope),
    F(rope_half),
    F(rope_odd),
    F(rope_small),
    F(attend_backward_row),
#undef F
};

START_TEST(tables_compute_the_same_bits)
{
    static float a[SPACE], b[SPACE], c[SPACE], wanted[SPACE], found[SPACE], start[SPACE];
    fill(a, SPACE, 1, 4);
    fill(b, SPACE, 2, 1);
    fill(c, SPACE, 3, 1);
    fill(start, SPACE, 4, 1);
    for (int i = 0; i < SPACE; i += 97) /* exact zeros, both signs, halves of a step */
        a[i] = i % 2 ? -0.0f : 0.125f;
    for (int64_t n = 0; n <= LONGEST; n += n < 80 || n > 1000 ? 1 : 7) {
        memcpy(wanted, start, sizeof start);
        functions[_i].run(&kn_table_scalar, &(operands){a, b, c, wanted, n});
        for (int t = 1; t < COUNT(tables); t++) {
            if (!usable(tables[t]))
                continue;
            memcpy(found, start, sizeof start);
            functions[_i].run(tables[t], &(operands){a, b, c, found, n});
            ck_assert_msg(memcmp(wanted, found, sizeof found) == 0, "%s of %lld elements differs in table %s",
                          functions[_i].name, (long long)n, tables[t]->name);
        }
    }
}
END_TEST

START_TEST(tables_agree_about_nan_and_infinity)
{
    static const float edge[] = {NAN, INFINITY, -INFINITY, 1e38f, -1e38f, 1e-45f, -1e-45f, 3e9f, -3e9f, 0, -0.0f, 1};
    float x[48];
    for (int i = 0; i < 48; i++)
        x[i] = edge[i % COUNT(edge)];
    for (int t = 0; t < COUNT(tables); t++) {
        if (!usable(tables[t]))
            continue;
        int8_t q[48], wanted[48];
        float y[48], y0[48], low, top;
        static const kn_rounding *const roundings[] = {&int8_rounding, &half_rounding, &sign_rounding};
        for (int r = 0; r < 3; r++) {
            kn_table_scalar.encode8(wanted, x, 48, roundings[r]);
            tables[t]->encode8(q, x, 48, roundings[r]);
            ck_assert_mem_eq(q, wanted, 48);
            ck_assert_int_eq(q[0], (int)roundings[r]->lo); /* NaN */
        }
        tables[t]->min_max(&low, &top, x, 48);
        ck_assert(low == -INFINITY && top == INFINITY);
        ck_assert(tables[t]->absmax(x, 1) == 0); /* NaN is passed over */
        tables[t]->exponential(y, x, 48);
        kn_table_scalar.exponential(y0, x, 48);
        for (int i = 0; i < 48; i++)
            ck_assert(isnan(x[i]) ? isnan(y[i]) : y[i] == y0[i] && y[i] > 0 && isfinite(y[i]));
    }
}
END_TEST

/* ---- rows against double ---- */

static double silu_of(double x)
{
    return x / (1 + exp(-x));
}

static double gelu_of(double x)
{
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

START_TEST(elementwise_functions_are_accurate)
{
    enum { N = 4001 };
    static float x[N], y[N], one[N], d[N];
    for (int i = 0; i < N; i++) {
        x[i] = (float)(i - N / 2) / 200;
        one[i] = 1;
    }
    kn_exp(y, x, N);
    for (int i = 0; i < N; i++)
        ck_assert_double_le(fabs(y[i] / exp((double)x[i]) - 1), 2e-7);
    kn_silu(y, x, N);
    for (int i = 0; i < N; i++)
        ck_assert_double_le(fabs(y[i] - silu_of(x[i])), 4e-7 * fabs(silu_of(x[i])) + 1e-9);
    kn_gelu(y, x, N, true);
    for (int i = 0; i < N; i++)
        ck_assert_double_le(fabs(y[i] - gelu_of(x[i])), 1e-6);
    kn_gelu(y, x, N, false);
    for (int i = 0; i < N; i++)
        ck_assert_double_le(fabs(y[i] - 0.5 * (double)x[i] * erfc(-(double)x[i] / sqrt(2))), 1e-6);
    memset(d, 0, sizeof d);
    kn_gelu_backward(d, one, x, N, false);
    for (int i = 0; i < N; i++) {
        const double z = x[i], slope = 0.5 * erfc(-z / sqrt(2)) + z * exp(-z * z / 2) / sqrt(2 * acos(-1));
        ck_assert_double_le(fabs(d[i] - slope), 1e-6);
    }
    ck_assert_double_eq_tol(kn_sum_squares(x, N), 2 * (2000.0 * 2001 * 4001 / 6) / 40000, 0.01);
    ck_assert(kn_absmax(x, N) == 10.0f);
}
END_TEST

START_TEST(rotation_keeps_length_and_turns_back)
{
    enum { T = 9, H = 3, D = 10 };
    static float c[T * D / 2], s[T * D / 2], x[T * H * D], y[T * H * D], z[T * H * D];
    kn_rope_table(c, s, T, D, 10000, NULL);
    ck_assert_float_eq_tol(c[3 * (D / 2) + 1], (float)cos(3 * pow(10000, -2.0 / D)), 1e-7f);
    fill(x, T * H * D, 41, 1);
    for (int pairing = 0; pairing < 2; pairing++) {
        kn_rope(y, x, c, s, NULL, T, H, D, T, (kn_rope_pairing)pairing, false);
        ck_assert_double_eq_tol(kn_sum_squares(x, T * H * D), kn_sum_squares(y, T * H * D), 1e-3);
        ck_assert_mem_eq(x, y, H * D * sizeof *x); /* position 0 stays */
        memcpy(z, y, sizeof y);
        kn_rope(z, z, c, s, NULL, T, H, D, T, (kn_rope_pairing)pairing, true);
        for (int i = 0; i < T * H * D; i++)
            ck_assert_float_eq_tol(z[i], x[i], 1e-5f);
        static const int32_t pos[2] = {4, 4};
        kn_rope(z, x + 4 * H * D, c, s, pos, 1, H, D, T, (kn_rope_pairing)pairing, false);
        ck_assert_mem_eq(z, y + 4 * H * D, H * D * sizeof *x);
    }
}
END_TEST

START_TEST(logsumexp_is_stable)
{
    static float x[3 * 700];
    double lse[3];
    fill(x, 3 * 700, 51, 3);
    for (int i = 0; i < 700; i++)
        x[i] += 1e4f;
    kn_logsumexp(lse, x, 3, 700);
    for (int m = 0; m < 3; m++) {
        double sum = 0;
        for (int i = 0; i < 700; i++)
            sum += exp((double)x[m * 700 + i] - (m == 0 ? 1e4 : 0));
        ck_assert_double_eq_tol(lse[m], log(sum) + (m == 0 ? 1e4 : 0), 1e-6 * (1 + fabs(lse[m])));
    }
}
END_TEST

/* ---- threads ---- */

START_TEST(threads_change_nothing)
{
    enum { M = 333, C = 131 };
    float *x = nb_alloc(M * C, 4), *dy = nb_alloc(M * C, 4), *out[2] = {nb_alloc(4 * M * C, 4), nb_alloc(4 * M * C, 4)};
    double total[2];
    fill(x, M * C, 81, 1);
    fill(dy, M * C, 82, 1);
    const int before = omp_get_max_threads();
    for (int i = 0; i < 2; i++) {
        omp_set_num_threads(1 + 2 * i);
        float *y = out[i], *r = y + M * C, *dx = r + M, *dw = dx + M * C, *db = dw + C, *mean = db + C;
        memset(y, 0, 4 * M * C * sizeof *y);
        kn_rmsnorm(y, r, x, dy, M, C, 1e-5f);
        kn_rmsnorm_backward(dx, dw, dy, x, dy + 7, r, M, C);
        kn_layernorm(y, mean, r, x, dy, dy + C, M, C, 1e-5f);
        kn_layernorm_backward(dx, dw, db, dy, x, dy + 9, mean, r, M, C);
        kn_swiglu(mean + M, x, dy, M * C);
        total[i] = kn_sum_squares(x, M * C);
    }
    omp_set_num_threads(before);
    ck_assert_mem_eq(out[0], out[1], 4 * M * C * sizeof **out);
    ck_assert(total[0] == total[1]);
    free(x), free(dy), free(out[0]), free(out[1]);
}
END_TEST

START_TEST(the_table_in_use_has_a_name)
{
    ck_assert_ptr_eq(kn_isa_named(kn_isa_name()), kn_isa());
    ck_assert_ptr_null(kn_isa_named("mmx"));
    ck_assert(getenv("NIBBLE_ISA") || kn_isa_check() == NB_OK);
    char text[256];
    kn_libraries(text, sizeof text);
    ck_assert_ptr_nonnull(strstr(text, "OpenBLAS"));
}
END_TEST

START_TEST(openblas_is_told_a_core_only_where_its_own_is_below_the_cpu)
{
    const char *best = kn_blas_core("Prescott"); /* NULL on a CPU without AVX2 */
    ck_assert_pstr_eq(kn_blas_core("Nehalem"), best);
    ck_assert_pstr_eq(kn_blas_core("a core of tomorrow"), best);
    ck_assert_ptr_null(kn_blas_core("SkylakeX"));
    ck_assert_ptr_null(kn_blas_core("cooperlake"));
    const bool wide = best && !strcmp(best, "SkylakeX");
    ck_assert_pstr_eq(kn_blas_core("Haswell"), wide ? best : NULL);
    ck_assert_pstr_eq(kn_blas_core("Zen"), wide ? best : NULL);
    if (best)
        ck_assert_ptr_null(kn_blas_core(best));
    const char *now = kn_blas_core(NULL);
    ck_assert(!now || (best && !strcmp(now, best)));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("kernels");
    TCase *c = tcase_create("tables");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, tables_compute_the_same_bits, 0, COUNT(functions));
    tcase_add_test(c, tables_agree_about_nan_and_infinity);
    tcase_add_test(c, elementwise_functions_are_accurate);
    tcase_add_test(c, rotation_keeps_length_and_turns_back);
    tcase_add_test(c, logsumexp_is_stable);
    tcase_add_test(c, threads_change_nothing);
    tcase_add_test(c, the_table_in_use_has_a_name);
    tcase_add_test(c, openblas_is_told_a_core_only_where_its_own_is_below_the_cpu);
    suite_add_tcase(s, c);
    return run_suite(s);
}
