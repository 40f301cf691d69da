/* obq.h - the greedy order that GPTQ gave up, as the slow baseline of small layers (private to ptq/). */
#ifndef NIBBLE_PTQ_OBQ_H
#define NIBBLE_PTQ_OBQ_H
#include "ptq/gptq.h"

/* Codes of rows [row, row + n) of w [rows, cols] by the ranges that c holds: in every row the column next for which
 * (w_i - v_i)^2 / G_ii is least, G the inverse of H among the columns that are left. O(n K^3), doubles. */
status pt_obq(kn_codes *c, const real *w, const pt_hessian *h, int64_t row, int64_t n);

#endif
