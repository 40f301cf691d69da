/* products.h - the two library doors and what calls them (private to kernels/). */
#ifndef NIBBLE_KERNELS_PRODUCTS_H
#define NIBBLE_KERNELS_PRODUCTS_H
#include "kernels/kernels.h"

typedef enum { KN_NT, KN_NN, KN_TN } kn_form;

/* c[M,N] = op(a) op(b) + (add ? c : 0), natural leading dimensions, all threads. */
void kn_blas_product(kn_form form, real *c, const real *a, const real *b, int64_t M, int64_t N, int64_t K, bool add);
/* c[M,N] (ldc) = a[M,K] (lda) b[N,K]' (ldb) + (add ? c : 0); one thread when called inside a parallel region. */
void kn_blas_tile(real *c, int64_t ldc, const real *a, int64_t lda, const real *b, int64_t ldb, int64_t M, int64_t N,
                  int64_t K, bool add);
/* The upper triangle of h[C,C] = x[M,C]' x + beta h, all threads. */
void kn_blas_gram(real *h, const real *x, int64_t M, int64_t C, real beta);
const char *kn_blas_name(char *text, size_t bytes);

/* c = op(a) op(b) (+ c) in bf16 from floats; false where it could not be done: then use the other. */
bool kn_bf16_product(kn_form form, real *c, const real *a, const real *b, int64_t M, int64_t N, int64_t K, bool add);
/* c[M,N] (+)= a[M,K] b, sums in fp32: a bf16 with lda elements between rows, b as in kn_bf16_right; all threads. False where it
 * could not be done (not built in, no memory, CPU without it). */
bool kn_bf16_multiply(real *c, const uint16_t *a, int64_t lda, const uint16_t *b, int64_t M, int64_t N, int64_t K, bool add);
/* Pieces of operands (products_bf16.c has their layout) out of x (ld), on the thread that calls. A left one: to [rows, lda] <- x [rows, steps] in bf16, or
 * (turned) to [columns, lda] <- x' of x [steps, columns]; step i times scale[i] (NULL: 1), zeros in steps [steps, depth); depth is whole 32s. */
void kn_bf16_left(uint16_t *to, int64_t lda, const real *x, int64_t ld, int64_t rows, int64_t steps, int64_t depth, const real *scale);
void kn_bf16_left_turned(uint16_t *to, int64_t lda, const real *x, int64_t ld, int64_t steps, int64_t columns, int64_t depth, const real *scale);
/* A right one: steps of a panel, from where `to` is, <- x' of x [columns, steps], at most 64 columns; zeros up to whole panels and 32s. */
void kn_bf16_right_turned(uint16_t *to, const real *x, int64_t ld, int64_t columns, int64_t steps);
bool kn_bf16_library(void); /* the library multiplies bf16 on this CPU, */
bool kn_bf16_library_pays(void); /* faster than it does fp32 */
const char *kn_bf16_name(char *text, size_t bytes); /* "oneDNN 2.6.3" or "none" */
#endif
