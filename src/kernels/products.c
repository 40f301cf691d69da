/* products.c - float products: which library, and small ones of our own. */
#include "kernels/products.h"
#include "kernels/kernels_isa.h"

#include <assert.h>

static void product(kn_form form, kn_precision p, real *c, const real *a, const real *b, int64_t M, int64_t N,
                    int64_t K, real beta)
{
    assert(beta == 0 || beta == 1);
    if (p == KN_BF16 && kn_bf16_product(form, c, a, b, M, N, K, beta != 0))
        return;
    kn_blas_product(form, c, a, b, M, N, K, beta != 0);
}

/* c[M,N] for few rows: what counts is reading b once, which a product for matrices does not do well. */
static void product_few(real *c, const real *a, const real *b, int64_t M, int64_t N, int64_t K)
{
    enum { COLUMNS = 32 };
    const kn_table *t = kn_isa();
#pragma omp parallel for if (N * K > KN_PARALLEL * 4) schedule(static)
    for (int64_t n = 0; n < N; n += COLUMNS)
        t->dots(c + n, N, a, K, b + n * K, K, M, kn_min(COLUMNS, N - n), K);
}

void kn_product_nt(kn_precision p, real *c, const real *a, const real *b, int64_t M, int64_t N, int64_t K, real beta)
{
    if (M <= 4 && beta == 0)
        product_few(c, a, b, M, N, K);
    else
        product(KN_NT, p, c, a, b, M, N, K, beta);
}

void kn_product_nn(kn_precision p, real *c, const real *a, const real *b, int64_t M, int64_t N, int64_t K, real beta)
{
    product(KN_NN, p, c, a, b, M, N, K, beta);
}

void kn_product_tn(kn_precision p, real *c, const real *a, const real *b, int64_t M, int64_t N, int64_t K, real beta)
{
    product(KN_TN, p, c, a, b, M, N, K, beta);
}

void kn_gram(kn_precision p, real *h, const real *x, int64_t M, int64_t C, real beta)
{
    assert(beta == 0 || beta == 1);
    if (p == KN_BF16 && kn_bf16_product(KN_TN, h, x, x, C, C, M, beta != 0))
        return;
    kn_blas_gram(h, x, M, C, beta);
#pragma omp parallel for schedule(static) if (C * C > KN_PARALLEL)
    for (int64_t i = 0; i < C; i++)
        for (int64_t j = 0; j < i; j++)
            h[i * C + j] = h[j * C + i];
}

/* b is transposed in pieces of 64 x 128, small enough for the stack and the first cache level. */
void kn_tile_nt(real *c, int64_t ldc, const real *a, int64_t lda, const real *b, int64_t ldb, int64_t M, int64_t N,
                int64_t K, real beta)
{
    enum { COLUMNS = 64, DEPTH = 128 };
    const kn_table *t = kn_isa();
    real piece[COLUMNS * DEPTH];
    for (int64_t n = 0; n < N; n += COLUMNS) {
        const int64_t columns = kn_min(COLUMNS, N - n);
        for (int64_t k = 0; k < K; k += DEPTH) {
            const int64_t depth = kn_min(DEPTH, K - k);
            t->transpose(piece, columns, b + n * ldb + k, ldb, columns, depth);
            t->tile(c + n, ldc, a + k, lda, 1, piece, columns, M, columns, depth, k > 0 || beta != 0);
        }
    }
}

void kn_tile_nn(real *c, int64_t ldc, const real *a, int64_t lda, const real *b, int64_t ldb, int64_t M, int64_t N,
                int64_t K, real beta)
{
    kn_isa()->tile(c, ldc, a, lda, 1, b, ldb, M, N, K, beta != 0);
}

void kn_tile_tn(real *c, int64_t ldc, const real *a, int64_t lda, const real *b, int64_t ldb, int64_t M, int64_t N,
                int64_t K, real beta)
{
    kn_isa()->tile(c, ldc, a, 1, lda, b, ldb, M, N, K, beta != 0);
}

void kn_libraries(char *text, size_t bytes)
{
    char blas[128], bf16[64];
    snprintf(text, bytes, "%s; %s", kn_blas_name(blas, sizeof blas), kn_bf16_name(bf16, sizeof bf16));
}
