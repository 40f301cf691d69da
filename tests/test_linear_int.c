/* test_linear_int.c - integer products against their definition, in every table.
 */
#include "isa_tables.h"
#include "suite.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    int M, N, K, group; /* group 0: rows */
    bool a_zero, extreme, bias;
} linear_case;
static const linear_case linear_cases[] = {
    {1, 1, 1, 0, false, false, false},   {1, 17, 5, 0, true, true, true},       {2, 64, 64, 0, false, true, false},
    {3, 172, 64, 0, true, false, true},  {5, 33, 172, 0, false, true, true},    {6, 64, 172, 0, true, true, false},
    {7, 80, 31, 0, false, false, true},  {100, 130, 67, 0, true, true, true},   {200, 64, 96, 0, false, true, true},
    {1, 16, 1030, 0, true, true, true},  {9, 300, 64, 32, false, true, true},   {13, 70, 172, 32, false, false, true},
    {4, 20, 37, 12, false, true, false}, {150, 96, 192, 64, false, true, true}, {1, 64, 64, 4, false, false, true},
    {2, 40, 4200, 32, false, false, true}, {16, 16, 2112, 0, true, true, false}, {17, 33, 4163, 0, true, false, true},
    {300, 20, 2084, 0, true, true, true}, {33, 50, 2180, 32, true, false, true}, {16, 16, 96, 32, false, true, false},
    {31, 18, 2500, 128, true, true, true}, {270, 30, 200, 96, true, false, true},
};

static void random_codes(kn_codes *c, kn_grid g, int64_t rows, int64_t cols, uint64_t seed, bool extreme)
{
    ck_assert_int_eq(kn_codes_new(c, &g, rows, cols), NB_OK);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < cols; k++) {
            const uint64_t u = nb_random(seed, 1, (uint64_t)(r * cols + k));
            const int span = g.hi - g.lo + 1;
            c->q[r * c->ld + k] = (int8_t)(extreme ? (u % 4 ? g.lo : g.hi) : g.lo + (int)(u % (uint64_t)span));
        }
    for (int64_t i = 0; i < c->n_scales; i++) {
        c->scale[i] = kn_store(&g, (float)(0.001 + 0.01 * nb_random_unit(seed, 2, (uint64_t)i)));
        if (c->zero)
            c->zero[i] = g.lo + (int)(nb_random(seed, 3, (uint64_t)i) % (uint64_t)(g.hi - g.lo + 1));
    }
}

/* The definition of kn_linear_int, with the sum in 64 bits. */
static float linear_one(const kn_codes *a, const kn_codes *w, const float *b, int64_t m, int64_t n)
{
    float y = 0;
    const int64_t group = w->grid.grain == KN_GROUP ? w->grid.group : w->cols;
    for (int64_t k = 0; k < w->cols; k += group) {
        int64_t acc = 0;
        const int64_t ia = kn_scale_index(a, m, k);
        for (int64_t i = k; i < w->cols && i < k + group; i++)
            acc += (a->q[m * a->ld + i] - (a->zero ? a->zero[ia] : 0)) *
                   (int64_t)(kn_has_table(&w->grid) ? (int)kn_table_levels(&w->grid)[w->q[n * w->ld + i]]
                                                    : kn_mul(&w->grid) * w->q[n * w->ld + i] + kn_add(&w->grid));
        const float sw = w->scale[kn_scale_index(w, n, k)], sa = a->scale[ia];
        ck_assert(acc == (int32_t)acc);
        y = w->grid.grain == KN_GROUP ? fmaf((float)acc, sw * sa, y) : (float)acc * sw * sa;
    }
    return b ? y + b[n] : y;
}

static void check_linear(const linear_case *p, kn_grid ga, kn_grid gw)
{
    kn_codes a, w;
    kn_packed packed = {0};
    random_codes(&a, ga, p->M + 2, p->K, 61, p->extreme);
    random_codes(&w, gw, p->N, p->K, 62, p->extreme);
    float *b = nb_alloc((size_t)p->N, 4), *y = nb_alloc((size_t)(p->M * p->N), 4),
          *z = nb_alloc((size_t)(p->M * p->N), 4);
    fill(b, p->N, 63, 1);
    ck_assert(kn_can_multiply(&ga, &gw, p->K));
    ck_assert_int_eq(kn_pack(&packed, &w), NB_OK);
    kn_linear_int(y, &a, 2, p->M, &packed, p->bias ? b : NULL);
    for (int m = 0; m < p->M; m++)
        for (int n = 0; n < p->N; n++)
            ck_assert(y[m * p->N + n] == linear_one(&a, &w, p->bias ? b : NULL, m + 2, n));
    const int64_t row = ga.grain == KN_TENSOR ? 0 : 2 * a.spans;
    const kn_linear_job job = {.y = z,
                               .a = a.q + 2 * a.ld,
                               .lda = a.ld,
                               .M = p->M,
                               .panels = packed.panels,
                               .a_scale = a.scale + row,
                               .scale_row = ga.grain == KN_TENSOR ? 0 : a.spans,
                               .scale_group = ga.grain == KN_GROUP,
                               .a_zero = a.zero ? a.zero + row : NULL,
                               .zero_row = ga.grain == KN_TENSOR ? 0 : 1,
                               .w = &packed,
                               .b = p->bias ? b : NULL};
    for (int t = 0; t < COUNT(tables); t++) {
        if (!usable(tables[t]))
            continue;
        memset(z, 0, (size_t)(p->M * p->N) * 4);
        tables[t]->linear(&job);
        ck_assert_mem_eq(z, y, (size_t)(p->M * p->N) * 4);
        if (!tables[t]->linear_tall || p->M < KN_TALL || (packed.groups > 1 && packed.group % 32))
            continue;
        memset(z, 0, (size_t)(p->M * p->N) * 4);
        tables[t]->linear_tall(&job);
        ck_assert_mem_eq(z, y, (size_t)(p->M * p->N) * 4);
    }
    kn_packed_free(&packed);
    kn_codes_free(&a);
    kn_codes_free(&w);
    free(b), free(y), free(z);
}

START_TEST(integer_products_are_exact)
{
    const linear_case *p = &linear_cases[_i];
    const kn_grain grain = p->group ? KN_GROUP : KN_ROW;
    const kn_grid w8 = kn_grid_int(8, false, false, grain, p->group, KN_SCALE_F32);
    const kn_grid w4 = kn_grid_int(4, false, false, grain, p->group, KN_SCALE_F16);
    kn_grid half = kn_grid_int(2, false, false, grain, p->group, KN_SCALE_F32);
    half.levels = KN_LEVELS_HALF_STEP;
    const kn_grid rows = kn_grid_int(8, false, p->a_zero, KN_ROW, 0, KN_SCALE_F32);
    const kn_grid whole = kn_grid_int(8, false, p->a_zero, KN_TENSOR, 0, KN_SCALE_F32);
    check_linear(p, rows, w8);
    check_linear(p, rows, w4);
    check_linear(p, rows, half);
    check_linear(p, whole, w8);
    check_linear(p, rows, kn_grid_table(KN_TABLE_IQ4_NL, grain, p->group, KN_SCALE_F16));
    check_linear(p, rows, kn_grid_int(1, false, false, grain, p->group, KN_SCALE_F32));
    if (p->group)
        check_linear(p, kn_grid_int(8, true, false, KN_GROUP, p->group, KN_SCALE_F16), w8);
}
END_TEST

static const kn_grid outlier_weights[] = {
    {.levels = KN_LEVELS_INT, .bits = 8, .grain = KN_ROW, .lo = -127, .hi = 127},
    {.levels = KN_LEVELS_INT, .bits = 4, .grain = KN_ROW, .lo = -8, .hi = 7},
    {.levels = KN_LEVELS_INT, .bits = 4, .grain = KN_TENSOR, .scale = KN_SCALE_F16, .lo = -8, .hi = 7},
    {.levels = KN_LEVELS_INT, .bits = 4, .grain = KN_GROUP, .group = 32, .scale = KN_SCALE_F16, .lo = -8, .hi = 7},
    {.levels = KN_LEVELS_INT, .bits = 8, .grain = KN_GROUP, .group = 12, .lo = -127, .hi = 127},
    {.levels = KN_LEVELS_HALF_STEP, .bits = 2, .grain = KN_ROW, .lo = -2, .hi = 1},
};

/* LLM.int8(): the range is of what is no outlier, an outlier is a binary16 beside the codes, its product is added behind the integers'. */
START_TEST(outliers_stand_beside_the_integer_product)
{
    enum { M = 5, N = 37, K = 75 };
    const float huge = 1e6f;
    kn_grid ga = kn_grid_int(8, true, false, KN_ROW, 0, KN_SCALE_F32);
    ga.outlier = 6;
    kn_codes a, plain, w;
    kn_packed packed = {0};
    float x[M * K], back[M * K], y[M * N], z[M * N], b[N];
    fill(x, M * K, 71, 2);
    fill(b, N, 72, 1);
    x[1] = 6, x[2] = -6, x[3] = 5.999f, x[4] = huge, x[K] = NAN;
    for (int k = 0; k < K; k++)
        x[2 * K + k] = 7 + (float)k; /* nothing but outliers */
    ck_assert_int_eq(kn_grid_check(&ga), NB_OK);
    ck_assert_int_eq(kn_codes_new(&a, &ga, M, K), NB_OK);
    kn_encode(&a, x);
    kn_decode(back, &a, 0, M);
    for (int m = 0; m < M; m++) {
        float most = 0;
        for (int k = 0; k < K; k++)
            most = fabsf(x[m * K + k]) < 6 ? fmaxf(most, fabsf(x[m * K + k])) : most;
        ck_assert(a.scale[m] == kn_store(&ga, most / 127));
        for (int k = 0; k < K; k++) {
            const float v = x[m * K + k], half = nb_half_to(nb_half_from(v == huge ? 65504 : v));
            const bool apart = fabsf(v) >= 6;
            ck_assert(apart ? a.q[m * a.ld + k] == 0 && back[m * K + k] == half : a.wide[m * a.ld + k] == 0);
            ck_assert(back[m * K + k] == kn_decode_one(&a, m, k));
            ck_assert(apart || a.q[m * a.ld + k] == kn_encode_one(&ga, v, kn_inverse(a.scale[m]), 0));
            kn_decode_part(z, &a, m, k, 1);
            ck_assert(z[0] == back[m * K + k]);
        }
    }
    const kn_grid gw = outlier_weights[_i];
    ck_assert(kn_can_multiply(&ga, &gw, K));
    random_codes(&w, gw, N, K, 73, false);
    ck_assert_int_eq(kn_pack(&packed, &w), NB_OK);
    kn_linear_int(y, &a, 0, M, &packed, b);
    plain = a;
    plain.wide = NULL;
    kn_linear_int(z, &plain, 0, M, &packed, b);
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            float sum = z[m * N + n];
            for (int k = 0; k < K; k++)
                if (fabsf(x[m * K + k]) >= 6)
                    sum = fmaf(back[m * K + k], kn_decode_one(&w, n, k), sum);
            ck_assert_msg(y[m * N + n] == sum, "grid %d, [%d,%d]: %.9g, plainly %.9g", _i, m, n, (double)y[m * N + n], (double)sum);
        }
    kn_linear_int(z, &a, 3, 1, &packed, b); /* a row has the same bits alone */
    ck_assert_mem_eq(z, y + 3 * N, N * sizeof *y);
    kn_packed_free(&packed);
    kn_codes_free(&a);
    kn_codes_free(&w);
}
END_TEST

START_TEST(products_that_could_overflow_are_refused)
{
    const kn_grid a = kn_grid_int(8, false, true, KN_ROW, 0, KN_SCALE_F32);
    const kn_grid w = kn_grid_int(8, false, false, KN_ROW, 0, KN_SCALE_F32);
    const int64_t most = INT32_MAX / 255 / 128;
    ck_assert(kn_can_multiply(&a, &w, most));
    ck_assert(!kn_can_multiply(&a, &w, most + 1));
    ck_assert(!kn_can_multiply(&w, &a, 8)); /* weights with zero points */
    const kn_grid wide = kn_grid_int(16, true, false, KN_ROW, 0, KN_SCALE_F32), none = {0};
    const kn_grid odd = kn_grid_int(8, false, false, KN_GROUP, 6, KN_SCALE_F32);
    ck_assert(!kn_can_multiply(&wide, &w, 8) && !kn_can_multiply(&w, &wide, 8) && !kn_can_multiply(&none, &w, 8));
    const kn_grid nf4 = kn_grid_table(KN_TABLE_NF4, KN_ROW, 0, KN_SCALE_F32);
    ck_assert(!kn_can_multiply(&w, &nf4, 8) && !kn_can_multiply(&nf4, &w, 8));
    ck_assert(!kn_can_multiply(&w, &odd, 12) && !kn_can_multiply(&odd, &odd, 12));
}
END_TEST

/* ---- the way back ------------------------------------------------------------------------- */

START_TEST(numbers_are_rounded_at_random_and_right_on_average)
{
    enum { N = 77, DRAWS = 4000 };
    float x[N];
    int8_t q[N], other[N];
    double sum[N] = {0};
    fill(x, N, 71, 40);
    x[0] = 0, x[1] = 127, x[2] = -127, x[3] = 500, x[4] = -500;
    for (uint32_t key = 0; key < DRAWS; key++) {
        kn_isa()->codes_at_random(q, x, 1, N, key * 1000);
        for (int i = 0; i < N; i++) {
            const double at = x[i] > 127 ? 127 : x[i] < -127 ? -127 : (double)x[i];
            ck_assert(q[i] >= floor(at - 1e-4) && q[i] <= ceil(at + 1e-4));
            sum[i] += q[i];
        }
    }
    for (int i = 5; i < N; i++) /* a coin's standard deviation is at most a half */
        ck_assert_double_eq_tol(sum[i] / DRAWS, fmax(-127, fmin(127, (double)x[i])), 5 * 0.5 / sqrt(DRAWS));
    for (int t = 0; t < COUNT(tables); t++) {
        if (!usable(tables[t]))
            continue;
        tables[t]->codes_at_random(other, x, 1, N, (DRAWS - 1) * 1000);
        ck_assert_mem_eq(other, q, N);
    }
}
END_TEST

static kn_grid back_grid(int i)
{
    kn_grid half = kn_grid_int(2, false, false, KN_ROW, 0, KN_SCALE_F32);
    half.levels = KN_LEVELS_HALF_STEP;
    const kn_grid grids[] = {kn_grid_int(4, false, false, KN_ROW, 0, KN_SCALE_F16), kn_grid_int(8, false, false, KN_ROW, 0, KN_SCALE_F32),
                             kn_grid_int(8, true, false, KN_TENSOR, 0, KN_SCALE_F32), kn_grid_int(1, false, false, KN_ROW, 0, KN_SCALE_F32), half};
    return grids[i];
}

/* The definition: the row of dy times scales in 8 bits, the sum in 64. */
static void back_row(float *dx, const float *dy, const kn_codes *w, uint32_t key, bool add)
{
    const int64_t N = w->rows;
    float *z = nb_alloc((size_t)N, sizeof *z), most = 0;
    int8_t *q = nb_alloc((size_t)N, 1);
    for (int64_t n = 0; n < N; n++) {
        z[n] = dy[n] * w->scale[kn_scale_index(w, n, 0)];
        most = fmaxf(most, fabsf(z[n]));
    }
    kn_isa()->codes_at_random(q, z, kn_inverse(most / 127), N, key);
    for (int64_t k = 0; k < w->cols; k++) {
        int64_t acc = 0;
        for (int64_t n = 0; n < N; n++)
            acc += q[n] * (kn_mul(&w->grid) * w->q[n * w->ld + k] + kn_add(&w->grid));
        const float y = (float)acc * (most / 127);
        dx[k] = add ? dx[k] + y : y;
    }
    free(z), free(q);
}

START_TEST(the_way_back_is_exact_behind_its_rounding)
{
    static const int sizes[][3] = {{1, 5, 3}, {7, 33, 70}, {130, 97, 41}, {300, 64, 192}};
    kn_packed packed = {0};
    for (int s = 0; s < COUNT(sizes); s++) {
        const int64_t M = sizes[s][0], N = sizes[s][1], K = sizes[s][2];
        kn_codes w;
        random_codes(&w, back_grid(_i), N, K, 81, false);
        float *dy = nb_alloc((size_t)(M * N), 4), *dx = nb_alloc((size_t)(M * K), 4), *plain = nb_alloc((size_t)(M * K), 4);
        void *memory = nb_alloc_aligned(kn_linear_back_bytes(M, N, K), 1);
        fill(dy, M * N, 82, 1e-6);
        memset(dy, 0, (size_t)N * 4); /* a row without gradient */
        fill(plain, M * K, 83, 1e-6);
        ck_assert(kn_can_multiply_back(&w.grid, N));
        for (int add = 0; add <= 1; add++) {
            memcpy(dx, plain, (size_t)(M * K) * 4);
            ck_assert_int_eq(kn_linear_back(dx, dy, M, &w, add, 9, &packed, memory), NB_OK);
            for (int64_t m = 0; m < M; m++)
                back_row(plain + m * K, dy + m * N, &w, 9 + (uint32_t)(m * N), add);
            ck_assert_mem_eq(dx, plain, (size_t)(M * K) * 4);
        }
        free(dy), free(dx), free(plain), free(memory);
        kn_codes_free(&w);
    }
    kn_packed_free(&packed);
    const kn_grid group = kn_grid_int(4, false, false, KN_GROUP, 32, KN_SCALE_F16), zero = kn_grid_int(4, false, true, KN_ROW, 0, KN_SCALE_F32),
                  nf4 = kn_grid_table(KN_TABLE_NF4, KN_ROW, 0, KN_SCALE_F32);
    ck_assert(!kn_can_multiply_back(&group, 64) && !kn_can_multiply_back(&zero, 64) && !kn_can_multiply_back(&nf4, 64));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("integer products");
    TCase *c = tcase_create("integer products");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, integer_products_are_exact, 0, COUNT(linear_cases));
    tcase_add_loop_test(c, outliers_stand_beside_the_integer_product, 0, COUNT(outlier_weights));
    tcase_add_test(c, products_that_could_overflow_are_refused);
    tcase_add_test(c, numbers_are_rounded_at_random_and_right_on_average);
    tcase_add_loop_test(c, the_way_back_is_exact_behind_its_rounding, 0, 5);
    suite_add_tcase(s, c);
    return run_suite(s);
}
