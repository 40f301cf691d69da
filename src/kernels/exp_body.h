/* exp_body.h - exp on 16 lanes (included by isa_*.c).
 *   n = rne(x log2 e), r = x - n ln 2 (ln 2 in two parts), exp(x) = 2^n (1 + r + r^2 P(r)), P of degree 5 (Cephes expf).
 * x is clamped to [-87, 88], where 2^n stays a normal number; NaN passes through. Relative error below 2e-7. */
static inline v16 v_exp(v16 x)
{
    x = v_min(v_set1(88), v_max(v_set1(-87), x)); /* in this order NaN stays NaN */
    const v16 n = v_rint(v_mul(x, v_set1(1.44269504088896341f)));
    v16 r = v_fma(n, v_set1(-0.693359375f), x);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    v16 p = v_set1(1.9875691500e-4f);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_fma(p, v_mul(r, r), r);
    return v_mul(v_add(p, v_set1(1)), v_pow2(n));
}
