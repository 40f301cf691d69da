/* tile_body.h - small float products and transposition (included by table_body.h).
 * tile:  c[m,n] = (add ? c[m,n] : 0) + sum_k a(m,k) b[k,n], a(m,k) = a[m*am + k*ak]; one fused chain, k ascending, so that
 *        a sum may be cut anywhere along k without changing a bit.
 * tile_reach: the same with k < min(K, reach + m) for row m: the rows of a causal product, each with one step more.
 * tile_runs: the sum goes over `runs` runs of K steps, in which a and b lie a_run and b_run apart: windows of a picture.
 * dots:  y[m,n] = sum_k x[m,k] w[n,k], in 16 lanes over k. */

typedef struct {
    int64_t runs, a, b; /* how many, and how far apart in a and b */
} tile_run;

/* rows x vectors is the register tile, both constants where this is called. `left` columns of c and b are real. */
INLINE void tile_fixed(const int rows, const int vectors, real *c, int64_t ldc, const real *a, int64_t am, int64_t ak,
                       const real *b, int64_t ldb, int64_t K, int64_t reach, const tile_run *run, bool add, int64_t left)
{
    v16 acc[24];
    UNROLL
    for (int i = 0; i < 24; i++)
        acc[i] = v_zero();
    if (add) {
        UNROLL
        for (int i = 0; i < rows * vectors; i++)
            acc[i] = v_get(c + i / vectors * ldc + i % vectors * 16, left - i % vectors * 16);
    }
    int64_t k;
    for (int64_t left_runs = run->runs;; a += run->a, b += run->b) {
        for (k = 0; k < K && k < reach; k++) {
            v16 bv[4], s = v_zero();
            UNROLL
            for (int v = 0; v < vectors; v++)
                bv[v] = v_get(b + k * ldb + 16 * v, left - 16 * v);
            UNROLL
            for (int i = 0; i < rows * vectors; i++) {
                if (i % vectors == 0)
                    s = v_set1(a[i / vectors * am + k * ak]);
                acc[i] = v_fma(s, bv[i % vectors], acc[i]);
            }
        }
        if (--left_runs <= 0)
            break;
    }
    for (; k < K && k < reach + rows - 1; k++) {
        UNROLL
        for (int i = 0; i < rows * vectors; i++)
            if (k < reach + i / vectors)
                acc[i] = v_fma(v_set1(a[i / vectors * am + k * ak]),
                               v_get(b + k * ldb + i % vectors * 16, left - i % vectors * 16), acc[i]);
    }
    UNROLL
    for (int i = 0; i < rows * vectors; i++)
        v_put(c + i / vectors * ldc + i % vectors * 16, acc[i], left - i % vectors * 16);
}

/* Tiles that are compiled: rows x vectors <= FLOAT_TILE, and one vector that is cut off. Each is a function of its own;
 * the compiler loses track of the registers otherwise. */
typedef void tile_rows(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb,
                       int64_t K, int64_t reach, const tile_run *run, bool add, int64_t left);
#define TILE(rows, vectors)                                                                                            \
    static NOINLINE void tile_##rows##x##vectors(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak,          \
                                                 const real *b, int64_t ldb, int64_t K, int64_t reach, const tile_run *run, bool add,       \
                                                 int64_t left)                                                         \
    {                                                                                                                  \
        (void)left;                                                                                                    \
        if (rows * vectors <= FLOAT_TILE)                                                                              \
            tile_fixed(rows, vectors, c, ldc, a, am, ak, b, ldb, K, reach, run, add, 16 * vectors);                         \
    }
#define TILES(rows)                                                                                                    \
    TILE(rows, 1)                                                                                                      \
    TILE(rows, 2)                                                                                                      \
    TILE(rows, 3)                                                                                                      \
    TILE(rows, 4) static NOINLINE void tile_##rows##x0(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak,    \
                                                       const real *b, int64_t ldb, int64_t K, int64_t reach, const tile_run *run, bool add, \
                                                       int64_t left)                                                   \
    {                                                                                                                  \
        if (rows <= FLOAT_TILE)                                                                                        \
            tile_fixed(rows, 1, c, ldc, a, am, ak, b, ldb, K, reach, run, add, kn_min(left, 15));                           \
    }
TILES(1)
TILES(2)
TILES(3)
TILES(4) TILES(5) TILES(6) TILES(7) TILES(8)
#undef TILE
#undef TILES
#define ROW(r)                                                                                                         \
    {                                                                                                                  \
        tile_##r##x0, tile_##r##x1, tile_##r##x2, tile_##r##x3, tile_##r##x4                                           \
    }
    static tile_rows *const tiles[8][5] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6), ROW(7), ROW(8)};
#undef ROW

static void tile_of(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb, int64_t M, int64_t N,
                    int64_t K, int64_t reach, const tile_run *run, bool add)
{
    for (int64_t n = 0; n < N;) {
        const int64_t vectors = kn_min((N - n) / 16, FLOAT_VECTORS), wide = kn_max(vectors, 1);
        const int64_t tall = kn_min(8, FLOAT_TILE / wide);
        for (int64_t m = 0; m < M;) {
            const int64_t rows = kn_min(tall, M - m);
            tiles[rows - 1][vectors](c + m * ldc + n, ldc, a + m * am, am, ak, b + n, ldb, K, reach + m, run, add, N - n);
            m += rows;
        }
        n += 16 * wide;
    }
}

static void tile_reach(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb,
                       int64_t M, int64_t N, int64_t K, int64_t reach, bool add)
{
    const tile_run one = {.runs = 1};
    tile_of(c, ldc, a, am, ak, b, ldb, M, N, K, reach, &one, add);
}

static void tile_runs(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb, int64_t M, int64_t N,
                      int64_t K, int64_t runs, int64_t a_run, int64_t b_run, bool add)
{
    const tile_run run = {runs, a_run, b_run};
    tile_of(c, ldc, a, am, ak, b, ldb, M, N, K, K, &run, add);
}

static void tile(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb, int64_t M,
                 int64_t N, int64_t K, bool add)
{
    tile_reach(c, ldc, a, am, ak, b, ldb, M, N, K, K, add);
}

INLINE void dots_fixed(const int rows, const int columns, real *y, int64_t ldy, const real *x, int64_t ldx,
                       const real *w, int64_t ldw, int64_t K)
{
    v16 acc[8];
    UNROLL
    for (int i = 0; i < 8; i++)
        acc[i] = v_zero();
    for (int64_t k = 0; k < K; k += 16) {
        v16 wv[4], v = v_zero();
        UNROLL
        for (int c = 0; c < columns; c++)
            wv[c] = v_get(w + c * ldw + k, K - k);
        UNROLL
        for (int i = 0; i < rows * columns; i++) {
            if (i % columns == 0)
                v = v_get(x + i / columns * ldx + k, K - k);
            acc[i] = v_fma(v, wv[i % columns], acc[i]);
        }
    }
    for (int i = 0; i < rows * columns; i++)
        y[i / columns * ldy + i % columns] = v_sum(acc[i]);
}
#define DOTS(rows, columns)                                                                                            \
    static NOINLINE void dots_##rows##x##columns(real *y, int64_t ldy, const real *x, int64_t ldx, const real *w,      \
                                                 int64_t ldw, int64_t K)                                               \
    {                                                                                                                  \
        dots_fixed(rows, columns, y, ldy, x, ldx, w, ldw, K);                                                          \
    }
DOTS(1, 1)
DOTS(1, 4)
DOTS(2, 1) DOTS(2, 4)
#undef DOTS

    static void dots(real *y, int64_t ldy, const real *x, int64_t ldx, const real *w, int64_t ldw, int64_t M, int64_t N,
                     int64_t K)
{
    for (int64_t n = 0; n < N;) {
        const bool four = n + 4 <= N;
        for (int64_t m = 0; m < M;) {
            const bool two = m + 2 <= M;
            (two    ? four ? dots_2x4 : dots_2x1
             : four ? dots_1x4
                    : dots_1x1)(y + m * ldy + n, ldy, x + m * ldx, ldx, w + n * ldw, ldw, K);
            m += two ? 2 : 1;
        }
        n += four ? 4 : 1;
    }
}

/* y[m * ldy] = sum_k x[m,k] value(q[k]), m < rows, one row of n codes whose scales (and zeros, NULL: none) change every
 * `group`: per group a sum of x * (mul q + add - zero) in 2 x 16 lanes, fused to the total with the scale. */
INLINE void dot_codes_fixed(const int rows, real *y, int64_t ldy, const real *x, int64_t ldx, const int8_t *q,
                            int64_t n, const real *scale, const int32_t *zero, int64_t group, real mul, real add)
{
    v16 total[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    const v16 factor = v_set1(mul);
    for (int64_t g = 0, k = 0; k < n; g++) {
        const int64_t end = kn_min(n, k + group);
        const v16 offset = v_set1(zero ? add - (real)zero[g] : add);
        v16 even[4] = {v_zero(), v_zero(), v_zero(), v_zero()}, odd[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
        for (; k + 32 <= end; k += 32) {
            const v16 w0 = v_fma(v_from_w(w_from_s8(q + k, 16)), factor, offset);
            const v16 w1 = v_fma(v_from_w(w_from_s8(q + k + 16, 16)), factor, offset);
            UNROLL
            for (int m = 0; m < rows; m++) {
                even[m] = v_fma(v_load(x + m * ldx + k), w0, even[m]);
                odd[m] = v_fma(v_load(x + m * ldx + k + 16), w1, odd[m]);
            }
        }
        for (; k < end; k += 16) {
            const v16 w = v_fma(v_from_w(w_from_s8(q + k, end - k)), factor, offset);
            UNROLL
            for (int m = 0; m < rows; m++)
                even[m] = v_fma(v_get(x + m * ldx + k, end - k), w, even[m]);
        }
        k = end;
        UNROLL
        for (int m = 0; m < rows; m++)
            total[m] = v_fma(v_add(even[m], odd[m]), v_set1(scale[g]), total[m]);
    }
    for (int m = 0; m < rows; m++)
        y[m * ldy] = v_sum(total[m]);
}
#define DOT(rows)                                                                                                      \
    static NOINLINE void dot_codes_##rows(real *y, int64_t ldy, const real *x, int64_t ldx, const int8_t *q,           \
                                          int64_t n, const real *scale, const int32_t *zero, int64_t group, real mul,  \
                                          real add)                                                                    \
    {                                                                                                                  \
        dot_codes_fixed(rows, y, ldy, x, ldx, q, n, scale, zero, group, mul, add);                                     \
    }
DOT(1)
DOT(2)
DOT(3) DOT(4)
#undef DOT

    static void dot_codes(real *y, int64_t ldy, const real *x, int64_t ldx, int64_t M, const int8_t *q, int64_t n,
                          const real *scale, const int32_t *zero, int64_t group, real mul, real add)
{
    (M == 1   ? dot_codes_1
     : M == 2 ? dot_codes_2
     : M == 3 ? dot_codes_3
              : dot_codes_4)(y, ldy, x, ldx, q, n, scale, zero, group, mul, add);
}

/* y[n,m] = x[m,n] */
static void transpose(real *y, int64_t ldy, const real *x, int64_t ldx, int64_t M, int64_t N)
{
    for (int64_t m = 0; m < M; m += 16)
        for (int64_t n = 0; n < N; n += 16) {
            const int64_t rows = kn_min(16, M - m), columns = kn_min(16, N - n);
            v16 r[16];
            for (int i = 0; i < 16; i++)
                r[i] = i < rows ? v_get(x + (m + i) * ldx + n, columns) : v_zero();
            v_transpose(r);
            for (int i = 0; i < columns; i++)
                v_put(y + (n + i) * ldy + m, r[i], rows);
        }
}

/* The same of words, M a multiple of 16 */
static void transpose_words(uint32_t *y, int64_t ldy, const uint32_t *x, int64_t ldx, int64_t M, int64_t N)
{
    for (int64_t m = 0; m < M; m += 16)
        for (int64_t n = 0; n < N; n += 16) {
            b64 r[16];
            for (int i = 0; i < 16; i++)
                r[i] = b_load_n(x + (m + i) * ldx + n, 4 * (N - n));
            b_transpose(r);
            for (int i = 0; i < kn_min(16, N - n); i++)
                b_store(y + (n + i) * ldy + m, r[i]);
        }
}
