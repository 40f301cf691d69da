/* gptq.h - GPTQ of one matrix from the Gram matrix of its inputs, plain arrays (private to ptq/). Formulas: gptq.c. */
#ifndef NIBBLE_PTQ_GPTQ_H
#define NIBBLE_PTQ_GPTQ_H
#include "fakequant/fakequant.h"

/* H = mean over rows of x x', and the factor that errors are passed on by. A zeroed struct is empty. */
typedef struct {
    int64_t K;
    real *H;        /* [K, K], both triangles */
    real *U;        /* [K, K] upper, in the order of `order`: inverse(damped H) = U' U */
    int64_t *order; /* [K] the column that is i-th */
    double damping; /* what the diagonal was raised by, in shares of its mean; NAN: no share up to 1 would do, U is diagonal (H's) */
    bool in_order;  /* order is 0, 1, 2, .. */
} pt_hessian;
status pt_hessian_new(pt_hessian *h, int64_t K);
void pt_hessian_free(pt_hessian *h);
/* H += sum over rows of weight_t x_t x_t', x [M, K], weight [M] or NULL: 1. */
status pt_hessian_add(pt_hessian *h, kn_precision precision, const real *x, const real *weight, int64_t M);
/* Makes U. damping: the first share tried, 0: 0.01; after a failure 0.01 more, then ten times as much. act_order: columns by falling diagonal. */
status pt_hessian_factor(pt_hessian *h, double damping, bool act_order);

typedef struct {
    fq_start ranges;    /* how ranges are found; FQ_START_IMPORTANCE: by least error, squares weighted by 1 / U_jj^2 */
    bool static_groups; /* ranges of groups from the weights as they came, not as errors have changed them: where columns change order
                           and where a range is of more than a row's group, always */
    bool greedy;        /* OBQ (Frantar & Alistarh 2022): each row takes next the column that costs least, H's inverse kept up to date; O(rows K^3) */
    int64_t rounds;     /* of least-squares scales for the codes found and codes for these */
    const pt_hessian *outputs; /* O [rows, rows] in order: errors of rows cost together; NULL: each row's for itself */
} pt_gptq_options;
/* Codes of w [rows, cols] for the least sum over rows of (w - v) H (w - v)', v their values, or of tr O (w - v) H (w - v)'; into c, laid out by a grid with
 * bits, which takes ranges too. A row (with O: the whole) keeps round-to-nearest where that is better. error (or NULL): [0] the sum, [1] of round-to-nearest.
 * Not greedy with O. */
status pt_gptq(kn_codes *c, const fq_spec *spec, const real *w, const pt_hessian *h, const pt_gptq_options *o, double error[2]);

#endif
