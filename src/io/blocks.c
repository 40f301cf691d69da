/* blocks.c - bit layout of ggml's blocks (ggml/src/ggml-common.h), all little-endian; q: codes, d and m binary16 bits.
 *   Q8_0: u16 d, i8 q[32]             Q4_0: u16 d, u8 s[16]             Q4_1: u16 d, u16 m, u8 s[16]
 *   s[j] = c[j] | c[j+16] << 4 with c = q + 8 (Q4_0) or q (Q4_1)        IQ4_NL: as Q4_0 with c = q, a place in the table
 *   Q5_0: u16 d, u32 h, u8 s[16]      low four bits of c = q + 16 in s, the fifth of c[i] is bit i of h
 *   256 elements, p: scales of 32 (Q4_K) or 16 (Q6_K) in units of d:
 *   Q4_K:  u16 d, u16 8 d, u8 scales[12], u8 s[128]: value d p c - (8 d) p = d p q, c = q + 8; the minima are the scales again
 *   Q6_K:  u8 low[128], u8 high[64], i8 p[16], u16 d, c = q + 32          TQ2_0: u8 s[64], u16 d, c = q + 1 in 2 bits
 * Which numbers the codes are is decided elsewhere (kernels' grid): here nothing is rounded.
 */
#include "io/formats.h"
#include <string.h>

enum { BLOCK = 32, SUPER = 256 };

/* What a block of one type is made from: its codes, d, m and parts of d. */
typedef struct {
    const int8_t *q, *part;
    uint16_t d, m;
} content;

static void nibbles(uint8_t *out, const int8_t *q, int n, int lowest)
{
    for (int i = 0; i < n; i++)
        out[i] = (uint8_t)((q[i] - lowest) | (q[i + n] - lowest) << 4);
}

static status q8_0(uint8_t *out, const content *c)
{
    memcpy(out, &c->d, 2);
    memcpy(out + 2, c->q, BLOCK);
    return NB_OK;
}

static status q4_0(uint8_t *out, const content *c)
{
    memcpy(out, &c->d, 2);
    nibbles(out + 2, c->q, BLOCK / 2, -8);
    return NB_OK;
}

static status iq4_nl(uint8_t *out, const content *c)
{
    memcpy(out, &c->d, 2);
    nibbles(out + 2, c->q, BLOCK / 2, 0);
    return NB_OK;
}

static status q4_1(uint8_t *out, const content *c)
{
    memcpy(out, &c->d, 2);
    memcpy(out + 2, &c->m, 2);
    nibbles(out + 4, c->q, BLOCK / 2, 0);
    return NB_OK;
}

static status q5_0(uint8_t *out, const content *c)
{
    memcpy(out, &c->d, 2);
    memset(out + 2, 0, 4);
    for (int i = 0; i < BLOCK; i++)
        out[2 + i / 8] |= (uint8_t)((c->q[i] + 16) >> 4 << i % 8);
    for (int i = 0; i < BLOCK / 2; i++)
        out[6 + i] = (uint8_t)(((c->q[i] + 16) & 15) | ((c->q[i + 16] + 16) & 15) << 4);
    return NB_OK;
}

static status q4_k(uint8_t *out, const content *c)
{
    const uint16_t eight = nb_half_from(8 * nb_half_to(c->d));
    uint8_t *s = out + 4;
    if (nb_half_to(eight) != 8 * nb_half_to(c->d))
        return nb_fail(NB_UNSUPPORTED, "8 x %g, the minimum of a block of Q4_K, is not exact in fp16", (double)nb_half_to(c->d));
    memcpy(out, &c->d, 2);
    memcpy(out + 2, &eight, 2);
    for (int j = 0; j < 8; j++) {
        const int p = c->part[j];
        if (p < 0 || p > 63)
            return nb_fail(NB_USAGE, "%d: scales of Q4_K are 0 to 63", p);
        if (j < 4) {
            s[j] = s[j + 4] = (uint8_t)p;
        } else {
            s[j + 4] = (uint8_t)((p & 15) | (p & 15) << 4);
            s[j - 4] |= (uint8_t)(p >> 4 << 6);
            s[j] |= (uint8_t)(p >> 4 << 6);
        }
    }
    for (int run = 0; run < 4; run++)
        nibbles(out + 16 + 32 * run, c->q + 64 * run, 32, -8);
    return NB_OK;
}

static status q6_k(uint8_t *out, const content *c)
{
    uint8_t *low = out, *high = out + 128;
    for (int half = 0; half < 2; half++)
        for (int l = 0; l < 32; l++) {
            const int8_t *q = c->q + 128 * half + l;
            const int a = q[0] + 32, b = q[32] + 32, d = q[64] + 32, e = q[96] + 32;
            low[64 * half + l] = (uint8_t)((a & 15) | (d & 15) << 4);
            low[64 * half + 32 + l] = (uint8_t)((b & 15) | (e & 15) << 4);
            high[32 * half + l] = (uint8_t)(a >> 4 | b >> 4 << 2 | d >> 4 << 4 | e >> 4 << 6);
        }
    memcpy(out + 192, c->part, 16);
    memcpy(out + 208, &c->d, 2);
    return NB_OK;
}

static status tq2_0(uint8_t *out, const content *c)
{
    for (int run = 0; run < 2; run++)
        for (int m = 0; m < 32; m++) {
            const int8_t *q = c->q + 128 * run + m;
            out[32 * run + m] = (uint8_t)((q[0] + 1) | (q[32] + 1) << 2 | (q[64] + 1) << 4 | (q[96] + 1) << 6);
        }
    memcpy(out + 64, &c->d, 2);
    return NB_OK;
}

typedef struct {
    fm_dtype type;
    int lowest, highest, parts; /* codes; scales of a block in units of d */
    status (*pack)(uint8_t *out, const content *c);
} layout;

static const layout *layout_of(fm_dtype t)
{
    static const layout known[] = {{FM_Q8_0, -128, 127, 0, q8_0}, {FM_Q4_0, -8, 7, 0, q4_0},   {FM_Q4_1, 0, 15, 0, q4_1},
                                   {FM_Q5_0, -16, 15, 0, q5_0},   {FM_Q4_K, -8, 7, 8, q4_k},   {FM_Q6_K, -32, 31, 16, q6_k},
                                   {FM_TQ2_0, -1, 1, 0, tq2_0},   {FM_IQ4_NL, 0, 15, 0, iq4_nl}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].type == t)
            return &known[i];
    return NULL;
}

status fm_blocks_pack(void *dst, fm_dtype t, const int8_t *codes, const uint16_t *scales, const uint16_t *mins,
                      const int8_t *parts, int64_t n_blocks)
{
    const layout *l = layout_of(t);
    if (!l)
        return nb_fail(NB_UNSUPPORTED, "codes cannot be packed into blocks of type %s", fm_dtype_name(t));
    uint8_t *out = dst;
    const int64_t block = fm_dtype_block(t);
    for (int64_t b = 0; b < n_blocks; b++, codes += block, out += fm_dtype_bytes(t)) {
        for (int i = 0; i < block; i++)
            if (codes[i] < l->lowest || codes[i] > l->highest)
                return nb_fail(NB_USAGE, "code %d of block %lld is outside %d..%d, the range of %s", codes[i],
                               (long long)b, l->lowest, l->highest, fm_dtype_name(t));
        const content c = {codes, l->parts ? parts + b * l->parts : NULL, scales[b], mins ? mins[b] : 0};
        TRY(l->pack(out, &c));
    }
    return NB_OK;
}
