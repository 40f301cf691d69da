/* isa_amxbf16.c - products of bf16 operands by tiles: 16 x 16 sums of 32 products a step (Intel AMX). Compiled with the flags of AMX
 * and AVX-512; linkage: kn_amx_bf16_usable, kn_amx_bf16_multiply, kn_amx_bf16_runs.
 *   c[M,N] (+)= a[M,K] b[K,N], sums in fp32, operands laid out as products_bf16.c makes them
 *
 * A row of a is a row of a tile as it lies, and so are 16 columns of a panel of b. Two by two tiles of c stay in registers over the whole sum; who
 * calls cuts it so short that what is read again, all of a, stays in the second cache level. On the thread that calls. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__) && !defined(NB_DOUBLE)
#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

enum {
    WIDE = 64, /* columns of a panel of b, */
    DEEP = 32, /* rows of a step of it */
    LINE = 64  /* bytes */
};

bool kn_amx_bf16_usable(void)
{
    static _Atomic int known; /* 1: yes, 2: no; asking takes long */
    unsigned a, b, c, d;
    if (!known)
        known = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 22) && kn_amx_usable() ? 1 : 2;
    return known == 1;
}

/* Tiles 0 to 3: sums of (upper, lower rows) x (left, right 16 columns); 4, 5: a; 6, 7: b. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

static void shape_tiles(int64_t rows)
{
    const uint8_t upper = (uint8_t)kn_min(rows, 16), lower = (uint8_t)kn_max(rows - 16, 1);
    tile_shapes s = {.palette = 1, .rows = {upper, upper, lower, lower, upper, lower, 16, 16}};
    for (int i = 0; i < 8; i++)
        s.row_bytes[i] = 64;
    _tile_loadconfig(&s);
}

/* Two rows of 32 of what will be stored, early in a sum of 16 steps or more: fetched, they are there when the sum is. */
static inline void fetch_rows(const real *c, int64_t ldc, int64_t step)
{
    for (int i = 0; i < (step < 16 ? 2 : 0); i++) {
        __builtin_prefetch(c + i * ldc, 1, 3);
        __builtin_prefetch(c + i * ldc + 16, 1, 3);
    }
}

/* A stretch of b that is read later, so many lines of it in every step: memory answers while tiles are multiplied. */
typedef struct {
    const char *from; /* NULL: none */
    int64_t bytes;    /* in a step */
} fetch;

static inline void fetch_step(const fetch *f, int64_t step)
{
    const char *from = f->from + step * f->bytes;
    for (int64_t i = 0; i < f->bytes; i += LINE)
        _mm_prefetch(from + i, _MM_HINT_T1);
}

/* How long a sum is: runs of steps of 32, the runs of a lie `apart`, those of b follow one another. */
typedef struct {
    int64_t steps, runs, apart;
} sum_of;

/* c [32, 32] (+)= the sum over a (lda) and b, rows beyond 16 only where `lower` */
static inline void tiles(real *c, int64_t ldc, const uint16_t *a, int64_t lda, const uint16_t *b, sum_of of, bool lower, bool add,
                         fetch next)
{
    const int64_t row = ldc * (int64_t)sizeof *c;
    if (add) {
        _tile_loadd(0, c, row);
        _tile_loadd(1, c + 16, row);
    } else {
        _tile_zero(0);
        _tile_zero(1);
    }
    if (add && lower) {
        _tile_loadd(2, c + 16 * ldc, row);
        _tile_loadd(3, c + 16 * ldc + 16, row);
    } else {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t r = 0; r < of.runs; r++, a += of.apart)
        for (int64_t i = 0; i < of.steps; i++, b += DEEP * WIDE) {
            _tile_loadd(6, b, 4 * WIDE);
            _tile_loadd(7, b + 2 * 16, 4 * WIDE);
            _tile_loadd(4, a + i * DEEP, 2 * lda);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            fetch_rows(c + 2 * i * ldc, ldc, r ? 16 : i);
            if (next.from)
                fetch_step(&next, i);
            if (lower) {
                _tile_loadd(5, a + 16 * lda + i * DEEP, 2 * lda);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    _tile_stored(0, c, row);
    _tile_stored(1, c + 16, row);
    if (lower) {
        _tile_stored(2, c + 16 * ldc, row);
        _tile_stored(3, c + 16 * ldc + 16, row);
    }
}

/* The same where fewer than 32 columns of c exist: in a piece of its own. */
static void tiles_at_edge(real *c, int64_t ldc, const uint16_t *a, int64_t lda, const uint16_t *b, sum_of of, int64_t rows,
                          int64_t columns, bool add)
{
    _Alignas(64) real piece[32 * 32] = {0};
    for (int64_t i = 0; add && i < rows; i++)
        memcpy(piece + i * 32, c + i * ldc, (size_t)columns * sizeof *c);
    tiles(piece, 32, a, lda, b, of, rows > 16, add, (fetch){0});
    for (int64_t i = 0; i < rows; i++)
        memcpy(c + i * ldc, piece + i * 32, (size_t)columns * sizeof *c);
}

void kn_amx_bf16_runs(const kn_bf16_runs *j)
{
    const sum_of of = {j->steps, j->runs, j->a_run};
    int64_t shaped = 0;
    for (int64_t m = 0; m < j->M; m += 32) {
        const int64_t rows = kn_min(32, j->M - m);
        if (rows != shaped)
            shape_tiles(rows);
        shaped = rows;
        for (int64_t line = 0; line < j->lines; line++)
            for (int64_t n = 0; n < j->N; n += 32) {
                real *c = j->c + line * j->c_line + m * j->ldc + n;
                const uint16_t *a = j->a + line * j->a_line + m * j->lda,
                               *b = j->b + n / WIDE * (of.runs * of.steps * DEEP * WIDE) + n % WIDE * 2;
                if (j->N - n < 32)
                    tiles_at_edge(c, j->ldc, a, j->lda, b, of, rows, j->N - n, j->add);
                else
                    tiles(c, j->ldc, a, j->lda, b, of, rows > 16, j->add, (fetch){0});
            }
    }
    _tile_release();
}

void kn_amx_bf16_multiply(real *c, int64_t ldc, const uint16_t *a, int64_t lda, const uint16_t *b, int64_t panel, int64_t M, int64_t N,
                          int64_t K, bool add)
{
    const sum_of of = {K / DEEP, 1, 0};
    int64_t shaped = 0;
    const int64_t visits = (M + 31) / 32 * 2, each = DEEP * WIDE * 2 / visits / LINE * LINE; /* of a panel; bytes of a step of b */
    for (int64_t n = 0; n < N; n += 32) {
        const uint16_t *right = b + n / WIDE * panel + n % WIDE * 2, *next = n / WIDE * WIDE + WIDE < N ? b + (n / WIDE + 1) * panel : NULL;
        for (int64_t m = 0; m < M; m += 32) {
            const int64_t rows = kn_min(32, M - m);
            if (rows != shaped)
                shape_tiles(rows);
            shaped = rows;
            if (N - n < 32)
                tiles_at_edge(c + m * ldc + n, ldc, a + m * lda, lda, right, of, rows, N - n, add);
            else
                tiles(c + m * ldc + n, ldc, a + m * lda, lda, right, of, rows > 16, add,
                      next ? (fetch){(const char *)next + (n % WIDE / 32 * visits / 2 + m / 32) * of.steps * each, each} : (fetch){0});
        }
    }
    _tile_release();
}
#endif
