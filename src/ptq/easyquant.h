/* easyquant.h - the search for scales by the cosine of outputs, of linears and of convolutions (private to ptq/). */
#ifndef NIBBLE_PTQ_EASYQUANT_H
#define NIBBLE_PTQ_EASYQUANT_H
#include "ptq/ptq.h"

/* A weight that reads the input. groups: its rows are so many groups, and each reads its own columns of the input (a depthwise
 * convolution's patches); the site's cols are those of one group. */
typedef struct {
    fq_site *site;
    const real *w; /* latent floats [site rows, site cols] */
    int64_t groups;
} pt_scaled;
enum { PT_SCALED = 3 };
/* Sets the scales of `input` and of its readers (those that have codes with ranges of their own; the others are left out). x [n, K] as the float
 * layers before give it, raw [n, K] the quantized ones, before the site; K = site cols * groups of every reader. */
status pt_easyquant(fq_site *input, const real *x, const real *raw, int64_t n, int64_t K, const pt_scaled *reader,
                    int readers);

#endif
