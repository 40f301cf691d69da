/* products_bf16.c - operands of bf16 products: rounded once, in the layout that the product reads.
 *   left  a [M, K]: rows of K, padded to a multiple of 32
 *   right b [K, N]: [N/64][K/32][16][64][2], pairs of rows side by side, so that one word holds two steps of a sum; zero padded
 * Integers up to 256 are exact in bf16. Codes with one scale a row of b are such integers; row k's scale goes into column k of
 * the left operand, which is rounded after that: one rounding where decoding would cost two. */
#include "kernels/encode.h"
#include "kernels/kernels_isa.h"
#include "kernels/products.h"

#include <assert.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    WIDE = 64,            /* columns of a panel of b */
    DEEP = 32,            /* rows of a block of it; rows of a are padded to this */
    STRETCH = 4 * WIDE,   /* columns of one unit of work */
    LEAST = 32,           /* a dimension below this, */
    LEAST_WORK = 1 << 21, /* or a product of fewer multiplications, is done faster in fp32 */
    LARGEST = 256,        /* integer up to which all are exact */
    UNIT_ROWS = 256,      /* of a product by tiles: rows of one unit of work, */
    UNIT_DEPTH = 1536,    /* the stretch of the sum that is added up in registers, */
    UNIT_PANELS = 8,      /* or, of few rows, its panels; */
    MANY = 96,            /* rows a thread that are not few */
    PACK_ROWS = 32        /* packed at once */
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
    return own_tiles() || kn_bf16_library();
}

bool kn_bf16_pays(void)
{
    return own_tiles() || kn_bf16_library_pays();
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

void kn_bf16_right_turned(uint16_t *to, const real *x, int64_t ld, int64_t columns, int64_t steps)
{
    const kn_table *t = kn_isa();
    for (int64_t k = 0; k < steps; k += DEEP) {
        uint16_t piece[WIDE * DEEP] = {0};
        for (int64_t i = 0; i < columns; i++)
            t->to_bf16(piece + i * DEEP, x + i * ld + k, kn_min(DEEP, steps - k));
        t->transpose_words((uint32_t *)(void *)(to + k * WIDE), WIDE, (const uint32_t *)(const void *)piece, DEEP / 2, WIDE, DEEP / 2);
    }
}

void kn_bf16_columns(kn_bf16_right *b, const real *w, int64_t N, int64_t K, void *memory)
{
    lay(b, K, N, memory);
    for (int64_t k = 0; k < blocks(K, DEEP) * DEEP; k++)
        b->scale[k] = 1;
#pragma omp parallel for if (K * N > KN_PARALLEL) schedule(static)
    for (int64_t panel = 0; panel < blocks(N, WIDE); panel++)
        kn_bf16_right_turned((uint16_t *)(void *)words_of(b, panel, 0), w + panel * WIDE * K, K, kn_min(WIDE, N - panel * WIDE), K);
}

void kn_bf16_column(real *x, const kn_bf16_right *b, int64_t n)
{
    for (int64_t k = 0; k < b->K; k++)
        x[k] = (real)kn_bf16_value((uint16_t)(words_of(b, n / WIDE, k / 2)[n % WIDE] >> (k % 2 ? 16 : 0)));
}

/* c [M, N] (+)= left [M, K] b; left is a [M, K], or (transposed) a' of a [K, M] */
typedef struct {
    real *c;
    const real *a;
    const kn_bf16_right *b;
    int64_t M;
    bool add, transposed, scaled; /* scaled: some b->scale is not 1 */
} product;

void kn_bf16_left(uint16_t *to, int64_t lda, const real *x, int64_t ld, int64_t rows, int64_t steps, int64_t depth, const real *scale)
{
    const kn_table *t = kn_isa();
    for (int64_t i = 0; i < rows; i++) {
        if (scale)
            t->to_bf16_scaled(to + i * lda, x + i * ld, scale, steps);
        else
            t->to_bf16(to + i * lda, x + i * ld, steps);
        memset(to + i * lda + steps, 0, (size_t)(depth - steps) * sizeof *to);
    }
}

/* 64 columns of x at a time in strips of pairs, which are turned over. */
void kn_bf16_left_turned(uint16_t *to, int64_t lda, const real *x, int64_t ld, int64_t steps, int64_t columns, int64_t depth, const real *scale)
{
    enum { PAIRS = DEEP / 2, COLUMNS = 64 };
    const kn_table *t = kn_isa();
    for (int64_t i = 0; i < columns; i += COLUMNS)
        for (int64_t d = 0; d < depth; d += DEEP) {
            uint32_t piece[PAIRS * COLUMNS];
            const int64_t n = kn_min(COLUMNS, columns - i);
            for (int64_t pair = 0; pair < PAIRS; pair++) {
                const int64_t at = d + 2 * pair;
                const real *row = x + at * ld + i;
                if (at >= steps)
                    memset(piece + pair * COLUMNS, 0, COLUMNS * sizeof *piece);
                else if (at + 1 < steps)
                    t->pair_bf16(piece + pair * COLUMNS, row, row + ld, scale ? scale[at] : 1, scale ? scale[at + 1] : 1, n);
                else
                    t->pair_bf16(piece + pair * COLUMNS, row, row, scale ? scale[at] : 1, 0, n);
            }
            t->transpose_words((uint32_t *)(void *)(to + i * lda + d), lda / 2, piece, COLUMNS, PAIRS, n);
        }
}

/* Steps [k, k + depth) of left's rows [m, m + rows), zeros behind K; depth is whole DEEPs. */
static void pack_left(uint16_t *to, int64_t lda, const product *p, int64_t m, int64_t rows, int64_t k, int64_t depth)
{
    const int64_t K = p->b->K, steps = kn_min(depth, K - k);
    const real *scale = p->scaled ? p->b->scale + k : NULL;
    if (p->transposed)
        kn_bf16_left_turned(to, lda, p->a + k * p->M + m, p->M, steps, rows, depth, scale);
    else
        kn_bf16_left(to, lda, p->a + m * K + k, K, rows, steps, depth, scale);
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

/* How a product is cut. Many rows: a unit of work is `rows` of them, whose left operand is packed a stretch of the sum at a time, so that it
 * stays in the second cache level. Few: the left operand is packed whole, a unit is some panels of columns. */
typedef struct {
    int64_t rows, lda; /* lda: elements between packed rows */
    int threads;
    bool many;
    size_t bytes; /* of the packed left operand: of one thread, or all of it */
} cut;

static cut cut_of(int64_t M, int64_t K)
{
    cut c = {.threads = omp_in_parallel() ? 1 : omp_get_max_threads()};
    const int64_t deep = blocks(K, DEEP) * DEEP, units = blocks(blocks(M, UNIT_ROWS), c.threads) * c.threads;
    c.many = own_tiles() && M >= MANY * c.threads;
    c.rows = c.many ? blocks(blocks(M, units), DEEP) * DEEP : M;
    c.lda = (c.many ? kn_min(deep, UNIT_DEPTH) : deep) + (own_tiles() ? DEEP : 0); /* DEEP more: rows begin in different sets of the cache */
    c.bytes = (size_t)blocks(c.rows * c.lda, DEEP) * DEEP * sizeof(uint16_t);
    return c;
}

static size_t left_bytes(int64_t M, int64_t K)
{
    const cut c = cut_of(M, K);
    return c.many ? c.bytes * (size_t)c.threads : c.bytes;
}

/* Rows [m, m + rows), columns from panel `first` on of the product, depth of the sum [k, k + depth); left: these rows of it from k on. */
static void multiply_part(const product *p, const uint16_t *left, int64_t lda, int64_t m, int64_t rows, int64_t first, int64_t end, int64_t k,
                          int64_t depth)
{
    const kn_bf16_right *b = p->b;
    const int64_t deep = blocks(b->K, DEEP) * DEEP, n = first * WIDE;
    kn_isa()->multiply_bf16(p->c + m * b->N + n, b->N, left, lda, b->b + (first * deep + k) * WIDE, deep * WIDE, rows,
                            kn_min(b->N, end * WIDE) - n, depth, p->add || k > 0);
}

static void multiply_many(const product *p, const cut *c, char *memory)
{
    const int64_t panels = blocks(p->b->N, WIDE), deep = blocks(p->b->K, DEEP) * DEEP, units = blocks(p->M, c->rows);
#pragma omp parallel for schedule(dynamic) num_threads(c->threads) if (units > 1)
    for (int64_t unit = 0; unit < units; unit++) {
        uint16_t *left = (uint16_t *)(void *)(memory + (size_t)omp_get_thread_num() * c->bytes);
        const int64_t m = unit * c->rows, rows = kn_min(c->rows, p->M - m);
        for (int64_t k = 0; k < deep; k += UNIT_DEPTH) {
            const int64_t depth = kn_min(UNIT_DEPTH, deep - k);
            pack_left(left, c->lda, p, m, rows, k, depth);
            multiply_part(p, left, c->lda, m, rows, 0, panels, k, depth);
        }
    }
}

/* n products of one left operand, whose sizes are those of the first: it is packed once, and the panels of all are shared out. */
static bool multiply_few(const product *p, int64_t n, const cut *c, uint16_t *left)
{
    const int64_t deep = blocks(p->b->K, DEEP) * DEEP, lda = c->lda;
    const bool own = own_tiles();
    int64_t panels[KN_MOST_RIGHTS], end[KN_MOST_RIGHTS], units = 0;
    for (int64_t i = 0; i < n; i++) {
        panels[i] = blocks(p[i].b->N, WIDE);
        end[i] = units += blocks(panels[i], UNIT_PANELS);
    }
#pragma omp parallel if (units > 1)
    {
#pragma omp for schedule(static)
        for (int64_t m = 0; m < p->M; m += PACK_ROWS)
            pack_left(left + m * lda, lda, p, m, kn_min(PACK_ROWS, p->M - m), 0, deep);
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < (own ? units : 0); unit++) {
            int64_t i = 0;
            while (unit >= end[i])
                i++;
            const int64_t first = i ? end[i - 1] : 0, each = end[i] - first, from = panels[i] * (unit - first) / each,
                          to = panels[i] * (unit - first + 1) / each;
            for (int64_t k = 0; k < deep; k += UNIT_DEPTH)
                multiply_part(&p[i], left + k, lda, 0, p->M, from, to, k, kn_min(UNIT_DEPTH, deep - k));
        }
    }
    bool done = true;
    for (int64_t i = 0; i < n && !own; i++)
        done = done && kn_bf16_multiply(p[i].c, left, lda, p[i].b->b, p[i].M, p[i].b->N, p[i].b->K, p[i].add);
    return done;
}

static bool is_scaled(const kn_bf16_right *b)
{
    for (int64_t k = 0; k < b->K; k++)
        if (b->scale[k] != 1)
            return true;
    return false;
}

/* memory: left_bytes */
static bool multiply(product *p, int64_t n, void *memory)
{
    const cut how = cut_of(p->M, p->b->K);
    for (int64_t i = 0; i < n; i++)
        p[i].scaled = is_scaled(p[i].b);
    if (!how.many)
        return multiply_few(p, n, &how, memory);
    for (int64_t i = 0; i < n; i++)
        multiply_many(&p[i], &how, memory);
    return true;
}

static status products_right(product *p, int64_t n)
{
    workspace *w = workspace_locked();
    const bool memory = reserve(w, left_bytes(p->M, p->b->K));
    const bool done = memory && multiply(p, n, w->memory);
    pthread_mutex_unlock(&w->lock);
    if (!memory)
        return NB_NOMEM;
    return done ? NB_OK
                : nb_fail(NB_UNSUPPORTED, "a bf16 product of %lld x %lld x %lld failed", (long long)p->M, (long long)p->b->N,
                          (long long)p->b->K);
}

status kn_products_right(real *const *c, const real *a, const kn_bf16_right *const *b, int64_t n, int64_t M)
{
    product p[KN_MOST_RIGHTS];
    assert(n >= 1 && n <= KN_MOST_RIGHTS);
    for (int64_t i = 0; i < n; i++) {
        p[i] = (product){.c = c[i], .a = a, .b = b[i], .M = M};
        assert(b[i]->K == b[0]->K && !is_scaled(b[i]));
    }
    return products_right(p, n);
}

static status product_right(real *c, const real *a, const kn_bf16_right *b, int64_t M, real beta, bool transposed)
{
    assert(beta == 0 || beta == 1);
    return products_right(&(product){.c = c, .a = a, .b = b, .M = M, .add = beta != 0, .transposed = transposed}, 1);
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
    done = done && multiply(&(product){.c = c, .a = a, .b = &right, .M = M, .add = add, .transposed = form == KN_TN}, 1, w->memory);
    pthread_mutex_unlock(&w->lock);
    return done;
}
