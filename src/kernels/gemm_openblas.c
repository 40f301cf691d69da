/* gemm_openblas.c - the door to OpenBLAS: general float products, row-major. */
#include "kernels/products.h"

#include <cblas.h>
#include <strings.h>

#ifdef NB_DOUBLE
#define GEMM cblas_dgemm
#define SYRK cblas_dsyrk
#else
#define GEMM cblas_sgemm
#define SYRK cblas_ssyrk
#endif

void kn_blas_product(kn_form form, real *c, const real *a, const real *b, int64_t M, int64_t N, int64_t K, bool add)
{
    if (M == 0 || N == 0)
        return;
    const CBLAS_TRANSPOSE ta = form == KN_TN ? CblasTrans : CblasNoTrans,
                          tb = form == KN_NT ? CblasTrans : CblasNoTrans;
    const blasint lda = (blasint)(form == KN_TN ? M : K), ldb = (blasint)(form == KN_NT ? K : N);
    GEMM(CblasRowMajor, ta, tb, (blasint)M, (blasint)N, (blasint)K, 1, a, lda ? lda : 1, b, ldb ? ldb : 1,
         (real)(add ? 1 : 0), c, (blasint)N);
}

void kn_blas_tile(real *c, int64_t ldc, const real *a, int64_t lda, const real *b, int64_t ldb, int64_t M, int64_t N,
                  int64_t K, bool add)
{
    GEMM(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)M, (blasint)N, (blasint)K, 1, a, (blasint)lda, b,
         (blasint)ldb, (real)(add ? 1 : 0), c, (blasint)ldc);
}

void kn_blas_gram(real *h, const real *x, int64_t M, int64_t C, real beta)
{
    SYRK(CblasRowMajor, CblasUpper, CblasTrans, (blasint)C, (blasint)M, 1, x, (blasint)C, beta, h, (blasint)C);
}

const char *kn_blas_name(char *text, size_t bytes)
{
    const char *config = openblas_get_config(); /* "OpenBLAS 0.3.21 NO_LAPACKE DYNAMIC_ARCH ... MAX_THREADS=64" */
    const char *end = config;
    for (int words = 0; *end && words < 2; end++)
        words += *end == ' ';
    snprintf(text, bytes, "%.*s%s", (int)(end - config), config, openblas_get_corename());
    return text;
}

/* ---- the core ----------------------------------------------------------------------------- */

enum { SSE, AVX2, AVX512 };

static int level_of_cpu(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return AVX2;
#endif
    return SSE;
}

static int level_of_core(const char *core)
{
    static const struct {
        const char *core;
        int level;
    } known[] = {{"Haswell", AVX2},    {"Zen", AVX2},          {"Excavator", AVX2},
                 {"SkylakeX", AVX512}, {"Cooperlake", AVX512}, {"SapphireRapids", AVX512}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcasecmp(known[i].core, core))
            return known[i].level;
    return SSE;
}

const char *kn_blas_core(const char *core)
{
    static const char *const name[] = {[AVX2] = "Haswell", [AVX512] = "SkylakeX"};
    int level = level_of_cpu();
    return level > level_of_core(core ? core : openblas_get_corename()) ? name[level] : NULL;
}
