/* isa_avx2.c - the 16-lane vector as two AVX2 registers. Compiled with -mavx2 -mfma; nothing here has linkage but the
 * table. */
#include "kernels/kernels_isa.h"

#if defined(__x86_64__) && !defined(NB_DOUBLE)
#include <immintrin.h>
#include <math.h>
#include <string.h>
#include <tgmath.h>

#define INLINE   static inline __attribute__((always_inline)) /* what a register tile is a constant of */
#define NOINLINE __attribute__((noinline))
enum { FLOAT_TILE = 6, FLOAT_VECTORS = 2, LINEAR_TILE = 4, LINEAR_PANELS = 1 }; /* vectors of a register tile */

typedef struct {
    __m256 a, b;
} v16;
typedef struct {
    __m256i a, b;
} w16;
typedef w16 b64;

static inline __m256i lanes(int64_t n) /* all ones in lanes below n */
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n < 8 ? n : 8)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline v16 v_set1(real x)
{
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
static inline v16 v_zero(void)
{
    return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
static inline v16 v_load(const real *p)
{
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline v16 v_load_n(const real *p, int64_t n)
{
    if (n <= 8)
        return (v16){_mm256_maskload_ps(p, lanes(n)), _mm256_setzero_ps()};
    return (v16){_mm256_loadu_ps(p), _mm256_maskload_ps(p + 8, lanes(n - 8))};
}
static inline void v_store(real *p, v16 x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
static inline void v_store_n(real *p, v16 x, int64_t n)
{
    _mm256_maskstore_ps(p, lanes(n), x.a);
    if (n > 8)
        _mm256_maskstore_ps(p + 8, lanes(n - 8), x.b);
}
#define BOTH(name, intrinsic)                                                                                          \
    static inline v16 name(v16 x, v16 y)                                                                               \
    {                                                                                                                  \
        return (v16){intrinsic(x.a, y.a), intrinsic(x.b, y.b)};                                                        \
    }
BOTH(v_add, _mm256_add_ps)
BOTH(v_sub, _mm256_sub_ps)
BOTH(v_mul, _mm256_mul_ps)
BOTH(v_div, _mm256_div_ps)
BOTH(v_min, _mm256_min_ps)
BOTH(v_max, _mm256_max_ps)
static inline v16 v_fma(v16 x, v16 y, v16 z)
{
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline v16 v_abs(v16 x)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
static inline v16 v_rint(v16 x)
{
    return (v16){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                 _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
static inline __m256 sign_of(__m256 x)
{
    return _mm256_blendv_ps(_mm256_set1_ps(-1), _mm256_set1_ps(1), _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ));
}
static inline v16 v_sign(v16 x)
{
    return (v16){sign_of(x.a), sign_of(x.b)};
}
static inline v16 v_keep(v16 x, int64_t n, v16 other)
{
    return (v16){_mm256_blendv_ps(other.a, x.a, _mm256_castsi256_ps(lanes(n))),
                 _mm256_blendv_ps(other.b, x.b, _mm256_castsi256_ps(lanes(n - 8)))};
}
static inline v16 v_if_at_least(v16 x, real limit, v16 y) /* x >= limit ? y : 0 */
{
    const __m256 l = _mm256_set1_ps(limit);
    return (v16){_mm256_and_ps(_mm256_cmp_ps(x.a, l, _CMP_GE_OQ), y.a),
                 _mm256_and_ps(_mm256_cmp_ps(x.b, l, _CMP_GE_OQ), y.b)};
}
static inline v16 v_if_more(v16 a, v16 b, v16 x, v16 y) /* a > b ? x : y */
{
    return (v16){_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ)),
                 _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ))};
}
static inline uint32_t v_bits(v16 x) /* a bit for each lane above 0 */
{
    const __m256 a = _mm256_cmp_ps(x.a, _mm256_setzero_ps(), _CMP_GT_OQ), b = _mm256_cmp_ps(x.b, _mm256_setzero_ps(), _CMP_GT_OQ);
    return (uint32_t)_mm256_movemask_ps(a) | (uint32_t)_mm256_movemask_ps(b) << 8;
}
static inline v16 v_by_bits(v16 x, uint32_t bits) /* 0 where there is none */
{
    const __m256i low = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128), high = _mm256_slli_epi32(low, 8), all = _mm256_set1_epi32((int)bits);
    const __m256i a = _mm256_cmpeq_epi32(_mm256_and_si256(all, low), low), b = _mm256_cmpeq_epi32(_mm256_and_si256(all, high), high);
    return (v16){_mm256_and_ps(x.a, _mm256_castsi256_ps(a)), _mm256_and_ps(x.b, _mm256_castsi256_ps(b))};
}
static inline v16 v_swap(v16 x) /* the two of every pair */
{
    return (v16){_mm256_permute_ps(x.a, 0xB1), _mm256_permute_ps(x.b, 0xB1)};
}
static inline v16 v_half(v16 x) /* as binary16 holds it */
{
    return (v16){_mm256_cvtph_ps(_mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT)),
                 _mm256_cvtph_ps(_mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT))};
}
/* Lane i with lane i + 8, then 4, 2, 1. */
#define FOLD(name, wide, narrow, last)                                                                                 \
    static inline real name(v16 x)                                                                                     \
    {                                                                                                                  \
        const __m256 e = wide(x.a, x.b);                                                                               \
        const __m128 q = narrow(_mm256_castps256_ps128(e), _mm256_extractf128_ps(e, 1));                               \
        const __m128 d = narrow(q, _mm_movehl_ps(q, q));                                                               \
        return _mm_cvtss_f32(last(d, _mm_shuffle_ps(d, d, 1)));                                                        \
    }
FOLD(v_sum, _mm256_add_ps, _mm_add_ps, _mm_add_ss)
FOLD(v_top, _mm256_max_ps, _mm_max_ps, _mm_max_ss)
FOLD(v_bottom, _mm256_min_ps, _mm_min_ps, _mm_min_ss)

static inline void transpose8(__m256 r[8])
{
    __m256 t[8], u[8];
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xEE);
        u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xEE);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
        r[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
    }
}
static inline void v_transpose(v16 r[16])
{
    __m256 q[4][8];
    for (int i = 0; i < 8; i++) {
        q[0][i] = r[i].a;
        q[1][i] = r[i].b;
        q[2][i] = r[8 + i].a;
        q[3][i] = r[8 + i].b;
    }
    for (int i = 0; i < 4; i++)
        transpose8(q[i]);
    for (int i = 0; i < 8; i++) {
        r[i] = (v16){q[0][i], q[2][i]};
        r[8 + i] = (v16){q[1][i], q[3][i]};
    }
}

static inline w16 w_zero(void)
{
    return (w16){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
static inline w16 w_set1(int32_t x)
{
    return (w16){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
static inline w16 b_load(const void *p)
{
    const __m256i *v = p;
    return (w16){_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
static inline w16 w_load(const int32_t *p)
{
    return b_load(p);
}
static inline void w_store(int32_t *p, w16 x)
{
    _mm256_storeu_si256((__m256i *)p, x.a);
    _mm256_storeu_si256((__m256i *)p + 1, x.b);
}
#define BOTH_INTEGERS(name, intrinsic)                                                                                 \
    static inline w16 name(w16 x, w16 y)                                                                               \
    {                                                                                                                  \
        return (w16){intrinsic(x.a, y.a), intrinsic(x.b, y.b)};                                                        \
    }
BOTH_INTEGERS(w_add, _mm256_add_epi32)
BOTH_INTEGERS(w_sub, _mm256_sub_epi32)
BOTH_INTEGERS(w_mul, _mm256_mullo_epi32)
static inline w16 w_from_v(v16 x)
{
    return (w16){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
}
static inline v16 v_from_w(w16 x)
{
    return (v16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}
/* The first n (at most 16) elements of `size` bytes at p, zeros behind them. */
static inline __m128i bytes_n(const void *p, int64_t n)
{
    if (n >= 16)
        return _mm_loadu_si128(p);
    uint8_t t[16] = {0};
    memcpy(t, p, (size_t)n);
    return _mm_loadu_si128((const __m128i *)t);
}
static inline w16 w_from_s8(const int8_t *p, int64_t n)
{
    const __m128i x = bytes_n(p, n);
    return (w16){_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x))};
}
static inline w16 w_from_u8(const uint8_t *p, int64_t n)
{
    const __m128i x = bytes_n(p, n);
    return (w16){_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(x, x))};
}
/* n codes of four bits, low nibble first; lanes from n on hold 0 or, where n is odd, the nibble behind */
static inline w16 w_from_u4(const uint8_t *p, int64_t n)
{
    const __m128i x = _mm_cvtepu8_epi16(bytes_n(p, n < 16 ? (n + 1) / 2 : 8));
    const __m128i q = _mm_and_si128(_mm_or_si128(x, _mm_slli_epi16(x, 4)), _mm_set1_epi8(15));
    return (w16){_mm256_cvtepu8_epi32(q), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(q, q))};
}
static inline w16 w_from_s16(const int16_t *p, int64_t n)
{
    return (w16){_mm256_cvtepi16_epi32(bytes_n(p, 2 * n)),
                 n > 8 ? _mm256_cvtepi16_epi32(bytes_n(p + 8, 2 * (n - 8))) : _mm256_setzero_si256()};
}
static inline __m256i pack16(w16 x) /* 16 lanes of 16 bits in order, saturated */
{
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
}
static inline void w_to_s8(int8_t *p, w16 x, int64_t n)
{
    const __m256i h = pack16(x);
    const __m128i q = _mm_packs_epi16(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
    if (n >= 16) {
        _mm_storeu_si128((__m128i *)p, q);
        return;
    }
    int8_t t[16];
    _mm_storeu_si128((__m128i *)t, q);
    memcpy(p, t, (size_t)n);
}
static inline void w_to_s16(int16_t *p, w16 x, int64_t n)
{
    if (n >= 16) {
        _mm256_storeu_si256((__m256i *)p, pack16(x));
        return;
    }
    int16_t t[16];
    _mm256_storeu_si256((__m256i *)t, pack16(x));
    memcpy(p, t, (size_t)n * 2);
}
/* Four unsigned x signed bytes per lane, by 16-bit products of the even and of the odd bytes: no saturation. */
static inline __m256i dot4(__m256i acc, __m256i u, __m256i s)
{
    const __m256i low = _mm256_set1_epi16(255);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(even, odd));
}
static inline w16 w_dot(w16 acc, b64 u, b64 s)
{
    return (w16){dot4(acc.a, u.a, s.a), dot4(acc.b, u.b, s.b)};
}
/* the same where u is below 16: sums of two products fit in 16 bits */
static inline __m256i dot4_small(__m256i acc, __m256i u, __m256i s)
{
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}
static inline w16 w_dot_small(w16 acc, b64 u, b64 s)
{
    return (w16){dot4_small(acc.a, u.a, s.a), dot4_small(acc.b, u.b, s.b)};
}
static inline int32_t w_sum(w16 x)
{
    const __m256i e = _mm256_add_epi32(x.a, x.b);
    const __m128i q = _mm_add_epi32(_mm256_castsi256_si128(e), _mm256_extracti128_si256(e, 1));
    const __m128i d = _mm_add_epi32(q, _mm_unpackhi_epi64(q, q));
    return _mm_cvtsi128_si32(_mm_add_epi32(d, _mm_shuffle_epi32(d, 1)));
}
static inline __m256 from_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
}
static inline v16 v_from_bf16(const uint16_t *p)
{
    return (v16){from_bf16(p), from_bf16(p + 8)};
}
static inline v16 v_from_half(const uint16_t *p)
{
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1))};
}
static inline b64 b_load4(const void *p) /* the same four bytes in every lane */
{
    int32_t x;
    memcpy(&x, p, 4);
    return w_set1(x);
}
static inline b64 b_load_n(const void *p, int64_t n) /* the first n bytes, zeros behind them */
{
    if (n >= 64)
        return b_load(p);
    uint8_t t[64] = {0};
    memcpy(t, p, (size_t)n);
    return b_load(t);
}
static inline b64 b_set1(uint8_t x)
{
    return (b64){_mm256_set1_epi8((char)x), _mm256_set1_epi8((char)x)};
}
static inline void b_store(void *p, b64 x)
{
    w_store(p, x);
}
static inline void b_transpose(b64 r[16]) /* of words of four bytes */
{
    v16 t[16];
    for (int i = 0; i < 16; i++)
        t[i] = (v16){_mm256_castsi256_ps(r[i].a), _mm256_castsi256_ps(r[i].b)};
    v_transpose(t);
    for (int i = 0; i < 16; i++)
        r[i] = (b64){_mm256_castps_si256(t[i].a), _mm256_castps_si256(t[i].b)};
}
static inline b64 b_flip(b64 x)
{
    const __m256i sign = _mm256_set1_epi8((char)0x80);
    return (b64){_mm256_xor_si256(x.a, sign), _mm256_xor_si256(x.b, sign)};
}
static inline b64 b_low4(b64 x)
{
    const __m256i low = _mm256_set1_epi8(15);
    return (b64){_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low)};
}
static inline b64 b_high4(b64 x)
{
    return b_low4((b64){_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)});
}
static inline __m256 pow2_of(__m256 n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
static inline v16 v_pow2(v16 n) /* of integral lanes -126..127 */
{
    return (v16){pow2_of(n.a), pow2_of(n.b)};
}

#include "kernels/exp_body.h"
#include "kernels/requant_body.h"

#define TABLE      kn_table_avx2
#define TABLE_NAME "avx2"
#define TABLE_BF16 false
#include "kernels/table_body.h"
#endif
