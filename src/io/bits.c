/* bits.c - a row of codes of `bits` bits as a little-endian bit stream: code i takes bits [i*bits, (i+1)*bits). */
#include "io/io.h"
#include <assert.h>
#include <string.h>

size_t fm_packed_bytes(int64_t n, int bits)
{
    return ((size_t)n * (size_t)bits + 7) / 8;
}

void fm_pack_bits(uint8_t *dst, const uint8_t *codes, int64_t n, int bits)
{
    assert(bits >= 1 && bits <= 8);
    uint32_t window = 0; /* bits not yet written, the oldest lowest */
    int held = 0;
    for (int64_t i = 0; i < n; i++) {
        window |= (codes[i] & ((1u << bits) - 1)) << held;
        held += bits;
        if (held >= 8) {
            *dst++ = (uint8_t)window;
            window >>= 8;
            held -= 8;
        }
    }
    if (held > 0)
        *dst = (uint8_t)window;
}

void fm_unpack_bits(uint8_t *restrict codes, const uint8_t *restrict src, int64_t n, int bits)
{
    assert(bits >= 1 && bits <= 8);
    uint32_t window = 0;
    int held = 0;
    if (bits == 8) {
        memcpy(codes, src, (size_t)n);
        return;
    }
    if (bits == 4) { /* most files: two codes a byte */
        const int64_t pairs = n / 2;
        for (int64_t i = 0; i < pairs; i++) {
            codes[2 * i] = src[i] & 15;
            codes[2 * i + 1] = src[i] >> 4;
        }
        if (n % 2)
            codes[n - 1] = src[pairs] & 15;
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        if (held < bits) {
            window |= (uint32_t)*src++ << held;
            held += 8;
        }
        codes[i] = (uint8_t)(window & ((1u << bits) - 1));
        window >>= bits;
        held -= bits;
    }
}
