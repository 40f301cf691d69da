/* gemm_bf16_none.c - what stands in for gemm_onednn.c where oneDNN is not built in: no bf16 products. */
#include "kernels/products.h"

#ifndef NIBBLE_HAVE_ONEDNN
bool kn_bf16_product(kn_form form, real *c, const real *a, const real *b, int64_t M, int64_t N, int64_t K, bool add)
{
    (void)form, (void)c, (void)a, (void)b, (void)M, (void)N, (void)K, (void)add;
    return false;
}

bool kn_bf16_fast(void)
{
    return false;
}

const char *kn_bf16_name(char *text, size_t bytes)
{
    snprintf(text, bytes, "no oneDNN");
    return text;
}
#endif
