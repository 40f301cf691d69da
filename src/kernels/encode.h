/* encode.h - what the files of kernels/ that make and read codes share (private to kernels/). */
#ifndef NIBBLE_KERNELS_ENCODE_H
#define NIBBLE_KERNELS_ENCODE_H
#include "kernels/kernels.h"

/* The min-max range of x [n]: absmax without zero points, mean |x| for SIGN. zero may be NULL without zero points. */
void kn_range_span(const kn_grid *g, const real *x, int64_t n, real *scale, int32_t *zero);
/* ggml's Q4_0 of one group: codes from the unrounded d, *scale = store(d). */
void kn_encode_q4_0(int8_t *q, const real *x, int64_t n, const kn_grid *g, real *scale);
/* x [n] <- outliers of columns [col, col + n) of one row, what is none stays. */
void kn_decode_outliers(real *x, const kn_codes *c, int64_t row, int64_t col, int64_t n);
#endif
