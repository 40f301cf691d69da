/* tile_body.h - small float products and transposition (included by table_body.h).
 * tile:  c[m,n] = (add ? c[m,n] : 0) + sum_k a(m,k) b[k,n], a(m,k) = a[m*am + k*ak]; one fused chain, k ascending, so that
 *        a sum may be cut anywhere along k without changing a bit.
 * tile_reach: the same with k < min(K, reach + m) for row m: the rows of a causal product, each with one step more.
 * dots:  y[m,n] = sum_k x[m,k] w[n,k], in 16 lanes over k. */

/* rows x vectors is the register tile, both constants where this is called. `left` columns of c and b are real. */
INLINE void tile_fixed(const int rows, const int vectors, real *c, int64_t ldc, const real *a, int64_t am, int64_t ak,
                       const real *b, int64_t ldb, int64_t K, int64_t reach, bool add, int64_t left)
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
    int64_t k = 0;
    for (; k < K && k < reach; k++) {
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
                       int64_t K, int64_t reach, bool add, int64_t left);
#define TILE(rows, vectors)                                                                                            \
    static NOINLINE void tile_##rows##x##vectors(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak,          \
                                                 const real *b, int64_t ldb, int64_t K, int64_t reach, bool add,       \
                                                 int64_t left)                                                         \
    {                                                                                                                  \
        (void)left;                                                                                                    \
        if (rows * vectors <= FLOAT_TILE)                                                                              \
            tile_fixed(rows, vectors, c, ldc, a, am, ak, b, ldb, K, reach, add, 16 * vectors);                         \
    }
#define TILES(rows)                                                                                                    \
    TILE(rows, 1)                                                                                                      \
    TILE(rows, 2) TILE(rows, 3)                                                                                        \
        TILE(rows, 4) static NOINLINE void tile_##rows##x0(real *c, int64_t ldc, const real *a, int64_t am,            \
                                                           int64_t ak, const real *b, int64_t ldb, int64_t K,          \
                                                           int64_t reach, bool add, int64_t left)                      \
    {                                                                                                                  \
        if (rows <= FLOAT_TILE)                                                                                        \
            tile_fixed(rows, 1, c, ldc, a, am, ak, b, ldb, K, reach, add, kn_min(left, 15));                           \
    }
TILES(1)
TILES(2) TILES(3) TILES(4) TILES(5) TILES(6) TILES(7) TILES(8)
#undef TILE
#undef TILES
#define ROW(r)                                                                                                         \
    {                                                                                                                  \
        tile_##r##x0, tile_##r##x1, tile_##r##x2, tile_##r##x3, tile_##r##x4                                           \
    }
    static tile_rows *const tiles[8][5] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6), ROW(7), ROW(8)};
#undef ROW

static void tile_reach(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb,
                       int64_t M, int64_t N, int64_t K, int64_t reach, bool add)
{
    for (int64_t n = 0; n < N;) {
        const int64_t vectors = kn_min((N - n) / 16, FLOAT_VECTORS), wide = kn_max(vectors, 1);
        const int64_t tall = kn_min(8, FLOAT_TILE / wide);
        for (int64_t m = 0; m < M;) {
            const int64_t rows = kn_min(tall, M - m);
            tiles[rows - 1][vectors](c + m * ldc + n, ldc, a + m * am, am, ak, b + n, ldb, K, reach + m, add, N - n);
            m += rows;
        }
        n += 16 * wide;
    }
}

static void tile(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb, int64_t M,
                 int64_t N, int64_t K, bool add)
{
    tile_reach(c, ldc, a, am, ak, b, ldb, M, N, K, K, add);
}

INLINE void dots_fixed(const int rows, real *y, int64_t ldy, const real *x, int64_t ldx, const real *w, int64_t ldw,
                       int64_t N, int64_t K)
{
    for (int64_t n = 0; n < N; n++, w += ldw) {
        v16 acc[4];
        UNROLL
        for (int r = 0; r < rows; r++)
            acc[r] = v_zero();
        for (int64_t k = 0; k < K; k += 16) {
            const v16 v = v_get(w + k, K - k);
            UNROLL
            for (int r = 0; r < rows; r++)
                acc[r] = v_fma(v_get(x + r * ldx + k, K - k), v, acc[r]);
        }
        UNROLL
        for (int r = 0; r < rows; r++)
            y[r * ldy + n] = v_sum(acc[r]);
    }
}

static void dots(real *y, int64_t ldy, const real *x, int64_t ldx, const real *w, int64_t ldw, int64_t M, int64_t N,
                 int64_t K)
{
    int64_t m = 0;
    for (; m + 4 <= M; m += 4)
        dots_fixed(4, y + m * ldy, ldy, x + m * ldx, ldx, w, ldw, N, K);
    for (; m < M; m++)
        dots_fixed(1, y + m * ldy, ldy, x + m * ldx, ldx, w, ldw, N, K);
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
