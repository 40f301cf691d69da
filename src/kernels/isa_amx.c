/* isa_amx.c - the integer product of many rows by tiles: 16 x 16 sums of 64 byte products a step (Intel AMX). Compiled with
 * the flags of AMX and AVX-512; linkage: kn_amx_linear, kn_amx_int8_runs,
 * kn_amx_usable.
 *
 * One panel of 64 operands a row is a tile as it lies, [16][16][4], once it is unpacked to signed bytes; the activations are
 * the other operand as they lie, but for columns behind the last whole step, which are copied to a tile of their own. Sums
 * are exact, epilogues those of kn_linear_int. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__) && !defined(NB_DOUBLE)
#include <cpuid.h>
#include <immintrin.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    ROWS = 256,   /* of sums held at once where there is one group */
    DEPTH = 2048, /* columns unpacked at once */
    STEP = 64,    /* columns of a tile */
    TILE_BYTES = 1024,
    PERMISSION = 0x1023, /* arch_prctl: use of a part of the processor's state, */
    TILE_DATA = 18       /* this one */
};

bool kn_amx_usable(void)
{
    unsigned a, b, c, d;
    const unsigned tile = 1u << 24, int8 = 1u << 25;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & tile) && (d & int8) &&
           syscall(SYS_arch_prctl, PERMISSION, TILE_DATA) == 0;
}

/* Tiles 0 to 3: sums of (upper, lower rows) x (first, second panel); 4, 5: activations; 6, 7: weights. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

static void shape_tiles(int64_t upper, int64_t lower, int64_t depth)
{
    tile_shapes s = {.palette = 1};
    for (int i = 0; i < 8; i++)
        s.row_bytes[i] = (uint16_t)(i == 4 || i == 5 ? depth : 64);
    s.rows[0] = s.rows[1] = s.rows[4] = (uint8_t)upper;
    s.rows[2] = s.rows[3] = s.rows[5] = (uint8_t)kn_max(lower, 1);
    s.rows[6] = s.rows[7] = (uint8_t)(depth / 4);
    _tile_loadconfig(&s);
}

/* Columns [k, k + n) of a panel as signed bytes, in tiles of STEP columns, zeros behind the panel's end. k is a multiple of 8. */
static void unpack(int8_t *to, const kn_packed *w, int64_t panel, int64_t k, int64_t n)
{
    const int64_t k4 = k / 4, real4 = kn_min(n / 4, w->k4 - k4);
    const uint8_t *from = w->w + panel * kn_panel_bytes(w) + k4 * (w->half ? 32 : 64);
    const __m512i low = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8), sign = _mm512_set1_epi8((char)0x80);
    for (int64_t i = 0; w->half && i < real4; i += 2) {
        const __m512i x = _mm512_loadu_si512(from + i * 32);
        _mm512_store_si512(to + i * 64, _mm512_sub_epi8(_mm512_and_si512(x, low), eight));
        _mm512_store_si512(to + i * 64 + 64, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(x, 4), low), eight));
    }
    for (int64_t i = 0; !w->half && i < real4; i++)
        _mm512_store_si512(to + i * 64, _mm512_xor_si512(_mm512_loadu_si512(from + i * 64), sign));
    if (real4 < n / 4)
        memset(to + real4 * 64, 0, (size_t)(n / 4 - real4) * 64);
}

/* The columns behind the last whole step of `rows` rows, [rows][STEP]. */
static void copy_tail(int8_t *tail, const kn_linear_job *j, int64_t m, int64_t rows, int64_t step)
{
    const int64_t width = j->w->k4 * 4, whole = width / step * step;
    if (whole == width)
        return;
    memset(tail, 0, (size_t)(rows * STEP));
    for (int64_t r = 0; r < rows; r++)
        memcpy(tail + r * STEP, j->a + (m + r) * j->lda + whole, (size_t)(width - whole));
}

static __m512 scale_of(const kn_packed *w, int64_t at)
{
    return w->half_scale ? _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(w->half_scale + at)))
                         : _mm512_loadu_ps(w->scale + at);
}

/* The sums less zero times the sums of the weights. */
static __m512i less_zero(const kn_linear_job *j, __m512i acc, int64_t row, const int32_t *sum)
{
    if (!j->a_zero)
        return acc;
    const __m512i zero = _mm512_set1_epi32(j->a_zero[row * j->zero_row]);
    return _mm512_sub_epi32(acc, _mm512_mullo_epi32(zero, _mm512_loadu_si512(sum)));
}

static __mmask16 columns_left(const kn_packed *w, int64_t column)
{
    const int64_t left = w->n - column;
    return (__mmask16)(left >= 16 ? 0xFFFF : left <= 0 ? 0 : (1u << left) - 1);
}

static void put(const kn_linear_job *j, __m512 y, int64_t row, int64_t column, __mmask16 left)
{
    if (j->b)
        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(left, j->b + column));
    _mm512_mask_storeu_ps(j->y + row * j->w->n + column, left, y);
}

/* ---- one group ---------------------------------------------------------------------------- */

typedef struct {
    int8_t w[2 * DEPTH * 16]; /* two panels */
    int32_t acc[ROWS * 32];
    int8_t tail[32 * STEP];
} plain_memory;

/* Rows [from, to) of 32 results that will be stored: fetched, they are there when the sum is. */
static inline void fetch_rows(const real *y, int64_t ld, int64_t from, int64_t to)
{
    for (int64_t i = from; i < to; i++) {
        __builtin_prefetch(y + i * ld, 1, 3);
        __builtin_prefetch(y + i * ld + 16, 1, 3);
    }
}

/* acc [.., 32] (+)= `rows` rows from m times two panels' columns [k, k + n); column: of the first panel */
static void multiply(plain_memory *p, const kn_linear_job *j, int64_t m, int64_t rows, int32_t *acc, int64_t k, int64_t n, int64_t column)
{
    const int64_t width = j->w->k4 * 4, each = (32 * STEP + n - 1) / n;
    const real *y = j->y + m * j->w->n + column;
    const bool two = rows > 16;
    if (k == 0) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, acc, 128);
        _tile_loadd(1, acc + 16, 128);
        if (two) {
            _tile_loadd(2, acc + 16 * 32, 128);
            _tile_loadd(3, acc + 16 * 32 + 16, 128);
        }
    }
    for (int64_t i = 0; i < n; i += STEP) {
        const bool whole = k + i + STEP <= width;
        fetch_rows(y, j->w->n, kn_min(rows, i / STEP * each), kn_min(rows, (i / STEP + 1) * each));
        const int8_t *a = whole ? j->a + m * j->lda + k + i : p->tail, *w = p->w + i * 16;
        const int64_t ld = whole ? j->lda : STEP;
        _tile_loadd(4, a, ld);
        _tile_loadd(6, w, 64);
        _tile_loadd(7, w + DEPTH * 16, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        if (two) {
            _tile_loadd(5, a + 16 * ld, ld);
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
    _tile_stored(0, acc, 128);
    _tile_stored(1, acc + 16, 128);
    if (two) {
        _tile_stored(2, acc + 16 * 32, 128);
        _tile_stored(3, acc + 16 * 32 + 16, 128);
    }
}

static void finish(const kn_linear_job *j, const int32_t *acc, int64_t m, int64_t rows, int64_t panel, int64_t panels)
{
    const kn_packed *w = j->w;
    for (int64_t p = 0; p < panels; p++) {
        const int64_t column = (panel + p) * 16;
        const __m512 sw = scale_of(w, column);
        const __mmask16 left = columns_left(w, column);
        for (int64_t r = 0; r < rows; r++) {
            const __m512i x = less_zero(j, _mm512_loadu_si512(acc + r * 32 + p * 16), m + r, w->sum + column);
            const __m512 sa = _mm512_set1_ps(j->a_scale[(m + r) * j->scale_row]);
            put(j, _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(x), sw), sa), m + r, column, left);
        }
    }
}

static void linear_plain(const kn_linear_job *j)
{
    _Alignas(64) plain_memory p;
    const int64_t width = (j->w->k4 * 4 + STEP - 1) / STEP * STEP, end = j->panel + j->panels;
    int64_t shaped = 0;
    for (int64_t m0 = 0; m0 < j->M; m0 += ROWS)
        for (int64_t panel = j->panel; panel < end; panel += 2)
            for (int64_t k = 0; k < width; k += DEPTH) {
                const int64_t n = kn_min(DEPTH, width - k), panels = kn_min(2, end - panel);
                for (int64_t i = 0; i < panels; i++)
                    unpack(p.w + i * DEPTH * 16, j->w, panel + i, k, n);
                if (panels == 1)
                    memset(p.w + DEPTH * 16, 0, (size_t)n * 16);
                for (int64_t m = m0; m < kn_min(j->M, m0 + ROWS); m += 32) {
                    const int64_t rows = kn_min(32, j->M - m);
                    int32_t *acc = p.acc + (m - m0) * 32;
                    if (rows != shaped)
                        shape_tiles(kn_min(rows, 16), rows - 16, STEP);
                    shaped = rows;
                    if (k + n == width)
                        copy_tail(p.tail, j, m, rows, STEP);
                    multiply(&p, j, m, rows, acc, k, n, panel * 16);
                    if (k + n == width)
                        finish(j, acc, m, rows, panel, panels);
                }
            }
}

/* ---- groups ------------------------------------------------------------------------------- */

typedef struct {
    int8_t w[DEPTH * 16];
    int32_t acc[4][16 * 16];
    int8_t tail[16 * STEP];
} grouped_memory;

/* Sums of 16 rows from m over the group that begins at column k, the panel's columns from k0 on unpacked. A tile of its own
 * for each of four groups in turn: a number is stored long before it is read. */
#define GROUP_SUM(tile)                                                                                                \
    static void group_sum##tile(grouped_memory *p, const kn_linear_job *j, int64_t m, int64_t k0, int64_t k,           \
                                int64_t end, int64_t step)                                                             \
    {                                                                                                                  \
        _tile_zero(tile);                                                                                              \
        for (; k < end; k += step) {                                                                                   \
            const bool whole = k + step <= j->w->k4 * 4;                                                               \
            _tile_loadd(4, whole ? j->a + m * j->lda + k : p->tail, whole ? j->lda : STEP);                            \
            _tile_loadd(6, p->w + (k - k0) * 16, 64);                                                                  \
            _tile_dpbssd(tile, 4, 6);                                                                                  \
        }                                                                                                              \
        _tile_stored(tile, p->acc[tile], 64);                                                                          \
    }
GROUP_SUM(0)
GROUP_SUM(1)
GROUP_SUM(2)
GROUP_SUM(3)
#undef GROUP_SUM

static void sum_group(grouped_memory *p, const kn_linear_job *j, int64_t m, int64_t first, int64_t g, int64_t last,
                      int64_t step)
{
    const int64_t group = j->w->group, k0 = first * group, k = g * group, end = kn_min(k + group, j->w->k4 * 4);
    if (g >= last)
        return;
    switch (g % 4) {
    case 0:
        group_sum0(p, j, m, k0, k, end, step);
        break;
    case 1:
        group_sum1(p, j, m, k0, k, end, step);
        break;
    case 2:
        group_sum2(p, j, m, k0, k, end, step);
        break;
    default:
        group_sum3(p, j, m, k0, k, end, step);
    }
}

/* y[r] = fma((float)acc_g, sw_g sa_g, y[r]); r < rows, all 16 in registers */
static inline __attribute__((always_inline)) void add_group(__m512 y[16], const kn_linear_job *j, const int32_t *acc,
                                                            int64_t m, int64_t g, int64_t column, const bool zeros)
{
    const kn_packed *w = j->w;
    const int64_t at = g * w->panels * 16 + column;
    const __m512 sw = scale_of(w, at);
    const real *sa = j->a_scale + m * j->scale_row + g * j->scale_group;
    UNROLL
    for (int r = 0; r < 16; r++) {
        __m512i x = _mm512_load_si512(acc + r * 16);
        if (zeros)
            x = less_zero(j, x, m + r, w->sum + at);
        y[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(x), _mm512_mul_ps(sw, _mm512_set1_ps(sa[r * j->scale_row])), y[r]);
    }
}

static void groups_of_tile(grouped_memory *p, const kn_linear_job *j, int64_t m, int64_t panel, int64_t first, int64_t last,
                           int64_t step)
{
    const kn_packed *w = j->w;
    const int64_t column = panel * 16;
    const __mmask16 left = columns_left(w, column);
    __m512 y[16];
    UNROLL
    for (int r = 0; r < 16; r++)
        y[r] = first ? _mm512_maskz_loadu_ps(left, j->y + (m + r) * w->n + column) : _mm512_setzero_ps();
    sum_group(p, j, m, first, first, last, step);
    sum_group(p, j, m, first, first + 1, last, step);
    for (int64_t g = first; g < last; g++) {
        sum_group(p, j, m, first, g + 2, last, step);
        if (j->a_zero)
            add_group(y, j, p->acc[g % 4], m, g, column, true);
        else
            add_group(y, j, p->acc[g % 4], m, g, column, false);
    }
    if (last < w->groups) {
    UNROLL
        for (int r = 0; r < 16; r++)
            _mm512_mask_storeu_ps(j->y + (m + r) * w->n + column, left, y[r]);
        return;
    }
    UNROLL
    for (int r = 0; r < 16; r++)
        put(j, y[r], m + r, column, left);
}

static void linear_grouped(const kn_linear_job *j)
{
    _Alignas(64) grouped_memory p;
    const kn_packed *w = j->w;
    const int64_t step = w->group % STEP ? 32 : STEP, most = DEPTH / w->group;
    shape_tiles(16, 16, step);
    for (int64_t m0 = 0; m0 < j->M; m0 += ROWS)
        for (int64_t panel = j->panel; panel < j->panel + j->panels; panel++)
            for (int64_t first = 0; first < w->groups; first += most) {
                const int64_t last = kn_min(w->groups, first + most);
                unpack(p.w, w, panel, first * w->group, (last - first) * w->group);
                for (int64_t m = m0; m < kn_min(j->M, m0 + ROWS); m += 16) {
                    if (last == w->groups)
                        copy_tail(p.tail, j, m, 16, step);
                    groups_of_tile(&p, j, m, panel, first, last, step);
                }
            }
}

/* Rows behind the last 16 of a grouped product are the last 16 again: their results are the same. */
void kn_amx_linear(const kn_linear_job *j)
{
    if (j->w->groups == 1) {
        linear_plain(j);
    } else {
        kn_linear_job part = *j;
        part.M = j->M / 16 * 16;
        linear_grouped(&part);
        if (part.M < j->M) {
            const int64_t m = j->M - 16;
            part.M = 16;
            part.y += m * j->w->n;
            part.a += m * j->lda;
            part.a_scale += m * j->scale_row;
            part.a_zero = j->a_zero ? j->a_zero + m * j->zero_row : NULL;
            linear_grouped(&part);
        }
    }
    _tile_release();
}

/* ---- runs: convolutions ------------------------------------------------------------------- */

/* c [rows, 32] = sums of a and two panels of b, `panel` bytes apart */
static inline void sums_of_runs(int32_t *c, int64_t ldc, const int8_t *a, const int8_t *b, int64_t panel, const kn_int8_runs *j, bool two)
{
    const int64_t row = ldc * (int64_t)sizeof *c;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t r = 0; r < j->runs; r++, a += j->a_run)
        for (int64_t i = 0; i < j->steps; i++, b += TILE_BYTES) {
            _tile_loadd(4, a + i * STEP, j->lda);
            _tile_loadd(6, b, 64);
            _tile_loadd(7, b + panel, 64);
            _tile_dpbssd(0, 4, 6);
            _tile_dpbssd(1, 4, 7);
            if (two) {
                _tile_loadd(5, a + 16 * j->lda + i * STEP, j->lda);
                _tile_dpbssd(2, 5, 6);
                _tile_dpbssd(3, 5, 7);
            }
        }
    _tile_stored(0, c, row);
    _tile_stored(1, c + 16, row);
    if (two) {
        _tile_stored(2, c + 16 * ldc, row);
        _tile_stored(3, c + 16 * ldc + 16, row);
    }
}

void kn_amx_int8_runs(const kn_int8_runs *j)
{
    const int64_t panel = j->runs * j->steps * TILE_BYTES;
    int64_t shaped = 0;
    for (int64_t m = 0; m < j->M; m += 32) {
        const int64_t rows = kn_min(32, j->M - m);
        if (rows != shaped)
            shape_tiles(kn_min(rows, 16), rows - 16, STEP);
        shaped = rows;
        for (int64_t line = 0; line < j->lines; line++)
            for (int64_t n = 0; n < j->N; n += 32) {
                int32_t *c = j->c + line * j->c_line + m * j->ldc + n;
                const int8_t *a = j->a + line * j->a_line + m * j->lda, *b = j->b + n / 16 * panel;
                if (j->N - n >= 32) {
                    sums_of_runs(c, j->ldc, a, b, panel, j, rows > 16);
                    continue;
                }
                _Alignas(64) int32_t piece[32 * 32];
                sums_of_runs(piece, 32, a, b, panel, j, rows > 16);
                for (int64_t i = 0; i < rows; i++)
                    memcpy(c + i * j->ldc, piece + i * 32, (size_t)(j->N - n) * sizeof *c);
            }
    }
    _tile_release();
}
#endif
