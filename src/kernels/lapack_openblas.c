/* lapack_openblas.c - the door to LAPACK, which OpenBLAS brings: factors of positive definite matrices.
 *   P a P = l l' with P the reversal of order, so a = v v' with v = P l P upper, and inverse(a) = u' u with u = inverse(v) = P inverse(l) P
 */
#include "kernels/kernels.h"

void dpotrf_(const char *uplo, const int *n, double *a, const int *lda, int *info);
void dtrtri_(const char *uplo, const char *diag, const int *n, double *a, const int *lda, int *info);

/* a <- P a P */
static void reverse(double *a, int64_t n)
{
    for (int64_t i = 0, k = n * n - 1; i < k; i++, k--) {
        const double t = a[i];
        a[i] = a[k];
        a[k] = t;
    }
}

bool kn_inverse_factor(double *a, int64_t n)
{
    const int order = (int)n;
    int info = 0;
    /* reversed, the lower triangle by rows holds it, LAPACK's upper one by columns: its U of U'U is l', so l stands by rows */
    reverse(a, n);
    dpotrf_("U", &order, a, &order, &info);
    if (info == 0)
        dtrtri_("U", "N", &order, a, &order, &info);
    if (info != 0)
        return false;
    reverse(a, n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++)
            a[i * n + j] = 0;
    return true;
}
