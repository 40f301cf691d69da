/* orthogonal.h - orthogonal matrices that are applied in n log n where they can be (private to ptq/). */
#ifndef NIBBLE_PTQ_ORTHOGONAL_H
#define NIBBLE_PTQ_ORTHOGONAL_H
#include "base/base.h"

/* H of order n / K (a power of two) Kronecker a core of order K, both of unit determinant's scale: a zeroed struct is empty. */
typedef struct {
    int64_t n, K;
    double *core; /* [K, K], orthogonal */
    bool hadamard;
} pt_orthogonal;
/* n >= 1. The core is a Hadamard matrix / sqrt(K) where Paley's constructions over primes give one, else random from the seed. */
status pt_orthogonal_new(pt_orthogonal *r, int64_t n, uint64_t seed);
void pt_orthogonal_free(pt_orthogonal *r);
/* x [n] <- x diag(sign) R, as a row; sign [n] of -1 and 1. scratch [n]. */
void pt_orthogonal_apply(const pt_orthogonal *r, double *x, const double *sign, double *scratch);

#endif
