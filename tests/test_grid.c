/* test_grid.c - the grid: textbook values, every bits x levels x grain x scale type, clients' rules, hostile numbers.
 */
#include "kernels/kernels.h"
#include "suite.h"

#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static kn_codes codes_of(kn_grid g, const float *x, int64_t rows, int64_t cols)
{
    kn_codes c;
    ck_assert_msg(kn_grid_check(&g) == NB_OK, "%s", nb_fail_message());
    ck_assert_int_eq(kn_codes_new(&c, &g, rows, cols), NB_OK);
    kn_encode(&c, x);
    return c;
}

START_TEST(absmax_of_the_textbook)
{
    static const float x[] = {1.2f, -.5f, -4.3f, 1.2f, -3.1f, .8f, 2.4f, 5.4f};
    static const int8_t wanted[] = {28, -12, -101, 28, -73, 19, 56, 127};
    kn_codes c = codes_of(kn_grid_int(8, true, false, KN_TENSOR, 0, KN_SCALE_F32), x, 1, 8);
    ck_assert_mem_eq(c.q, wanted, 8);
    ck_assert_float_eq_tol(c.scale[0], 5.4f / 127, 1e-9f);
    kn_codes_free(&c);
}
END_TEST

START_TEST(zero_point_of_the_textbook)
{
    static const float x[] = {-3, 3.2f, 0.1f, 0};
    kn_codes c = codes_of(kn_grid_int(8, false, true, KN_TENSOR, 0, KN_SCALE_F32), x, 2, 2);
    ck_assert_float_eq_tol(1 / c.scale[0], 41.129f, 1e-3f);
    ck_assert_int_eq(c.zero[0], -5);
    ck_assert_int_eq(c.q[0], -128);
    ck_assert_int_eq(c.q[1], 127);
    ck_assert(kn_decode_one(&c, 1, 1) == 0);
    kn_codes_free(&c);
    c = codes_of(kn_grid_int(8, true, false, KN_TENSOR, 0, KN_SCALE_F32), x, 1, 3); /* 0.1 -> 4 -> 0.1008 */
    ck_assert_int_eq(c.q[2], 4);
    ck_assert_float_eq_tol(kn_decode_one(&c, 0, 2), 0.1008f, 1e-4f);
    kn_codes_free(&c);
}
END_TEST

/* ---- every grid ---- */

typedef struct {
    kn_grid grid;
    int rows, cols;
} grid_case;

enum { MOST_CASES = 4000 };
static grid_case grid_cases[MOST_CASES];

/* bits 1..8, 16, ternary, half-step x narrow x zero x grain x scale x shape */
static int list_grids(void)
{
    static const int shapes[][2] = {{1, 1}, {3, 7}, {5, 64}, {4, 33}};
    int n = 0;
    for (int kind = 1; kind <= 11; kind++)
        for (int flags = 0; flags < 4; flags++)
            for (int grain = KN_TENSOR; grain <= KN_BLOCK; grain++)
                for (int scale = KN_SCALE_F32; scale <= KN_SCALE_POW2; scale++)
                    for (int s = 0; s < COUNT(shapes); s++) {
                        const int bits = kind <= 8 ? kind : kind == 9 ? 16 : 2;
                        kn_grid g = kn_grid_int(bits, flags & 1, flags & 2, (kn_grain)grain, 8, (kn_scale_type)scale);
                        if (kind == 10 && flags == 0)
                            g.levels = KN_LEVELS_HALF_STEP;
                        else if (kind == 10 || (kind == 11 && flags != 1) || (kind == 1 && flags))
                            continue;
                        grid_cases[n++] = (grid_case){g, shapes[s][0], shapes[s][1]};
                        ck_assert_int_lt(n, MOST_CASES);
                    }
    return n;
}

static void check_codes(const kn_codes *c, const float *x, const float *y)
{
    for (int64_t r = 0; r < c->rows; r++)
        for (int64_t k = 0; k < c->cols; k++) {
            const int64_t i = kn_scale_index(c, r, k);
            const int q = c->q ? c->q[r * c->ld + k] : c->q16[r * c->ld + k], zero = c->zero ? c->zero[i] : 0;
            ck_assert(i >= 0 && i < c->n_scales && q >= c->grid.lo && q <= c->grid.hi);
            ck_assert(zero >= c->grid.lo && zero <= c->grid.hi);
            ck_assert_int_eq(q, kn_encode_one(&c->grid, x[r * c->cols + k], kn_inverse(c->scale[i]), zero));
            ck_assert(y[r * c->cols + k] == kn_decode_one(c, r, k));
            ck_assert(c->scale[i] == kn_store(&c->grid, c->scale[i]));
        }
    for (int64_t r = 0; r < c->rows; r++)
        for (int64_t k = c->cols; k < c->ld; k++)
            ck_assert_int_eq(c->q ? c->q[r * c->ld + k] : c->q16[r * c->ld + k], 0);
}

START_TEST(every_grid_is_the_definition_and_idempotent)
{
    static float x[5 * 64], y[5 * 64], z[5 * 64];
    const int n = list_grids();
    for (int i = 0; i < n; i++) {
        const grid_case *p = &grid_cases[i];
        const int64_t size = p->rows * p->cols;
        for (int64_t k = 0; k < size; k++)
            x[k] = (float)(0.1 + nb_random_normal(77, (uint64_t)i, (uint64_t)k));
        kn_codes c = codes_of(p->grid, x, p->rows, p->cols);
        kn_decode(y, &c, 0, p->rows);
        check_codes(&c, x, y);
        kn_codes again = c;
        const size_t bytes = (size_t)(c.rows * c.ld) * (c.q ? 1 : 2);
        void *q = nb_alloc_zeroed(bytes, 1);
        again.q = c.q ? q : NULL;
        again.q16 = c.q ? NULL : q;
        kn_encode_with(&again, y);
        ck_assert_mem_eq(q, c.q ? (void *)c.q : (void *)c.q16, bytes);
        kn_decode(z, &again, 0, p->rows);
        ck_assert_mem_eq(z, y, (size_t)size * sizeof *y);
        if (p->rows > 2 && p->grid.grain != KN_TENSOR && p->grid.grain != KN_BLOCK) { /* rows by themselves */
            memset(q, 0, bytes);
            kn_encode_rows(&again, x + p->cols, 1, 1);
            ck_assert_mem_eq((char *)q + bytes / (size_t)p->rows,
                             (char *)(c.q ? (void *)c.q : (void *)c.q16) + bytes / (size_t)p->rows,
                             bytes / (size_t)p->rows);
        }
        free(q);
        kn_codes_free(&c);
    }
    ck_assert_int_gt(n, 2000);
}
END_TEST

START_TEST(rounding_errs_by_half_a_step)
{
    static float x[3 * 50], y[3 * 50];
    for (int i = 0; i < 150; i++)
        x[i] = (float)nb_random_normal(78, 0, (uint64_t)i);
    for (int bits = 2; bits <= 16; bits = bits == 8 ? 16 : bits + 1)
        for (int zero = 0; zero < 2; zero++) {
            kn_codes c = codes_of(kn_grid_int(bits, true, zero, KN_ROW, 0, KN_SCALE_F32), x, 3, 50);
            kn_decode(y, &c, 0, 3);
            for (int i = 0; i < 150; i++) /* with a zero point, its rounding costs another half step at the ends */
                ck_assert_float_le(fabsf(x[i] - y[i]), c.scale[i / 50] * (zero ? 1.001f : 0.505f));
            kn_codes_free(&c);
        }
}
END_TEST

START_TEST(one_group_is_the_row)
{
    static float x[4 * 33];
    for (int i = 0; i < 4 * 33; i++)
        x[i] = (float)nb_random_normal(79, 0, (uint64_t)i);
    for (int group = 33; group < 100; group += 31) {
        kn_codes a = codes_of(kn_grid_int(4, false, true, KN_ROW, 0, KN_SCALE_F16), x, 4, 33);
        kn_codes b = codes_of(kn_grid_int(4, false, true, KN_GROUP, group, KN_SCALE_F16), x, 4, 33);
        ck_assert_mem_eq(a.q, b.q, (size_t)(4 * a.ld));
        ck_assert_mem_eq(a.scale, b.scale, 4 * sizeof *a.scale);
        ck_assert_mem_eq(a.zero, b.zero, 4 * sizeof *a.zero);
        kn_codes_free(&a);
        kn_codes_free(&b);
    }
}
END_TEST

START_TEST(constants_zeros_and_one_sided_spans_are_safe)
{
    static const float levels[] = {0, 2.5f, -2.5f, 1e-30f, 1e-42f, -1e37f};
    const int n = list_grids();
    for (int i = 0; i < n; i++)
        for (int v = 0; v < COUNT(levels); v++) {
            const grid_case *p = &grid_cases[i];
            if (p->rows != 3)
                continue;
            float x[21], y[21];
            for (int k = 0; k < 21; k++)
                x[k] = levels[v];
            kn_codes c = codes_of(p->grid, x, 3, 7);
            kn_decode(y, &c, 0, 3);
            const float top = fabsf(levels[v]);
            const bool half_step = p->grid.levels == KN_LEVELS_HALF_STEP; /* has no level at the range's end */
            for (int k = 0; k < 21; k++) {
                ck_assert(isfinite(y[k]));
                if (v == 0 || top < FLT_MIN)
                    ck_assert(y[k] == 0);
                else if (p->grid.scale == KN_SCALE_F32 && !half_step &&
                         top < 1e30f) /* exact, or the last bit of the step */
                    ck_assert_float_eq_tol(y[k], x[k], 2e-7f * top);
            }
            kn_codes_free(&c);
        }
    float min_code[3] = {1, 2, 3}, y[3]; /* one-sided: 0 is in the range */
    kn_codes c = codes_of(kn_grid_int(8, false, true, KN_TENSOR, 0, KN_SCALE_F32), min_code, 1, 3);
    kn_decode(y, &c, 0, 1);
    ck_assert_int_eq(c.zero[0], -128);
    ck_assert_float_eq_tol(y[2], 3, 1e-6f);
    kn_codes_free(&c);
}
END_TEST

START_TEST(nan_and_infinity_stay_inside_the_codes)
{
    static const float edge[21] = {NAN, 1, INFINITY, -1, -INFINITY, 0, 2, NAN, 3e38f, -3e38f};
    const int n = list_grids();
    for (int i = 0; i < n; i++) {
        const grid_case *p = &grid_cases[i];
        if (p->rows != 3)
            continue;
        float y[21];
        kn_codes c = codes_of(p->grid, edge, 3, 7);
        kn_decode(y, &c, 0, 3);
        for (int64_t k = 0; k < 21; k++) {
            const int q = c.q ? c.q[k / 7 * c.ld + k % 7] : c.q16[k / 7 * c.ld + k % 7];
            ck_assert(q >= c.grid.lo && q <= c.grid.hi && !isnan(y[k]));
            if (isnan(edge[k]))
                ck_assert_int_eq(q, c.grid.lo);
        }
        for (int64_t k = 0; k < c.n_scales; k++)
            ck_assert(isfinite(c.scale[k]));
        kn_codes_free(&c);
    }
}
END_TEST

/* ---- stored scales ---- */

START_TEST(scales_are_what_the_file_will_hold)
{
    kn_grid g = kn_grid_int(4, false, false, KN_ROW, 0, KN_SCALE_F16);
    ck_assert(kn_store(&g, 1.0f / 3) == 0.333251953125f);
    ck_assert(kn_store(&g, 1e6f) == 65504 && kn_store(&g, -1e6f) == -65504 && kn_store(&g, 1e-9f) == 0);
    ck_assert(kn_store(&g, INFINITY) == 65504 && kn_store(&g, NAN) == 0);
    g.scale = KN_SCALE_BF16;
    ck_assert(kn_store(&g, 1.0f / 3) == 0.333984375f && isfinite(kn_store(&g, FLT_MAX)));
    g.scale = KN_SCALE_POW2;
    ck_assert(kn_store(&g, 0.7f) == 0.5f && kn_store(&g, 0.71f) == 1 && kn_store(&g, 4) == 4);
    ck_assert(kn_store(&g, 0.3f) == 0.25f && kn_store(&g, -3) == -4 && isfinite(kn_store(&g, INFINITY)));
    g.scale = KN_SCALE_F32;
    ck_assert(kn_store(&g, 0.3f) == 0.3f && kn_store(&g, 1e-40f) == 0 && kn_store(&g, INFINITY) == FLT_MAX);
    ck_assert(kn_inverse(0) == 0 && kn_inverse(1e-40f) == 0 && kn_inverse(-4) == -0.25f);
}
END_TEST

START_TEST(sign_and_half_step_ranges_are_theirs)
{
    static const float x[4] = {1, -3, 2, 0};
    kn_grid g = kn_grid_int(1, false, false, KN_ROW, 0, KN_SCALE_F32);
    kn_codes c = codes_of(g, x, 1, 4);
    ck_assert(c.scale[0] == 1.5f && c.q[1] == -1 && c.q[3] == 1);
    kn_codes_free(&c);
    g = kn_grid_int(2, false, false, KN_ROW, 0, KN_SCALE_F32);
    g.levels = KN_LEVELS_HALF_STEP;
    c = codes_of(g, x, 1, 4);
    ck_assert(c.scale[0] == 0.75f && c.q[0] == 0 && c.q[1] == -2 && c.q[2] == 1 && kn_decode_one(&c, 0, 1) == -2.25f);
    kn_codes_free(&c);
}
END_TEST

/* bitsandbytes 0.50.2 on the CPU: quantize_4bit(x, blocksize=64, quant_type="nf4" | "fp4") of x = (2 i - 63) / 63; its codes of FP4 are sign
 * and magnitude, here the places of their values in order, where a zero of either sign is one level. */
START_TEST(levels_of_tables_are_their_clients)
{
    static const int8_t theirs[2][64] = {
        {0, 0, 0, 0, 0, 1,  1,  1,  1,  1,  1,  1,  1,  2,  2,  2,  2,  2,  3,  3,  3,  4,  4,  4,  4,  5,  5,  5,  6,  6,  6,  7,
         7, 8, 8, 8, 9, 9, 10, 10, 10, 11, 11, 11, 12, 12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 14, 14, 14, 15, 15, 15, 15, 15},
        {0, 0, 0, 0, 0, 0, 1, 1,  1,  1,  1,  1,  1,  1,  2,  2,  2,  2,  2,  3,  3,  3,  3,  4,  4,  5,  5,  5,  5,  6,  6,  6,
         8, 8, 8, 9, 9, 9, 9, 10, 10, 11, 11, 11, 11, 12, 12, 12, 12, 12, 13, 13, 13, 13, 13, 13, 13, 13, 14, 14, 14, 14, 14, 14}};
    float x[64], y[64];
    for (int i = 0; i < 64; i++)
        x[i] = (float)(2 * i - 63) / 63;
    for (int t = 0; t < KN_TABLE_OWN; t++) {
        const kn_grid g = kn_grid_table((kn_table_name)t, KN_BLOCK, 64, KN_SCALE_F32);
        const float *level = kn_table_levels(&g);
        kn_codes c = codes_of(g, x, 1, 64);
        ck_assert_int_eq(kn_grid_check(&g), NB_OK);
        kn_decode(y, &c, 0, 1);
        for (int i = 0; i < 64; i++) {
            const float s = x[i] / c.scale[0];
            for (int k = 0; k <= g.hi; k++)
                ck_assert_msg(fabsf(s - level[c.q[i]]) <= fabsf(s - level[k]) + 1e-6f * fabsf(s), "table %d, %g", t, (double)s);
            ck_assert(t == KN_TABLE_IQ4_NL || c.q[i] == theirs[t == KN_TABLE_FP4][i]);
            ck_assert(y[i] == level[c.q[i]] * c.scale[0] && y[i] == kn_decode_one(&c, 0, i));
            ck_assert(kn_encode_one(&g, x[i], kn_inverse(c.scale[0]), 0) == c.q[i]);
        }
        ck_assert_int_eq(kn_encode_one(&g, NAN, 1, 0), 0);
        kn_codes_free(&c);
    }
}
END_TEST

START_TEST(grids_that_make_no_sense_are_refused)
{
    kn_grid g = kn_grid_int(4, false, false, KN_GROUP, 32, KN_SCALE_F16);
    ck_assert_int_eq(kn_grid_check(&g), NB_OK);
    ck_assert(kn_grid_equal(&g, &g) && kn_largest(&g) == 8);
    kn_grid bad[8];
    for (int i = 0; i < 8; i++)
        bad[i] = g;
    bad[0].bits = 9;
    bad[1].group = 0;
    bad[2].hi = 8;
    bad[3].grain = KN_ROW;
    bad[4].rule = KN_RULE_GGML_Q8_0;
    bad[5].levels = KN_LEVELS_SIGN;
    bad[6].scale = 9;
    bad[7].lo = 3;
    for (int i = 0; i < 8; i++)
        ck_assert_msg(kn_grid_check(&bad[i]) == NB_USAGE && !kn_grid_equal(&bad[i], &g), "grid %d", i);
    const kn_grid none = {0};
    ck_assert_int_eq(kn_grid_check(&none), NB_OK);
    kn_codes c;
    ck_assert_int_eq(kn_codes_new(&c, &g, INT64_MAX / 8, 64), NB_NOMEM);
    kn_codes_free(&c);
}
END_TEST

/* ---- rules of clients, search ---- */

/* ggml-quants.c, quantize_row_q4_0_ref and quantize_row_q8_0_ref, one block of 32. */
static void ggml_block(const float *x, int bits, int8_t *q, float *scale)
{
    float amax = 0, max = 0;
    for (int j = 0; j < 32; j++)
        if (amax < fabsf(x[j])) {
            amax = fabsf(x[j]);
            max = x[j];
        }
    const float d = bits == 4 ? max / -8 : amax / 127, id = d != 0 ? 1.0f / d : 0.0f;
    for (int j = 0; j < 32; j++)
        if (bits == 4) {
            const int8_t v = (int8_t)(x[j] * id + 8.5f);
            q[j] = (int8_t)((v < 15 ? v : 15) - 8);
        } else {
            q[j] = (int8_t)roundf(x[j] * id);
        }
    *scale = nb_half_to(nb_half_from(d));
}

START_TEST(file_encoders_are_ggmls)
{
    enum { ROWS = 40, COLS = 96 };
    static float x[ROWS * COLS];
    for (int bits = 4; bits <= 8; bits += 4) {
        for (int i = 0; i < ROWS * COLS; i++)
            x[i] = i < COLS ? (float)(i % 5 - 2) : (float)nb_random_normal(80, 0, (uint64_t)i);
        memset(x + 2 * COLS, 0, 32 * sizeof *x);
        const kn_grid g = kn_grid_int(bits, bits == 8, false, KN_GROUP, 32, KN_SCALE_F16);
        kn_codes c;
        ck_assert_int_eq(kn_codes_new(&c, &g, ROWS, COLS), NB_OK);
        kn_encode_ggml_file(&c, x);
        for (int r = 0; r < ROWS; r++)
            for (int s = 0; s < COLS / 32; s++) {
                int8_t q[32];
                float scale;
                ggml_block(x + r * COLS + 32 * s, bits, q, &scale);
                ck_assert_mem_eq(c.q + r * c.ld + 32 * s, q, 32);
                ck_assert_mem_eq(&c.scale[r * c.spans + s], &scale, sizeof scale);
            }
        kn_codes_free(&c);
    }
}
END_TEST

START_TEST(client_activation_rules_round_their_way)
{
    float x[32];
    for (int i = 0; i < 32; i++)
        x[i] = (float)nb_random_normal(81, 0, (uint64_t)i);
    x[3] = 3;
    x[4] = -0.5f * (3.0f / 127); /* half a step: away from zero for llama2.c, to even for ggml */
    kn_grid g = kn_grid_int(8, true, false, KN_GROUP, 32, KN_SCALE_F16);
    g.rule = KN_RULE_GGML_Q8_0;
    kn_codes c = codes_of(g, x, 1, 32);
    float amax = 0;
    for (int i = 0; i < 32; i++)
        amax = fmaxf(amax, fabsf(x[i]));
    for (int i = 0; i < 32; i++)
        ck_assert_int_eq(c.q[i], (int)rintf(x[i] * (127 / amax)));
    ck_assert(c.scale[0] == nb_half_to(nb_half_from(amax / 127)));
    kn_codes_free(&c);
    g = kn_grid_int(8, true, false, KN_GROUP, 16, KN_SCALE_F32);
    g.rule = KN_RULE_LLAMA2C;
    c = codes_of(g, x, 1, 32);
    for (int i = 0; i < 32; i++)
        ck_assert_int_eq(c.q[i], (int)round(x[i] / c.scale[i / 16]));
    kn_codes_free(&c);
}
END_TEST

static double error_of(const kn_codes *c, const float *x, const float *h)
{
    double e = 0;
    for (int64_t r = 0; r < c->rows; r++)
        for (int64_t k = 0; k < c->cols; k++) {
            const double d = (double)x[r * c->cols + k] - (double)kn_decode_one(c, r, k);
            e += (h ? (double)h[r * c->cols + k] : 1) * d * d;
        }
    return e;
}

START_TEST(search_finds_no_worse_scales)
{
    enum { ROWS = 6, COLS = 64 };
    static float x[ROWS * COLS], h[ROWS * COLS];
    for (int i = 0; i < ROWS * COLS; i++)
        x[i] = (float)nb_random_normal(82, 0, (uint64_t)i);
    for (int i = 0; i < ROWS * COLS; i++)
        h[i] = (float)(0.1 + nb_random_unit(82, 1, (uint64_t)i));
    for (int grain = KN_TENSOR; grain <= KN_BLOCK; grain++)
        for (int kind = 0; kind < 4; kind++) {
            const kn_grid g = kn_grid_int(kind == 3 ? 8 : 3, false, kind == 1, (kn_grain)grain, 48, KN_SCALE_F16);
            kn_codes plain = codes_of(g, x, ROWS, COLS), best, signs;
            ck_assert_int_eq(kn_codes_new(&best, &g, ROWS, COLS), NB_OK);
            ck_assert_int_eq(kn_codes_new(&signs, &g, ROWS, COLS), NB_OK);
            kn_encode_mse(&best, x, kind == 2 ? h : NULL, 0.4f, 1, 61, false);
            kn_encode_mse(&signs, x, kind == 2 ? h : NULL, 0.4f, 1, 61, true);
            const double e0 = error_of(&plain, x, kind == 2 ? h : NULL), e1 = error_of(&best, x, kind == 2 ? h : NULL);
            const double e2 = error_of(&signs, x, kind == 2 ? h : NULL);
            ck_assert_double_le(e1, e0 * 1.00001);
            ck_assert_double_le(e2, e1 * 1.00001);
            if (kind != 3)
                ck_assert_double_lt(e1, e0);
            kn_codes_free(&plain);
            kn_codes_free(&best);
            kn_codes_free(&signs);
        }
}
END_TEST

START_TEST(threads_and_instruction_sets_change_no_code)
{
    enum { ROWS = 129, COLS = 257 };
    float *x = nb_alloc(ROWS * COLS, sizeof *x);
    for (int i = 0; i < ROWS * COLS; i++)
        x[i] = (float)nb_random_normal(83, 0, (uint64_t)i);
    const int before = omp_get_max_threads();
    for (int grain = KN_TENSOR; grain <= KN_BLOCK; grain++)
        for (int bits = 1; bits <= 8; bits += 7) {
            const kn_grid g = kn_grid_int(bits, false, bits > 1, (kn_grain)grain, 100, KN_SCALE_F32);
            omp_set_num_threads(1);
            kn_codes a = codes_of(g, x, ROWS, COLS);
            omp_set_num_threads(3);
            kn_codes b = codes_of(g, x, ROWS, COLS);
            ck_assert_mem_eq(a.q, b.q, (size_t)(ROWS * a.ld));
            ck_assert_mem_eq(a.scale, b.scale, (size_t)a.n_scales * sizeof *a.scale);
            kn_codes_free(&a);
            kn_codes_free(&b);
        }
    omp_set_num_threads(before);
    free(x);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("grid");
    TCase *c = tcase_create("grid");
    tcase_set_timeout(c, 120);
    tcase_add_test(c, absmax_of_the_textbook);
    tcase_add_test(c, zero_point_of_the_textbook);
    tcase_add_test(c, every_grid_is_the_definition_and_idempotent);
    tcase_add_test(c, rounding_errs_by_half_a_step);
    tcase_add_test(c, one_group_is_the_row);
    tcase_add_test(c, constants_zeros_and_one_sided_spans_are_safe);
    tcase_add_test(c, nan_and_infinity_stay_inside_the_codes);
    tcase_add_test(c, scales_are_what_the_file_will_hold);
    tcase_add_test(c, sign_and_half_step_ranges_are_theirs);
    tcase_add_test(c, levels_of_tables_are_their_clients);
    tcase_add_test(c, grids_that_make_no_sense_are_refused);
    tcase_add_test(c, file_encoders_are_ggmls);
    tcase_add_test(c, client_activation_rules_round_their_way);
    tcase_add_test(c, search_finds_no_worse_scales);
    tcase_add_test(c, threads_and_instruction_sets_change_no_code);
    suite_add_tcase(s, c);
    return run_suite(s);
}
