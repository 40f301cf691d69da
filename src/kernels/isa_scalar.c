/* isa_scalar.c - the definition: the 16-lane vector in plain C. Also what the double build uses, with libm's exp. */
#include "kernels/kernels_isa.h"

#include <math.h>
#include <string.h>
#include <tgmath.h>

#define NOINLINE __attribute__((noinline))
#define INLINE   static NOINLINE                                                /* one copy for every register tile */
enum { FLOAT_TILE = 4, FLOAT_VECTORS = 1, LINEAR_TILE = 2, LINEAR_PANELS = 1 }; /* vectors of a register tile */

typedef struct {
    real l[16];
} v16;
typedef struct {
    int32_t l[16];
} w16;
typedef struct {
    uint8_t l[64];
} b64;

/* A lane-wise function of reals. */
#define LANES(name, arguments, expression)                                                                             \
    static inline v16 name arguments                                                                                   \
    {                                                                                                                  \
        v16 y;                                                                                                         \
        for (int i = 0; i < 16; i++)                                                                                   \
            y.l[i] = (expression);                                                                                     \
        return y;                                                                                                      \
    }
LANES(v_zero, (void), 0)
LANES(v_set1, (real a), a)
LANES(v_load, (const real *p), p[i])
LANES(v_load_n, (const real *p, int64_t n), i < n ? p[i] : 0)
LANES(v_add, (v16 a, v16 b), a.l[i] + b.l[i])
LANES(v_sub, (v16 a, v16 b), a.l[i] - b.l[i])
LANES(v_mul, (v16 a, v16 b), a.l[i] * b.l[i])
LANES(v_div, (v16 a, v16 b), a.l[i] / b.l[i])
LANES(v_fma, (v16 a, v16 b, v16 c), fma(a.l[i], b.l[i], c.l[i]))
LANES(v_min, (v16 a, v16 b), a.l[i] < b.l[i] ? a.l[i] : b.l[i])
LANES(v_max, (v16 a, v16 b), a.l[i] > b.l[i] ? a.l[i] : b.l[i])
LANES(v_abs, (v16 a), fabs(a.l[i]))
LANES(v_rint, (v16 a), rint(a.l[i]))
LANES(v_sign, (v16 a), a.l[i] >= 0 ? 1 : -1)
LANES(v_keep, (v16 a, int64_t n, v16 other), i < n ? a.l[i] : other.l[i])
LANES(v_if_at_least, (v16 a, real limit, v16 x), a.l[i] >= limit ? x.l[i] : 0)
LANES(v_if_more, (v16 a, v16 b, v16 x, v16 other), a.l[i] > b.l[i] ? x.l[i] : other.l[i])
LANES(v_half, (v16 a), (real)nb_half_to(nb_half_from((float)a.l[i]))) /* as binary16 holds it */
LANES(v_swap, (v16 a), a.l[i ^ 1])                                    /* the two of every pair */
LANES(v_from_w, (w16 a), (real)a.l[i])

LANES(v_by_bits, (v16 a, uint32_t bits), bits >> i & 1 ? a.l[i] : 0) /* 0 where there is none */
static inline uint32_t v_bits(v16 a) /* a bit for each lane above 0 */
{
    uint32_t bits = 0;
    for (int i = 0; i < 16; i++)
        bits |= (uint32_t)(a.l[i] > 0) << i;
    return bits;
}

static inline void v_store(real *p, v16 a)
{
    memcpy(p, a.l, sizeof a.l);
}
static inline void v_store_n(real *p, v16 a, int64_t n)
{
    memcpy(p, a.l, (size_t)n * sizeof *p);
}

/* Lane i with lane i + 8, then 4, 2, 1. */
static inline real v_sum(v16 a)
{
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            a.l[i] = a.l[i] + a.l[i + half];
    return a.l[0];
}
static inline real v_top(v16 a)
{
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            a.l[i] = a.l[i] > a.l[i + half] ? a.l[i] : a.l[i + half];
    return a.l[0];
}
static inline real v_bottom(v16 a)
{
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            a.l[i] = a.l[i] < a.l[i + half] ? a.l[i] : a.l[i + half];
    return a.l[0];
}
static inline void v_transpose(v16 r[16])
{
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) {
            const real t = r[i].l[j];
            r[i].l[j] = r[j].l[i];
            r[j].l[i] = t;
        }
}

/* A lane-wise function of integers; unsigned arithmetic, which wraps as the vector units do. */
#define INTEGERS(name, arguments, expression)                                                                          \
    static inline w16 name arguments                                                                                   \
    {                                                                                                                  \
        w16 y;                                                                                                         \
        for (int i = 0; i < 16; i++)                                                                                   \
            y.l[i] = (int32_t)(expression);                                                                            \
        return y;                                                                                                      \
    }
INTEGERS(w_zero, (void), 0)
INTEGERS(w_set1, (int32_t a), a)
INTEGERS(w_load, (const int32_t *p), p[i])
INTEGERS(w_add, (w16 a, w16 b), (uint32_t)a.l[i] + (uint32_t)b.l[i])
INTEGERS(w_sub, (w16 a, w16 b), (uint32_t)a.l[i] - (uint32_t)b.l[i])
INTEGERS(w_mul, (w16 a, w16 b), (uint32_t)a.l[i] * (uint32_t)b.l[i])
INTEGERS(w_from_v, (v16 a), a.l[i] >= -2147483648.0 && a.l[i] < 2147483648.0 ? (int32_t)rint(a.l[i]) : INT32_MIN)
INTEGERS(w_from_s8, (const int8_t *p, int64_t n), i < n ? p[i] : 0)
INTEGERS(w_from_u8, (const uint8_t *p, int64_t n), i < n ? p[i] : 0)
INTEGERS(w_from_u4, (const uint8_t *p, int64_t n), i < n ? p[i / 2] >> i % 2 * 4 & 15 : 0) /* low nibble first */
INTEGERS(w_from_s16, (const int16_t *p, int64_t n), i < n ? p[i] : 0)

static inline void w_store(int32_t *p, w16 a)
{
    memcpy(p, a.l, sizeof a.l);
}
static inline void w_to_s8(int8_t *p, w16 a, int64_t n)
{
    for (int i = 0; i < 16 && i < n; i++)
        p[i] = (int8_t)a.l[i];
}
static inline void w_to_s16(int16_t *p, w16 a, int64_t n)
{
    for (int i = 0; i < 16 && i < n; i++)
        p[i] = (int16_t)a.l[i];
}

/* acc + sum of four unsigned x signed bytes per lane */
static inline w16 w_dot(w16 acc, b64 u, b64 s)
{
    for (int i = 0; i < 16; i++) {
        int32_t sum = 0;
        for (int k = 0; k < 4; k++)
            sum += u.l[4 * i + k] * (int8_t)s.l[4 * i + k];
        acc.l[i] = (int32_t)((uint32_t)acc.l[i] + (uint32_t)sum);
    }
    return acc;
}
/* the same where u is below 16 */
static inline w16 w_dot_small(w16 acc, b64 u, b64 s)
{
    return w_dot(acc, u, s);
}
static inline int32_t w_sum(w16 x)
{
    uint32_t sum = 0;
    for (int i = 0; i < 16; i++)
        sum += (uint32_t)x.l[i];
    return (int32_t)sum;
}
LANES(v_from_bf16, (const uint16_t *p), (real)kn_bf16_value(p[i]))
static inline v16 v_from_half(const uint16_t *p)
{
    v16 y;
    for (int i = 0; i < 16; i++)
        y.l[i] = (real)nb_half_to(p[i]);
    return y;
}
static inline b64 b_load(const void *p)
{
    b64 y;
    memcpy(y.l, p, 64);
    return y;
}
static inline b64 b_load4(const void *p) /* the same four bytes in every lane */
{
    b64 y;
    for (int i = 0; i < 16; i++)
        memcpy(y.l + 4 * i, p, 4);
    return y;
}
static inline void b_transpose(b64 r[16]) /* of words of four bytes */
{
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) {
            uint8_t t[4];
            memcpy(t, r[i].l + 4 * j, 4);
            memcpy(r[i].l + 4 * j, r[j].l + 4 * i, 4);
            memcpy(r[j].l + 4 * i, t, 4);
        }
}
static inline b64 b_load_n(const void *p, int64_t n) /* the first n bytes, zeros behind them */
{
    b64 y = {{0}};
    memcpy(y.l, p, (size_t)(n < 64 ? n : 64));
    return y;
}
static inline b64 b_set1(uint8_t a)
{
    b64 y;
    memset(y.l, a, 64);
    return y;
}
static inline void b_store(void *p, b64 a)
{
    memcpy(p, a.l, 64);
}
#define BYTES(name, expression)                                                                                        \
    static inline b64 name(b64 a)                                                                                      \
    {                                                                                                                  \
        for (int i = 0; i < 64; i++)                                                                                   \
            a.l[i] = (uint8_t)(expression);                                                                            \
        return a;                                                                                                      \
    }
BYTES(b_flip, a.l[i] ^ 0x80)
BYTES(b_low4, a.l[i] & 15)
BYTES(b_high4, a.l[i] >> 4)

#ifdef NB_DOUBLE
LANES(v_exp, (v16 x), exp(x.l[i]))
#else
static inline v16 v_pow2(v16 n) /* of integral lanes -126..127 */
{
    v16 y;
    for (int i = 0; i < 16; i++) {
        const uint32_t bits = ((uint32_t)w_from_v(n).l[i] + 127) << 23;
        memcpy(&y.l[i], &bits, 4);
    }
    return y;
}
#include "kernels/exp_body.h"
#endif

#include "kernels/requant_body.h"

#define TABLE      kn_table_scalar
#define TABLE_NAME "scalar"
#define TABLE_BF16 false
#include "kernels/table_body.h"
