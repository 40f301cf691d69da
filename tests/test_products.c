/* test_products.c - tiles, library products, integer products: against plain loops, in every table.
 */
#include "kernels/kernels_isa.h"
#include "suite.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static const kn_table *const tables[] = {
#define X(name, test) &kn_table_##name,
    KN_TABLES(X)
#undef X
};

static bool usable(const kn_table *t)
{
    return kn_isa_named(t->name) == t;
}

/* Normal numbers of standard deviation `size`. */
static void fill(float *x, int64_t n, uint64_t seed, double size)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(size * nb_random_normal(seed, 7, (uint64_t)i));
}

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

/* ---- integer products ---- */

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
    tcase_add_loop_test(c, integer_products_are_exact, 0, COUNT(linear_cases));
    tcase_add_loop_test(c, outliers_stand_beside_the_integer_product, 0, COUNT(outlier_weights));
    tcase_add_test(c, products_that_could_overflow_are_refused);
    tcase_add_test(c, decoding_products_match_decoded_weights);
    suite_add_tcase(s, c);
    return run_suite(s);
}
