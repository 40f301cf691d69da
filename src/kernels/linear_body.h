/* linear_body.h - the integer product (included by table_body.h).
 *   acc[m,n] = sum_k (a[m,k] - zero[m]) w[n,k] = sum_k (a[m,k] + 128) w[n,k] - (128 + zero[m]) sum_k w[n,k]
 * a + 128 is unsigned, as byte products want; everything is exact modulo 2^32, and the result fits in 32 bits.
 * Epilogue: kn_linear_int. In *_fixed, rows x panels is the register tile, constants where it is called. The sums of a
 * full tile are left in a small buffer for the epilogue: kept in registers they would be spilled inside the loop. */

/* acc[i] += sum_k (a + 128) w over k in [0, n), in units of four. */
INLINE void linear_add(w16 acc[24], const int rows, const int panels, const int8_t *a, int64_t lda, const int8_t *b,
                       int64_t stride, int64_t n)
{
    for (int64_t k = 0; k < n; k++) {
        b64 bv[4], av = b_load4(a + 4 * k);
        UNROLL
        for (int p = 0; p < panels; p++)
            bv[p] = b_load(b + p * stride + k * 64);
        UNROLL
        for (int i = 0; i < rows * panels; i++) {
            if (i % panels == 0)
                av = b_flip(b_load4(a + i / panels * lda + 4 * k));
            acc[i] = w_dot(acc[i], av, bv[i % panels]);
        }
    }
}

/* What acc begins with at the given row: -(128 + zero) times the sum of the weights, of any group. */
static inline w16 linear_start(const kn_linear_job *j, int64_t row, w16 sum)
{
    return w_mul(w_set1(-128 - (j->a_zero ? j->a_zero[row * j->zero_row] : 0)), sum);
}

static inline void linear_put(const kn_linear_job *j, v16 y, int64_t row, int64_t column)
{
    const int64_t left = j->w->n - column;
    if (j->b)
        y = v_add(y, v_get(j->b + column, left));
    v_put(j->y + row * j->w->n + column, y, left);
}

INLINE void linear_plain_fixed(const int rows, const int panels, int32_t *sums, const int8_t *a, int64_t lda,
                               const int8_t *b, int64_t stride, int64_t n)
{
    w16 acc[24];
    UNROLL
    for (int i = 0; i < 24; i++)
        acc[i] = w_zero();
    linear_add(acc, rows, panels, a, lda, b, stride, n);
    UNROLL
    for (int i = 0; i < rows * panels; i++)
        w_store(sums + 16 * i, acc[i]);
}

/* Groups: half as many rows, so that integer and float sums both stay in registers. */
INLINE void linear_grouped_fixed(const int rows, const int panels, const kn_linear_job *j, int64_t m, int64_t panel)
{
    const kn_packed *w = j->w;
    const int64_t group4 = w->group / 4;
    v16 y[12];
    UNROLL
    for (int i = 0; i < 12; i++)
        y[i] = v_zero();
    for (int64_t g = 0; g < w->groups; g++) {
        const int64_t column = (g * w->panels + panel) * 16, k = g * group4;
        w16 acc[24];
        UNROLL
        for (int i = 0; i < rows * panels; i++)
            acc[i] = linear_start(j, m + i / panels, w_load(w->sum + column + i % panels * 16));
        linear_add(acc, rows, panels, j->a + m * j->lda + 4 * k, j->lda, w->w + (panel * w->k4 + k) * 64, w->k4 * 64,
                   kn_min(group4, w->k4 - k));
        UNROLL
        for (int i = 0; i < rows * panels; i++) {
            const v16 sa = v_set1(j->a_scale[(m + i / panels) * j->scale_row + g * j->scale_group]);
            y[i] = v_fma(v_from_w(acc[i]), v_mul(v_load(w->scale + column + i % panels * 16), sa), y[i]);
        }
    }
    UNROLL
    for (int i = 0; i < rows * panels; i++)
        linear_put(j, y[i], m + i / panels, (panel + i % panels) * 16);
}

/* Tiles that are compiled: rows x panels <= LINEAR_TILE, grouped half of it. Each is a function of its own; the compiler
 * loses track of the registers otherwise. */
typedef void plain_tile(int32_t *sums, const int8_t *a, int64_t lda, const int8_t *b, int64_t stride, int64_t n);
typedef void grouped_tile(const kn_linear_job *j, int64_t m, int64_t panel);
#define TILE(rows, panels)                                                                                             \
    static NOINLINE void plain_##rows##x##panels(int32_t *sums, const int8_t *a, int64_t lda, const int8_t *b,         \
                                                 int64_t stride, int64_t n)                                            \
    {                                                                                                                  \
        if (rows * panels <= LINEAR_TILE)                                                                              \
            linear_plain_fixed(rows, panels, sums, a, lda, b, stride, n);                                              \
    }                                                                                                                  \
    static NOINLINE void grouped_##rows##x##panels(const kn_linear_job *j, int64_t m, int64_t panel)                   \
    {                                                                                                                  \
        if (rows * panels <= LINEAR_TILE / 2)                                                                          \
            linear_grouped_fixed(rows, panels, j, m, panel);                                                           \
    }
#define TILES(rows) TILE(rows, 1) TILE(rows, 2) TILE(rows, 3) TILE(rows, 4)
TILES(1)
TILES(2)
TILES(3)
TILES(4) TILES(5) TILES(6)
#undef TILE
#undef TILES
#define ROW(kind, r)                                                                                                   \
    {                                                                                                                  \
        kind##_##r##x1, kind##_##r##x2, kind##_##r##x3, kind##_##r##x4                                                 \
    }
#define ROWS(kind)                                                                                                     \
    {                                                                                                                  \
        ROW(kind, 1), ROW(kind, 2), ROW(kind, 3), ROW(kind, 4), ROW(kind, 5), ROW(kind, 6)                             \
    }
    static plain_tile *const plain_tiles[6][4] = ROWS(plain);
static grouped_tile *const grouped_tiles[6][4] = ROWS(grouped);
#undef ROW
#undef ROWS

/* Results of the tile at row m, panel, where there is one group. */
static void linear_plain(const kn_linear_job *j, int64_t m, int64_t rows, int64_t panel, int64_t panels)
{
    const kn_packed *w = j->w;
    int32_t sums[24 * 16];
    plain_tiles[rows - 1][panels - 1](sums, j->a + m * j->lda, j->lda, w->w + panel * w->k4 * 64, w->k4 * 64, w->k4);
    for (int64_t p = 0; p < panels; p++) {
        const int64_t column = (panel + p) * 16;
        const v16 sw = v_load(w->scale + column);
        const w16 sum = w_load(w->sum + column), minus128 = w_mul(w_set1(-128), sum);
        for (int64_t r = 0; r < rows; r++) {
            const w16 start = j->a_zero ? linear_start(j, m + r, sum) : minus128;
            const v16 acc = v_from_w(w_add(w_load(sums + (r * panels + p) * 16), start));
            linear_put(j, v_mul(v_mul(acc, sw), v_set1(j->a_scale[(m + r) * j->scale_row])), m + r, column);
        }
    }
}

static void linear(const kn_linear_job *j)
{
    const bool grouped = j->w->group < j->w->k;
    for (int64_t panel = j->panel; panel < j->panel + j->panels; panel += LINEAR_PANELS) {
        const int64_t panels = kn_min(LINEAR_PANELS, j->panel + j->panels - panel);
        const int64_t tall = kn_min(6, (grouped ? LINEAR_TILE / 2 : LINEAR_TILE) / panels);
        for (int64_t m = 0; m < j->M; m += tall) {
            const int64_t rows = kn_min(tall, j->M - m);
            if (grouped)
                grouped_tiles[rows - 1][panels - 1](j, m, panel);
            else
                linear_plain(j, m, rows, panel, panels);
        }
    }
}

/* 16 rows of codes, ld bytes apart (`rows` of them real, n codes each), to one panel [k4][16][4] and the sums of its
 * groups, sum + g * stride. twice: operands are 2 q + 1. */
static void pack(int8_t *to, int32_t *sum, int64_t stride, const int8_t *q, int64_t ld, int64_t rows, int64_t n,
                 int64_t group, bool twice)
{
    const int64_t k4 = (n + 3) / 4;
    const b64 ones = b_set1(1);
    w16 total = w_zero();
    for (int64_t k = 0; k < k4; k += 16) {
        const int64_t words = kn_min(16, k4 - k);
        b64 r[16];
        for (int i = 0; i < 16; i++) {
            r[i] = i < rows ? b_load_n(q + i * ld + 4 * k, kn_min(64, n - 4 * k)) : b_set1(0);
            if (twice && i < rows) {
                int8_t odd[64] = {0};
                for (int64_t j = 0; j < n - 4 * k && j < 64; j++)
                    odd[j] = (int8_t)(2 * q[i * ld + 4 * k + j] + 1);
                r[i] = b_load(odd);
            }
        }
        b_transpose(r);
        for (int64_t i = 0; i < words; i++) {
            b_store(to + (k + i) * 64, r[i]);
            total = w_dot(total, ones, r[i]);
            if ((k + i + 1) * 4 % group == 0 || k + i + 1 == k4) {
                w_store(sum + ((k + i) * 4 / group) * stride, total);
                total = w_zero();
            }
        }
    }
}
