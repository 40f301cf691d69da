/* tile_body.h - small float products and transposition (included by table_body.h).
 * tile:  c[m,n] = (add ? c[m,n] : 0) + sum_k a(m,k) b[k,n], a(m,k) = a[m*am + k*ak]; one fused chain, k ascending, so that
 *        a sum may be cut anywhere along k without changing a bit.
 * dots:  y[m,n] = sum_k x[m,k] w[n,k], in 16 lanes over k. */
/* rows x vectors is the register tile, both constants where this is called. `left` columns of c and b are real. */
INLINE void tile_fixed(const int rows, const int vectors, real *c, int64_t ldc, const real *a, int64_t am, int64_t ak,
                       const real *b, int64_t ldb, int64_t K, bool add, int64_t left)
{
    v16 acc[8][4];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            acc[r][v] = add ? v_get(c + r * ldc + 16 * v, left - 16 * v) : v_zero();
    for (int64_t k = 0; k < K; k++) {
        v16 bv[4];
        for (int v = 0; v < vectors; v++)
            bv[v] = v_get(b + k * ldb + 16 * v, left - 16 * v);
        for (int r = 0; r < rows; r++) {
            const v16 s = v_set1(a[r * am + k * ak]);
            for (int v = 0; v < vectors; v++)
                acc[r][v] = v_fma(s, bv[v], acc[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            v_put(c + r * ldc + 16 * v, acc[r][v], left - 16 * v);
}

INLINE void tile_column(const int vectors, const int most, real *c, int64_t ldc, const real *a, int64_t am, int64_t ak,
                        const real *b, int64_t ldb, int64_t M, int64_t K, bool add, int64_t left)
{
    int64_t m = 0;
    for (; m + most <= M; m += most)
        tile_fixed(most, vectors, c + m * ldc, ldc, a + m * am, am, ak, b, ldb, K, add, left);
    c += m * ldc;
    a += m * am;
    if ((M - m) & 4 && most > 4) {
        tile_fixed(4, vectors, c, ldc, a, am, ak, b, ldb, K, add, left);
        c += 4 * ldc;
        a += 4 * am;
    }
    switch ((M - m) % (most > 4 ? 4 : most)) {
    case 3:
        tile_fixed(3, vectors, c, ldc, a, am, ak, b, ldb, K, add, left);
        break;
    case 2:
        tile_fixed(2, vectors, c, ldc, a, am, ak, b, ldb, K, add, left);
        break;
    case 1:
        tile_fixed(1, vectors, c, ldc, a, am, ak, b, ldb, K, add, left);
        break;
    default:
        break;
    }
}

static void tile_wide(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb,
                      int64_t M, int64_t K, bool add)
{
    tile_column(TILE_VECTORS, TILE_ROWS, c, ldc, a, am, ak, b, ldb, M, K, add, 16 * TILE_VECTORS);
}
static void tile_narrow(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb,
                        int64_t M, int64_t K, bool add)
{
    tile_column(1, TILE_TALL, c, ldc, a, am, ak, b, ldb, M, K, add, 16);
}
static void tile_rest(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb,
                      int64_t M, int64_t K, bool add, int64_t left)
{
    tile_column(1, TILE_TALL, c, ldc, a, am, ak, b, ldb, M, K, add, left);
}

static void tile(real *c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb, int64_t M,
                 int64_t N, int64_t K, bool add)
{
    int64_t n = 0;
    for (; n + 16 * TILE_VECTORS <= N; n += 16 * TILE_VECTORS)
        tile_wide(c + n, ldc, a, am, ak, b + n, ldb, M, K, add);
    for (; n + 16 <= N; n += 16)
        tile_narrow(c + n, ldc, a, am, ak, b + n, ldb, M, K, add);
    if (n < N)
        tile_rest(c + n, ldc, a, am, ak, b + n, ldb, M, K, add, N - n);
}

INLINE void dots_fixed(const int rows, real *y, int64_t ldy, const real *x, int64_t ldx, const real *w, int64_t ldw,
                       int64_t N, int64_t K)
{
    for (int64_t n = 0; n < N; n++, w += ldw) {
        v16 acc[4];
        for (int r = 0; r < rows; r++)
            acc[r] = v_zero();
        for (int64_t k = 0; k < K; k += 16) {
            const v16 v = v_get(w + k, K - k);
            for (int r = 0; r < rows; r++)
                acc[r] = v_fma(v_get(x + r * ldx + k, K - k), v, acc[r]);
        }
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
