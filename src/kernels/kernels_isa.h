/* kernels_isa.h - the table of single-threaded loops that exists once per instruction set (private to kernels/).
 *
 * The loops are written once, in the *_body.h files, on a vector of 16 reals. isa_scalar.c, isa_avx2.c and
 * isa_avx512.c define that vector and include the bodies, so every table computes the same bits.
 */
#ifndef NIBBLE_KERNELS_ISA_H
#define NIBBLE_KERNELS_ISA_H
#include "kernels/kernels.h"

#include <string.h>

/* How a span of numbers that share a scale is rounded to codes:
 *   q = clamp(rne((x * inv) * step - shift) + zero, lo, hi), NaN -> lo;   sign: x * inv >= 0 ? 1 : -1 */
typedef struct {
    real inv, step, shift, zero, lo, hi;
    bool sign;
} kn_rounding;

/* Rows [0, M) x panels [panel, panel + panels) of an integer product; see kn_linear_int. Pointers are at row 0 and,
 * for y and b, at column 0 of the whole product. */
typedef struct {
    real *y;
    const int8_t *a;
    int64_t lda, M, panel, panels;
    const real *a_scale; /* of row m, group g: a_scale[m * scale_row + g * scale_group] */
    int64_t scale_row, scale_group;
    const int32_t *a_zero; /* of row m: a_zero[m * zero_row]; NULL: 0 */
    int64_t zero_row;
    const kn_packed *w;
    const real *b; /* NULL: nothing added */
    int32_t *sums; /* [M, N] takes the sums instead of y (one group); NULL: y */
} kn_linear_job;

/* c [M, N] (+)= a sum of `runs` runs of `steps` blocks of 32 products of bf16 operands, in fp32: row m of a begins at a + m*lda, its runs lie a_run
 * apart; b: panels [N/64][runs][steps][16][64][2]. The same for `lines` of c and a, c_line and a_line apart. Of a, 32 numbers from where
 * each block begins are read. */
typedef struct {
    real *c;
    int64_t ldc;
    const uint16_t *a;
    int64_t lda;
    const uint16_t *b;
    int64_t M, N, steps, runs, a_run;
    int64_t lines, c_line, a_line;
    bool add;
} kn_bf16_runs;

/* The same of signed bytes, exact: c [M, N] = sums, blocks of 64 products; b: panels [N/16][runs][steps][16][16][4], an even number of them. */
typedef struct {
    int32_t *c;
    int64_t ldc;
    const int8_t *a;
    int64_t lda;
    const int8_t *b;
    int64_t M, N, steps, runs, a_run;
    int64_t lines, c_line, a_line;
} kn_int8_runs;

/* What a panel adds to every operand, and the bytes of a panel. */
static inline int32_t kn_shift(const kn_packed *w)
{
    return w->half ? 8 : 128;
}
static inline int64_t kn_panel_bytes(const kn_packed *w)
{
    return w->half ? (w->k4 + 1) / 2 * 64 : w->k4 * 64;
}

/* Queries [0, n) against one cache: of one head at positions first, first + 1, ..., or (together) of n heads, all at
 * position first; see kn_attend. */
typedef struct {
    real *o;
    int64_t ldo;
    real *lse; /* [n * ld_lse] or NULL */
    int64_t ld_lse;
    const kn_cache *cache;
    const void *next; /* keys that are read after these, for memory to be asked early; NULL: not known */
    int64_t first, n;
    bool together;
    const real *q; /* floats, row i at q + i*ldq, or NULL */
    int64_t ldq;
    const int8_t *codes; /* or codes, row i at codes + i*ld_codes, with scales q_scale[i*ld_scale] */
    int64_t ld_codes;
    const real *q_scale;
    int64_t ld_scale;
    bool quantize_probs;
    real *scratch;
} kn_attend_job;

enum {
    KN_KEYS = 64,          /* keys of one block of a cache */
    KN_QUERIES = 24,       /* queries that share a pass over the keys */
    KN_PARALLEL = 1 << 14, /* elements below which a loop is not worth waking threads for */
    KN_CHUNK = 4096,       /* elements of one unit of work of an elementwise loop */
    KN_TALL = 16           /* rows from which tiles pay */
};

/* X(result, name, arguments): every function of a table. */
#define KN_FUNCTIONS(X)                                                                                                \
    X(void, exponential, (real * y, const real *x, int64_t n))                                                         \
    X(void, silu, (real * y, const real *x, int64_t n))                                                                \
    X(void, silu_backward, (real * dx, const real *dy, const real *x, int64_t n))                                      \
    X(void, gelu_tanh, (real * y, const real *x, int64_t n))                                                           \
    X(void, gelu_tanh_backward, (real * dx, const real *dy, const real *x, int64_t n))                                 \
    X(void, swiglu, (real * y, const real *gate, const real *up, int64_t n))                                           \
    X(void, swiglu_backward, (real * dgate, real * dup, const real *dy, const real *gate, const real *up, int64_t n))  \
    X(void, add_to, (real * y, const real *x, int64_t n))                                                              \
    X(void, sum2, (real * y, const real *a, const real *b, int64_t n))                                                 \
    X(void, axpy, (real * y, const real *x, real a, int64_t n))                                                        \
    X(real, sum_squares, (const real *x, int64_t n))                                                                   \
    X(real, sum_abs, (const real *x, int64_t n))                                                                       \
    X(real, absmax, (const real *x, int64_t n))                                                                        \
    X(void, min_max, (real * min, real * max, const real *x, int64_t n))                                               \
    X(void, adamw,                                                                                                     \
      (real * x, real * m, real * v, const real *g, int64_t n, const kn_adamw_factors *f))                             \
    X(void, adamw_bf16,                                                                                                \
      (real * x, uint16_t * m, uint16_t * v, const real *g, int64_t n, const kn_adamw_factors *f, uint32_t key))       \
    X(bool, count_flips, (int16_t * f, int16_t * m, int8_t * last, const int8_t *q, int64_t n, int limit))             \
    X(void, hold_pinned, (real * x, const int16_t *f, const int16_t *m, int64_t n, real mul, real add, real scale))    \
    X(void, softmax, (real * y, const real *x, int64_t M, int64_t C))                                                  \
    X(void, logsumexp, (double *lse, const real *x, int64_t M, int64_t C))                                             \
    X(real, exp_sums, (real * sum, const real *x, int64_t n, real f))                                                  \
    X(void, rmsnorm, (real * y, real * r, const real *x, const real *w, int64_t M, int64_t C, real eps))               \
    X(void, rmsnorm_dx,                                                                                                \
      (real * dx, const real *dy, const real *x, const real *w, const real *r, int64_t M, int64_t C))                  \
    X(void, rmsnorm_dw, (real * dw, const real *dy, const real *x, const real *r, int64_t M, int64_t C, int64_t n))    \
    X(void, layernorm,                                                                                                 \
      (real * y, real * mean, real * r, const real *x, const real *w, const real *b, int64_t M, int64_t C, real eps))  \
    X(void, layernorm_dx,                                                                                              \
      (real * dx, const real *dy, const real *x, const real *w, const real *mean, const real *r, int64_t M,            \
       int64_t C))                                                                                                     \
    X(void, layernorm_dw,                                                                                              \
      (real * dw, real * db, const real *dy, const real *x, const real *mean, const real *r, int64_t M, int64_t C,     \
       int64_t n))                                                                                                     \
    X(void, rope,                                                                                                      \
      (real * y, const real *x, const real *cos, const real *sin, int64_t H, int64_t D, bool half, bool inverse))      \
    X(void, encode8, (int8_t * q, const real *x, int64_t n, const kn_rounding *r))                                     \
    X(void, encode16, (int16_t * q, const real *x, int64_t n, const kn_rounding *r))                                   \
    X(void, decode8, (real * x, const int8_t *q, int64_t n, real scale, real mul, real offset))                        \
    X(void, decode16, (real * x, const int16_t *q, int64_t n, real scale, real mul, real offset))                      \
    X(void, encode_spans,                                                                                              \
      (int8_t * q, int64_t ldq, real * scale, int32_t * zero, const real *x, int64_t ldx, int64_t count, int64_t n,    \
       const kn_grid *g))                                                                                              \
    X(void, decode_spans,                                                                                              \
      (real * x, const int8_t *q, const real *scale, const int32_t *zero, int64_t count, int64_t n, real mul,          \
       real add))                                                                                                      \
    X(real, rounding_error,                                                                                            \
      (const real *x, const real *h, int64_t n, const kn_rounding *r, real scale, real mul, real offset))              \
    X(void, tile,                                                                                                      \
      (real * c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb, int64_t M, int64_t N, \
       int64_t K, bool add))                                                                                           \
    X(void, tile_runs,                                                                                                 \
      (real * c, int64_t ldc, const real *a, int64_t am, int64_t ak, const real *b, int64_t ldb, int64_t M, int64_t N, \
       int64_t K, int64_t runs, int64_t a_run, int64_t b_run, bool add))                                               \
    X(void, dots,                                                                                                      \
      (real * y, int64_t ldy, const real *x, int64_t ldx, const real *w, int64_t ldw, int64_t M, int64_t N,            \
       int64_t K))                                                                                                     \
    X(void, dot_codes,                                                                                                 \
      (real * y, int64_t ldy, const real *x, int64_t ldx, int64_t M, const int8_t *q, int64_t n, const real *scale,    \
       const int32_t *zero, int64_t group, real mul, real add))                                                        \
    X(void, transpose, (real * y, int64_t ldy, const real *x, int64_t ldx, int64_t M, int64_t N))                      \
    X(void, transpose_words, (uint32_t * y, int64_t ldy, const uint32_t *x, int64_t ldx, int64_t M, int64_t N))        \
    X(void, to_bf16, (uint16_t * y, const real *x, int64_t n))                                                         \
    X(void, codes_at_random, (int8_t * q, const real *x, real inv, int64_t n, uint32_t key))                           \
    X(void, to_bf16_scaled, (uint16_t * y, const real *x, const real *scale, int64_t n))                               \
    X(void, pair_bf16, (uint32_t * y, const real *x0, const real *x1, real scale0, real scale1, int64_t n))            \
    X(void, pack,                                                                                                      \
      (uint8_t * to, int32_t * sum, int64_t stride, const int8_t *q, int64_t ld, int64_t rows, int64_t n,              \
       int64_t group, bool twice, bool half))                                                                                   \
    X(void, finish_rows, (real * y, const real *b, int64_t M, int64_t N, kn_activation act))                           \
    X(void, gate_rows, (real * d, double *sum, const real *y, int64_t M, int64_t N, kn_activation act))                \
    X(void, largest_point, (real * y, uint8_t *at, const real *x, int64_t C, int64_t K, int64_t row))                  \
    X(void, largest_point_dx,                                                                                          \
      (real * dx, const real *dy, const uint8_t *at, int64_t C, int64_t K, int64_t row, bool add))                     \
    X(void, drop, (real * y, const real *x, int64_t n, uint64_t state, uint64_t least, real factor, bool add))         \
    X(void, value_rows, (real * y, const int32_t *sum, const real *scale, int64_t M, int64_t N, kn_activation act))    \
    X(void, depthwise_row,                                                                                             \
      (real * y, const real *x, const real *w, int64_t OW, int64_t C, int64_t K, int64_t step, int64_t row,            \
       int64_t apart, bool add))                                                                                       \
    X(void, depthwise_row_dw,                                                                                          \
      (real * dw, const real *x, const real *dy, int64_t OW, int64_t C, int64_t K, int64_t step, int64_t row,          \
       int64_t apart))                                                                                                 \
    X(void, column_sums,                                                                                               \
      (double *first, double *second, const real *a, const real *a_mean, const real *b, const real *b_mean,            \
       int64_t M, int64_t C))                                                                                          \
    X(void, column_maps,                                                                                               \
      (real * y, const real *a, const real *p, const real *b, const real *q, const real *r, int64_t M, int64_t C,      \
       bool add))                                                                                                      \
    X(void, depthwise_row8,                                                                                            \
      (int32_t * y, const int8_t *x, const int8_t *w, const int32_t *b, int64_t OW, int64_t C, int64_t K,              \
       int64_t step, int64_t row, int64_t apart))                                                                      \
    X(void, range_sums,                                                                                                \
      (real * sums, const real *dy, const real *x, const real *y, int64_t n, real inv, real lo, real hi,               \
       real rounded))                                                                                                  \
    X(void, range_pass,                                                                                                \
      (real * dx, const real *dy, const real *x, int64_t n, real inv, real lo, real hi, bool add))                     \
    X(void, range_bits, (uint8_t *bits, const real *x, int64_t n, real inv, real lo, real hi))                         \
    X(void, bits_pass, (real * dx, const real *dy, const uint8_t *bits, int64_t n, bool add))                          \
    X(void, finite_min_max, (real * min, real * max, const real *x, int64_t n))                                        \
    X(void, max8, (int8_t * y, const int8_t *x, int64_t n))                                                            \
    X(void, requantize, (int8_t * q, const int32_t *sum, int64_t M, const kn_requant *r))                              \
    X(void, linear, (const kn_linear_job *job))                                                                        \
    X(void, attend, (const kn_attend_job *job))                                                                        \
    X(void, attend_backward_row, (real * p, real * ds, int64_t n, int64_t keys, real lse, real delta, real scale))

/* In front of a loop over a register tile of up to 32 vectors. Such loops are not nested: gcc unrolls inner loops before,
 * outer ones after it turns arrays into registers. */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

typedef struct {
    const char *name;
    bool bf16; /* library products may use bfloat16 beside it */
    bool (*has_bf16)(void); /* multiply_bf16 and runs_bf16 work on this CPU, each on one thread; all NULL: the library's product */
    void (*runs_bf16)(const kn_bf16_runs *job);
    /* c [M, N] (ldc) (+)= a [M, K] (lda) b; K whole blocks of 32; b: of each panel of 64 columns, `panel` elements apart, its rows from the sum's first on */
    void (*multiply_bf16)(real *c, int64_t ldc, const uint16_t *a, int64_t lda, const uint16_t *b, int64_t panel, int64_t M, int64_t N, int64_t K, bool add);
    void (*runs_int8)(const kn_int8_runs *job); /* on one thread; NULL: linear does convolutions */
    void (*linear_tall)(const kn_linear_job *job); /* the same product for KN_TALL rows and more; NULL: linear does them */
#define X(result, name, arguments) result(*name) arguments;
    KN_FUNCTIONS(X)
#undef X
} kn_table;

/* X(name, runtime test), from plainest to fastest. The double build has the definition only. */
#if defined(__x86_64__) && !defined(NB_DOUBLE)
#define KN_TABLES(X)                                                                                                   \
    X(scalar, true)                                                                                                    \
    X(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))                                           \
    X(avx512, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&                               \
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&                          \
                  __builtin_cpu_supports("avx512vnni"))                                                                 \
    X(amx, kn_isa_named("avx512") && kn_amx_usable())
bool kn_amx_usable(void); /* this CPU has byte products of tiles, and the system lets us use them (isa_amx.c) */
void kn_amx_int8_runs(const kn_int8_runs *job);
void kn_amx_linear(const kn_linear_job *job);
bool kn_amx_bf16_usable(void); /* the same of bf16 products (isa_amxbf16.c) */
void kn_amx_bf16_runs(const kn_bf16_runs *job);
void kn_amx_bf16_multiply(real *c, int64_t ldc, const uint16_t *a, int64_t lda, const uint16_t *b, int64_t panel, int64_t M, int64_t N,
                          int64_t K, bool add);
#else
#define KN_TABLES(X) X(scalar, true)
#endif
#define X(name, test) extern const kn_table kn_table_##name;
KN_TABLES(X)
#undef X

const kn_table *kn_isa(void);                   /* the table in use */
const kn_table *kn_isa_named(const char *name); /* NULL where unknown or not for this CPU */

static inline float kn_bf16_value(uint16_t h) /* nb_bf16_to, for loops over many */
{
    const uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* How the span with this scale and zero is rounded. */
kn_rounding kn_rounding_of(const kn_grid *g, real scale, int32_t zero);
/* Value of code q: (mul*q + offset) * scale. */
static inline real kn_offset(const kn_grid *g, int32_t zero)
{
    return (real)(kn_add(g) - zero);
}

/* The larger end of ascending levels. */
static inline real kn_max_level(const real *level, int32_t hi)
{
    return -level[0] > level[hi] ? -level[0] : level[hi];
}
/* What the largest magnitude is divided by to give the scale; see kn_range_of. */
static inline real kn_top_level(const kn_grid *g)
{
    if (kn_has_table(g))
        return kn_max_level(kn_table_levels(g), g->hi);
    return (real)(g->levels == KN_LEVELS_SIGN ? 1 : g->levels == KN_LEVELS_HALF_STEP ? 2 * g->hi + 2 : g->hi);
}
bool kn_table_has_integers(const kn_grid *g);
/* Spans of a TABLE, whose kernels are plain C (levels.c): codes of x under inv = 1 / scale, their values, and
 * sum_i h_i (x_i - value(code(x_i)))^2, h NULL: ones. */
void kn_encode_levels(int8_t *q, const real *x, int64_t n, const kn_grid *g, real inv);
void kn_decode_levels(real *x, const int8_t *q, int64_t n, const kn_grid *g, real scale);
double kn_levels_error(const real *x, const real *h, int64_t n, const kn_grid *g, real scale);

static inline int64_t kn_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
static inline int64_t kn_max(int64_t a, int64_t b)
{
    return a > b ? a : b;
}
#endif
