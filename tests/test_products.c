/* test_products.c - tiles, library products, products that decode: against plain loops, in every table. Integer products are in test_linear_int.c.
 */
#include "isa_tables.h"
#include "suite.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* ---- tiles ---- */

START_TEST(tiles_are_chains_of_fused_steps)
{
    enum { M = 19, N = 150, K = 37 };
    static float a[M * K], b[K * N], c[M * N], found[M * N];
    fill(a, M * K, 11, 1);
    fill(b, K * N, 12, 1);
    static const int sizes[][3] = {{1, 1, 1},    {1, 8, 37}, {2, 64, 5},    {5, 16, 9},
                                   {6, 128, 37}, {7, 79, 3}, {19, 150, 37}, {13, 48, 0}};
    for (int t = 0; t < COUNT(tables); t++)
        for (int s = 0; usable(tables[t]) && s < COUNT(sizes); s++)
            for (int form = 0; form < 4; form++) { /* a transposed or not, c overwritten or added to */
                const int m = sizes[s][0], n = sizes[s][1], k = sizes[s][2];
                const int am = form & 1 ? 1 : K, ak = form & 1 ? M : 1;
                fill(c, M * N, 13, 1);
                memcpy(found, c, sizeof c);
                for (int i = 0; i < m; i++)
                    for (int j = 0; j < n; j++) {
                        float sum = form & 2 ? c[i * N + j] : 0;
                        for (int l = 0; l < k; l++)
                            sum = fmaf(a[i * am + l * ak], b[l * N + j], sum);
                        c[i * N + j] = sum;
                    }
                tables[t]->tile(found, N, a, am, ak, b, N, m, n, k, form & 2);
                ck_assert_mem_eq(found, c, sizeof c);
            }
}
END_TEST

START_TEST(small_products_equal_plain_loops)
{
    enum { M = 21, N = 70, K = 300 };
    static float a[M * K], b[N * K], c[M * N], at[K * M], bt[K * N], y[M * N];
    fill(a, M * K, 21, 1);
    fill(b, N * K, 22, 1);
    kn_table_scalar.transpose(at, M, a, K, M, K);
    kn_table_scalar.transpose(bt, N, b, K, N, K);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < K; k++) {
                ck_assert(at[k * M + i] == a[i * K + k]);
                sum += (double)a[i * K + k] * b[j * K + k];
            }
            c[i * N + j] = (float)sum;
        }
    for (int form = 0; form < 7; form++) {
        memset(y, 0, sizeof y);
        switch (form) {
        case 0:
            kn_tile_nt(y, N, a, K, b, K, M, N, K, 0);
            break;
        case 1:
            kn_tile_nn(y, N, a, K, bt, N, M, N, K, 0);
            break;
        case 2:
            kn_tile_tn(y, N, at, M, bt, N, M, N, K, 1);
            break;
        case 3:
            kn_product_nt(KN_FP32, y, a, b, M, N, K, 0);
            break;
        case 4:
            kn_product_nn(KN_FP32, y, a, bt, M, N, K, 1);
            break;
        case 5:
            kn_product_tn(KN_FP32, y, at, bt, M, N, K, 0);
            break;
        default:
            kn_isa()->dots(y, N, a, K, b, K, M, N, K);
            break;
        }
        for (int i = 0; i < M * N; i++)
            ck_assert_float_eq_tol(y[i], c[i], 3e-4f);
    }
}
END_TEST

START_TEST(bf16_products_err_by_rounding_alone)
{
    static const int64_t sizes[][3] = {{130, 257, 192}, {33, 40, 1600}}; /* with rest rows and columns; a sum in stretches */
    const int64_t M = sizes[_i][0], N = sizes[_i][1], K = sizes[_i][2];
    float *a = nb_alloc((size_t)(M * K), 4), *b = nb_alloc((size_t)(N * K), 4), *c = nb_alloc((size_t)(M * N), 4), *y = nb_alloc((size_t)(M * N), 4);
    float *at = nb_alloc((size_t)(M * K), 4), *bt = nb_alloc((size_t)(N * K), 4);
    fill(a, M * K, 31, 1);
    fill(b, N * K, 32, 1);
    for (int i = 0; i < M * K; i++)
        a[i] = nb_bf16_to(nb_bf16_from(a[i]));
    for (int i = 0; i < N * K; i++)
        b[i] = nb_bf16_to(nb_bf16_from(b[i]));
    kn_isa()->transpose(at, M, a, K, M, K);
    kn_isa()->transpose(bt, N, b, K, N, K);
    kn_product_nt(KN_FP32, c, a, b, M, N, K, 0);
    for (int form = 0; form < 6; form++)
        for (int again = 0; again < 2; again++) { /* the second time from the kept primitive */
            const float beta = form >= 3 ? 1 : 0;
            for (int i = 0; i < M * N; i++)
                y[i] = 1;
            if (form % 3 == 0)
                kn_product_nt(KN_BF16, y, a, b, M, N, K, beta);
            else if (form % 3 == 1)
                kn_product_nn(KN_BF16, y, a, bt, M, N, K, beta);
            else
                kn_product_tn(KN_BF16, y, at, bt, M, N, K, beta);
            for (int i = 0; i < M * N; i++) /* operands are exact in bf16: what remains are sums in fp32 */
                ck_assert_float_eq_tol(y[i], c[i] + beta, 1e-4f);
        }
    free(a), free(b), free(c), free(y), free(at), free(bt);
}
END_TEST

START_TEST(roundings_to_bf16_agree_in_every_table)
{
    enum { N = 83 };
    static float x[2 * N], scale[N];
    uint16_t y[N];
    uint32_t pair[N], words[48 * N], turned[N * 48];
    fill(x, 2 * N, 81, 3);
    fill(scale, N, 82, 0.01);
    x[3] = INFINITY, x[4] = NAN, x[5] = -0.0f, x[6] = 1e-40f;
    for (int i = 0; i < 48 * N; i++)
        words[i] = (uint32_t)nb_random(83, 1, (uint64_t)i);
    for (int t = 0; t < COUNT(tables); t++) {
        if (!usable(tables[t]))
            continue;
        tables[t]->to_bf16(y, x, N);
        for (int i = 0; i < N; i++)
            ck_assert_uint_eq(y[i], nb_bf16_from(x[i]));
        tables[t]->to_bf16_scaled(y, x, scale, N);
        for (int i = 0; i < N; i++)
            ck_assert_uint_eq(y[i], nb_bf16_from(x[i] * scale[i]));
        tables[t]->pair_bf16(pair, x, x + N, 0.5f, 3, N);
        for (int i = 0; i < N; i++)
            ck_assert_uint_eq(pair[i], nb_bf16_from(x[i] * 0.5f) | (uint32_t)nb_bf16_from(x[N + i] * 3) << 16);
        tables[t]->transpose_words(turned, 48, words, N, 48, N);
        for (int i = 0; i < 48 * N; i++)
            ck_assert_uint_eq(turned[i % N * 48 + i / N], words[i]);
    }
}
END_TEST

/* Row m of a times b [K, N] in doubles, the left operand rounded with the scale of its column of codes: sum and size [N], size that of its terms. */
static void row_right(double *sum, double *size, const float *a, const float *b, const float *scale, int64_t K, int64_t N)
{
    for (int64_t n = 0; n < N; n++)
        sum[n] = size[n] = 0;
    for (int64_t k = 0; k < K; k++) {
        const float s = scale ? scale[k] : 1, inv = s != 0 ? 1 / s : 0;
        const double left = (double)nb_bf16_to(nb_bf16_from(a[k] * s));
        for (int64_t n = 0; n < N; n++) {
            const double term = left * (double)(scale ? rintf(b[k * N + n] * inv) : nb_bf16_to(nb_bf16_from(b[k * N + n])));
            sum[n] += term;
            size[n] += fabs(term);
        }
    }
}

/* What kn_product_right and kn_product_t_right should give: codes are exact and their scale is rounded with the left operand. */
static void check_right(const kn_bf16_right *right, const float *b, bool integers, int64_t M, int64_t K, int64_t N)
{
    float *a = nb_alloc((size_t)(M * K), 4), *at = nb_alloc((size_t)(M * K), 4), *c[4], *again = nb_alloc((size_t)(M * N), 4);
    double *sum = nb_alloc((size_t)N, sizeof *sum), *size = nb_alloc((size_t)N, sizeof *size);
    fill(a, M * K, 91, 1);
    kn_isa()->transpose(at, M, a, K, M, K);
    for (int form = 0; form < 4; form++) {
        c[form] = nb_alloc((size_t)(M * N), 4);
        for (int i = 0; i < M * N; i++)
            c[form][i] = again[i] = 1;
        for (int k = 0; k < 2 && (k == 0 || form < 2); k++) /* the second time from the kept primitive */
            ck_assert_int_eq((form & 1 ? kn_product_t_right : kn_product_right)(k ? again : c[form], form & 1 ? at : a, right, M,
                                                                               (real)(form / 2)),
                             NB_OK);
        if (form < 2)
            ck_assert_mem_eq(c[form], again, (size_t)(M * N) * 4);
    }
    for (int64_t m = 0; m < M; m += m + 17 < M || m + 1 == M ? 17 : M - 1 - m) { /* some rows, the last one too */
        row_right(sum, size, a + m * K, b, integers ? right->scale : NULL, K, N);
        for (int form = 0; form < 4; form++)
            for (int64_t n = 0; n < N; n++)
                ck_assert_double_eq_tol((double)c[form][m * N + n], sum[n] + form / 2, 1e-5 * (1 + size[n]));
    }
    for (int form = 0; form < 4; form++)
        free(c[form]);
    free(a), free(at), free(again), free(sum), free(size);
}

/* One left operand with several right ones: the bits of one by one, for few rows and many. */
START_TEST(products_of_one_left_operand_are_those_of_each)
{
    static const int64_t N[] = {576, 64, 192}, K = 160;
    const int threads = omp_get_max_threads();
    real *b = nb_alloc((size_t)(N[0] * K), sizeof *b);
    kn_bf16_right right[3];
    if (kn_takes_bf16(KN_BF16, 400, N[1], K)) {
        fill(b, N[0] * K, 94, 1);
        for (int i = 0; i < 3; i++)
            kn_bf16_columns(&right[i], b, N[i], K, nb_alloc_aligned(kn_bf16_right_bytes(K, N[i]), 1));
        for (int64_t M = 33; M <= 433; M += 400) {
            real *a = nb_alloc((size_t)(M * K), sizeof *a), *c[3], *wanted = nb_alloc((size_t)(M * N[0]), sizeof *a);
            fill(a, M * K, 95, 1);
            for (int i = 0; i < 3; i++)
                c[i] = nb_alloc((size_t)(M * N[i]), sizeof *a);
            for (int k = 1; k <= 3; k++) {
                omp_set_num_threads(k);
                ck_assert_int_eq(
                    kn_products_right(c, a, (const kn_bf16_right *const[]){&right[0], &right[1], &right[2]}, k, M), NB_OK);
                for (int i = 0; i < k; i++) {
                    ck_assert_int_eq(kn_product_right(wanted, a, &right[i], M, 0), NB_OK);
                    ck_assert_mem_eq(c[i], wanted, (size_t)(M * N[i]) * sizeof *a);
                }
            }
            for (int i = 0; i < 3; i++)
                free(c[i]);
            free(a), free(wanted);
        }
        for (int i = 0; i < 3; i++)
            free(right[i].b);
    }
    omp_set_num_threads(threads);
    free(b);
}
END_TEST

START_TEST(right_operands_of_bf16_products_hold_codes_exactly)
{
    static const struct {
        int bits;
        kn_grain grain;
        bool zero, half, integers;
    } kind[] = {{4, KN_ROW, false, false, true},  {8, KN_ROW, true, false, true},    {8, KN_TENSOR, false, false, true},
                {2, KN_ROW, false, true, true},   {4, KN_GROUP, false, false, false}, {16, KN_ROW, false, false, false},
                {4, KN_BLOCK, true, false, false}};
    static const int sizes[][3] = {{130, 97, 193}, {64, 129, 300}, {257, 64, 131}};
    for (int s = 0; s < COUNT(sizes); s++) {
        const int64_t M = sizes[s][0], K = sizes[s][1], N = sizes[s][2];
        if (!kn_takes_bf16(KN_BF16, M, N, K)) {
            ck_assert(!kn_has_bf16() || M * N * K < 1 << 21);
            continue;
        }
        float *b = nb_alloc((size_t)(K * N), 4), *w = nb_alloc((size_t)(K * N), 4);
        void *memory = nb_alloc_aligned(kn_bf16_right_bytes(K, N), 1);
        kn_bf16_right right;
        fill(b, K * N, 92, 1);
        kn_bf16_rows(&right, (kn_operand){.x = b}, 0, K, N, memory);
        check_right(&right, b, false, M, K, N);
        kn_isa()->transpose(w, K, b, N, K, N);
        kn_bf16_columns(&right, w, N, K, memory);
        check_right(&right, b, false, M, K, N);
        for (int i = s; i < COUNT(kind); i += COUNT(sizes)) { /* every kind at one size: oneDNN has no fast path for all of them */
            kn_codes c;
            kn_grid g = kn_grid_int(kind[i].bits, false, kind[i].zero, kind[i].grain, kind[i].grain >= KN_HEAD ? 40 : 0, KN_SCALE_F32);
            if (kind[i].half)
                g.levels = KN_LEVELS_HALF_STEP;
            float *x = nb_alloc((size_t)((K + 3) * N), 4);
            fill(x, (K + 3) * N, 93, 1);
            ck_assert_int_eq(kn_codes_new(&c, &g, K + 3, N), NB_OK);
            kn_encode(&c, x);
            kn_decode(x, &c, 0, K + 3);
            kn_bf16_rows(&right, (kn_operand){.codes = &c}, 3, K, N, memory);
            check_right(&right, x + 3 * N, kind[i].integers, M, K, N);
            kn_codes_free(&c);
            free(x);
        }
        free(b), free(w), free(memory);
    }
}
END_TEST

START_TEST(decoding_products_match_decoded_weights)
{
    static const kn_grain grains[] = {KN_TENSOR, KN_ROW, KN_GROUP, KN_BLOCK};
    enum { N = 150, K = 300, M = 11 };
    static float wf[N * K], x[M * K], y[M * N], b[N];
    fill(x, M * K, 71, 1);
    fill(b, N, 72, 1);
    for (int i = 0; i < 10; i++) {
        kn_codes w;
        const int rows = i % 2 ? M : 3;
        const kn_grid g = i < 8 ? kn_grid_int(i == 2 ? 16 : 4, i == 2, i > 4, grains[i / 2], i / 2 > 1 ? 40 : 0, KN_SCALE_F16)
                                : kn_grid_table(KN_TABLE_NF4, i == 8 ? KN_BLOCK : KN_GROUP, 64, KN_SCALE_F32);
        ck_assert_int_eq(kn_codes_new(&w, &g, N, K), NB_OK);
        fill(wf, N * K, 73, 0.1);
        kn_encode(&w, wf);
        kn_decode(wf, &w, 0, N);
        kn_linear_decode(KN_FP32, y, x, rows, &w, b);
        for (int m = 0; m < rows; m++)
            for (int n = 0; n < N; n++) {
                double sum = b[n];
                for (int k = 0; k < K; k++)
                    sum += (double)x[m * K + k] * wf[n * K + k];
                ck_assert_float_eq_tol(y[m * N + n], (float)sum, 2e-5f);
            }
        kn_codes_free(&w);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("products");
    TCase *c = tcase_create("products");
    tcase_set_timeout(c, 120);
    tcase_add_test(c, tiles_are_chains_of_fused_steps);
    tcase_add_test(c, small_products_equal_plain_loops);
    tcase_add_loop_test(c, bf16_products_err_by_rounding_alone, 0, 2);
    tcase_add_test(c, roundings_to_bf16_agree_in_every_table);
    tcase_add_test(c, right_operands_of_bf16_products_hold_codes_exactly);
    tcase_add_test(c, products_of_one_left_operand_are_those_of_each);
    tcase_add_test(c, decoding_products_match_decoded_weights);
    suite_add_tcase(s, c);
    return run_suite(s);
}
