/* linear_body.h - the integer product (included by table_body.h).
 *   acc[m,n] = sum_k (a[m,k] - zero[m]) w[n,k] = sum_k a[m,k] (w[n,k] + shift) - shift sum_k a[m,k] - zero[m] sum_k w[n,k]
 * w + shift is unsigned, as byte products want, and is what a panel holds: a byte (shift 128), or half of one (8).
 * Everything is exact modulo 2^32, and the result fits in 32 bits. Epilogue: kn_linear_int. In *_fixed, rows x panels is the
 * register tile, constants where it is called. The sums of a full tile are left in a small buffer for the epilogue: kept in
 * registers they would be spilled inside the loop. */

enum {
    LINEAR_ROWS = 48, /* rows and groups whose sums of a are held at once */
    LINEAR_SPANS = 64,
    LINEAR_AHEAD = 4096 /* bytes that a single row's weights are fetched ahead */
};

/* acc[i] += sum_k a (w + shift) over k in [0, n), in units of four. half: two units share 64 bytes. */
INLINE void linear_add(w16 acc[24], const int rows, const int panels, const bool half, const int8_t *a, int64_t lda,
                       const uint8_t *b, int64_t stride, int64_t n)
{
    b64 bv[4], av = b_load4(a);
    if (!half) {
        for (int64_t k = 0; k < n; k++) {
            UNROLL
            for (int p = 0; p < panels; p++) {
                if (rows == 1)
                    __builtin_prefetch(b + p * stride + k * 64 + LINEAR_AHEAD, 0, 2);
                bv[p] = b_load(b + p * stride + k * 64);
            }
            UNROLL
            for (int i = 0; i < rows * panels; i++) {
                if (i % panels == 0)
                    av = b_load4(a + i / panels * lda + 4 * k);
                acc[i] = w_dot(acc[i], bv[i % panels], av);
            }
        }
        return;
    }
    int64_t k = 0;
    for (; k + 2 <= n; k += 2) {
        UNROLL
        for (int p = 0; p < panels; p++) {
            if (rows == 1)
                __builtin_prefetch(b + p * stride + k * 32 + LINEAR_AHEAD, 0, 2);
            bv[p] = b_low4(b_load(b + p * stride + k * 32));
        }
        UNROLL
        for (int i = 0; i < rows * panels; i++) {
            if (i % panels == 0)
                av = b_load4(a + i / panels * lda + 4 * k);
            acc[i] = w_dot_small(acc[i], bv[i % panels], av);
        }
        UNROLL
        for (int p = 0; p < panels; p++)
            bv[p] = b_high4(b_load(b + p * stride + k * 32));
        UNROLL
        for (int i = 0; i < rows * panels; i++) {
            if (i % panels == 0)
                av = b_load4(a + i / panels * lda + 4 * k + 4);
            acc[i] = w_dot_small(acc[i], bv[i % panels], av);
        }
    }
    if (k < n) {
        UNROLL
        for (int p = 0; p < panels; p++)
            bv[p] = b_low4(b_load(b + p * stride + k * 32));
        UNROLL
        for (int i = 0; i < rows * panels; i++) {
            if (i % panels == 0)
                av = b_load4(a + i / panels * lda + 4 * k);
            acc[i] = w_dot_small(acc[i], bv[i % panels], av);
        }
    }
}

/* What is taken from a row's sums: shift times the sum of its a, and zero times the sums of the weights. */
static inline w16 linear_start(const kn_linear_job *j, int64_t row, int32_t less, const int32_t *sum)
{
    const w16 start = w_set1(less);
    return j->a_zero ? w_sub(start, w_mul(w_set1(j->a_zero[row * j->zero_row]), w_load(sum))) : start;
}

/* less[r * LINEAR_SPANS + g] <- -shift sum of a over group first + g, of rows [m, m + rows) */
static void linear_less(int32_t *less, const kn_linear_job *j, int64_t m, int64_t rows, int64_t first, int64_t groups)
{
    const kn_packed *w = j->w;
    const b64 ones = b_set1(1);
    for (int64_t r = 0; r < rows; r++) {
        const int8_t *a = j->a + (m + r) * j->lda;
        for (int64_t g = 0; g < groups; g++) {
            const int64_t end = kn_min((first + g + 1) * w->group, w->k4 * 4);
            w16 total = w_zero();
            for (int64_t k = (first + g) * w->group; k < end; k += 64)
                total = w_dot(total, ones, b_load_n(a + k, end - k));
            less[r * LINEAR_SPANS + g] = (int32_t)(0u - (uint32_t)kn_shift(w) * (uint32_t)w_sum(total));
        }
    }
}

static inline v16 linear_scale(const kn_packed *w, int64_t at)
{
    return w->half_scale ? v_from_half(w->half_scale + at) : v_load(w->scale + at);
}

static inline void linear_put(const kn_linear_job *j, v16 y, int64_t row, int64_t column)
{
    const int64_t left = j->w->n - column;
    if (j->b)
        y = v_add(y, v_get(j->b + column, left));
    v_put(j->y + row * j->w->n + column, y, left);
}

static inline void linear_put_sums(const kn_linear_job *j, w16 sum, int64_t row, int64_t column)
{
    const int64_t left = j->w->n - column;
    int32_t *to = j->sums + row * j->w->n + column, part[16];
    if (left >= 16) {
        w_store(to, sum);
        return;
    }
    w_store(part, sum);
    memcpy(to, part, (size_t)left * sizeof *to);
}

INLINE void linear_plain_fixed(const int rows, const int panels, const bool half, int32_t *sums, const int8_t *a,
                               int64_t lda, const uint8_t *b, int64_t stride, int64_t n)
{
    w16 acc[24];
    UNROLL
    for (int i = 0; i < 24; i++)
        acc[i] = w_zero();
    linear_add(acc, rows, panels, half, a, lda, b, stride, n);
    UNROLL
    for (int i = 0; i < rows * panels; i++)
        w_store(sums + 16 * i, acc[i]);
}

/* Rows from m and panels from `panel`, groups [first, last); less is that of row m and group `first`. */
typedef struct {
    const kn_linear_job *j;
    const int32_t *less;
    int64_t m, panel, first, last;
} linear_groups;

/* Groups: half as many rows, so that integer and float sums both stay in registers. */
INLINE void linear_grouped_fixed(const int rows, const int panels, const bool half, const linear_groups *at)
{
    const kn_linear_job *j = at->j;
    const kn_packed *w = j->w;
    const int64_t group4 = w->group / 4, m = at->m, panel = at->panel, n = w->n, stride = kn_panel_bytes(w);
    v16 y[12];
    UNROLL
    for (int i = 0; i < 12; i++)
        y[i] = v_zero();
    if (at->first) {
        UNROLL
        for (int i = 0; i < rows * panels; i++)
            y[i] = v_get(j->y + (m + i / panels) * n + (panel + i % panels) * 16, n - (panel + i % panels) * 16);
    }
    for (int64_t g = at->first; g < at->last; g++) {
        const int64_t column = (g * w->panels + panel) * 16, k = g * group4;
        w16 acc[24];
        UNROLL
        for (int i = 0; i < rows * panels; i++)
            acc[i] = linear_start(j, m + i / panels, at->less[i / panels * LINEAR_SPANS + g - at->first],
                                  w->sum + column + i % panels * 16);
        linear_add(acc, rows, panels, half, j->a + m * j->lda + 4 * k, j->lda,
                   w->w + panel * stride + k * (half ? 32 : 64), stride, kn_min(group4, w->k4 - k));
        UNROLL
        for (int i = 0; i < rows * panels; i++) {
            const v16 sa = v_set1(j->a_scale[(m + i / panels) * j->scale_row + g * j->scale_group]);
            y[i] = v_fma(v_from_w(acc[i]), v_mul(linear_scale(w, column + i % panels * 16), sa), y[i]);
        }
    }
    if (at->last < w->groups) {
        UNROLL
        for (int i = 0; i < rows * panels; i++)
            v_put(j->y + (m + i / panels) * n + (panel + i % panels) * 16, y[i], n - (panel + i % panels) * 16);
        return;
    }
    UNROLL
    for (int i = 0; i < rows * panels; i++)
        linear_put(j, y[i], m + i / panels, (panel + i % panels) * 16);
}

/* Tiles that are compiled: rows x panels <= LINEAR_TILE, grouped half of it. Each is a function of its own; the compiler
 * loses track of the registers otherwise. */
typedef void plain_tile(int32_t *sums, const int8_t *a, int64_t lda, const uint8_t *b, int64_t stride, int64_t n);
typedef void grouped_tile(const linear_groups *at);
#define TILE(half, rows, panels)                                                                                       \
    static NOINLINE void plain##half##_##rows##x##panels(int32_t *sums, const int8_t *a, int64_t lda,                  \
                                                         const uint8_t *b, int64_t stride, int64_t n)                  \
    {                                                                                                                  \
        if (rows * panels <= LINEAR_TILE)                                                                              \
            linear_plain_fixed(rows, panels, half, sums, a, lda, b, stride, n);                                        \
    }                                                                                                                  \
    static NOINLINE void grouped##half##_##rows##x##panels(const linear_groups *at)                                    \
    {                                                                                                                  \
        if (rows * panels <= LINEAR_TILE / 2)                                                                          \
            linear_grouped_fixed(rows, panels, half, at);                                                              \
    }
#define TILES(half, rows) TILE(half, rows, 1) TILE(half, rows, 2) TILE(half, rows, 3) TILE(half, rows, 4)
TILES(0, 1)
TILES(0, 2)
TILES(0, 3)
TILES(0, 4)
TILES(0, 5)
TILES(0, 6)
TILES(1, 1)
TILES(1, 2)
TILES(1, 3)
TILES(1, 4)
TILES(1, 5) TILES(1, 6)
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
    static plain_tile *const plain_tiles[2][6][4] = {ROWS(plain0), ROWS(plain1)};
static grouped_tile *const grouped_tiles[2][6][4] = {ROWS(grouped0), ROWS(grouped1)};
#undef ROW
#undef ROWS

/* Results of the tile at row m, panel, where there is one group. */
static void linear_plain(const kn_linear_job *j, const int32_t *less, int64_t m, int64_t rows, int64_t panel,
                         int64_t panels)
{
    const kn_packed *w = j->w;
    const int64_t stride = kn_panel_bytes(w);
    int32_t sums[24 * 16];
    plain_tiles[w->half][rows - 1][panels - 1](sums, j->a + m * j->lda, j->lda, w->w + panel * stride, stride, w->k4);
    for (int64_t p = 0; p < panels; p++) {
        const int64_t column = (panel + p) * 16;
        const v16 sw = linear_scale(w, column);
        for (int64_t r = 0; r < rows; r++) {
            const w16 start = linear_start(j, m + r, less[r * LINEAR_SPANS], w->sum + column);
            if (j->sums) {
                linear_put_sums(j, w_add(w_load(sums + (r * panels + p) * 16), start), m + r, column);
                continue;
            }
            const v16 acc = v_from_w(w_add(w_load(sums + (r * panels + p) * 16), start));
            linear_put(j, v_mul(v_mul(acc, sw), v_set1(j->a_scale[(m + r) * j->scale_row])), m + r, column);
        }
    }
}

/* Rows [m0, m0 + rows), groups [first, last). */
static void linear_part(const kn_linear_job *j, int64_t m0, int64_t rows, int64_t first, int64_t last)
{
    const kn_packed *w = j->w;
    const bool grouped = w->groups > 1;
    const int64_t tile = (LINEAR_TILE - (w->half ? LINEAR_TILE / 6 : 0)) / (grouped ? 2 : 1);
    int32_t less[LINEAR_ROWS * LINEAR_SPANS];
    linear_less(less, j, m0, rows, first, last - first);
    for (int64_t panel = j->panel; panel < j->panel + j->panels; panel += LINEAR_PANELS) {
        const int64_t panels = kn_min(LINEAR_PANELS, j->panel + j->panels - panel);
        const int64_t tall = kn_max(1, kn_min(6, tile / panels));
        for (int64_t m = 0; m < rows; m += tall) {
            const int64_t high = kn_min(tall, rows - m);
            const int32_t *row = less + m * LINEAR_SPANS;
            if (grouped)
                grouped_tiles[w->half][high - 1][panels - 1](&(linear_groups){j, row, m0 + m, panel, first, last});
            else
                linear_plain(j, row, m0 + m, high, panel, panels);
        }
    }
}

static void linear(const kn_linear_job *j)
{
    for (int64_t m = 0; m < j->M; m += LINEAR_ROWS)
        for (int64_t g = 0; g < j->w->groups; g += LINEAR_SPANS)
            linear_part(j, m, kn_min(LINEAR_ROWS, j->M - m), g, kn_min(g + LINEAR_SPANS, j->w->groups));
}

/* 16 rows of codes, ld bytes apart (`rows` of them real, n codes each), to one panel: [k4][16][4] bytes operand + 128, or
 * (half) pairs of these as the two halves of a byte, operand + 8; and the sums of its groups, sum + g * stride. twice:
 * operands are 2 q + 1. */
static void pack(uint8_t *to, int32_t *sum, int64_t stride, const int8_t *q, int64_t ld, int64_t rows, int64_t n,
                 int64_t group, bool twice, bool half)
{
    const int64_t k4 = (n + 3) / 4;
    const b64 ones = b_set1(1);
    w16 total = w_zero();
    for (int64_t k = 0; k < k4; k += 16) {
        const int64_t words = kn_min(16, k4 - k);
        b64 r[16];
        int8_t bytes[16 * 64];
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
            if (half)
                b_store(bytes + i * 64, r[i]);
            else
                b_store(to + (k + i) * 64, b_flip(r[i]));
            total = w_dot(total, ones, r[i]);
            if ((k + i + 1) * 4 % group == 0 || k + i + 1 == k4) {
                w_store(sum + ((k + i) * 4 / group) * stride, total);
                total = w_zero();
            }
        }
        if (!half)
            continue;
        if (words % 2)
            memset(bytes + words * 64, 0, 64);
        for (int64_t i = 0; i < words; i += 2)
            for (int b = 0; b < 64; b++)
                to[(k + i) * 32 + b] = (uint8_t)(((bytes[i * 64 + b] & 15) | (bytes[i * 64 + 64 + b] & 15) << 4) ^ 0x88);
    }
}
