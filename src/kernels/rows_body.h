/* rows_body.h - elementwise functions, reductions, softmax, rotation (included by table_body.h).
 *   sigmoid s = 1 / (1 + exp(-x));  silu = x s, silu' = s + x s (1 - s)
 *   gelu (tanh form) = x s(2u), u = sqrt(2/pi) (x + 0.044715 x^3): the same function without the cancellation of 1 + tanh u
 * Sums run in 16 lanes, lane i taking elements i, i + 16, ..., folded 8-4-2-1. */

static inline v16 v_neg(v16 x)
{
    return v_sub(v_zero(), x);
}
static inline v16 v_sigmoid(v16 x)
{
    return v_div(v_set1(1), v_add(v_set1(1), v_exp(v_neg(x))));
}
static inline v16 v_silu(v16 x)
{
    return v_div(x, v_add(v_set1(1), v_exp(v_neg(x))));
}
static inline v16 v_silu_slope(v16 s, v16 silu) /* silu' from the sigmoid and silu itself */
{
    return v_fma(silu, v_sub(v_set1(1), s), s);
}

static void exponential(real *y, const real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16)
        v_put(y + i, v_exp(v_get(x + i, n - i)), n - i);
}

static void silu(real *y, const real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16)
        v_put(y + i, v_silu(v_get(x + i, n - i)), n - i);
}

static void silu_backward(real *dx, const real *dy, const real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        const v16 v = v_get(x + i, n - i), s = v_sigmoid(v);
        v_put(dx + i, v_fma(v_get(dy + i, n - i), v_silu_slope(s, v_mul(v, s)), v_get(dx + i, n - i)), n - i);
    }
}

/* 2u and its derivative */
static inline v16 gelu_argument(v16 x)
{
    const v16 cubic = v_fma(v_mul(v_mul(x, x), x), v_set1((real)0.044715), x);
    return v_mul(cubic, v_set1((real)1.5957691216057308));
}
static inline v16 gelu_argument_slope(v16 x)
{
    return v_mul(v_fma(v_mul(x, x), v_set1((real)(3 * 0.044715)), v_set1(1)), v_set1((real)1.5957691216057308));
}

static void gelu_tanh(real *y, const real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        const v16 v = v_get(x + i, n - i);
        v_put(y + i, v_div(v, v_add(v_set1(1), v_exp(v_neg(gelu_argument(v))))), n - i);
    }
}

static void gelu_tanh_backward(real *dx, const real *dy, const real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        const v16 v = v_get(x + i, n - i), s = v_sigmoid(gelu_argument(v));
        const v16 bend = v_mul(v_mul(v, s), v_sub(v_set1(1), s));
        const v16 slope = v_fma(bend, gelu_argument_slope(v), s);
        v_put(dx + i, v_fma(v_get(dy + i, n - i), slope, v_get(dx + i, n - i)), n - i);
    }
}

static void swiglu(real *y, const real *gate, const real *up, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16)
        v_put(y + i, v_mul(v_silu(v_get(gate + i, n - i)), v_get(up + i, n - i)), n - i);
}

static void swiglu_backward(real *dgate, real *dup, const real *dy, const real *gate, const real *up, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        const v16 g = v_get(gate + i, n - i), d = v_get(dy + i, n - i), s = v_sigmoid(g), h = v_mul(g, s);
        if (dup)
            v_put(dup + i, v_fma(d, h, v_get(dup + i, n - i)), n - i);
        if (dgate)
            v_put(dgate + i, v_fma(v_mul(d, v_get(up + i, n - i)), v_silu_slope(s, h), v_get(dgate + i, n - i)), n - i);
    }
}

static void add_to(real *y, const real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16)
        v_put(y + i, v_add(v_get(y + i, n - i), v_get(x + i, n - i)), n - i);
}

static void sum2(real *y, const real *a, const real *b, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16)
        v_put(y + i, v_add(v_get(a + i, n - i), v_get(b + i, n - i)), n - i);
}

static void axpy(real *y, const real *x, real a, int64_t n)
{
    const v16 factor = v_set1(a);
    for (int64_t i = 0; i < n; i += 16)
        v_put(y + i, v_fma(factor, v_get(x + i, n - i), v_get(y + i, n - i)), n - i);
}

static real sum_squares(const real *x, int64_t n)
{
    v16 s = v_zero();
    for (int64_t i = 0; i < n; i += 16) {
        const v16 v = v_get(x + i, n - i);
        s = v_fma(v, v, s);
    }
    return v_sum(s);
}

static real sum_abs(const real *x, int64_t n)
{
    v16 s = v_zero();
    for (int64_t i = 0; i < n; i += 16)
        s = v_add(s, v_abs(v_get(x + i, n - i)));
    return v_sum(s);
}

/* The range holds 0, NaN is passed over (max(NaN, t) = t in this order). */
static real absmax(const real *x, int64_t n)
{
    v16 top = v_zero();
    for (int64_t i = 0; i < n; i += 16)
        top = v_max(v_abs(v_get(x + i, n - i)), top);
    return v_top(top);
}

static void min_max(real *min, real *max, const real *x, int64_t n)
{
    v16 low = v_zero(), top = v_zero();
    for (int64_t i = 0; i < n; i += 16) {
        const v16 v = v_get(x + i, n - i);
        low = v_min(v, low);
        top = v_max(v, top);
    }
    *min = v_bottom(low);
    *max = v_top(top);
}

static inline real row_max(const real *x, int64_t n)
{
    v16 top = v_set1(x[0]);
    for (int64_t i = 0; i < n; i += 16)
        top = v_max(v_keep(v_get(x + i, n - i), n - i, top), top);
    return v_top(top);
}

static void softmax(real *y, const real *x, int64_t M, int64_t C)
{
    for (int64_t m = 0; m < M; m++, x += C, y += C) {
        const v16 max = v_set1(row_max(x, C));
        v16 sum = v_zero();
        for (int64_t i = 0; i < C; i += 16) {
            const v16 e = v_exp(v_sub(v_get(x + i, C - i), max));
            sum = v_add(sum, v_keep(e, C - i, v_zero()));
            v_put(y + i, e, C - i);
        }
        const v16 inverse = v_set1(1 / v_sum(sum));
        for (int64_t i = 0; i < C; i += 16)
            v_put(y + i, v_mul(v_get(y + i, C - i), inverse), C - i);
    }
}

/* Runs of KN_RUN: see kn_exp_sums. */
static real exp_sums(real *sum, const real *x, int64_t n, real f)
{
    const v16 factor = v_set1(f);
    const real top = row_max(x, n) * f;
    for (int64_t at = 0; at < n; at += KN_RUN) {
        const int64_t end = kn_min(n, at + KN_RUN);
        v16 total = v_zero();
        for (int64_t i = at; i < end; i += 16)
            total = v_add(total, v_keep(v_exp(v_fma(v_get(x + i, end - i), factor, v_set1(-top))), end - i, v_zero()));
        *sum++ = v_sum(total);
    }
    return top;
}

/* Lanes are summed over 512 elements at most, then in double. */
static void logsumexp(double *lse, const real *x, int64_t M, int64_t C)
{
    for (int64_t m = 0; m < M; m++, x += C) {
        const real max = row_max(x, C);
        double total = 0;
        for (int64_t at = 0; at < C; at += 512) {
            const int64_t end = kn_min(C, at + 512);
            v16 sum = v_zero();
            for (int64_t i = at; i < end; i += 16)
                sum = v_add(sum, v_keep(v_exp(v_sub(v_get(x + i, end - i), v_set1(max))), end - i, v_zero()));
            total += (double)v_sum(sum);
        }
        lse[m] = (double)max + log(total);
    }
}

/* Pairs (2i, 2i + 1) of heads that fill vectors: y = x * C + swap(x) * S, C = (c0, c0, c1, c1..), S = (-s0, s0, -s1, s1..) */
static void rope_pairs(real *y, const real *x, const real *cos_row, const real *sin_row, int64_t H, int64_t D,
                       real sign)
{
    enum { MOST = 256 };
    real c[MOST], s[MOST];
    const int64_t period = kn_max(D, 16), n = H * D;
    for (int64_t i = 0; i < period; i += 2) {
        c[i] = c[i + 1] = cos_row[i % D / 2];
        s[i + 1] = sign * sin_row[i % D / 2];
        s[i] = -s[i + 1];
    }
    for (int64_t at = 0; at < n; at += period)
        for (int64_t i = 0; i < period && at + i < n; i += 16) {
            const v16 v = v_get(x + at + i, n - at - i);
            v_put(y + at + i, v_add(v_mul(v, v_load(c + i)), v_mul(v_swap(v), v_load(s + i))), n - at - i);
        }
}

/* One row of H heads; pairs (i, i + D/2) or (2i, 2i + 1). */
static void rope(real *y, const real *x, const real *cos_row, const real *sin_row, int64_t H, int64_t D, bool half,
                 bool inverse)
{
    const real sign = inverse ? -1 : 1;
    const int64_t n = D / 2, step = half ? 1 : 2, other = half ? n : 1;
    if (!half && (D % 16 == 0 || 16 % D == 0) && D <= 256) {
        rope_pairs(y, x, cos_row, sin_row, H, D, sign);
        return;
    }
    for (int64_t h = 0; h < H; h++, x += D, y += D)
        for (int64_t i = 0; i < n; i++) {
            const real a = x[i * step], b = x[i * step + other], c = cos_row[i], s = sign * sin_row[i];
            y[i * step] = a * c - b * s;
            y[i * step + other] = a * s + b * c;
        }
}
