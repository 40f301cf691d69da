/* coded.h - for tests of operators: numbers, comparisons, and a quantization site in its simplest form. */
#ifndef NIBBLE_TESTS_CODED_H
#define NIBBLE_TESTS_CODED_H
#include "autograd/autograd.h"
#include <check.h>
#include <math.h>
#include <string.h>

/* x[0..n) uniform in [-size, size). */
static inline void fill(real *x, int64_t n, uint64_t stream, double size)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (real)(size * (2 * nb_random_unit(3, stream, (uint64_t)i) - 1));
}

static inline bool same_bits(const real *a, const real *b, int64_t n)
{
    return !memcmp(a, b, (size_t)n * sizeof *a);
}

static inline void near(const char *name, const char *what, const real *a, const double *b, int64_t n, double tolerance)
{
    for (int64_t i = 0; i < n; i++)
        ck_assert_msg(fabs((double)a[i] - b[i]) < tolerance, "%s: %s[%lld] is %.8g, wanted %.8g", name, what,
                      (long long)i, (double)a[i], b[i]);
}

/* Codes of its input; the gradient passes straight through. */
typedef struct {
    kn_codes codes;
} save_coded;

static inline void coded_forward(ag_tensor *out)
{
    save_coded *s = out->save;
    kn_encode(&s->codes, ag_value(out->src[0]));
    out->codes = &s->codes;
}

static inline void coded_backward(const ag_tensor *out)
{
    real *g = ag_grad(out->src[0]);
    if (g)
        kn_add_to(g, out->g, ag_count(out));
}

static const ag_op op_coded = {"coded", coded_forward, coded_backward, 0};

static inline ag_tensor *coded(ag_tape *t, ag_tensor *x, kn_grid grid)
{
    ag_tensor *out = ag_node(t, &op_coded, 1, &x, x->n_dim, x->dim, sizeof(save_coded));
    void *memory = ag_take(t, kn_codes_bytes(&grid, ag_rows(x), ag_cols(x)));
    kn_codes_lay(&((save_coded *)out->save)->codes, &grid, ag_rows(x), ag_cols(x), memory);
    return ag_run_codes(t, out);
}

#endif
