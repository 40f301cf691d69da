/* blocks.c - bit layout of ggml's blocks of 32 elements (ggml/src/ggml-common.h), all little-endian:
 *   Q8_0: u16 d, i8 q[32]             Q4_0: u16 d, u8 s[16]             Q4_1: u16 d, u16 m, u8 s[16]
 *   s[j] = c[j] | c[j+16] << 4 with c = q + 8 (Q4_0) or q (Q4_1); d and m are binary16 bits.
 * Which numbers the codes are is decided elsewhere (kernels' grid): here nothing is rounded.
 */
#include "io/formats.h"
#include <string.h>

enum { BLOCK = 32 };

typedef struct {
    int lowest, highest; /* codes */
    bool nibbles, minimum;
} layout;

static const layout *layout_of(fm_dtype t)
{
    static const layout q8_0 = {-128, 127, false, false}, q4_0 = {-8, 7, true, false}, q4_1 = {0, 15, true, true};
    return t == FM_Q8_0 ? &q8_0 : t == FM_Q4_0 ? &q4_0 : t == FM_Q4_1 ? &q4_1 : NULL;
}

status fm_blocks_pack(void *dst, fm_dtype t, const int8_t *codes, const uint16_t *scales, const uint16_t *mins,
                      int64_t n_blocks)
{
    const layout *l = layout_of(t);
    if (!l)
        return nb_fail(NB_UNSUPPORTED, "codes cannot be packed into blocks of type %s", fm_dtype_name(t));
    uint8_t *out = dst;
    for (int64_t b = 0; b < n_blocks; b++, codes += BLOCK) {
        for (int i = 0; i < BLOCK; i++)
            if (codes[i] < l->lowest || codes[i] > l->highest)
                return nb_fail(NB_USAGE, "code %d of block %lld is outside %d..%d, the range of %s", codes[i],
                               (long long)b, l->lowest, l->highest, fm_dtype_name(t));
        memcpy(out, &scales[b], sizeof *scales);
        out += sizeof *scales;
        if (l->minimum) {
            memcpy(out, &mins[b], sizeof *mins);
            out += sizeof *mins;
        }
        if (!l->nibbles) {
            memcpy(out, codes, BLOCK);
            out += BLOCK;
            continue;
        }
        for (int i = 0; i < BLOCK / 2; i++)
            *out++ = (uint8_t)((codes[i] - l->lowest) | (codes[i + BLOCK / 2] - l->lowest) << 4);
    }
    return NB_OK;
}
