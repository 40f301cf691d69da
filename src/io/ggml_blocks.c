/* ggml_blocks.c - values of ggml's blocks, in the order of operations of its dequantize_row_* (ggml/src/ggml-quants.c, ggml-common.h), so
 * that the floats are the same bits. Little-endian; d, m are binary16. Elements i of a block:
 *   Q4_0  d; s[16]           d (c - 8), c_j low and c_(j+16) high nibble of s_j        Q4_1  d; m; s[16]   d c + m
 *   Q5_0  d; h u32; s[16]    d (c - 16), bit 4 of c_i is bit i of h                    Q5_1  d; m; h; s    d c + m
 *   Q8_0  d; i8[32]          d q        IQ4_NL  d; s[16]  d T[c]        MXFP4  e; s[16]  2^(e-128) T'[c]
 *   K types, 256 elements: sub-blocks with a scale of their own in few bits (scales, minima), d and dmin over all
 *   TQ1_0 5 ternary digits a byte, TQ2_0 2 bits: d (t - 1)      Q2_0  d; 2 bits each: d (c - 1)      Q1_0  d; 1 bit each: +-d
 */
#include "io/formats.h"
#include <string.h>

enum { K = 256 };

static float half_at(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return nb_half_to(h);
}

static void q4_0(float *y, const uint8_t *b)
{
    const float d = half_at(b);
    for (int j = 0; j < 16; j++) {
        y[j] = (float)((b[2 + j] & 15) - 8) * d;
        y[j + 16] = (float)((b[2 + j] >> 4) - 8) * d;
    }
}

static void q4_1(float *y, const uint8_t *b)
{
    const float d = half_at(b), m = half_at(b + 2);
    for (int j = 0; j < 16; j++) {
        y[j] = (float)(b[4 + j] & 15) * d + m;
        y[j + 16] = (float)(b[4 + j] >> 4) * d + m;
    }
}

/* Codes of 5 bits: their fifth bits in a word, the others as nibbles. */
static int five(const uint8_t *high, const uint8_t *s, int i)
{
    const int low = i < 16 ? s[i] & 15 : s[i - 16] >> 4;
    return low | (high[i / 8] >> i % 8 & 1) << 4;
}

static void q5_0(float *y, const uint8_t *b)
{
    const float d = half_at(b);
    for (int i = 0; i < 32; i++)
        y[i] = (float)(five(b + 2, b + 6, i) - 16) * d;
}

static void q5_1(float *y, const uint8_t *b)
{
    const float d = half_at(b), m = half_at(b + 2);
    for (int i = 0; i < 32; i++)
        y[i] = (float)five(b + 4, b + 8, i) * d + m;
}

static void q8_0(float *y, const uint8_t *b)
{
    const float d = half_at(b);
    for (int i = 0; i < 32; i++)
        y[i] = (float)(int8_t)b[2 + i] * d;
}

/* scales[16]: scale low, minimum high nibble; q[64]: 2 bits; d; dmin. */
static void q2_k(float *y, const uint8_t *b)
{
    const float d = half_at(b + 80), dmin = half_at(b + 82);
    for (int i = 0; i < K; i++) {
        const int half = i / 128, shift = i % 128 / 32 * 2, l = i % 32;
        const uint8_t s = b[half * 8 + i % 128 / 16];
        y[i] = d * (float)(s & 15) * (float)(b[16 + half * 32 + l] >> shift & 3) - dmin * (float)(s >> 4);
    }
}

/* hmask[32]: third bits; q[64]: 2 bits; scales[12]: 16 x 6 bits, less 32; d. */
static void q3_k(float *y, const uint8_t *b)
{
    const uint8_t *high = b, *q = b + 32, *packed = b + 96;
    const float d = half_at(b + 108);
    int scale[16];
    for (int j = 0; j < 16; j++) {
        const int low = j < 8 ? packed[j] & 15 : packed[j - 8] >> 4;
        scale[j] = (low | (packed[8 + j % 4] >> j / 4 * 2 & 3) << 4) - 32;
    }
    for (int i = 0; i < K; i++) {
        const int half = i / 128, shift = i % 128 / 32 * 2, l = i % 32;
        const int code = (q[half * 32 + l] >> shift & 3) - (high[l] >> (half * 4 + i % 128 / 32) & 1 ? 0 : 4);
        y[i] = d * (float)scale[i / 16] * (float)code;
    }
}

/* 8 scales and 8 minima of 6 bits in 12 bytes. */
static void scale_and_minimum(int *scale, int *minimum, const uint8_t *s, int j)
{
    *scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    *minimum = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
}

/* d; dmin; scales[12]; (Q5_K: high[32];) s[128]: runs of 32 bytes, low nibbles 32 elements, high nibbles the next 32. */
static void q45_k(float *y, const uint8_t *b, const uint8_t *high, const uint8_t *s)
{
    const float d = half_at(b), dmin = half_at(b + 2);
    for (int j = 0; j < 8; j++) {
        int scale, minimum;
        scale_and_minimum(&scale, &minimum, b + 4, j);
        const float step = d * (float)scale, offset = dmin * (float)minimum;
        for (int l = 0; l < 32; l++) {
            int code = s[j / 2 * 32 + l] >> j % 2 * 4 & 15;
            code += high && high[l] >> j & 1 ? 16 : 0;
            y[32 * j + l] = step * (float)code - offset;
        }
    }
}

static void q4_k(float *y, const uint8_t *b)
{
    q45_k(y, b, NULL, b + 16);
}

static void q5_k(float *y, const uint8_t *b)
{
    q45_k(y, b, b + 16, b + 48);
}

/* low[128]: nibbles; high[64]: 2 bits; scales i8[16]; d. */
static void q6_k(float *y, const uint8_t *b)
{
    const float d = half_at(b + 208);
    for (int i = 0; i < K; i++) {
        const int half = i / 128, quarter = i % 128 / 32, l = i % 32;
        const int low = b[half * 64 + quarter % 2 * 32 + l] >> quarter / 2 * 4 & 15;
        const int code = (low | (b[128 + half * 32 + l] >> quarter * 2 & 3) << 4) - 32;
        y[i] = d * (float)(int8_t)b[192 + i / 16] * (float)code;
    }
}

/* Ternary digits: byte * 3^n mod 256 is a fraction of 256, times 3 its first digit. s[32 + 16], then 4 bytes of 4 digits; d. */
static float ternary(uint8_t byte, int n, float d)
{
    static const uint8_t power[] = {1, 3, 9, 27, 81};
    const uint8_t fraction = (uint8_t)(byte * power[n]);
    return (float)((fraction * 3 >> 8) - 1) * d;
}

static void tq1_0(float *y, const uint8_t *b)
{
    const float d = half_at(b + 52);
    for (int n = 0; n < 5; n++)
        for (int m = 0; m < 32; m++)
            *y++ = ternary(b[m], n, d);
    for (int n = 0; n < 5; n++)
        for (int m = 0; m < 16; m++)
            *y++ = ternary(b[32 + m], n, d);
    for (int n = 0; n < 4; n++)
        for (int m = 0; m < 4; m++)
            *y++ = ternary(b[48 + m], n, d);
}

static void tq2_0(float *y, const uint8_t *b)
{
    const float d = half_at(b + 64);
    for (int i = 0; i < K; i++)
        y[i] = (float)((b[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) - 1) * d;
}

static void by_table(float *y, const uint8_t *s, const int8_t table[16], float d)
{
    for (int j = 0; j < 16; j++) {
        y[j] = d * (float)table[s[j] & 15];
        y[j + 16] = d * (float)table[s[j] >> 4];
    }
}

static void iq4_nl(float *y, const uint8_t *b)
{
    static const int8_t table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    by_table(y, b + 2, table, half_at(b));
}

/* Twice the values of E2M1, and half of 2^(e - 127). */
static void mxfp4(float *y, const uint8_t *b)
{
    static const int8_t table[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    const uint32_t bits = b[0] < 2 ? 0x00200000u << b[0] : (uint32_t)(b[0] - 1) << 23;
    float d;
    memcpy(&d, &bits, sizeof d);
    by_table(y, b + 1, table, d);
}

static void q1_0(float *y, const uint8_t *b)
{
    const float d = half_at(b);
    for (int i = 0; i < 128; i++)
        y[i] = b[2 + i / 8] >> i % 8 & 1 ? d : -d;
}

static void q2_0(float *y, const uint8_t *b)
{
    const float d = half_at(b);
    for (int i = 0; i < 64; i++)
        y[i] = (float)((b[2 + i / 4] >> i % 4 * 2 & 3) - 1) * d;
}

fm_block_decoder fm_block_decoder_of(fm_dtype t)
{
    static const struct {
        fm_dtype type;
        fm_block_decoder decode;
    } decoders[] = {{FM_Q4_0, q4_0},   {FM_Q4_1, q4_1},   {FM_Q5_0, q5_0},   {FM_Q5_1, q5_1},     {FM_Q8_0, q8_0},   {FM_Q2_K, q2_k},
                    {FM_Q3_K, q3_k},   {FM_Q4_K, q4_k},   {FM_Q5_K, q5_k},   {FM_Q6_K, q6_k},     {FM_TQ1_0, tq1_0}, {FM_TQ2_0, tq2_0},
                    {FM_IQ4_NL, iq4_nl}, {FM_MXFP4, mxfp4}, {FM_Q1_0, q1_0}, {FM_Q2_0, q2_0}};
    for (size_t i = 0; i < sizeof decoders / sizeof *decoders; i++)
        if (decoders[i].type == t)
            return decoders[i].decode;
    return NULL;
}
