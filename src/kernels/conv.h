/* conv.h - what the files of convolution share (private to kernels/). */
#ifndef NIBBLE_KERNELS_CONV_H
#define NIBBLE_KERNELS_CONV_H
#include "kernels/kernels.h"

/* Each channel for itself: products of vectors, not of matrices. */
static inline bool kn_conv_depthwise(int64_t C, int64_t N, int64_t groups)
{
    return groups > 1 && groups == C && C == N;
}
#endif
