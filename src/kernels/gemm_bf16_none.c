/* gemm_bf16_none.c - what stands in for gemm_onednn.c where oneDNN is not built in: no bf16 products. */
#include "kernels/products.h"

#ifndef NIBBLE_HAVE_ONEDNN
bool kn_bf16_multiply(real *c, const uint16_t *a, int64_t lda, const uint16_t *b, int64_t M, int64_t N, int64_t K, bool add)
{
    (void)c, (void)a, (void)lda, (void)b, (void)M, (void)N, (void)K, (void)add;
    return false;
}

bool kn_bf16_library(void)
{
    return false;
}

bool kn_bf16_library_pays(void)
{
    return false;
}

const char *kn_bf16_name(char *text, size_t bytes)
{
    snprintf(text, bytes, "no oneDNN");
    return text;
}
#endif
