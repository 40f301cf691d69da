/* op.h - what the operator files of this folder share: sources by value, shapes in words, sums in a fixed order. */
#ifndef NIBBLE_AUTOGRAD_OP_H
#define NIBBLE_AUTOGRAD_OP_H
#include "autograd/autograd.h"

/* Loops over fewer elements are not worth waking threads for. */
enum { AG_PARALLEL = 1 << 14 };

/* The value of out->src[i], decoded on demand. NULL: the tape has failed (memory, or the value was given up by
 * ag_done). */
const real *ag_in(const ag_tensor *out, int i);

bool ag_same_shape(const ag_tensor *a, const ag_tensor *b);
/* "[2,3,7]"; use as ag_words_of(x).text inside one expression. */
typedef struct {
    char text[96];
} ag_words;
ag_words ag_words_of(const ag_tensor *a);

/* Memory of this step with a copy of `bytes` bytes of data; NULL: the tape has failed. */
void *ag_copy(ag_tape *t, const void *data, size_t bytes);

/* The gradient of src += a * d, d of src's size; written where it is the first contribution. */
void ag_add_grad(const ag_tensor *src, real a, const real *d);
/* g [C] += a * sum_m x[m,c] * y[m,c] (y NULL: 1); sums in double, m ascending. The second: into the gradient of src, of
 * C elements. */
void ag_add_columns(real *g, real a, const real *x, const real *y, int64_t M, int64_t C);
void ag_add_grad_columns(const ag_tensor *src, real a, const real *x, const real *y, int64_t M, int64_t C);

/* Sum of part(x + i, y + i, n_i) over at most 256 blocks whose bounds depend on n alone, added in order: the same bits
 * with any number of threads. y may be NULL. */
double ag_sum_parts(double (*part)(const real *x, const real *y, int64_t n), const real *x, const real *y, int64_t n);

/* y [n, N] = rows [row, row + n) of x, times w', plus b (NULL: none): the forward of ag_linear and of ag_head. Integer
 * product where both carry codes that allow it, else by value. False: the tape has failed. */
bool ag_linear_rows(real *y, const ag_tensor *x, const ag_tensor *w, const ag_tensor *b, int64_t row, int64_t n);

/* Rows [row, row + rows) of a as the right operand of bf16 products, from its codes where it has some, in memory of the tape:
 * kn_bf16_right_bytes(rows, columns), to be given back. False: the tape has failed. */
bool ag_right_rows(kn_bf16_right *b, const ag_tensor *a, int64_t row, int64_t rows, void **memory);
/* kn_product_right, or (transposed) kn_product_t_right; a failure is the tape's. */
void ag_product_right(ag_tape *t, real *c, const real *a, const kn_bf16_right *b, int64_t M, real beta, bool transposed);

#endif
