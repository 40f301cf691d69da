/* isa_tables.h - for tests of kernels: every table of loops that this program has, and normal numbers. */
#ifndef NIBBLE_TESTS_ISA_TABLES_H
#define NIBBLE_TESTS_ISA_TABLES_H
#include "kernels/kernels_isa.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static const kn_table *const tables[] = {
#define X(name, test) &kn_table_##name,
    KN_TABLES(X)
#undef X
};

/* Whether this CPU can run it. */
static inline bool usable(const kn_table *t)
{
    return kn_isa_named(t->name) == t;
}

/* Normal numbers of standard deviation `size`. */
static inline void fill(float *x, int64_t n, uint64_t seed, double size)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(size * nb_random_normal(seed, 7, (uint64_t)i));
}

#endif
