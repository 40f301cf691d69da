/* requant_body.h - requantization of 16 channels in plain C, for instruction sets without a better way (included before table_body.h). */

/* q <- clamp(((sum m + half) >> shift), lo, hi) + zero of channels [at, at + 16), M rows n apart */
static void requantize16(int8_t *q, const int32_t *sum, int64_t M, const kn_requant *r, int64_t at)
{
    const int64_t lo = r->lo - r->zero, hi = r->hi - r->zero;
    for (int64_t m = 0; m < M; m++, q += r->n, sum += r->n)
        for (int64_t n = at; n < at + 16; n++) {
            int64_t v = (sum[n] * r->multiplier[n] + r->half[n]) >> r->shift[n];
            v = v < lo ? lo : v;
            q[n] = (int8_t)((v > hi ? hi : v) + r->zero);
        }
}
