/* isa_avx512.c - the 16-lane vector as one AVX-512 register, byte products by VNNI. Compiled with the flags of those;
 * nothing here has linkage but the table. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__) && !defined(NB_DOUBLE)
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include <tgmath.h>

#define INLINE   static inline __attribute__((always_inline)) /* what a register tile is a constant of */
#define NOINLINE __attribute__((noinline))
enum { FLOAT_TILE = 24, FLOAT_VECTORS = 4, LINEAR_TILE = 24, LINEAR_PANELS = 4 }; /* vectors of a register tile */

typedef __m512 v16;
typedef __m512i w16;
typedef __m512i b64;

static inline __mmask16 lanes(int64_t n) /* bits below n */
{
    return (__mmask16)(n >= 16 ? 0xFFFF : n <= 0 ? 0 : (1u << n) - 1);
}
static inline v16 v_zero(void)
{
    return _mm512_setzero_ps();
}
static inline v16 v_set1(real x)
{
    return _mm512_set1_ps(x);
}
static inline v16 v_load(const real *p)
{
    return _mm512_loadu_ps(p);
}
static inline v16 v_load_n(const real *p, int64_t n)
{
    return _mm512_maskz_loadu_ps(lanes(n), p);
}
static inline void v_store(real *p, v16 x)
{
    _mm512_storeu_ps(p, x);
}
static inline void v_store_n(real *p, v16 x, int64_t n)
{
    _mm512_mask_storeu_ps(p, lanes(n), x);
}
static inline v16 v_add(v16 x, v16 y)
{
    return _mm512_add_ps(x, y);
}
static inline v16 v_sub(v16 x, v16 y)
{
    return _mm512_sub_ps(x, y);
}
static inline v16 v_mul(v16 x, v16 y)
{
    return _mm512_mul_ps(x, y);
}
static inline v16 v_div(v16 x, v16 y)
{
    return _mm512_div_ps(x, y);
}
static inline v16 v_min(v16 x, v16 y)
{
    return _mm512_min_ps(x, y);
}
static inline v16 v_max(v16 x, v16 y)
{
    return _mm512_max_ps(x, y);
}
static inline v16 v_fma(v16 x, v16 y, v16 z)
{
    return _mm512_fmadd_ps(x, y, z);
}
static inline v16 v_abs(v16 x)
{
    return _mm512_abs_ps(x);
}
static inline v16 v_rint(v16 x)
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
static inline v16 v_sign(v16 x)
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), _mm512_set1_ps(-1),
                                _mm512_set1_ps(1));
}
static inline v16 v_keep(v16 x, int64_t n, v16 other)
{
    return _mm512_mask_blend_ps(lanes(n), other, x);
}
static inline v16 v_if_at_least(v16 x, real limit, v16 y) /* x >= limit ? y : 0 */
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_GE_OQ), y);
}
static inline v16 v_if_more(v16 a, v16 b, v16 x, v16 y) /* a > b ? x : y */
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}
static inline uint32_t v_bits(v16 x) /* a bit for each lane above 0 */
{
    return _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
}
static inline v16 v_by_bits(v16 x, uint32_t bits) /* 0 where there is none */
{
    return _mm512_maskz_mov_ps((__mmask16)bits, x);
}
static inline v16 v_swap(v16 x) /* the two of every pair */
{
    return _mm512_permute_ps(x, 0xB1);
}
static inline v16 v_half(v16 x) /* as binary16 holds it */
{
    return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* Lane i with lane i + 8, then 4, 2, 1. */
#define FOLD(name, wide, narrow, last)                                                                                 \
    static inline real name(v16 x)                                                                                     \
    {                                                                                                                  \
        const __m256 e = wide(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));                                \
        const __m128 q = narrow(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));                               \
        const __m128 d = narrow(q, _mm_movehl_ps(q, q));                                                               \
        return _mm_cvtss_f32(last(d, _mm_shuffle_ps(d, d, 1)));                                                        \
    }
FOLD(v_sum, _mm256_add_ps, _mm_add_ps, _mm_add_ss)
FOLD(v_top, _mm256_max_ps, _mm_max_ps, _mm_max_ss)
FOLD(v_bottom, _mm256_min_ps, _mm_min_ps, _mm_min_ss)

static inline void v_transpose(v16 r[16])
{
    v16 t[16], u[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) { /* u[4i + c]: column c of every 128-bit lane, rows 4i..4i+3 */
        u[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        u[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xEE);
        u[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        u[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xEE);
    }
    for (int c = 0; c < 4; c++) {
        const v16 a = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88), b = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xDD);
        const v16 d = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88),
                  e = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xDD);
        r[c] = _mm512_shuffle_f32x4(a, d, 0x88);
        r[8 + c] = _mm512_shuffle_f32x4(a, d, 0xDD);
        r[4 + c] = _mm512_shuffle_f32x4(b, e, 0x88);
        r[12 + c] = _mm512_shuffle_f32x4(b, e, 0xDD);
    }
}

static inline w16 w_zero(void)
{
    return _mm512_setzero_si512();
}
static inline w16 w_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}
static inline w16 w_load(const int32_t *p)
{
    return _mm512_loadu_si512(p);
}
static inline void w_store(int32_t *p, w16 x)
{
    _mm512_storeu_si512(p, x);
}
static inline w16 w_add(w16 x, w16 y)
{
    return _mm512_add_epi32(x, y);
}
static inline w16 w_sub(w16 x, w16 y)
{
    return _mm512_sub_epi32(x, y);
}
static inline w16 w_mul(w16 x, w16 y)
{
    return _mm512_mullo_epi32(x, y);
}
static inline w16 w_from_v(v16 x)
{
    return _mm512_cvtps_epi32(x);
}
static inline v16 v_from_w(w16 x)
{
    return _mm512_cvtepi32_ps(x);
}
static inline w16 w_from_s8(const int8_t *p, int64_t n)
{
    return _mm512_cvtepi8_epi32(n >= 16 ? _mm_loadu_si128((const __m128i *)p) : _mm_maskz_loadu_epi8(lanes(n), p));
}
static inline w16 w_from_u8(const uint8_t *p, int64_t n)
{
    return _mm512_cvtepu8_epi32(n >= 16 ? _mm_loadu_si128((const __m128i *)p) : _mm_maskz_loadu_epi8(lanes(n), p));
}
/* n codes of four bits, low nibble first; lanes from n on hold 0 or, where n is odd, the nibble behind */
static inline w16 w_from_u4(const uint8_t *p, int64_t n)
{
    const __m128i x =
        _mm_cvtepu8_epi16(n >= 16 ? _mm_loadl_epi64((const __m128i *)p) : _mm_maskz_loadu_epi8(lanes((n + 1) / 2), p));
    const __m128i q = _mm_and_si128(_mm_or_si128(x, _mm_slli_epi16(x, 4)), _mm_set1_epi8(15));
    return _mm512_cvtepu8_epi32(q);
}
static inline w16 w_from_s16(const int16_t *p, int64_t n)
{
    return _mm512_cvtepi16_epi32(n >= 16 ? _mm256_loadu_si256((const __m256i *)p)
                                         : _mm256_maskz_loadu_epi16(lanes(n), p));
}
static inline void w_to_s8(int8_t *p, w16 x, int64_t n)
{
    if (n >= 16)
        _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(x));
    else
        _mm_mask_storeu_epi8(p, lanes(n), _mm512_cvtepi32_epi8(x));
}
static inline void w_to_s16(int16_t *p, w16 x, int64_t n)
{
    if (n >= 16)
        _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(x));
    else
        _mm256_mask_storeu_epi16(p, lanes(n), _mm512_cvtepi32_epi16(x));
}
/* acc + sum of four unsigned x signed bytes per lane; wraps, never saturates */
static inline w16 w_dot(w16 acc, b64 u, b64 s)
{
    return _mm512_dpbusd_epi32(acc, u, s);
}
/* the same where u is below 16 */
static inline w16 w_dot_small(w16 acc, b64 u, b64 s)
{
    return _mm512_dpbusd_epi32(acc, u, s);
}
static inline int32_t w_sum(w16 x)
{
    return _mm512_reduce_add_epi32(x);
}
static inline v16 v_from_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16));
}
static inline v16 v_from_half(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
static inline b64 b_load(const void *p)
{
    return _mm512_loadu_si512(p);
}
static inline b64 b_load4(const void *p) /* the same four bytes in every lane */
{
    int32_t x;
    memcpy(&x, p, 4);
    return _mm512_set1_epi32(x);
}
static inline b64 b_load_n(const void *p, int64_t n) /* the first n bytes, zeros behind them */
{
    return _mm512_maskz_loadu_epi8(n >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << n) - 1, p);
}
static inline b64 b_set1(uint8_t x)
{
    return _mm512_set1_epi8((char)x);
}
static inline void b_store(void *p, b64 x)
{
    _mm512_storeu_si512(p, x);
}
static inline void b_transpose(b64 r[16]) /* of words of four bytes */
{
    v16 t[16];
    for (int i = 0; i < 16; i++)
        t[i] = _mm512_castsi512_ps(r[i]);
    v_transpose(t);
    for (int i = 0; i < 16; i++)
        r[i] = _mm512_castps_si512(t[i]);
}
static inline b64 b_flip(b64 x)
{
    return _mm512_xor_si512(x, _mm512_set1_epi8((char)0x80));
}
static inline b64 b_low4(b64 x)
{
    return _mm512_and_si512(x, _mm512_set1_epi8(15));
}
static inline b64 b_high4(b64 x)
{
    return b_low4(_mm512_srli_epi16(x, 4));
}
static inline v16 v_pow2(v16 n) /* of integral lanes -126..127 */
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}

/* Eight of requant_body.h, on 64 bits: the product reads the low halves. */
static inline __m128i requantize8(const int32_t *sum, __m512i multiplier, __m512i half, __m512i shift, __m512i lo, __m512i hi, __m512i zero)
{
    const __m512i x = _mm512_cvtepi32_epi64(_mm256_loadu_si256((const __m256i *)sum));
    const __m512i v = _mm512_srav_epi64(_mm512_add_epi64(_mm512_mul_epi32(x, multiplier), half), shift);
    return _mm512_cvtepi64_epi8(_mm512_add_epi64(_mm512_min_epi64(_mm512_max_epi64(v, lo), hi), zero));
}
static void requantize16(int8_t *q, const int32_t *sum, int64_t M, const kn_requant *r, int64_t at)
{
    const __m512i lo = _mm512_set1_epi64(r->lo - r->zero), hi = _mm512_set1_epi64(r->hi - r->zero), zero = _mm512_set1_epi64(r->zero);
    const __m512i m0 = b_load(r->multiplier + at), h0 = b_load(r->half + at), s0 = b_load(r->shift + at);
    const __m512i m1 = b_load(r->multiplier + at + 8), h1 = b_load(r->half + at + 8), s1 = b_load(r->shift + at + 8);
    q += at;
    sum += at;
    for (int64_t m = 0; m < M; m++, q += r->n, sum += r->n) {
        const __m128i low = requantize8(sum, m0, h0, s0, lo, hi, zero), high = requantize8(sum + 8, m1, h1, s1, lo, hi, zero);
        _mm_storeu_si128((__m128i *)q, _mm_unpacklo_epi64(low, high));
    }
}

#include "kernels/exp_body.h"
#define TABLE      kn_table_avx512
#define TABLE_NAME "avx512"
#define TABLE_BF16 true
#include "kernels/table_body.h"

/* The same loops, and tiles (isa_amx.c) for products of many rows. */
const kn_table kn_table_amx = {.name = "amx",
                               .bf16 = true,
                               .linear_tall = kn_amx_linear,
                               .has_bf16 = kn_amx_bf16_usable,
                               .multiply_bf16 = kn_amx_bf16_multiply,
                               .runs_bf16 = kn_amx_bf16_runs,
                               .runs_int8 = kn_amx_int8_runs,
#define X(result, function, arguments) .function = function,
                               KN_FUNCTIONS(X)
#undef X
};
#endif
