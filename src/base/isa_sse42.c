/* isa_sse42.c - three runs of CRC-32C in turns: the instruction takes 8 bytes and three cycles, but one can begin in each. */
#include "base/checksum.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#include <string.h>

bool nb_has_crc32c(void)
{
    return __builtin_cpu_supports("sse4.2");
}

static uint64_t eight(const uint8_t *p)
{
    uint64_t x;
    memcpy(&x, p, sizeof x);
    return x;
}

__attribute__((target("sse4.2"))) void nb_crc32c_three(uint32_t crc[3], const uint8_t *p, size_t bytes)
{
    uint64_t a = UINT32_MAX, b = UINT32_MAX, c = UINT32_MAX;
    for (size_t i = 0; i < bytes; i += 8) {
        a = _mm_crc32_u64(a, eight(p + i));
        b = _mm_crc32_u64(b, eight(p + bytes + i));
        c = _mm_crc32_u64(c, eight(p + 2 * bytes + i));
    }
    crc[0] = ~(uint32_t)a;
    crc[1] = ~(uint32_t)b;
    crc[2] = ~(uint32_t)c;
}

#else

bool nb_has_crc32c(void)
{
    return false;
}

void nb_crc32c_three(uint32_t crc[3], const uint8_t *p, size_t bytes)
{
    (void)p;
    (void)bytes;
    crc[0] = crc[1] = crc[2] = 0;
}

#endif
