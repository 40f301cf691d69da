/* head_row.h - losses of one row of logits (private to op_head.c). */
#ifndef NIBBLE_AUTOGRAD_HEAD_ROW_H
#define NIBBLE_AUTOGRAD_HEAD_ROW_H
#include "autograd/autograd.h"

typedef struct {
    double loss;   /* the weighted sum of all terms */
    double ce, kl; /* at temperature 1; kl: KL(teacher || student), 0 without a teacher or a wish for it */
    bool same_top; /* student and teacher put the same token first */
} ag_row_result;

typedef struct {
    bool report;   /* kl and same_top are wanted, whatever the weights */
    bool gradient; /* z is to become d(factor * loss)/dz */
    real factor;
} ag_row_wish;

/* z, zt (NULL: no teacher) [V]; target < V; l->temperature > 0; scratch [3 V]. */
ag_row_result ag_head_row(real *z, const real *zt, int64_t V, int32_t target, const ag_head_loss *l,
                          const ag_row_wish *wish, real *scratch);

#endif
