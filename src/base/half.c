/* half.c - IEEE binary16 and bfloat16, rounding to nearest, ties to even.
 *   binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits; bfloat16: the upper half of a float.
 * A NaN keeps its sign and upper fraction bits and becomes quiet, as F16C does it.
 */
#include "base/base.h"
#include <string.h>

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

uint16_t nb_half_from(float f)
{
    const uint32_t infinity = 0x7C00, half_bits = bits_of(0.5f);
    uint32_t u = bits_of(f), sign = u >> 16 & 0x8000, a = u & 0x7FFFFFFF;
    if (a > 0x7F800000)
        return (uint16_t)(sign | infinity | 0x200 | (a >> 13 & 0x3FF));
    if (a >= 0x477FF000) /* 65520 and above round to infinity */
        return (uint16_t)(sign | infinity);
    if (a < 0x38800000) /* below 2^-14: adding 0.5 makes the adder round to multiples of 2^-24 */
        return (uint16_t)(sign | (bits_of(float_of(a) + 0.5f) - half_bits));
    a += 0xFFF + (a >> 13 & 1);
    return (uint16_t)(sign | ((a - 0x38000000) >> 13));
}

float nb_half_to(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, a = (uint32_t)(h & 0x7FFF) << 13;
    if ((h & 0x7C00) == 0x7C00)
        return float_of(sign | 0x7F800000 | a | ((h & 0x3FF) ? 0x400000 : 0));
    return float_of(sign | bits_of(float_of(a) * 0x1p112f)); /* moves the bias from 15 to 127, subnormals included */
}

uint16_t nb_bf16_from(float f)
{
    uint32_t u = bits_of(f);
    if ((u & 0x7FFFFFFF) > 0x7F800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

float nb_bf16_to(uint16_t h)
{
    return float_of((uint32_t)h << 16);
}
