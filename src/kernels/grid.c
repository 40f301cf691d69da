/* grid.c - the grid: fields, stored scales, ranges, one code; the memory of codes. Formulas: kernels.h. */
#include "kernels/kernels_isa.h"

#include <float.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h>

kn_grid kn_grid_int(int bits, bool narrow, bool has_zero, kn_grain grain, int group, kn_scale_type scale)
{
    const bool sign = bits == 1;
    const int32_t half = bits > 1 && bits <= 16 ? 1 << (bits - 1) : 1;
    return (kn_grid){.levels = (uint8_t)(bits == 0 ? KN_LEVELS_NONE
                                         : sign    ? KN_LEVELS_SIGN
                                                   : KN_LEVELS_INT),
                     .bits = (uint8_t)bits,
                     .grain = (uint8_t)grain,
                     .scale = (uint8_t)scale,
                     .rule = KN_RULE_NIBBLE,
                     .has_zero = has_zero && !sign,
                     .lo = bits == 0 ? 0
                           : sign    ? -1
                           : narrow  ? 1 - half
                                     : -half,
                     .hi = bits == 0 ? 0
                           : sign    ? 1
                                     : half - 1,
                     .group = grain == KN_TENSOR || grain == KN_ROW ? 0 : group};
}

bool kn_grid_equal(const kn_grid *a, const kn_grid *b)
{
    if (a->bits == 0 && b->bits == 0)
        return true;
    return a->levels == b->levels && a->bits == b->bits && a->grain == b->grain && a->scale == b->scale &&
           a->rule == b->rule && a->table == b->table && a->has_zero == b->has_zero && a->lo == b->lo && a->hi == b->hi && a->group == b->group &&
           a->outlier == b->outlier && (a->table != KN_TABLE_OWN || !memcmp(a->level, b->level, sizeof a->level));
}

static status check_levels(const kn_grid *g)
{
    if (g->bits > 8 && g->bits != 16)
        return nb_fail(NB_USAGE, "a grid of %d bits: 0 to 8 and 16 exist", g->bits);
    const int32_t limit = 1 << (g->bits - 1);
    if (g->table >= KN_TABLE_COUNT || (g->table && !kn_has_table(g)))
        return nb_fail(NB_USAGE, "unknown table %d of levels", g->table);
    switch (g->levels) {
    case KN_LEVELS_INT:
        if (g->lo < -limit || g->hi >= limit + (g->bits == 1) || g->lo >= g->hi || g->lo > 0 || g->hi <= 0)
            return nb_fail(NB_USAGE, "codes %d to %d do not fit in %d bits around 0", (int)g->lo, (int)g->hi, g->bits);
        return NB_OK;
    case KN_LEVELS_HALF_STEP:
        if (g->bits > 7 || g->has_zero || g->lo != -limit || g->hi != limit - 1)
            return nb_fail(NB_USAGE, "half-step levels have at most 7 bits, all codes and no zero point");
        return NB_OK;
    case KN_LEVELS_SIGN:
        if (g->bits != 1 || g->has_zero || g->lo != -1 || g->hi != 1)
            return nb_fail(NB_USAGE, "sign levels have 1 bit, codes -1 and 1, and no zero point");
        return NB_OK;
    case KN_LEVELS_TABLE: {
        const kn_grid t = kn_grid_table((kn_table_name)g->table, KN_ROW, 0, KN_SCALE_F32);
        if (g->bits != t.bits || g->has_zero || g->lo != t.lo || g->hi != t.hi || g->rule != KN_RULE_NIBBLE)
            return nb_fail(NB_USAGE, "%s has %d bits, all its codes, and no zero point", kn_table_text((kn_table_name)g->table), t.bits);
        for (int i = 0; g->table == KN_TABLE_OWN && i < g->hi; i++)
            if (!(g->level[i] < g->level[i + 1]) || !(fabs(g->level[i]) < 65504) || !(fabs(g->level[g->hi]) < 65504))
                return nb_fail(NB_USAGE, "levels ascend and are finite; %g is followed by %g", (double)g->level[i], (double)g->level[i + 1]);
        return NB_OK;
    }
    default:
        return nb_fail(NB_USAGE, "levels %d with %d bits", g->levels, g->bits);
    }
}

static status check_rule(const kn_grid *g)
{
    const bool plain = g->levels == KN_LEVELS_INT && !g->has_zero;
    switch (g->rule) {
    case KN_RULE_NIBBLE:
        return NB_OK;
    case KN_RULE_GGML_Q8_0:
    case KN_RULE_GGML_Q4_0: {
        const int bits = g->rule == KN_RULE_GGML_Q8_0 ? 8 : 4;
        if (!plain || g->bits != bits || g->grain != KN_GROUP || g->group != 32 || g->scale != KN_SCALE_F16)
            return nb_fail(NB_USAGE, "ggml's rule needs %d bits in groups of 32 with fp16 scales", bits);
        return NB_OK;
    }
    case KN_RULE_LLAMA2C:
        if (!plain || g->bits != 8 || g->scale != KN_SCALE_F32)
            return nb_fail(NB_USAGE, "llama2.c's rule needs 8 symmetric bits and fp32 scales");
        return NB_OK;
    default:
        return nb_fail(NB_USAGE, "unknown rule %d", g->rule);
    }
}

status kn_grid_check(const kn_grid *g)
{
    if (g->bits == 0)
        return g->levels == KN_LEVELS_NONE ? NB_OK : nb_fail(NB_USAGE, "a grid of 0 bits has no levels");
    TRY(check_levels(g));
    const bool grouped = g->grain == KN_HEAD || g->grain == KN_GROUP || g->grain == KN_BLOCK;
    if (g->grain > KN_BLOCK || g->scale > KN_SCALE_DYNAMIC8)
        return nb_fail(NB_USAGE, "unknown grain %d or scale type %d", g->grain, g->scale);
    if (grouped ? g->group < 1 : g->group != 0)
        return nb_fail(NB_USAGE, "a group of %d where the grain %s", (int)g->group, grouped ? "needs one" : "has none");
    if (kn_has_super(g) && (g->grain != KN_GROUP || KN_SUPER % g->group || g->has_zero))
        return nb_fail(NB_USAGE, "two-level scales belong to groups that divide %d, without zero points", KN_SUPER);
    if (g->scale == KN_SCALE_DYNAMIC8 && (g->grain != KN_BLOCK || g->has_zero))
        return nb_fail(NB_USAGE, "dynamic8 scales belong to blocks, without zero points");
    if (g->outlier != 0 && (!(g->outlier > 0) || g->levels != KN_LEVELS_INT || g->bits > 8 || g->has_zero || g->grain != KN_ROW || g->rule != KN_RULE_NIBBLE))
        return nb_fail(NB_USAGE, "outliers are set apart from integers of at most 8 bits per token, without zero points or a client's rule");
    return check_rule(g);
}

int kn_largest(const kn_grid *g)
{
    if (g->bits == 0)
        return 0;
    if (g->has_zero)
        return g->hi - g->lo;
    if (kn_has_table(g))
        return kn_table_has_integers(g) ? (int)kn_top_level(g) : INT_MAX;
    const int a = abs(kn_mul(g) * g->lo + kn_add(g)), b = abs(kn_mul(g) * g->hi + kn_add(g));
    return a > b ? a : b;
}

static real store_pow2(real s)
{
    if (!(fabs(s) < (real)1.7e38))
        return copysign((real)0x1p127, s);
    int exponent;
    const real f = frexp(fabs(s), &exponent);
    /* nearest exponent: 2^e * sqrt(1/2) is the middle between 2^(e-1) and 2^e */
    return copysign(ldexp((real)1, f < (real)0.70710678118654752 ? exponent - 1 : exponent), s);
}

real kn_store(const kn_grid *g, real s)
{
    if (s != s)
        return 0;
    switch (g->scale) {
    case KN_SCALE_F16: {
        const float f = nb_half_to(nb_half_from((float)s));
        s = fabs(f) > 65504 ? copysign((real)65504, s) : (real)f;
        break;
    }
    case KN_SCALE_BF16: {
        const float f = nb_bf16_to(nb_bf16_from((float)s));
        s = fabs(f) > FLT_MAX ? copysign((real)0x1.FEp127, s) : (real)f;
        break;
    }
    case KN_SCALE_POW2:
        s = s == 0 ? 0 : store_pow2(s);
        break;
    default:
        s = fabs(s) > (real)FLT_MAX ? copysign((real)FLT_MAX, s) : s;
        break;
    }
    return fabs(s) < (real)FLT_MIN ? copysign((real)0, s) : s; /* ggml writes -0 for a Q4_0 block of zeros */
}

/* d and parts of n scales; d 0: all are 0. */
static uint16_t split(int8_t *part, const kn_grid *g, const real *s, int64_t n)
{
    const real top = g->scale == KN_SCALE_SUPER6 ? 63 : 127, floor = g->scale == KN_SCALE_SUPER6 ? 0 : -top;
    real largest = 0;
    for (int64_t i = 0; i < n; i++)
        largest = fabs(s[i]) > largest ? fabs(s[i]) : largest;
    const float wanted = (float)(largest / top);
    const uint16_t d = nb_half_from(wanted < 65504 ? wanted : 65504);
    const real step = (real)nb_half_to(d);
    for (int64_t i = 0; i < n; i++) {
        real t = step > 0 ? rint(s[i] / step) : 0;
        t = fabs(s[i]) == largest || fabs(t) > top ? top : fabs(t) < 1 && s[i] != 0 ? 1 : fabs(t);
        t = step > 0 ? copysign(t, s[i]) : 0;
        part[i] = (int8_t)(t > floor ? t : floor);
    }
    return d;
}

/* Runs of one row: `each` groups share a d. */
static int64_t groups_of_super(const kn_grid *g)
{
    return KN_SUPER / g->group;
}

void kn_store_scales(const kn_grid *g, real *scale, int64_t rows, int64_t spans)
{
    int8_t part[KN_SUPER];
    for (int64_t r = 0; kn_has_super(g) && r < rows; r++)
        for (int64_t i = 0, n; i < spans; i += n) {
            real *s = scale + r * spans + i;
            n = kn_min(groups_of_super(g), spans - i);
            const real d = (real)nb_half_to(split(part, g, s, n));
            for (int64_t k = 0; k < n; k++)
                s[k] = d * (real)part[k];
        }
}

void kn_split_scales(uint16_t *d, int8_t *part, const kn_grid *g, const real *scale, int64_t rows, int64_t spans)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0, n; i < spans; i += n) {
            n = kn_min(groups_of_super(g), spans - i);
            *d++ = split(part + r * spans + i, g, scale + r * spans + i, n);
        }
}

void kn_range_of(const kn_grid *g, real min, real max, real *scale, int32_t *zero)
{
    min = min < 0 ? min : 0; /* also where NaN */
    max = max > 0 ? max : 0;
    const real amax = -min > max ? -min : max;
    if (g->rule == KN_RULE_GGML_Q4_0) {
        *scale = kn_store(g, (-min >= max ? min : max) / -8);
        return;
    }
    if (!g->has_zero) {
        *scale = kn_store(g, amax / kn_top_level(g));
        return;
    }
    /* halves, so that the width of a huge range stays finite */
    const real width = (max / 2 - min / 2) / (real)(g->hi - g->lo) * 2;
    *scale = kn_store(g, width);
    const real z = rint((real)g->lo - min * kn_inverse(*scale));
    *zero = z >= (real)g->lo ? z <= (real)g->hi ? (int32_t)z : g->hi : g->lo;
}

kn_rounding kn_rounding_of(const kn_grid *g, real scale, int32_t zero)
{
    const bool half = g->levels == KN_LEVELS_HALF_STEP;
    return (kn_rounding){.inv = kn_inverse(scale),
                         .step = half ? (real)0.5 : 1,
                         .shift = half ? (real)0.5 : 0,
                         .zero = (real)zero,
                         .lo = (real)g->lo,
                         .hi = (real)g->hi,
                         .sign = g->levels == KN_LEVELS_SIGN};
}

int32_t kn_encode_one(const kn_grid *g, real x, real inv, int32_t zero)
{
    const real t = x * inv;
    if (g->levels == KN_LEVELS_SIGN)
        return t >= 0 ? 1 : -1;
    if (kn_has_table(g)) {
        int8_t q;
        kn_encode_levels(&q, &x, 1, g, inv);
        return q;
    }
    const real q = rint(g->levels == KN_LEVELS_HALF_STEP ? t * (real)0.5 - (real)0.5 : t) + (real)zero;
    if (!(q > (real)g->lo)) /* also where NaN */
        return g->lo;
    return q < (real)g->hi ? (int32_t)q : g->hi;
}

real kn_decode_one(const kn_codes *c, int64_t row, int64_t col)
{
    const int64_t i = kn_scale_index(c, row, col), at = row * c->ld + col;
    const int32_t q = c->q ? c->q[at] : c->q16[at];
    if (kn_has_table(&c->grid))
        return kn_table_levels(&c->grid)[q] * c->scale[i];
    if (c->wide && c->wide[at])
        return (real)nb_half_to(c->wide[at]);
    return (real)(kn_mul(&c->grid) * q + kn_add(&c->grid) - (c->zero ? c->zero[i] : 0)) * c->scale[i];
}

/* ---- memory ---- */

static int64_t groups_in(int64_t n, int64_t group)
{
    return n / group + (n % group != 0);
}

int64_t kn_codes_scales(const kn_grid *g, int64_t rows, int64_t cols)
{
    if (rows < 0 || cols < 0 || (cols && rows > INT64_MAX / 16 / cols))
        return -1;
    switch (g->grain) {
    case KN_TENSOR:
        return 1;
    case KN_ROW:
        return rows;
    case KN_BLOCK:
        return groups_in(rows * cols, g->group);
    default:
        return rows * groups_in(cols, g->group);
    }
}

int64_t kn_supers(const kn_grid *g, int64_t rows, int64_t cols)
{
    if (g->scale == KN_SCALE_DYNAMIC8)
        return groups_in(kn_codes_scales(g, rows, cols), KN_SUPER);
    return kn_has_super(g) ? rows * groups_in(cols, KN_SUPER) : 0;
}

static size_t padded(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static int64_t leading(int64_t cols)
{
    return (cols + 3) / 4 * 4;
}

size_t kn_codes_bytes(const kn_grid *g, int64_t rows, int64_t cols)
{
    const int64_t scales = kn_codes_scales(g, rows, cols);
    if (scales < 0 || cols > INT64_MAX / 16 || (cols && rows > INT64_MAX / 16 / leading(cols)))
        return SIZE_MAX;
    const size_t code = g->bits > 8 ? 2 : 1;
    return padded((size_t)rows * (size_t)leading(cols) * code) + padded((size_t)scales * sizeof(real)) +
           (g->has_zero ? padded((size_t)scales * sizeof(int32_t)) : 0) +
           (g->outlier > 0 ? padded((size_t)rows * (size_t)leading(cols) * sizeof(uint16_t)) : 0) +
           (g->scale == KN_SCALE_DYNAMIC8 ? padded((size_t)(kn_supers(g, rows, cols) + 1) * sizeof(real)) + padded((size_t)scales) : 0);
}

void kn_codes_lay(kn_codes *c, const kn_grid *g, int64_t rows, int64_t cols, void *memory)
{
    uint8_t *p = memory;
    const int64_t ld = leading(cols);
    const bool wide = g->bits > 8;
    const bool spanned = g->grain == KN_GROUP || g->grain == KN_HEAD;
    *c = (kn_codes){.grid = *g,
                    .rows = rows,
                    .cols = cols,
                    .ld = ld,
                    .spans = spanned ? groups_in(cols, g->group) : 1,
                    .n_scales = kn_codes_scales(g, rows, cols),
                    .q = wide ? NULL : (int8_t *)p,
                    .q16 = wide ? (int16_t *)p : NULL};
    p += padded((size_t)rows * (size_t)ld * (wide ? 2 : 1));
    c->scale = (real *)p;
    p += padded((size_t)c->n_scales * sizeof(real));
    c->zero = g->has_zero ? (int32_t *)p : NULL;
    p += g->has_zero ? padded((size_t)c->n_scales * sizeof(int32_t)) : 0;
    c->wide = g->outlier > 0 ? (uint16_t *)(void *)p : NULL;
    p += c->wide ? padded((size_t)rows * (size_t)ld * sizeof(uint16_t)) : 0;
    if (g->scale == KN_SCALE_DYNAMIC8) {
        c->super = (real *)(void *)p;
        c->mean = c->super + kn_supers(g, rows, cols);
        c->scale_code = p + padded((size_t)(kn_supers(g, rows, cols) + 1) * sizeof(real));
    }
    for (int64_t r = 0; ld != cols && r < rows; r++)
        for (int64_t i = r * ld + cols; i < (r + 1) * ld; i++) {
            if (wide)
                c->q16[i] = 0;
            else
                c->q[i] = 0;
            if (c->wide)
                c->wide[i] = 0;
        }
}

status kn_codes_new(kn_codes *c, const kn_grid *g, int64_t rows, int64_t cols)
{
    *c = (kn_codes){0};
    const size_t bytes = kn_codes_bytes(g, rows, cols);
    if (bytes == SIZE_MAX)
        return nb_fail(NB_NOMEM, "codes of %lld x %lld are more than memory can hold", (long long)rows,
                       (long long)cols);
    void *memory = nb_alloc_aligned(bytes, 1);
    if (!memory)
        return NB_NOMEM;
    kn_codes_lay(c, g, rows, cols, memory);
    return NB_OK;
}

void kn_codes_free(kn_codes *c)
{
    free(c->q ? (void *)c->q : (void *)c->q16); /* the first array of the block */
    *c = (kn_codes){0};
}
