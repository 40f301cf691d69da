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
    for (int64_t i = 0; i < n; i += 16)
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

/* bfloat16, nearest even, NaN kept; plain C, which the compiler turns into vectors */
static void to_bf16(uint16_t *y, const real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const float f = (float)x[i];
        uint32_t b;
        memcpy(&b, &f, 4);
        const uint32_t rounded = b + 0x7FFF + (b >> 16 & 1);
        y[i] = (uint16_t)(((b & 0x7FFFFFFF) > 0x7F800000 ? b | 0x400000 : rounded) >> 16);
    }
}
