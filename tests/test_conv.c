/* test_conv.c - convolution and pooling of floats, and dropout: against their formulas, in every precision, with any number of threads. */
#include "kernels/kernels_isa.h"
#include "suite.h"
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define X(name, test) #name,
static const char *const tables[] = {KN_TABLES(X)};
#undef X
enum { TABLES = sizeof tables / sizeof *tables, B = 3, MOST = B * 20 * 20 * 70 };

/* H, W, C, N, K, stride, pad, dilation, groups */
static const kn_conv shapes[] = {
    {9, 11, 3, 5, 3, 1, 1, 1, 1, 0, 0},   {12, 20, 32, 64, 3, 1, 0, 1, 1, 0, 0}, {10, 13, 1, 33, 3, 1, 0, 1, 1, 0, 0},
    {17, 19, 10, 70, 3, 2, 1, 1, 1, 0, 0}, {9, 9, 33, 17, 2, 1, 2, 1, 1, 0, 0},   {7, 8, 2, 3, 2, 1, 2, 2, 1, 0, 0},
    {6, 6, 8, 8, 3, 1, 1, 1, 8, 0, 0},    {8, 6, 6, 4, 3, 2, 1, 1, 2, 0, 0},     {5, 4, 40, 36, 1, 1, 0, 1, 1, 0, 0},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

static real x[MOST], w[64 * 3 * 3 * 64], b[70], dy[MOST], gate[MOST], y[MOST], dx[MOST], dw[64 * 3 * 3 * 64], db[70];

static void fill(real *to, int64_t n, uint64_t stream)
{
    for (int64_t i = 0; i < n; i++)
        to[i] = (real)nb_random_normal(21, stream, (uint64_t)i);
}

/* Calls f(sums of y, dx and dw, where they stand in x, w and y) for all products. */
typedef struct {
    double *y, *dx, *dw;
} sums;

static void by_definition(sums s, const kn_conv *c, const real *d)
{
    const int64_t C = c->C / c->groups, N = c->N / c->groups, depth = kn_conv_depth(c);
    for (int64_t i = 0; i < B * c->OH * c->OW * c->N; i++) {
        const int64_t n = i % c->N, o = i / c->N, ox = o % c->OW, oy = o / c->OW % c->OH, picture = o / c->OW / c->OH;
        for (int64_t k = 0; k < depth; k++) {
            const int64_t h = oy * c->stride + k / C / c->K * c->dilation - c->pad,
                          v = ox * c->stride + k / C % c->K * c->dilation - c->pad;
            if (h < 0 || h >= c->H || v < 0 || v >= c->W)
                continue;
            const int64_t at = ((picture * c->H + h) * c->W + v) * c->C + n / N * C + k % C;
            s.y[i] += (double)x[at] * (double)w[n * depth + k];
            s.dx[at] += (double)d[i] * (double)w[n * depth + k];
            s.dw[n * depth + k] += (double)d[i] * (double)x[at];
        }
    }
}

/* Norm of the difference over the norm of what was wanted. */
static double error_of(const real *found, const double *wanted, int64_t n)
{
    double sum = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        sum += ((double)found[i] - wanted[i]) * ((double)found[i] - wanted[i]);
        all += wanted[i] * wanted[i];
    }
    return sqrt(sum / all);
}

/* bf16 operands have 8 bits: an error of about 2^-9 of each product, at random */
START_TEST(convolution_and_its_gradients_follow_the_formulas)
{
    const kn_precision p = _i % 2 ? KN_BF16 : KN_FP32;
    const double most = p == KN_BF16 ? 5e-3 : 1e-5;
    kn_conv c = shapes[_i / 2];
    ck_assert_int_eq(kn_conv_fit(&c), NB_OK);
    const int64_t in = B * c.H * c.W * c.C, out = B * c.OH * c.OW * c.N, depth = kn_conv_depth(&c);
    ck_assert(in <= MOST && out <= MOST && c.N * depth <= (int64_t)(sizeof w / sizeof *w));
    fill(x, in, 1);
    fill(w, c.N * depth, 2);
    fill(b, c.N, 3);
    fill(dy, out, 4);
    fill(gate, out, 5);
    sums s = {calloc((size_t)out, sizeof(double)), calloc((size_t)in, sizeof(double)), calloc((size_t)(c.N * depth), sizeof(double))};
    double *sum_b = calloc((size_t)c.N, sizeof(double));
    real *passed = calloc((size_t)out, sizeof *passed);
    for (int64_t i = 0; i < out; i++) {
        passed[i] = gate[i] > 0 && gate[i] < 6 ? dy[i] : 0;
        sum_b[i % c.N] += (double)passed[i];
    }
    by_definition(s, &c, passed);
    for (int64_t i = 0; i < out; i++)
        s.y[i] = fmin(fmax(s.y[i] + (double)b[i % c.N], 0), 6);
    ck_assert_int_eq(kn_conv_forward(p, y, &c, x, w, b, KN_RELU6, B), NB_OK);
    ck_assert_double_lt(error_of(y, s.y, out), most);
    memset(db, 0, sizeof db);
    fill(dw, c.N * depth, 6);
    for (int64_t i = 0; i < c.N * depth; i++)
        s.dw[i] += (double)dw[i];
    const kn_conv_gradients to = {.dx = dx, .dw = dw, .db = db, .beta_dx = 0, .beta_dw = 1};
    ck_assert_int_eq(kn_conv_backward(p, &to, &c, dy, gate, KN_RELU6, x, w, B), NB_OK);
    ck_assert_mem_eq(dy, passed, (size_t)out * sizeof *dy);
    ck_assert_double_lt(error_of(dx, s.dx, in), most);
    ck_assert_double_lt(error_of(dw, s.dw, c.N * depth), most);
    ck_assert_double_lt(error_of(db, sum_b, c.N), 1e-5);
    free(s.y);
    free(s.dx);
    free(s.dw);
    free(sum_b);
    free(passed);
}
END_TEST

START_TEST(threads_do_not_change_a_bit)
{
    static real one[3][MOST];
    kn_conv c = shapes[1];
    const int before = omp_get_max_threads();
    ck_assert_int_eq(kn_conv_fit(&c), NB_OK);
    const int64_t in = B * c.H * c.W * c.C, out = B * c.OH * c.OW * c.N, size = c.N * kn_conv_depth(&c);
    for (int threads = 1; threads < 4; threads++) {
        fill(x, in, 1);
        fill(w, size, 2);
        fill(dy, out, 4);
        omp_set_num_threads(threads);
        const kn_conv_gradients to = {.dx = dx, .dw = dw};
        ck_assert_int_eq(kn_conv_forward(_i ? KN_BF16 : KN_FP32, y, &c, x, w, NULL, KN_RELU, B), NB_OK);
        ck_assert_int_eq(kn_conv_backward(_i ? KN_BF16 : KN_FP32, &to, &c, dy, y, KN_RELU, x, w, B), NB_OK);
        const real *found[] = {y, dx, dw};
        const int64_t n[] = {out, in, size};
        for (int k = 0; k < 3; k++) {
            if (threads == 1)
                memcpy(one[k], found[k], (size_t)n[k] * sizeof(real));
            ck_assert_mem_eq(one[k], found[k], (size_t)n[k] * sizeof(real));
        }
    }
    omp_set_num_threads(before);
}
END_TEST

/* K, stride; pictures of 7 x 9 points, C channels */
static const int pools[][3] = {{2, 2, 1}, {3, 1, 16}, {2, 3, 21}, {7, 7, 5}, {1, 1, 40}};
enum { POOLS = sizeof pools / sizeof *pools };

START_TEST(the_first_of_the_largest_takes_the_gradient)
{
    enum { H = 7, W = 9 };
    kn_conv c = {.H = H, .W = W, .C = pools[_i][2], .K = pools[_i][0], .stride = pools[_i][1]};
    static uint8_t at[H * W * 40];
    static real wanted[H * W * 40];
    ck_assert_int_eq(kn_pool_fit(&c), NB_OK);
    const int64_t C = c.C, in = H * W * C, out = c.OH * c.OW * C;
    for (int64_t i = 0; i < in; i++)
        x[i] = (real)(nb_random(1, 2, (uint64_t)i) % 4); /* many are equal */
    fill(dy, out, 4);
    kn_max_pool(y, at, &c, x, 1);
    for (int beta = 0; beta < 2; beta++) {
        fill(dx, in, 5);
        for (int64_t i = 0; i < in; i++)
            wanted[i] = beta ? dx[i] : 0;
        for (int64_t i = 0; i < out; i++) {
            const int64_t o = i / C;
            int64_t best = -1;
            for (int64_t k = 0; k < c.K * c.K; k++) {
                const int64_t point = (o / c.OW * c.stride + k / c.K) * W + o % c.OW * c.stride + k % c.K;
                if (best < 0 || x[point * C + i % C] > x[best])
                    best = point * C + i % C;
            }
            ck_assert(y[i] == x[best]);
            wanted[best] += dy[i];
        }
        kn_max_pool_dx(dx, (real)beta, &c, dy, at, 1);
        ck_assert_mem_eq(dx, wanted, (size_t)in * sizeof *dx);
    }
}
END_TEST

START_TEST(dropout_leaves_out_what_its_numbers_say)
{
    enum { SIZE = 30000 };
    const real p = (real)0.3;
    fill(x, SIZE, 1);
    fill(y, SIZE, 2);
    for (int beta = 0; beta < 2; beta++) {
        memcpy(dx, y, SIZE * sizeof *y);
        kn_drop(dx, (real)beta, x, SIZE, p, 5, 6);
        for (int64_t i = 0; i < SIZE; i++) {
            const real v = nb_random_unit(5, 6, (uint64_t)i) >= (double)p ? x[i] * (1 / (1 - p)) : 0;
            ck_assert(dx[i] == (beta ? y[i] + v : v));
        }
    }
}
END_TEST

START_TEST(tables_agree_bit_for_bit)
{
    enum { M = 7, NUMBERS = 90, K = 3, RUNS = 4 };
    const kn_table *t = kn_isa_named(tables[_i]);
    const kn_table *plain = &kn_table_scalar;
    static real c[2][2 * M * NUMBERS], d[2][M * NUMBERS];
    double s[2][NUMBERS];
    fill(x, 4000, 1);
    fill(w, 4000, 2);
    fill(b, 70, 3);
    for (int n = 1; t && n < 70; n += 17)
        for (int k = 0; k < 2; k++) {
            const kn_table *use = k ? t : plain;
            fill(c[k], M * NUMBERS, 4);
            fill(d[k], M * NUMBERS, 5);
            use->tile_runs(c[k], NUMBERS, x, 5, 1, w, NUMBERS, M, n, K, RUNS, 40, 3 * NUMBERS, true);
            use->finish_rows(c[k], b, M, n, KN_RELU6);
            use->gate_rows(d[k], s[k], c[k], M, n, KN_RELU6);
            if (k) {
                ck_assert_mem_eq(c[0], c[1], sizeof c[0]);
                ck_assert_mem_eq(d[0], d[1], sizeof d[0]);
                ck_assert_mem_eq(s[0], s[1], (size_t)n * sizeof **s);
            }
        }
    for (int n = 1; t && n < 70; n += 17) {
        uint8_t bits[2][9];
        double products[2][NUMBERS];
        real sum[2][2], ends[2][2];
        x[n] = n % 2 ? (real)NAN : (real)INFINITY;
        for (int k = 0; k < 2; k++) {
            const kn_table *use = k ? t : plain;
            fill(c[k], M * NUMBERS, 4);
            use->range_bits(bits[k], x, n, 2, -1, (real)0.5);
            use->bits_pass(c[k], w, bits[k], n, true);
            use->range_pass(c[k] + NUMBERS, w, x, n, 2, -1, (real)0.5, true);
            use->range_sums(sum[k], w, x, b, n < 60 ? n : 60, 2, -1, (real)0.5, 1);
            use->depthwise_row(c[k] + 2 * NUMBERS, x + 100, w, 2, n, 3, n, 4 * n, n, n % 2);
            use->depthwise_row_dw(c[k] + 4 * NUMBERS, x + 100, w, 2, n, 1 + n % 2, n, 4 * n, n);
            use->column_maps(c[k] + 6 * NUMBERS, x + 100, w, n % 2 ? x + 200 : NULL, w + 100, w + 200, 1, n, n % 2);
            memset(s[k], 0, sizeof s[k]);
            memset(products[k], 0, sizeof products[k]);
            use->column_sums(s[k], products[k], x + 100, w, x + 2000, w + 100, 20, n);
            use->finite_min_max(&ends[k][0], &ends[k][1], x, n + 1);
        }
        ck_assert_mem_eq(c[0], c[1], sizeof c[0]);
        ck_assert_mem_eq(bits[0], bits[1], (size_t)(n + 7) / 8);
        ck_assert_mem_eq(sum[0], sum[1], sizeof sum[0]);
        ck_assert_mem_eq(ends[0], ends[1], sizeof ends[0]);
        ck_assert_mem_eq(s[0], s[1], sizeof s[0]);
        ck_assert_mem_eq(products[0], products[1], sizeof products[0]);
        real low = (real)INFINITY;
        for (int i = 0; i < n; i++) {
            low = x[i] < low ? x[i] : low;
            ck_assert_int_eq(bits[0][i / 8] >> (i % 8) & 1, x[i] * 2 >= -1 && x[i] * 2 <= (real)0.5);
        }
        ck_assert(ends[0][0] == low);
        x[n] = 0;
    }
    for (int64_t m = 0; m < M; m++) { /* the runs of tile_runs are one chain */
        real sum = 0, found;
        for (int r = 0; r < RUNS; r++)
            for (int k = 0; k < K; k++)
                sum = fmaf(x[m * 5 + k + r * 40], w[k * NUMBERS + r * 3 * NUMBERS], sum);
        plain->tile_runs(&found, 1, x + m * 5, 5, 1, w, NUMBERS, 1, 1, K, RUNS, 40, 3 * NUMBERS, false);
        ck_assert(found == sum);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("conv");
    TCase *tc = tcase_create("conv");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, convolution_and_its_gradients_follow_the_formulas, 0, 2 * SHAPES);
    tcase_add_loop_test(tc, threads_do_not_change_a_bit, 0, 2);
    tcase_add_loop_test(tc, the_first_of_the_largest_takes_the_gradient, 0, POOLS);
    tcase_add_test(tc, dropout_leaves_out_what_its_numbers_say);
    tcase_add_loop_test(tc, tables_agree_bit_for_bit, 0, TABLES);
    suite_add_tcase(s, tc);
    return run_suite(s);
}
