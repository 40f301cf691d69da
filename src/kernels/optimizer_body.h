/* optimizer_body.h - updates of parameters, and numbers rounded at random (included by table_body.h): plain C that the compiler turns into the vectors of the
 * including file. Multiplication, division and root are correctly rounded and nothing is contracted, so all tables give the
 * same bits. Formulas: kernels.h. */

static void adamw(real *restrict x, real *restrict m, real *restrict v, const real *restrict g, int64_t n,
                  const kn_adamw_factors *how)
{
    const kn_adamw_factors f = *how;
    for (int64_t i = 0; i < n; i++) {
        const real d = g[i] * f.clip;
        m[i] = f.b1 * m[i] + f.a1 * d;
        v[i] = f.b2 * v[i] + f.a2 * d * d;
        x[i] = f.keep * x[i] - f.lr * m[i] / ((real)sqrt(v[i]) * f.root + f.eps);
    }
}

/* x up or down to a bf16 number: up with the chance of the share that is cut off; r is uniform in 0..65535. */
static inline uint16_t bf16_at_random(float x, uint32_t r)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + r) >> 16);
}

/* 32 random bits of a number (the mixer "lowbias32"; Wellons 2018, github.com/skeeto/hash-prospector) */
static inline uint32_t mixed(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}

static void adamw_bf16(real *restrict x, uint16_t *restrict m, uint16_t *restrict v, const real *restrict g, int64_t n,
                       const kn_adamw_factors *how, uint32_t key)
{
    const kn_adamw_factors f = *how;
    for (int64_t i = 0; i < n; i++) {
        const real d = g[i] * f.clip;
        const real first = f.b1 * (real)kn_bf16_value(m[i]) + f.a1 * d;
        const real second = f.b2 * (real)kn_bf16_value(v[i]) + f.a2 * d * d;
        const uint32_t r = mixed(key + (uint32_t)i);
        m[i] = bf16_at_random((float)first, r & 0xFFFF);
        v[i] = bf16_at_random((float)second, r >> 16);
        x[i] = f.keep * x[i] - f.lr * first / ((real)sqrt(second) * f.root + f.eps);
    }
}

/* q = x inv, within -127..127, up or down: up with the chance of the share that is cut off. */
static void codes_at_random(int8_t *restrict q, const real *restrict x, real inv, int64_t n, uint32_t key)
{
    for (int64_t i = 0; i < n; i++) {
        const real v = x[i] * inv + (real)128 + (real)(int32_t)(mixed(key + (uint32_t)i) >> 8) * (real)0x1p-24;
        const real low = v > 1 ? v : 1, within = low < 255 ? low : 255;
        q[i] = (int8_t)((int32_t)within - 128);
    }
}

static int16_t towards(int x, int to)
{
    return (int16_t)(x + (((to - x) * KN_PIN_MEMORY + (1 << 14)) >> 15));
}

static bool count_flips(int16_t *restrict f, int16_t *restrict m, int8_t *restrict last, const int8_t *restrict q, int64_t n, int limit)
{
    int16_t most = -1;
    for (int64_t i = 0; i < n; i++) {
        const int16_t flips = towards(f[i], q[i] != last[i] ? KN_PIN_FLIP : 0), mean = towards(m[i], q[i] * KN_PIN_MEAN);
        m[i] = f[i] < 0 ? m[i] : mean;
        f[i] = f[i] < 0 ? f[i] : flips;
        last[i] = q[i];
        most = f[i] > most ? f[i] : most;
    }
    return most > limit;
}

/* In two loops: a compiler keeps arithmetic that may trap behind its condition, and out of vectors. */
static void hold_pinned(real *restrict x, const int16_t *restrict f, const int16_t *restrict m, int64_t n, real mul, real add, real scale)
{
    enum { PIECE = 64 };
    for (int64_t i = 0; i < n; i += PIECE) {
        real value[PIECE];
        const int64_t left = kn_min(PIECE, n - i);
        for (int64_t k = 0; k < left; k++)
            value[k] = (mul * (real)(m[i + k] >> 11) + add) * scale;
        for (int64_t k = 0; k < left; k++)
            x[i + k] = f[i + k] < 0 ? value[k] : x[i + k];
    }
}
