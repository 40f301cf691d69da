/* products_bf16.c - operands of bf16 products: rounded once, in the layout that the product reads.
 *   left  a [M, K]: rows of K, padded to a multiple of 32
 *   right b [K, N]: [N/64][K/32][16][64][2], pairs of rows side by side, so that one word holds two steps of a sum; zero padded
 * Integers up to 256 are exact in bf16. Codes with one scale a row of b are such integers; row k's scale goes into column k of
 * the left operand, which is rounded after that: one rounding where decoding would cost two. */
#include "kernels/encode.h"
#include "kernels/kernels_isa.h"
#include "kernels/products.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    WIDE = 64,            /* columns of a panel of b */
    DEEP = 32,            /* rows of a block of it; rows of a are padded to this */
    STRETCH = 4 * WIDE,   /* columns of one unit of work */
    LEAST = 32,           /* a dimension below this, */
    LEAST_WORK = 1 << 21, /* or a product of fewer multiplications, is done faster in fp32 */
    LARGEST = 256         /* integer up to which all are exact */
};

static int64_t blocks(int64_t n, int64_t size)
{
    return (n + size - 1) / size;
}

/* Tiles of our own, where the table has some and the CPU can. */
static bool own_tiles(void)
{
    return kn_isa()->has_bf16 && kn_isa()->has_bf16();
}

bool kn_has_bf16(void)
{
    return own_tiles() || kn_bf16_fast();
}

bool kn_takes_bf16(kn_precision p, int64_t M, int64_t N, int64_t K)
{
    return p == KN_BF16 && kn_has_bf16() && M >= LEAST && N >= LEAST && K >= LEAST && M * N >= LEAST_WORK / K;
}

size_t kn_bf16_right_bytes(int64_t K, int64_t N)
{
    const int64_t deep = blocks(K, DEEP) * DEEP;
    return (size_t)(deep * blocks(N, WIDE) * WIDE) * sizeof(uint16_t) + (size_t)deep * sizeof(real);
}

static void lay(kn_bf16_right *b, int64_t K, int64_t N, void *memory)
{
    *b = (kn_bf16_right){.K = K, .N = N, .b = memory};
    b->scale = (real *)(void *)(b->b + blocks(K, DEEP) * DEEP * blocks(N, WIDE) * WIDE);
}

/* Where the pair of rows 2i, 2i + 1 of b has its columns from a panel's first on, as words. */
static uint32_t *words_of(const kn_bf16_right *b, int64_t panel, int64_t pair)
{
    return (uint32_t *)(void *)b->b + (panel * blocks(b->K, DEEP) * (DEEP / 2) + pair) * WIDE;
}

static bool as_integers(const kn_codes *c)
{
    return c && c->q && !c->wide && !kn_has_table(&c->grid) && (c->grid.grain == KN_ROW || c->grid.grain == KN_TENSOR) && kn_largest(&c->grid) <= LARGEST;
}

/* Columns [col, col + n) of row k of the operand: where they are, or decoded into `own`. */
static const real *row_part(real *own, const kn_operand *o, int64_t row, int64_t col, int64_t n, bool integers)
{
    const kn_codes *c = o->codes;
    if (!integers) {
        kn_decode_part(own, c, row, col, n);
        return own;
    }
    const int64_t i = kn_scale_index(c, row, col);
    kn_isa()->decode8(own, c->q + row * c->ld + col, n, 1, (real)kn_mul(&c->grid),
                      kn_offset(&c->grid, c->zero ? c->zero[i] : 0));
    return own;
}

/* Block `deep` of rows, columns [from, to): whole panels but for the last. */
static void pack_rows(const kn_bf16_right *b, const kn_operand *o, int64_t row, int64_t deep, int64_t from, int64_t to,
                      bool integers)
{
    const kn_table *t = kn_isa();
    real own[2][STRETCH];
    for (int64_t k = deep * DEEP; k < (deep + 1) * DEEP; k += 2) {
        const real *x[2] = {own[0], own[1]};
        for (int i = 0; i < 2; i++) {
            if (k + i >= b->K)
                memset(own[i], 0, sizeof own[i]);
            else if (o->x)
                x[i] = o->x + (row + k + i) * b->N + from;
            else
                x[i] = row_part(own[i], o, row + k + i, from, to - from, integers);
        }
        for (int64_t n = from; n < to; n += WIDE) {
            const int64_t columns = kn_min(WIDE, to - n);
            uint32_t *y = words_of(b, n / WIDE, k / 2);
            t->pair_bf16(y, x[0] + n - from, x[1] + n - from, 1, 1, columns);
            if (columns < WIDE)
                memset(y + columns, 0, (size_t)(WIDE - columns) * sizeof *y);
        }
    }
}

void kn_bf16_rows(kn_bf16_right *b, kn_operand o, int64_t row, int64_t K, int64_t N, void *memory)
{
    const bool integers = !o.x && as_integers(o.codes);
    const int64_t deep = blocks(K, DEEP), stretches = blocks(N, STRETCH);
    assert(o.x || (o.codes && o.codes->cols == N && row >= 0 && row + K <= o.codes->rows));
    lay(b, K, N, memory);
    for (int64_t k = 0; k < deep * DEEP; k++)
        b->scale[k] = integers && k < K ? o.codes->scale[kn_scale_index(o.codes, row + k, 0)] : 1;
#pragma omp parallel for if (K * N > KN_PARALLEL) schedule(static)
    for (int64_t i = 0; i < deep * stretches; i++)
        pack_rows(b, &o, row, i / stretches, i % stretches * STRETCH, kn_min((i % stretches + 1) * STRETCH, N), integers);
}

void kn_bf16_columns(kn_bf16_right *b, const real *w, int64_t N, int64_t K, void *memory)
{
    const kn_table *t = kn_isa();
    lay(b, K, N, memory);
    for (int64_t k = 0; k < blocks(K, DEEP) * DEEP; k++)
        b->scale[k] = 1;
#pragma omp parallel for if (K * N > KN_PARALLEL) schedule(static)
    for (int64_t panel = 0; panel < blocks(N, WIDE); panel++)
        for (int64_t k = 0; k < K; k += DEEP) {
            uint16_t piece[WIDE * DEEP] = {0};
            for (int64_t i = 0; i < kn_min(WIDE, N - panel * WIDE); i++)
                t->to_bf16(piece + i * DEEP, w + (panel * WIDE + i) * K + k, kn_min(DEEP, K - k));
            t->transpose_words(words_of(b, panel, k / 2), WIDE, (const uint32_t *)(const void *)piece, DEEP / 2, WIDE, DEEP / 2);
        }
}

void kn_bf16_column(real *x, const kn_bf16_right *b, int64_t n)
{
    for (int64_t k = 0; k < b->K; k++)
        x[k] = (real)kn_bf16_value((uint16_t)(words_of(b, n / WIDE, k / 2)[n % WIDE] >> (k % 2 ? 16 : 0)));
}

/* a [M, K] -> rows of lda */
static void pack_left(uint16_t *to, int64_t lda, const real *a, const real *scale, int64_t M, int64_t K, bool scaled)
{
    const kn_table *t = kn_isa();
#pragma omp parallel for if (M * K > KN_PARALLEL) schedule(static)
    for (int64_t m = 0; m < M; m++) {
        if (scaled)
            t->to_bf16_scaled(to + m * lda, a + m * K, scale, K);
        else
            t->to_bf16(to + m * lda, a + m * K, K);
        memset(to + m * lda + K, 0, (size_t)(lda - K) * sizeof *to);
    }
}

/* a [K, M] -> rows of lda; 64 columns at a time in strips of pairs, which are turned over */
static void pack_left_transposed(uint16_t *to, int64_t lda, const real *a, const real *scale, int64_t M, int64_t K)
{
    enum { PAIRS = DEEP / 2, COLUMNS = 64 };
    const kn_table *t = kn_isa();
#pragma omp parallel for if (M * K > KN_PARALLEL) schedule(static)
    for (int64_t m = 0; m < M; m += COLUMNS)
        for (int64_t k = 0; k < lda; k += DEEP) {
            uint32_t piece[PAIRS * COLUMNS];
            const int64_t columns = kn_min(COLUMNS, M - m);
            for (int64_t i = 0; i < PAIRS; i++) {
                const int64_t at = k + 2 * i;
                const real *x = a + at * M + m;
                if (at >= K)
                    memset(piece + i * COLUMNS, 0, COLUMNS * sizeof *piece);
                else if (at + 1 < K)
                    t->pair_bf16(piece + i * COLUMNS, x, x + M, scale[at], scale[at + 1], columns);
                else
                    t->pair_bf16(piece + i * COLUMNS, x, x, scale[at], 0, columns);
            }
            t->transpose_words((uint32_t *)(void *)(to + m * lda + k), lda / 2, piece, COLUMNS, PAIRS, columns);
        }
}

/* Memory of operands that live for one product, kept and grown; the lock is held while it is in use. */
typedef struct {
    pthread_mutex_t lock;
    void *memory;
    size_t capacity; /* bytes */
} workspace;

static workspace *workspace_locked(void)
{
    static workspace shared = {.lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_mutex_lock(&shared.lock);
    return &shared;
}

static bool reserve(workspace *w, size_t bytes)
{
    if (bytes <= w->capacity)
        return true;
    free(w->memory);
    w->memory = nb_alloc_aligned(bytes, 1);
    w->capacity = w->memory ? bytes : 0;
    return w->memory != NULL;
}

static size_t left_bytes(int64_t M, int64_t K)
{
    return (size_t)blocks(M * blocks(K, DEEP), 2) * 2 * DEEP * sizeof(uint16_t);
}

static bool multiply(real *c, const real *a, const kn_bf16_right *b, int64_t M, bool add, bool transposed, uint16_t *left)
{
    const int64_t lda = blocks(b->K, DEEP) * DEEP;
    bool scaled = false;
    for (int64_t k = 0; k < b->K && !scaled; k++)
        scaled = b->scale[k] != 1;
    if (transposed)
        pack_left_transposed(left, lda, a, b->scale, M, b->K);
    else
        pack_left(left, lda, a, b->scale, M, b->K, scaled);
    if (!own_tiles())
        return kn_bf16_multiply(c, left, lda, b->b, M, b->N, b->K, add);
    kn_isa()->multiply_bf16(c, left, lda, b->b, M, b->N, add);
    return true;
}

static status product_right(real *c, const real *a, const kn_bf16_right *b, int64_t M, real beta, bool transposed)
{
    assert(beta == 0 || beta == 1);
    workspace *w = workspace_locked();
    const bool memory = reserve(w, left_bytes(M, b->K));
    const bool done = memory && multiply(c, a, b, M, beta != 0, transposed, w->memory);
    pthread_mutex_unlock(&w->lock);
    if (!memory)
        return NB_NOMEM;
    return done ? NB_OK
                : nb_fail(NB_UNSUPPORTED, "a bf16 product of %lld x %lld x %lld failed", (long long)M, (long long)b->N,
                          (long long)b->K);
}

status kn_product_right(real *c, const real *a, const kn_bf16_right *b, int64_t M, real beta)
{
    return product_right(c, a, b, M, beta, false);
}

status kn_product_t_right(real *c, const real *a, const kn_bf16_right *b, int64_t M, real beta)
{
    return product_right(c, a, b, M, beta, true);
}

bool kn_bf16_product(kn_form form, real *c, const real *a, const real *b, int64_t M, int64_t N, int64_t K, bool add)
{
    const size_t left = left_bytes(M, K);
    kn_bf16_right right;
    if (!kn_takes_bf16(KN_BF16, M, N, K))
        return false;
    workspace *w = workspace_locked();
    bool done = reserve(w, left + kn_bf16_right_bytes(K, N));
    if (done && form == KN_NT)
        kn_bf16_columns(&right, b, N, K, (char *)w->memory + left);
    else if (done)
        kn_bf16_rows(&right, (kn_operand){.x = b}, 0, K, N, (char *)w->memory + left);
    done = done && multiply(c, a, &right, M, add, form == KN_TN, w->memory);
    pthread_mutex_unlock(&w->lock);
    return done;
}
