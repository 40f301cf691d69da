/* random_spec.h - for tests: specs of any kind, from a seed. */
#ifndef NIBBLE_TESTS_RANDOM_SPEC_H
#define NIBBLE_TESTS_RANDOM_SPEC_H
#include "fakequant/fakequant.h"
#include <string.h>

/* The i-th number below n of a seed. */
static inline uint64_t dice(uint64_t seed, uint64_t i, uint64_t n)
{
    return nb_random(7, seed, i) % n;
}

/* A spec that makes sense, of any kind. */
static inline fq_spec random_spec(uint64_t seed)
{
    fq_spec s = {0};
    const int grain = (int)dice(seed, 0, 5), group = grain >= KN_HEAD ? 1 + (int)dice(seed, 1, 40) : 0;
    const int bits = (int[]){2, 3, 4, 5, 6, 7, 8, 16, 1}[dice(seed, 2, 9)];
    s.grid = kn_grid_int(bits, dice(seed, 3, 2), dice(seed, 4, 3) == 0, (kn_grain)grain, group,
                         (kn_scale_type)dice(seed, 5, 4));
    if (dice(seed, 6, 4) == 0 && bits > 1 && bits < 8 && !s.grid.has_zero) {
        s.grid.levels = KN_LEVELS_HALF_STEP;
        s.grid.lo = -(1 << (bits - 1));
    }
    s.range = (uint8_t)dice(seed, 7, 3);
    s.ste = (uint8_t)dice(seed, 8, 3);
    s.learning = s.range == FQ_LEARNED ? (uint8_t)dice(seed, 9, 3) : 0;
    s.method = s.range == FQ_DYNAMIC ? 0 : (uint8_t)dice(seed, 10, 5);
    s.parameter = s.method == FQ_PERCENTILE && dice(seed, 11, 2) ? 99.5f : s.method == FQ_MOVING_AVERAGE ? 0.03f : 0;
    return s;
}

#endif
