/* select.c - which table of loops runs: the best this CPU has, or what NIBBLE_ISA asks for. */
#include "kernels/kernels_isa.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const kn_table *best(void)
{
    const kn_table *t = NULL;
#define X(id, test)                                                                                                    \
    if (test)                                                                                                          \
        t = &kn_table_##id;
    KN_TABLES(X)
#undef X
    return t;
}

const kn_table *kn_isa_named(const char *name)
{
#define X(id, test)                                                                                                    \
    if (strcmp(name, #id) == 0)                                                                                        \
        return (test) ? &kn_table_##id : NULL;
    KN_TABLES(X)
#undef X
    return NULL;
}

static const kn_table *wanted(const char *name)
{
    if (!name || !*name)
        return best();
    return kn_isa_named(name);
}

const kn_table *kn_isa(void)
{
    static _Atomic(const kn_table *) chosen; /* the same value whoever writes it */
    const kn_table *t = atomic_load_explicit(&chosen, memory_order_acquire);
    if (!t) {
        t = wanted(getenv("NIBBLE_ISA"));
        if (!t)
            t = &kn_table_scalar;
        atomic_store_explicit(&chosen, t, memory_order_release);
    }
    return t;
}

const char *kn_isa_name(void)
{
    return kn_isa()->name;
}

status kn_isa_check(void)
{
    const char *name = getenv("NIBBLE_ISA");
    if (wanted(name))
        return NB_OK;
    return nb_fail(
        NB_UNSUPPORTED,
        "NIBBLE_ISA=%s: unknown, or not an instruction set of this CPU (scalar, avx2, avx512, amx; best here: %s)",
        name, best()->name);
}
