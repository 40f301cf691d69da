/* dynamic_map.c - double quantization (Dettmers et al. 2023, QLoRA): scales of blocks in 8 bits. With s the scales of a tensor, as found:
 *   mean = sum s / n;   in runs of 256: super = max |s - mean|;   code = the nearest of map[.] to (s - mean) / super, the lower of two as near
 *   s <- map[code] * super + mean
 * map is bitsandbytes' signed dynamic map (Dettmers 2016): for e = 0 .. 6 the middles of 2^e equal parts of [0.1, 1], times 10^(e - 6), both signs; 0 and 1.
 * Its numbers are made in float as torch.linspace makes them (from the nearer end, with one rounding), so that they are theirs bit for bit.
 */
#include "kernels/kernels_isa.h"

#include <math.h>
#include <stdlib.h>

enum { EXPONENTS = 7 };

/* Number k of n + 1 from 0.1 to 1. */
static float boundary(int k, int n)
{
    const float step = (1.0f - 0.1f) / (float)n;
    return k < (n + 1) / 2 ? fmaf(step, (float)k, 0.1f) : fmaf(-step, (float)(n - k), 1.0f);
}

void kn_dynamic_map(real map[KN_DYNAMIC_LEVELS])
{
    static const float power[EXPONENTS] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1};
    const int middle = KN_DYNAMIC_LEVELS / 2 - 1;
    int n = 0;
    map[middle] = 0;
    map[KN_DYNAMIC_LEVELS - 1] = 1;
    for (int e = 0; e < EXPONENTS; e++)
        for (int k = 0; k < 1 << e; k++) {
            n++;
            map[middle + n] = (real)(power[e] * ((boundary(k, 1 << e) + boundary(k + 1, 1 << e)) / 2));
            map[middle - n] = -map[middle + n];
        }
}

void kn_join_dynamic(kn_codes *c)
{
    real map[KN_DYNAMIC_LEVELS];
    kn_dynamic_map(map);
    for (int64_t i = 0; i < c->n_scales; i++) {
        const real part = map[c->scale_code[i]] * c->super[i / KN_SUPER];
        c->scale[i] = part + *c->mean;
    }
}

/* How many middles between neighbours t is above; NaN: 0. */
static uint8_t nearest(const real middle[KN_DYNAMIC_LEVELS], real t)
{
    int low = 0, high = KN_DYNAMIC_LEVELS - 1; /* t is above all in front of low, not above middle[high] */
    while (low < high) {
        const int k = (low + high) / 2;
        if (t > middle[k])
            low = k + 1;
        else
            high = k;
    }
    return (uint8_t)low;
}

void kn_split_dynamic(kn_codes *c)
{
    real map[KN_DYNAMIC_LEVELS], middle[KN_DYNAMIC_LEVELS];
    double sum = 0;
    kn_dynamic_map(map);
    for (int k = 0; k < KN_DYNAMIC_LEVELS - 1; k++)
        middle[k] = (map[k] + map[k + 1]) / 2;
    for (int64_t i = 0; i < c->n_scales; i++)
        sum += (double)c->scale[i];
    *c->mean = c->n_scales ? (real)(sum / (double)c->n_scales) : 0;
    for (int64_t i = 0; i < c->n_scales; i += KN_SUPER) {
        const int64_t end = kn_min(i + KN_SUPER, c->n_scales);
        real most = 0;
        for (int64_t k = i; k < end; k++) {
            const real d = c->scale[k] - *c->mean, size = d < 0 ? -d : d;
            most = size > most ? size : most;
        }
        c->super[i / KN_SUPER] = most;
        for (int64_t k = i; k < end; k++)
            c->scale_code[k] = nearest(middle, (c->scale[k] - *c->mean) * kn_inverse(most));
    }
    kn_join_dynamic(c);
}
