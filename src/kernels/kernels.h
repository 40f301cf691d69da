/* kernels.h - arithmetic on plain arrays: the grid, codes, products, row kernels, attention.
 *
 * Scalar C is the definition; a table per instruction set (isa_*.c) computes the SAME BITS,
 * floats included: sums run in 16 interleaved lanes folded 8-4-2-1, fused multiply-adds are written as such. What calls
 * a library (kn_product_*) is the only exception. Functions here use OpenMP threads; each output is computed by one
 * thread in index order, so results do not depend on the number of threads.
 *
 * Letters: M rows (tokens), N outputs, K inputs of a product, C channels, H heads, D head size, T time, B batch.
 */
#ifndef NIBBLE_KERNELS_H
#define NIBBLE_KERNELS_H
#include "base/base.h"

/* float everywhere; double in the gradient check, which builds the same sources with NB_DOUBLE. */
#ifdef NB_DOUBLE
typedef double real;
#else
typedef float real;
#endif

/* ---- instruction set ---------------------------------------------------------------------- */

/* Name of the table in use: "scalar", "avx2", "avx512" or "amx": the best this CPU has, or what NIBBLE_ISA in the
 * environment asks for. kn_isa_check fails where NIBBLE_ISA names what
 * is unknown or what this CPU lacks (then scalar is used). */
const char *kn_isa_name(void);
status kn_isa_check(void);

/* ---- the grid ----------------------------------------------------------------------------- */

typedef enum { KN_LEVELS_NONE, KN_LEVELS_INT, KN_LEVELS_HALF_STEP, KN_LEVELS_SIGN, KN_LEVELS_TABLE } kn_levels;
typedef enum { KN_TABLE_NF4, KN_TABLE_FP4, KN_TABLE_IQ4_NL, KN_TABLE_OWN, KN_TABLE_COUNT } kn_table_name;
enum { KN_OWN_LEVELS = 16 };
typedef enum { KN_TENSOR, KN_ROW, KN_HEAD, KN_GROUP, KN_BLOCK } kn_grain;
typedef enum { KN_SCALE_F32, KN_SCALE_F16, KN_SCALE_BF16, KN_SCALE_POW2, KN_SCALE_SUPER6, KN_SCALE_SUPER8, KN_SCALE_DYNAMIC8 } kn_scale_type;
typedef enum { KN_RULE_NIBBLE, KN_RULE_GGML_Q8_0, KN_RULE_GGML_Q4_0, KN_RULE_LLAMA2C } kn_rule;

/* How numbers are coded: a value; copy, print, compare, save. bits == 0: left in floating point.
 *   INT        value = (q - zero) * scale, lo <= q <= hi        (ternary: lo -1, hi 1)
 *   HALF_STEP  value = (2 q + 1) * scale, lo <= q <= hi         (2 bits: SEQ, scale = alpha / 4; ParetoQ, Liu et al. 2025)
 *   SIGN       value = q * scale, q in {-1, +1}, sign(0) = +1
 *   TABLE      value = level[q] * scale, 0 <= q <= hi, levels ascending (kn_table_levels); x * inv goes to the nearest, the lower of two as near
 * encode: q = clamp(rne(x * inv) + zero, lo, hi), inv = 1 / scale as stored (0 where |scale| < FLT_MIN).
 * grain: what shares a scale: the tensor | a row (output channel of a weight, token of an activation) | a head (the
 *   row in parts of `group` = head size) | a group of `group` along the row, the last may be shorter | a block of
 *   `group` of the flattened tensor, rows ignored.
 * scale: SUPER6, SUPER8: of groups within KN_SUPER columns, an fp16 number times an integer 1..63, or +-1..127 (ggml's K types).
 *   DYNAMIC8: of blocks, mean of the tensor + a number for KN_SUPER scales times one of 256 levels (bitsandbytes' double quantization); codes are found
 *   with the scales before they are stored so.
 * rule: NIBBLE as above. GGML_Q8_0, GGML_Q4_0: ggml's encoder of activations (Q8_0: rne(x * (127/amax)), scale
 *   fp16(amax/127)); as a *file* rule see kn_range_of. LLAMA2C: round half away from zero, fp32 scale.
 * outlier: entries with |x| >= outlier take no part in the range and stay beside the codes as binary16 (their code is 0): of activations per
 *   row, integer levels without zero point. LLM.int8() (Dettmers et al. 2022) has 6; 0: none. */
typedef struct {
    uint8_t levels, bits, grain, scale, rule;
    uint8_t table; /* a kn_table_name, for TABLE; else 0 */
    bool has_zero;  /* integer zero point, lo <= zero <= hi */
    int32_t lo, hi; /* range of codes */
    int32_t group;  /* elements, for HEAD, GROUP, BLOCK; 0 otherwise */
    float outlier;
    real level[KN_OWN_LEVELS]; /* of KN_TABLE_OWN: exact in binary16, ascending; else 0 */
} kn_grid;

/* Integer grid of `bits` (2..8, 16): symmetric -2^(b-1)..2^(b-1)-1, narrow (symmetric) -(2^(b-1)-1)..; 1 bit: SIGN. */
kn_grid kn_grid_int(int bits, bool narrow, bool has_zero, kn_grain grain, int group, kn_scale_type scale);
/* A grid of the levels of a table: 4 bits.
 *   NF4     bitsandbytes': quantiles of a normal distribution over [-1, 1], one of them 0     (Dettmers et al. 2023, QLoRA)
 *   FP4     bitsandbytes': sign, 2 bits of exponent, 1 of mantissa over 12: 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1 and their negatives
 *   IQ4_NL  ggml's integers -127 .. 113                                                       (ggml-quants.c, kvalues_iq4nl)
 *   OWN     16 levels that the grid itself carries, the scale is the largest magnitude / the largest |level|: the caller fills level in */
kn_grid kn_grid_table(kn_table_name table, kn_grain grain, int group, kn_scale_type scale);
const real *kn_table_levels(const kn_grid *g); /* [hi + 1], of a TABLE */
static inline bool kn_has_table(const kn_grid *g)
{
    return g->levels == KN_LEVELS_TABLE;
}
/* "nf4", "fp4", "iq4_nl"; "levels" of OWN */
const char *kn_table_text(kn_table_name table);
bool kn_grid_equal(const kn_grid *a, const kn_grid *b);
status kn_grid_check(const kn_grid *g); /* NB_USAGE and the reason where the fields make no sense */
/* What one step of code is worth beside the scale: value = (mul * q + add - zero) * scale. Not of a TABLE. */
static inline int kn_mul(const kn_grid *g)
{
    return g->levels == KN_LEVELS_HALF_STEP ? 2 : 1;
}
static inline int kn_add(const kn_grid *g)
{
    return g->levels == KN_LEVELS_HALF_STEP ? 1 : 0;
}
/* The largest |mul*q + add - zero| a code can stand for (q8: 127 or 128, asymmetric: hi - lo); of a table of integers the largest |level|,
 * of one of fractions INT_MAX: no integer operand. */
int kn_largest(const kn_grid *g);
/* s as the file will hold it: rounded to storage (nearest even; POW2: to the nearest exponent), above the range the largest finite
 * one, below FLT_MIN in magnitude 0. In the double build fp32 storage leaves s alone. */
real kn_store(const kn_grid *g, real s);
/* The second step of storing scales [rows, spans] of groups where they are SUPER6 or SUPER8 (others are left as they are), in every
 * run of KN_SUPER columns: d = fp16(max |s| / top), part = clamp(rne(s / d), 1, top), the largest is top, s = d part. Said again it changes nothing. */
enum { KN_SUPER = 256 };
static inline bool kn_has_super(const kn_grid *g)
{
    return g->scale == KN_SCALE_SUPER6 || g->scale == KN_SCALE_SUPER8;
}
int64_t kn_supers(const kn_grid *g, int64_t rows, int64_t cols); /* how many numbers that several scales are multiples of: d, DYNAMIC8's */
void kn_store_scales(const kn_grid *g, real *scale, int64_t rows, int64_t spans);
/* The same scales in two parts: d [kn_supers] as binary16 bits, part [rows, spans]. */
void kn_split_scales(uint16_t *d, int8_t *part, const kn_grid *g, const real *scale, int64_t rows, int64_t spans);
static inline real kn_inverse(real scale)
{
    return scale >= (real)1.17549435e-38 || scale <= -(real)1.17549435e-38 ? 1 / scale : 0;
}

/* Scale and zero for values within [min, max] (the range is first made to hold 0):
 *   no zero: scale = store(max(|min|,|max|) / top), top = hi, HALF_STEP 2 hi + 2 (2 bits: 4), SIGN 1 (pass +-mean |x|)
 *   zero:    scale = store((max - min) / (hi - lo)), zero = clamp(rne(lo - min * inv), lo, hi)
 * constant, zero and one-sided tensors are safe: a range of 0 gives scale 0. */
void kn_range_of(const kn_grid *g, real min, real max, real *scale, int32_t *zero);

/* Codes of a matrix [rows, cols] with their scales; the one form in which quantized numbers travel. */
typedef struct {
    kn_grid grid;
    int64_t rows, cols, ld; /* ld: elements between rows of q, a multiple of 4, the pad holds 0 */
    int64_t spans;          /* scales per row (GROUP, HEAD), or 1; TENSOR and BLOCK count over the whole */
    int64_t n_scales;
    int8_t *q;     /* [rows, ld], bits <= 8, else NULL */
    int16_t *q16;  /* [rows, ld], bits 16, else NULL */
    uint16_t *wide; /* [rows, ld] binary16 of outliers, 0 everywhere else; NULL where the grid has none */
    real *scale;   /* [n_scales], as stored; ROW: [rows]; GROUP, HEAD: [rows, spans] */
    int32_t *zero; /* [n_scales], or NULL without zero points */
    uint8_t *scale_code; /* DYNAMIC8, else NULL: [n_scales] codes of scales; what they are multiples of, super [kn_supers], and mean [1] */
    real *super, *mean;
} kn_codes;
/* Scales of DYNAMIC8 (dynamic_map.c): the map of codes, ascending; scale <- what the parts say; the parts from scale as found, then the same. */
enum { KN_DYNAMIC_LEVELS = 256 };
void kn_dynamic_map(real map[KN_DYNAMIC_LEVELS]);
void kn_join_dynamic(kn_codes *c);
void kn_split_dynamic(kn_codes *c);
int64_t kn_codes_scales(const kn_grid *g, int64_t rows, int64_t cols); /* n_scales; -1 if it overflows */
size_t kn_codes_bytes(const kn_grid *g, int64_t rows, int64_t cols);   /* memory for the arrays below */
/* Lays a kn_codes over `memory` of kn_codes_bytes (64-byte aligned), contents undefined but for the pad. */
void kn_codes_lay(kn_codes *c, const kn_grid *g, int64_t rows, int64_t cols, void *memory);
status kn_codes_new(kn_codes *c, const kn_grid *g, int64_t rows, int64_t cols);
void kn_codes_free(kn_codes *c); /* only of kn_codes_new; accepts a zeroed struct */
static inline int64_t kn_scale_index(const kn_codes *c, int64_t row, int64_t col)
{
    switch (c->grid.grain) {
    case KN_TENSOR:
        return 0;
    case KN_ROW:
        return row;
    case KN_BLOCK:
        return (row * c->cols + col) / c->grid.group;
    default:
        return row * c->spans + col / c->grid.group;
    }
}

/* Ranges from x [rows, cols] by min-max (absmax without zero points) through kn_range_of (rules other than NIBBLE: by their
 * own formula), then codes. SIGN: scale = mean |x|. HALF_STEP: scale = max|x| / 4. */
void kn_encode(kn_codes *c, const real *x);
/* Codes of x with the scales and zeros that c already holds (static, learned, folded again). */
void kn_encode_with(kn_codes *c, const real *x);
/* The same two for rows [row, row + n) only; x points at row `row`. kn_encode_rows: grain ROW, HEAD or GROUP. */
void kn_encode_rows(kn_codes *c, const real *x, int64_t row, int64_t n);
void kn_encode_rows_with(kn_codes *c, const real *x, int64_t row, int64_t n);
/* x [n, cols] <- values of rows [row, row+n). */
void kn_decode(real *x, const kn_codes *c, int64_t row, int64_t n);
/* x [n] <- columns [col, col + n) of one row. */
void kn_decode_part(real *x, const kn_codes *c, int64_t row, int64_t col, int64_t n);
/* One code's value, the definition: for tests and readers. */
real kn_decode_one(const kn_codes *c, int64_t row, int64_t col);
/* One code, the definition (rule NIBBLE). NaN encodes as lo. */
int32_t kn_encode_one(const kn_grid *g, real x, real inv, int32_t zero);
/* Scales of a float matrix by search: per span the candidate scale = store(range * k) with the least sum (x - decode(encode(x)))^2,
 * k over `steps` from `from` to `to`; weight h [rows, cols] of the squares, NULL: ones. signs: try negative scales too (grids with lo != -hi). Then c holds
 * scales, zeros and codes. */
void kn_encode_mse(kn_codes *c, const real *x, const real *weight, real from, real to, int steps, bool signs);
/* ggml's own file encoders for Q8_0 (d = amax/127, roundf) and Q4_0 (d = signed max / -8, truncation of x/d + 8.5):
 * codes from the unrounded d, scale stored as fp16. c->grid must be groups of 32, fp16, 8 bits or 4 bits. Byte-identical to llama-quantize. */
void kn_encode_ggml_file(kn_codes *c, const real *x);

/* A matrix by value or by its codes. */
typedef struct {
    const real *x;         /* floats, or NULL */
    const kn_codes *codes; /* or codes */
} kn_operand;

/* ---- float products (library; not bit-stable across threads or batch) --------------------- */

typedef enum { KN_FP32, KN_BF16 } kn_precision; /* what operands are rounded to inside a product */
bool kn_has_bf16(void);                         /* this CPU multiplies bf16, by our tiles (AMX) or oneDNN where it is built in */
bool kn_bf16_pays(void);                        /* and faster than fp32: Intel's, but for AMX, are slower */
/* Row-major; beta 0 writes, 1 adds. Leading dimensions are the natural ones.
 *   nt: c[M,N] = a[M,K] b[N,K]' + beta c     nn: c[M,N] = a[M,K] b[K,N] + beta c     tn: c[M,N] = a[K,M]' b[K,N] + beta c */
void kn_product_nt(kn_precision p, real *c, const real *a, const real *b, int64_t M, int64_t N, int64_t K, real beta);
void kn_product_nn(kn_precision p, real *c, const real *a, const real *b, int64_t M, int64_t N, int64_t K, real beta);
void kn_product_tn(kn_precision p, real *c, const real *a, const real *b, int64_t M, int64_t N, int64_t K, real beta);
/* The right operand b [K, N] of bf16 products, rounded and laid out once for several of them. Codes of at most 8 bits with one
 * scale a row (or tensor) enter as exact integers |mul q + add - zero| <= 256, their scales are multiplied into the columns of
 * the left operand before that is rounded; any other codes enter as their values, rounded. */
typedef struct {
    int64_t K, N;
    uint16_t *b; /* [N/64][K/32][16][64][2], zero padded */
    real *scale; /* [K], 1 where values were rounded as they are */
} kn_bf16_right;
/* True where products of this size are made in bf16; else kn_product_* of floats does them as well as anything. */
bool kn_takes_bf16(kn_precision p, int64_t M, int64_t N, int64_t K);
size_t kn_bf16_right_bytes(int64_t K, int64_t N);
/* memory: of that many bytes, 64-byte aligned. rows: b is rows [row, row + K) of o; columns: b = w', w [N, K] floats. */
void kn_bf16_rows(kn_bf16_right *b, kn_operand o, int64_t row, int64_t K, int64_t N, void *memory);
void kn_bf16_columns(kn_bf16_right *b, const real *w, int64_t N, int64_t K, void *memory);
void kn_bf16_column(real *x, const kn_bf16_right *b, int64_t n); /* x [K] <- column n of b, as it was rounded (its scales are 1) */
/* c[M,N] = a[M,K] b + beta c;  t: c[M,N] = a[K,M]' b + beta c. M is free where kn_takes_bf16 held for some M. */
status kn_product_right(real *c, const real *a, const kn_bf16_right *b, int64_t M, real beta);
status kn_product_t_right(real *c, const real *a, const kn_bf16_right *b, int64_t M, real beta);
/* c[i] [M, N_i] = a [M, K] b[i] for 1 to KN_MOST_RIGHTS operands made of floats, with the bits of kn_product_right: a is rounded once for
 * all of them. */
enum { KN_MOST_RIGHTS = 4 };
status kn_products_right(real *const *c, const real *a, const kn_bf16_right *const *b, int64_t n, int64_t M);
/* Single-threaded fp32 products with leading dimensions, for tiles inside a parallel region. */
void kn_tile_nt(real *c, int64_t ldc, const real *a, int64_t lda, const real *b, int64_t ldb, int64_t M, int64_t N,
                int64_t K, real beta);
void kn_tile_nn(real *c, int64_t ldc, const real *a, int64_t lda, const real *b, int64_t ldb, int64_t M, int64_t N,
                int64_t K, real beta);
void kn_tile_tn(real *c, int64_t ldc, const real *a, int64_t lda, const real *b, int64_t ldb, int64_t M, int64_t N,
                int64_t K, real beta);
/* h[C,C] = x[M,C]' x + beta h, both triangles: the Gram matrix. */
void kn_gram(kn_precision p, real *h, const real *x, int64_t M, int64_t C, real beta);
/* a [n,n] symmetric, its upper triangle read -> upper triangular u in its place (zeros below) with inverse(a) = u' u: what GPTQ walks by
 * (Frantar et al. 2023). In doubles, by Cholesky from the last column to the first: a = v v', u = inverse(v). False: a is not
 * positive definite, and is lost. */
bool kn_inverse_factor(double *a, int64_t n);
/* What the libraries are, for --version and the key of a checkpoint: "OpenBLAS 0.3.21 SkylakeX", "oneDNN 2.6.3" or "none". */
void kn_libraries(char *text, size_t bytes);
/* Which core OPENBLAS_CORETYPE should name where the library runs its kernels for `core` (NULL: the one it has chosen):
 * "SkylakeX" or "Haswell" if this CPU has AVX-512, or AVX2 and FMA, and those of `core` do not use it; else NULL.
 * OpenBLAS 0.3.21 takes Intel models newer than itself for a Prescott, at a third of the speed, and reads the variable
 * when it is loaded: a program sets it and starts itself again; whoever runs one says OPENBLAS_CORETYPE=SkylakeX. */
const char *kn_blas_core(const char *core);

/* ---- integer products (exact) ------------------------------------------------------------- */

/* Weight codes [N, K] packed for the integer product: panels of 16 outputs, [N/16][K/4][16][4] operands (mul*q + add), zero
 * padded, K of every group padded to a multiple of 4. An operand is a byte, + 128, or, where all lie in -8..7 and groups are
 * multiples of 8, half a byte, + 8: two rows of K/4 share 64 bytes, the even one in the low halves. Holds scales [groups, N
 * padded] as wide as they are stored, and sums of operands. Weights have no zero point. */
typedef struct {
    int64_t n, k, groups, group; /* group: k4 * 4 when there is one scale per row or tensor */
    int64_t panels, k4;          /* k4: padded K / 4 over all groups */
    bool half;
    uint8_t *w;
    int32_t *sum;         /* [groups][panels*16]: sums of operands of that group */
    real *scale;          /* [groups][panels*16], NULL where they are stored in 16 bits: */
    uint16_t *half_scale; /* binary16 */
    void *memory;
    size_t capacity; /* bytes behind `memory`, reused when packed again */
} kn_packed;
/* True where a kn_linear_int product exists: both at most 8 bits, weights without zero point and with grain TENSOR, ROW or GROUP with group % 4 == 0,
 * (a table's levels are integers); activations TENSOR, ROW, or GROUP equal to the weights' group and without zero; K * max|a| * max|w| < 2^31. */
bool kn_can_multiply(const kn_grid *a, const kn_grid *w, int64_t k);
status kn_pack(kn_packed *p, const kn_codes *w); /* reuses p's memory; zeroed p is empty */
void kn_packed_free(kn_packed *p);
/* y [M, N] (ldy = N) from activation codes a [M, K] (only rows [row, row+M) of a):
 *   acc = sum_k (a - zero_a) w, exact in int32
 *   one group: y = ((float)acc * sw[n]) * sa[m] + b[n]
 *   groups:    y = 0; for g ascending: y = fma((float)acc_g, sw_g[n] * sa_g[m], y); then + b[n]      (b NULL: nothing added)
 *   outliers of row m, k ascending, behind that:  y = fma(x_k, (float)w[n,k] * sw[n], y) */
void kn_linear_int(real *y, const kn_codes *a, int64_t row, int64_t M, const kn_packed *w, const real *b);

/* The linear map's way back: dx [M, K] = dy [M, N] w (add: + dx), the sums exact; dy times w's scales is rounded to 8 bits a row, up or down by (key, place), right on
 * average. For integer w within -128..127, one scale a row or in all. packed: scratch, first zeroed, kept; memory: kn_linear_back_bytes, 64-byte aligned. */
bool kn_can_multiply_back(const kn_grid *w, int64_t N);
size_t kn_linear_back_bytes(int64_t M, int64_t N, int64_t K);
status kn_linear_back(real *dx, const real *dy, int64_t M, const kn_codes *w, bool add, uint32_t key, kn_packed *packed, void *memory);

/* The sums alone, sum_k a w: [M, N] from rows of codes lda bytes apart (of which up to 3 behind the K-th are read, and count nothing); w has one group. */
void kn_linear_sums(int32_t *sums, const int8_t *a, int64_t lda, int64_t M, const kn_packed *w);

/* y[M,N] = x[M,K] decode(w)[N,K]' + b, the weights decoded in tiles, never whole; float products by the library. */
void kn_linear_decode(kn_precision p, real *y, const real *x, int64_t M, const kn_codes *w, const real *b);

/* ---- row kernels: the tape and the runtime both call these -------------------------------- */

/* y = x * r * w, r[m] = 1 / sqrt(mean_c x^2 + eps); r may be NULL. (Zhang & Sennrich 2019) */
void kn_rmsnorm(real *y, real *r, const real *x, const real *w, int64_t M, int64_t C, real eps);
/* dx += (dx NULL: skipped), dw += (NULL: skipped), with u = dy*w, s = mean_c u*x: dx = r*u - r^3*s*x, dw[c] = sum_m dy*x*r. */
void kn_rmsnorm_backward(real *dx, real *dw, const real *dy, const real *x, const real *w, const real *r, int64_t M,
                         int64_t C);
/* y = (x - mean) * r * w + b, r = 1/sqrt(var + eps); mean, r [M] kept where not NULL. (Ba et al. 2016) */
void kn_layernorm(real *y, real *mean, real *r, const real *x, const real *w, const real *b, int64_t M, int64_t C,
                  real eps);
void kn_layernorm_backward(real *dx, real *dw, real *db, const real *dy, const real *x, const real *w, const real *mean,
                           const real *r, int64_t M, int64_t C);

typedef enum {
    KN_ROPE_INTERLEAVED,
    KN_ROPE_HALF
} kn_rope_pairing; /* (2i, 2i+1): llama2.c, GGUF llama | (i, i + D/2): Hugging Face */
/* cos, sin [T, D/2] of t * theta^(-2i/D) (angles in double), optionally divided by factor[i] (llama3 scaling; NULL: 1). */
void kn_rope_table(real *cos, real *sin, int64_t T, int64_t D, double theta, const real *factor);
/* y [M, H*D]: every head of row m rotated by position pos[m] (pos NULL: m % T). inverse: by the negative angle. y may be x. (Su et al. 2021) */
void kn_rope(real *y, const real *x, const real *cos, const real *sin, const int32_t *pos, int64_t M, int64_t H,
             int64_t D, int64_t T, kn_rope_pairing pairing, bool inverse);

/* A Hadamard matrix for rows of n, of 1 and -1 over the root of its order: whole where the order n has one (2^m times a core of Paley's), else the rows in
 * blocks of the largest divisor of n that is such an order (kn_hadamard_order). */
typedef struct kn_hadamard kn_hadamard;
status kn_hadamard_new(kn_hadamard **h, int64_t n); /* n >= 1 */
void kn_hadamard_free(kn_hadamard *h);              /* NULL is fine */
int64_t kn_hadamard_length(const kn_hadamard *h);   /* n */
int64_t kn_hadamard_order(const kn_hadamard *h);
/* y [M, n] = x H, transposed: x H', its inverse. y may be x. n (log2(n / K) + K) additions a row, K the core's order: no product of matrices. */
void kn_hadamard_rows(real *y, const real *x, int64_t M, const kn_hadamard *h, bool transposed);
/* The least K with n = 2^m K for which core [K, K] of 1 and -1 is made; 0: order n has none. */
int64_t kn_hadamard_core_of(int64_t n);
void kn_hadamard_core(int8_t *core, int64_t K);

/* Elementwise over n. exp is one polynomial of degree 6, relative error below 2e-7. */
void kn_exp(real *y, const real *x, int64_t n);
void kn_silu(real *y, const real *x, int64_t n);                                           /* x * sigmoid(x) */
void kn_silu_backward(real *dx, const real *dy, const real *x, int64_t n);                 /* adds */
void kn_gelu(real *y, const real *x, int64_t n, bool tanh_form);                           /* Hendrycks & Gimpel 2016 */
void kn_gelu_backward(real *dx, const real *dy, const real *x, int64_t n, bool tanh_form); /* adds */
void kn_swiglu(real *y, const real *gate, const real *up, int64_t n); /* silu(gate) * up (Shazeer 2020) */
void kn_swiglu_backward(real *dgate, real *dup, const real *dy, const real *gate, const real *up,
                        int64_t n);                             /* adds; either may be NULL */
/* The same where gate and up were kept in bf16 (kn_to_bf16); both gradients are written, not added to. */
void kn_swiglu_backward_bf16(real *dgate, real *dup, const real *dy, const uint16_t *gate, const uint16_t *up, int64_t n);
void kn_to_bf16(uint16_t *y, const real *x, int64_t n); /* to nearest even */
void kn_add_to(real *y, const real *x, int64_t n);              /* y += x */
void kn_sum2(real *y, const real *a, const real *b, int64_t n); /* y = a + b */
void kn_axpy(real *y, real a, const real *x, int64_t n);        /* y += a x */
real kn_absmax(const real *x, int64_t n);
double kn_sum_squares(const real *x, int64_t n);
/* One step of AdamW on n elements by one thread: d = g clip;  m = b1 m + a1 d;  v = b2 v + a2 d^2;
 * x = keep x - lr m / (sqrt(v) root + eps). (Loshchilov & Hutter 2019) */
typedef struct {
    real lr, keep, b1, a1, b2, a2, root, eps, clip;
} kn_adamw_factors;
void kn_adamw(real *x, real *m, real *v, const real *g, int64_t n, const kn_adamw_factors *f);
/* The same with m and v kept in bf16, each rounded up or down by a random number of (key, i), right on average: rounded to
 * nearest, v would not move where a step changes it by less than 1/512. x sees m and v before they are rounded. key: of the step and of where
 * the n elements are. */
void kn_adamw_bf16(real *x, uint16_t *m, uint16_t *v, const real *g, int64_t n, const kn_adamw_factors *f, uint32_t key);

/* Codes that flip (distill/pin.c), n weights of one scale, in the thread that calls. f counts flips in units of 2^-14, m the mean code in 2^-11:
 *   f += a (q != last) - a f,  m += a (q - m), rounded in fixed point, a = 328 / 2^15;  last = q;  f < 0: pinned, f and m stay
 * True where some f is above limit. kn_hold_pinned: x = (mul floor(m) + add) scale where f < 0. */
enum { KN_PIN_FLIP = 1 << 14, KN_PIN_MEAN = 1 << 11, KN_PIN_MEMORY = 328 };
bool kn_count_flips(int16_t *f, int16_t *m, int8_t *last, const int8_t *q, int64_t n, int limit);
void kn_hold_pinned(real *x, const int16_t *f, const int16_t *m, int64_t n, real mul, real add, real scale);
void kn_softmax(real *y, const real *x, int64_t M, int64_t C); /* rows; y may be x */
/* lse[m] = max + log(sum exp(x - max)), in double sums */
void kn_logsumexp(double *lse, const real *x, int64_t M, int64_t C);
/* sum[i] = sum over run i of KN_RUN elements of x [n] (the last one may be shorter) of exp(x f - top); returns top = max (x f). f > 0. One thread. */
enum { KN_RUN = 256 };
real kn_exp_sums(real *sum, const real *x, int64_t n, real f);

/* ---- attention ---------------------------------------------------------------------------- */

/* Keys and values of one sequence and one kv head, in blocks of 64 keys:
 *   float keys   [blocks][D][64]              coded keys   [blocks][D/4 rounded up][64][4] as q - lo in u8 (4 bits: two d4 rows share a byte,
 *                                             low nibble the even one), scale and zero - lo per key
 *   float values [T][D]                       coded values [T][D] as q - lo (4 bits: two to a byte), scale and zero - lo per key
 * kgrid/vgrid bits 0: float, or bf16 in the same layouts: half the memory to read, and the values that attention sees are rounded to it. Key and value grids are per token and head: grain HEAD (or ROW when there is one head). */
typedef struct {
    kn_grid kgrid, vgrid;
    kn_precision floats; /* what keys and values without a grid are kept in */
    int64_t D, capacity; /* capacity: keys, a multiple of 64 */
    int64_t n;           /* keys held */
    void *k, *v;
    real *k_scale, *v_scale;
    int32_t *k_zero, *v_zero;
} kn_cache;
size_t kn_cache_bytes(const kn_grid *kgrid, const kn_grid *vgrid, kn_precision floats, int64_t D, int64_t capacity);
void kn_cache_lay(kn_cache *c, const kn_grid *kgrid, const kn_grid *vgrid, kn_precision floats, int64_t D, int64_t capacity,
                  void *memory); /* n = 0; memory was zeroed before its first use */
/* Appends n keys and values of head h: from floats k, v [.., ldk] (row i at k + i*ld + h*D) or from codes (row `row`+i of kc/vc, head h). Exactly one source
 * of each must be given and fit the grid. */
void kn_cache_put(kn_cache *c, int64_t n, const real *k, const real *v, int64_t ld, const kn_codes *kc,
                  const kn_codes *vc, int64_t row, int64_t h);
/* o [n, ldo] for n queries at positions first..first+n-1 against keys 0..position (causal), scores scaled by 1/sqrt(D):
 *   float:            s_j = sum_d q_d k_jd, fused, d ascending; f = scale
 *   coded q and k:    s_j = (float)acc * k_scale_j, acc exact;   f = q_scale * scale
 *   p_j = exp(fma(s_j, f, -max(s f))), o = (sum_j p_j v_j) * (1 / sum_j p_j), fused, keys ascending; sum of p in 16 lanes
 *   quantize_probs:   p^ = rne(p * (1 / sum) * 255) * (1/255), o = sum_j p^_j v_j
 * lse [n] (max + log sum) kept where not NULL. q: floats (row i at q + i*ldq) or codes qc (row `row`+i, head h). scratch: kn_attend_scratch(c) reals. */
void kn_attend(real *o, int64_t ldo, real *lse, const kn_cache *c, int64_t first, int64_t n, const real *q, int64_t ldq,
               const kn_codes *qc, int64_t row, int64_t h, bool quantize_probs, real *scratch);
/* One token, `heads` heads that share the cache, the first of them h: o, q [heads, D] without gaps. The bits of kn_attend
 * for each head, in one pass over the keys: what a decoding step wants. next: the cache that is attended to after this one, which memory
 * is asked for meanwhile; NULL: not known. */
void kn_attend_heads(real *o, const kn_cache *c, const kn_cache *next, int64_t position, int64_t heads, const real *q,
                     const kn_codes *qc, int64_t row, int64_t h, bool quantize_probs, real *scratch);
int64_t kn_attend_scratch(const kn_cache *c);
/* Whole-batch causal attention for the tape. q [B*T, H*D], k and v [B*T, G*D] (G kv heads, H % G == 0), each a float array or codes; o [B*T, H*D], lse [B*T*H].
 * lengths [B] (NULL: all T): positions >= length are padding and give 0. Same bits as appending to caches and kn_attend row by row. */
status kn_attention(real *o, real *lse, kn_operand q, kn_operand k, kn_operand v, const int32_t *lengths, int64_t B,
                    int64_t T, int64_t H, int64_t G, int64_t D, bool quantize_probs);
/* dq, dk, dv += (each may be NULL) from d_o; operands by value (decoded). Tiles of 64 queries, never T x T. KN_BF16: products in bf16 where the CPU
 * has tiles of them, probabilities as in fp32. */
status kn_attention_backward(kn_precision p, real *dq, real *dk, real *dv, const real *d_o, const real *o, const real *lse,
                             const real *q, const real *k, const real *v, const int32_t *lengths, int64_t B, int64_t T,
                             int64_t H, int64_t G, int64_t D);

/* Straight-through gradients within lo <= x inv <= hi (fakequant/op_fake.c): sums[0] = sum dy (y - x inside rounded), sums[1] = sum dy outside; and
 * dx (beta 0: written, 1: added to) = dy inside, else 0. In the thread that calls. */
void kn_range_sums(real sums[2], const real *dy, const real *x, const real *y, int64_t n, real inv, real lo, real hi, real rounded);
void kn_range_pass(real *dx, real beta, const real *dy, const real *x, int64_t n, real inv, real lo, real hi);
/* The same in two parts: bits [n / 8, up], 1 inside (zeros behind n); and dx = dy where its bit is 1. */
void kn_range_bits(uint8_t *bits, const real *x, int64_t n, real inv, real lo, real hi);
void kn_bits_pass(real *dx, real beta, const real *dy, const uint8_t *bits, int64_t n);
/* Smallest and largest of what is finite in x [n]; min > max where nothing is. In the thread that calls. */
void kn_finite_min_max(real *min, real *max, const real *x, int64_t n);
/* y [n] (beta 0: written, 1: added to) = x[i] / (1 - p) where nb_random_unit(seed, stream, i) >= p, else 0: dropout, 0 <= p < 1 */
void kn_drop(real *y, real beta, const real *x, int64_t n, real p, uint64_t seed, uint64_t stream);

/* Columns of x [M, C], for batch norms: mean[c] and variance[c] = mean of (x - mean)^2, in two passes. NB_NOMEM. */
status kn_column_moments(double *mean, double *variance, const real *x, int64_t M, int64_t C);
/* sum[c] = sum_m d[m,c], product[c] = sum_m d[m,c] (x[m,c] - mean[c]). NB_NOMEM. Sums of at most 32 parts of the rows, which depend on M alone, added in order. */
status kn_column_products(double *sum, double *product, const real *d, const real *x, const double *mean, int64_t M, int64_t C);
/* y [M, C] (beta 0: written, 1: added to) = a p[c] + b q[c] + r[c]; b NULL: a p[c] + r[c]. y may be a. */
void kn_column_map(real *y, real beta, const real *a, const real *p, const real *b, const real *q, const real *r, int64_t M, int64_t C);

/* ---- pictures: convolution, pooling, fixed-point requantization ---------------------------- */

/* B pictures are rows [B, H*W*C], channels last. Weights [N, K*K*C/groups]: a row per output channel, in the order of a window (y, x, channel).
 * A linear map is a convolution of pictures of one point. */
typedef struct {
    int64_t H, W, C;               /* of what goes in */
    int64_t N, K;                  /* output channels; windows of K x K points */
    int64_t stride, pad, dilation; /* 0 stride and dilation mean 1 */
    int64_t groups;                /* 0: 1; C = N = groups: depthwise */
    int64_t OH, OW;                /* of what comes out: (H + 2 pad - dilation (K - 1) - 1) / stride + 1; kn_conv_fit fills them in */
} kn_conv;
status kn_conv_fit(kn_conv *c); /* NB_USAGE and the reason where nothing comes out, or groups do not divide the channels */
static inline int64_t kn_conv_depth(const kn_conv *c)
{
    return c->K * c->K * (c->C / c->groups);
}
typedef enum { KN_LINEAR, KN_RELU, KN_RELU6 } kn_activation; /* x | max(x, 0) | min(max(x, 0), 6) */
/* y [B, OH*OW*N] = act(conv(x [B, H*W*C], w) + b [N] (NULL: 0)). Points outside the picture count as 0. One picture at a time a thread, no matrix of
 * patches but for windows of few numbers; windows of one point and linear maps are kn_product_*. NB_NOMEM. */
status kn_conv_forward(kn_precision p, real *y, const kn_conv *c, const real *x, const real *w, const real *b,
                       kn_activation act, int64_t B);
/* What kn_conv_backward makes: dx [B, H*W*C], dw [N, depth], db [N]; NULL: not wanted. beta 0: written, 1: added to; db is added to. */
typedef struct {
    real *dx, *dw, *db;
    real beta_dx, beta_dw;
} kn_conv_gradients;
/* Gradients of y = act(conv(x, w) + b) from dy [B, OH*OW*N], in which what the activation did not pass becomes 0. y: read where act is not linear;
 * x and w: where dw and dx are wanted. NB_NOMEM. */
status kn_conv_backward(kn_precision p, const kn_conv_gradients *to, const kn_conv *c, real *dy, const real *y, kn_activation act, const real *x,
                        const real *w, int64_t B);

/* Fixed-point requantization, the rule of the grid by which an integer network makes the codes of a layer's result from its sums:
 *   q = clamp(zero + ((sum * multiplier + 2^(shift - 1)) >> shift), lo, hi)       multiplier 2^30 .. 2^31 - 1, shift 1 .. 62; halves go up
 *   multiplier * 2^-shift ~ scale_x * scale_w[n] / scale_y, to nearest (31 bits)   sum in 32 bits, the product in 64, the shift arithmetic
 * lo is raised to zero by ReLU, hi lowered to zero + rne(6 / scale_y) by ReLU6. */
typedef struct {
    int64_t n;                           /* channels */
    int64_t *multiplier, *shift, *half;  /* [n]; half: 2^(shift - 1) */
    int32_t zero, lo, hi;
} kn_requant;
status kn_requant_new(kn_requant *r, int64_t n); /* n channels, undefined */
void kn_requant_free(kn_requant *r);
/* From the grid, scale and zero of the result. w: [n] scales or [1] of a tensor. A result of scale 0 has one code, its zero. */
void kn_requant_set(kn_requant *r, const kn_codes *w, real scale_x, const kn_grid *grid, real scale_y, int32_t zero_y, kn_activation act);
int32_t kn_requantize_one(const kn_requant *r, int32_t sum, int64_t channel);               /* the definition */
void kn_requantize(int8_t *q, int64_t ldq, const int32_t *sum, int64_t B, int64_t points, const kn_requant *r); /* sums [B, points, n] -> q [B] rows */

/* y [M, N] = act(sum [M, N] * scale [N]), M = B * points rows: what sums are worth. */
void kn_value_of_sums(real *y, const int32_t *sum, const real *scale, int64_t M, int64_t N, kn_activation act);

/* What a convolution of codes needs of its weights, once for many calls. */
typedef struct {
    const kn_packed *packed; /* where groups is 1 */
    int8_t *deep;            /* else operands [groups][K*K*C/groups][N/groups], depthwise [K*K][C] */
    int8_t *tiles;           /* [N/16][K][K*C/64][16][16][4], zero padded; NULL: windows are copied and multiplied by `packed` */
    int32_t *bias;           /* [N] bias less zero_x times the weights' sums */
    int32_t zero_x;
} kn_conv_codes;
/* True where the sums of such weights and inputs fit: one scale a row or tensor each, 8 bits or less, weights without zero, depth * 255 * 128 < 2^30. */
bool kn_conv_can_multiply(const kn_conv *c, const kn_grid *x, const kn_grid *w);
/* b [N] or NULL; a bias is rne(b / (scale_x scale_w)) within 2^30: it has the sums' unit. packed: of w, where groups is 1. */
status kn_conv_codes_new(kn_conv_codes *p, const kn_conv *c, const kn_codes *w, const kn_packed *packed, const real *b, real scale_x, int32_t zero_x);
void kn_conv_codes_free(kn_conv_codes *p);
/* sums [B, OH*OW*N] (NULL: not wanted) of pictures of codes x (rows ldx apart), exact, the bias in them; codes y (rows ldy apart) by r (NULL: not wanted). */
status kn_conv_integer(int32_t *sums, int8_t *y, int64_t ldy, const kn_conv *c, const int8_t *x, int64_t ldx, const kn_conv_codes *w, const kn_requant *r, int64_t B);

/* Pooling over K x K windows, stride apart, without margins: [B, H*W*C] -> [B, OH*OW*C]; of kn_conv: H, W, C, K, stride, OH, OW. at [B, OH*OW*C] takes
 * which point of the window it was (the first of equals; K <= 15), NULL: not wanted. Average of codes: zero + ((2 sum (q - zero) + n) / 2n rounded down), n = K K. */
void kn_max_pool(real *y, uint8_t *at, const kn_conv *c, const real *x, int64_t B);
/* dx (beta 0: written, 1: added to) at those points += dy. */
void kn_max_pool_dx(real *dx, real beta, const kn_conv *c, const real *dy, const uint8_t *at, int64_t B);
void kn_max_pool_codes(int8_t *y, int64_t ldy, uint8_t *at, const kn_conv *c, const int8_t *x, int64_t ldx, int64_t B);
void kn_average_pool(real *y, const kn_conv *c, const real *x, int64_t B);
void kn_average_pool_codes(int8_t *y, int64_t ldy, const kn_conv *c, const int8_t *x, int64_t ldx, int32_t zero, int64_t B);
status kn_pool_fit(kn_conv *c);

#endif
