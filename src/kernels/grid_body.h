/* grid_body.h - codes of a span of numbers under one scale and back (included by table_body.h). Formulas: kernels.h. */

/* max(t, lo) in this order sends NaN to lo. */
static inline v16 v_round(v16 x, const kn_rounding *r)
{
    v16 t = v_mul(x, v_set1(r->inv));
    if (r->sign)
        return v_sign(t);
    t = v_rint(v_fma(t, v_set1(r->step), v_set1(-r->shift)));
    t = v_max(v_add(t, v_set1(r->zero)), v_set1(r->lo));
    return v_min(t, v_set1(r->hi));
}
static inline v16 v_value(v16 q, real scale, real mul, real offset)
{
    return v_mul(v_fma(q, v_set1(mul), v_set1(offset)), v_set1(scale));
}

static void encode8(int8_t *q, const real *x, int64_t n, const kn_rounding *r)
{
    const kn_rounding rounding = *r; /* a copy: stores to q cannot change it */
    int64_t i = 0;
    if (!r->sign && r->shift == 0) { /* integers, the usual case: the same without step and shift */
        const v16 inv = v_set1(r->inv), zero = v_set1(r->zero), lo = v_set1(r->lo), hi = v_set1(r->hi);
        for (; i + 16 <= n; i += 16) {
            const v16 t = v_add(v_rint(v_mul(v_load(x + i), inv)), zero);
            w_to_s8(q + i, w_from_v(v_min(v_max(t, lo), hi)), 16);
        }
    }
    for (; i < n; i += 16)
        w_to_s8(q + i, w_from_v(v_round(v_get(x + i, n - i), &rounding)), n - i);
}

static void encode16(int16_t *q, const real *x, int64_t n, const kn_rounding *r)
{
    const kn_rounding rounding = *r;
    for (int64_t i = 0; i < n; i += 16)
        w_to_s16(q + i, w_from_v(v_round(v_get(x + i, n - i), &rounding)), n - i);
}

static void decode8(real *x, const int8_t *q, int64_t n, real scale, real mul, real offset)
{
    for (int64_t i = 0; i < n; i += 16)
        v_put(x + i, v_value(v_from_w(w_from_s8(q + i, n - i)), scale, mul, offset), n - i);
}

static void decode16(real *x, const int16_t *q, int64_t n, real scale, real mul, real offset)
{
    for (int64_t i = 0; i < n; i += 16)
        v_put(x + i, v_value(v_from_w(w_from_s16(q + i, n - i)), scale, mul, offset), n - i);
}

/* Lanes i * n .. i * n + n - 1 hold p[i], n a divisor of 16; reads 16 / n numbers. */
static inline v16 v_repeat(const real *p, int64_t n)
{
    v16 y = v_set1(p[16 / n - 1]);
    for (int64_t i = 16 / n - 2; i >= 0; i--)
        y = v_keep(v_set1(p[i]), (i + 1) * n, y);
    return y;
}

/* Folds lane i of every r with lane i + 8, then 4, 2, 1; lane i of the result belongs to r[i]. */
static inline v16 v_fold16(v16 r[16], bool add)
{
    v_transpose(r);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++)
            r[i] = add ? v_add(r[i], r[i + half]) : v_max(r[i], r[i + half]);
    return r[0];
}

/* Ranges of `count` (at most 16) spans of n numbers, ldx apart: as min_max, absmax or the mean of |x|. */
static void span_ranges(real low[16], real top[16], const real *x, int64_t ldx, int64_t count, int64_t n,
                        const kn_grid *g)
{
    const bool mean = g->levels == KN_LEVELS_SIGN, both = g->has_zero;
    v16 high[16], deep[16]; /* deep: of -x */
    for (int64_t s = 0; s < 16; s++) {
        high[s] = deep[s] = v_zero();
        for (int64_t i = 0; s < count && i < n; i += 16) {
            const v16 v = v_get(x + s * ldx + i, n - i);
            if (mean)
                high[s] = v_add(high[s], v_abs(v));
            else
                high[s] = v_max(both ? v : v_abs(v), high[s]);
            if (both)
                deep[s] = v_max(v_neg(v), deep[s]);
        }
    }
    v16 t = v_fold16(high, mean);
    if (mean)
        t = v_div(t, v_set1((real)n));
    v_store(top, t);
    v_store(low, v_neg(both ? v_fold16(deep, false) : t));
}

/* kn_store of 16 scales >= 0. */
static v16 v_stored(v16 s, const kn_grid *g)
{
    if (g->scale == KN_SCALE_F32 || g->scale == KN_SCALE_F16) {
        s = g->scale == KN_SCALE_F16 ? v_min(v_half(s), v_set1(65504)) : v_min(s, v_set1((real)3.40282347e38));
        return v_if_at_least(s, (real)1.17549435e-38, s);
    }
    real t[16];
    v_store(t, s);
    for (int i = 0; i < 16; i++)
        t[i] = kn_store(g, t[i]);
    return v_load(t);
}

/* kn_range_of and kn_inverse of 16 ranges low <= 0 <= top (without zero points low = -top), rule NIBBLE or Q8_0. */
static v16 v_range_of(const kn_grid *g, v16 low, v16 top, v16 *inv, v16 *zero)
{
    const v16 half = v_set1((real)0.5), two = v_set1(2), lo = v_set1((real)g->lo), hi = v_set1((real)g->hi);
    v16 s = v_div(top, v_set1(kn_top_level(g)));
    if (g->has_zero)
        s = v_mul(v_div(v_sub(v_mul(top, half), v_mul(low, half)), v_sub(hi, lo)), two);
    s = v_stored(s, g);
    *inv = v_if_at_least(s, (real)1.17549435e-38, v_div(v_set1(1), s));
    *zero = v_zero();
    if (g->has_zero)
        *zero = v_min(v_max(v_rint(v_sub(lo, v_mul(low, *inv))), lo), hi);
    if (g->rule == KN_RULE_GGML_Q8_0) /* codes by the scale before it is stored */
        *inv = v_if_at_least(top, (real)1e-45, v_div(v_set1(127), top));
    return s;
}

/* Ranges, scales, zeros and codes of `count` (at most 16) spans of n numbers, ldx and ldq apart. Rule NIBBLE or
 * GGML_Q8_0, at most 8 bits. */
static void encode_spans(int8_t *q, int64_t ldq, real *scale, int32_t *zero, const real *x, int64_t ldx, int64_t count,
                         int64_t n, const kn_grid *g)
{
    real low[16], top[16], inv[16], shift[16];
    v16 inverse, z;
    span_ranges(low, top, x, ldx, count, n, g);
    v_put(scale, v_range_of(g, v_load(low), v_load(top), &inverse, &z), count);
    v_store(inv, inverse);
    v_store(shift, z);
    for (int64_t s = 0; zero && s < count; s++)
        zero[s] = (int32_t)shift[s];
    kn_rounding r = kn_rounding_of(g, 1, 0);
    if (16 % n == 0 && ldx == n && ldq == n && !r.sign && r.shift == 0) {
        const v16 lo = v_set1(r.lo), hi = v_set1(r.hi);
        for (int64_t i = 0; i < count * n; i += 16) {
            v16 t = v_rint(v_mul(v_get(x + i, count * n - i), v_repeat(inv + i / n, n)));
            t = v_min(v_max(v_add(t, v_repeat(shift + i / n, n)), lo), hi);
            w_to_s8(q + i, w_from_v(t), count * n - i);
        }
        return;
    }
    for (int64_t s = 0; s < count; s++) {
        r.inv = inv[s];
        r.zero = shift[s];
        encode8(q + s * ldq, x + s * ldx, n, &r);
    }
}

/* x [count * n] <- values of `count` spans of n codes, both without gaps, n a divisor of 16. zero: NULL or [count] */
static void decode_spans(real *x, const int8_t *q, const real *scale, const int32_t *zero, int64_t count, int64_t n,
                         real mul, real add)
{
    for (int64_t at = 0; at < count; at += 16) {
        const int64_t spans = kn_min(16, count - at), end = spans * n;
        real factor[16] = {0}, offset[16] = {0};
        for (int64_t s = 0; s < spans; s++) {
            factor[s] = scale[at + s];
            offset[s] = zero ? add - (real)zero[at + s] : add;
        }
        for (int64_t i = 0; i < end; i += 16) {
            const v16 v = v_from_w(w_from_s8(q + at * n + i, end - i));
            const v16 y = v_mul(v_fma(v, v_set1(mul), v_repeat(offset + i / n, n)), v_repeat(factor + i / n, n));
            v_put(x + at * n + i, y, end - i);
        }
    }
}

/* sum_i h_i (x_i - value(code(x_i)))^2, h NULL: ones */
static real rounding_error(const real *x, const real *h, int64_t n, const kn_rounding *r, real scale, real mul,
                           real offset)
{
    v16 sum = v_zero();
    for (int64_t i = 0; i < n; i += 16) {
        const v16 v = v_get(x + i, n - i);
        const v16 e = v_keep(v_sub(v, v_value(v_round(v, r), scale, mul, offset)), n - i, v_zero());
        sum = v_fma(h ? v_mul(v_get(h + i, n - i), e) : e, e, sum);
    }
    return v_sum(sum);
}

/* bfloat16, nearest even, NaN kept, in the upper half of the word; plain C, which the compiler turns into vectors */
static inline uint32_t bf16_word(real x)
{
    const float f = (float)x;
    uint32_t b;
    memcpy(&b, &f, 4);
    const uint32_t rounded = b + 0x7FFF + (b >> 16 & 1);
    return (b & 0x7FFFFFFF) > 0x7F800000 ? b | 0x400000 : rounded;
}

static void to_bf16(uint16_t *restrict y, const real *restrict x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = (uint16_t)(bf16_word(x[i]) >> 16);
}

/* y = bf16(x * scale), element by element */
static void to_bf16_scaled(uint16_t *restrict y, const real *restrict x, const real *restrict scale, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = (uint16_t)(bf16_word(x[i] * scale[i]) >> 16);
}

/* bf16(x0 * scale0) in the lower, bf16(x1 * scale1) in the upper half of every word */
static void pair_bf16(uint32_t *restrict y, const real *restrict x0, const real *restrict x1, real scale0, real scale1,
                      int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = bf16_word(x0[i] * scale0) >> 16 | (bf16_word(x1[i] * scale1) & 0xFFFF0000);
}
