/* random.c - counter-based random numbers.
 *   nb_random = mix(seed * A + stream * B + (i + 1) * golden), mix = splitmix64's finalizer (Steele, Lea & Flood 2014)
 * Normal numbers by Box & Muller 1958: sqrt(-2 ln u) cos(2 pi v), u in (0, 1] and v from the counters 2i and 2i + 1.
 */
#include "base/base.h"
#include <math.h>

uint64_t nb_random(uint64_t seed, uint64_t stream, uint64_t i)
{
    return nb_random_mix(nb_random_state(seed, stream, i));
}

double nb_random_unit(uint64_t seed, uint64_t stream, uint64_t i)
{
    return (double)(nb_random(seed, stream, i) >> 11) * 0x1p-53;
}

double nb_random_normal(uint64_t seed, uint64_t stream, uint64_t i)
{
    const double two_pi = 6.283185307179586476925286766559;
    double u = 1.0 - nb_random_unit(seed, stream, 2 * i); /* (0, 1]: never log(0) */
    double v = nb_random_unit(seed, stream, 2 * i + 1);
    return sqrt(-2.0 * log(u)) * cos(two_pi * v);
}

void nb_random_permutation(int64_t *p, int64_t n, uint64_t seed, uint64_t stream)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)(nb_random_unit(seed, stream, (uint64_t)i) * (double)(i + 1));
        int64_t x = p[i];
        p[i] = p[j];
        p[j] = x;
    }
}
