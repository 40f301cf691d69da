/* checksum.c - CRC-32C and FNV-1a.
 *   CRC-32C: polynomial 0x1EDC6F41, reflected 0x82F63B78, register inverted at start and end (RFC 3720, B.4).
 *   FNV-1a: h = (h ^ byte) * 0x100000001B3, 64 bits (Fowler, Noll & Vo).
 * The CRC takes eight bytes a step from eight tables (Kounavis & Berry 2005): T[j][n] is byte n followed by j zero
 * bytes. A table is linear over GF(2), T[j][a ^ b] = T[j][a] ^ T[j][b], so eight values spell each of them.
 * Long data is cut into runs, three at a time by the processor's instruction where it has one, by all threads:
 *   crc(a b) = crc(a) x^(8 bytes of b) + crc(b)   modulo the polynomial, bit 31 the coefficient of 1 (Adler, zlib's crc32_combine).
 */
#include "base/checksum.h"

/* clang-format off */
#define ENTRY(n, b0, b1, b2, b3, b4, b5, b6, b7)                                                      \
    (((n) & 1 ? b0 : 0) ^ ((n) & 2 ? b1 : 0) ^ ((n) & 4 ? b2 : 0) ^ ((n) & 8 ? b3 : 0) ^              \
     ((n) & 16 ? b4 : 0) ^ ((n) & 32 ? b5 : 0) ^ ((n) & 64 ? b6 : 0) ^ ((n) & 128 ? b7 : 0))
#define ENTRIES_4(n, ...) \
    ENTRY(n, __VA_ARGS__), ENTRY((n) + 1, __VA_ARGS__), ENTRY((n) + 2, __VA_ARGS__), ENTRY((n) + 3, __VA_ARGS__)
#define ENTRIES_16(n, ...) \
    ENTRIES_4(n, __VA_ARGS__), ENTRIES_4((n) + 4, __VA_ARGS__), \
    ENTRIES_4((n) + 8, __VA_ARGS__), ENTRIES_4((n) + 12, __VA_ARGS__)
#define ENTRIES_64(n, ...) \
    ENTRIES_16(n, __VA_ARGS__), ENTRIES_16((n) + 16, __VA_ARGS__), \
    ENTRIES_16((n) + 32, __VA_ARGS__), ENTRIES_16((n) + 48, __VA_ARGS__)
#define TABLE(...) \
    ENTRIES_64(0, __VA_ARGS__), ENTRIES_64(64, __VA_ARGS__), ENTRIES_64(128, __VA_ARGS__), ENTRIES_64(192, __VA_ARGS__)

static const uint32_t table[8][256] = {
    {TABLE(0xF26B8303u, 0xE13B70F7u, 0xC79A971Fu, 0x8AD958CFu, 0x105EC76Fu, 0x20BD8EDEu, 0x417B1DBCu, 0x82F63B78u)},
    {TABLE(0x13A29877u, 0x274530EEu, 0x4E8A61DCu, 0x9D14C3B8u, 0x3FC5F181u, 0x7F8BE302u, 0xFF17C604u, 0xFBC3FAF9u)},
    {TABLE(0xA541927Eu, 0x4F6F520Du, 0x9EDEA41Au, 0x38513EC5u, 0x70A27D8Au, 0xE144FB14u, 0xC76580D9u, 0x8B277743u)},
    {TABLE(0xDD45AAB8u, 0xBF672381u, 0x7B2231F3u, 0xF64463E6u, 0xE964B13Du, 0xD725148Bu, 0xABA65FE7u, 0x52A0C93Fu)},
    {TABLE(0x38116FACu, 0x7022DF58u, 0xE045BEB0u, 0xC5670B91u, 0x8F2261D3u, 0x1BA8B557u, 0x37516AAEu, 0x6EA2D55Cu)},
    {TABLE(0xEF306B19u, 0xDB8CA0C3u, 0xB2F53777u, 0x6006181Fu, 0xC00C303Eu, 0x85F4168Du, 0x0E045BEBu, 0x1C08B7D6u)},
    {TABLE(0x68032CC8u, 0xD0065990u, 0xA5E0C5D1u, 0x4E2DFD53u, 0x9C5BFAA6u, 0x3D5B83BDu, 0x7AB7077Au, 0xF56E0EF4u)},
    {TABLE(0x493C7D27u, 0x9278FA4Eu, 0x211D826Du, 0x423B04DAu, 0x847609B4u, 0x0D006599u, 0x1A00CB32u, 0x34019664u)},
};
/* clang-format on */

enum { RUN = 1 << 17, AT_ONCE = 256 };
static const uint32_t polynomial = 0x82F63B78u;

static uint32_t step(uint32_t c, uint8_t byte)
{
    return c >> 8 ^ table[0][(c ^ byte) & 0xFF];
}

static uint32_t step_8(uint32_t c, const uint8_t *p)
{
    return table[7][p[0] ^ (c & 0xFF)] ^ table[6][p[1] ^ (c >> 8 & 0xFF)] ^ table[5][p[2] ^ (c >> 16 & 0xFF)] ^
           table[4][p[3] ^ c >> 24] ^ table[3][p[4]] ^ table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]];
}

static uint32_t by_tables(uint32_t crc, const uint8_t *p, size_t bytes)
{
    uint32_t c = ~crc;
    for (; bytes >= 8; bytes -= 8, p += 8)
        c = step_8(c, p);
    for (; bytes; bytes--, p++)
        c = step(c, *p);
    return ~c;
}

/* a b modulo the polynomial */
static uint32_t multiplied(uint32_t a, uint32_t b)
{
    uint32_t sum = 0;
    for (; a; a <<= 1) {
        sum ^= a >> 31 ? b : 0;
        b = b >> 1 ^ (b & 1 ? polynomial : 0);
    }
    return sum;
}

/* x^(8 bytes) */
static uint32_t shift_of(size_t bytes)
{
    uint32_t power = 1u << 23, product = 1u << 31;
    for (; bytes; bytes >>= 1, power = multiplied(power, power))
        product = bytes & 1 ? multiplied(product, power) : product;
    return product;
}

/* crc [3] <- of three runs behind each other */
static void three_runs(uint32_t crc[3], const uint8_t *p)
{
    if (nb_has_crc32c()) {
        nb_crc32c_three(crc, p, RUN);
        return;
    }
    for (int i = 0; i < 3; i++)
        crc[i] = by_tables(0, p + (size_t)i * RUN, RUN);
}

uint32_t nb_crc32c(uint32_t crc, const void *data, size_t bytes)
{
    const uint8_t *p = data;
    const uint32_t shift = bytes < 3 * RUN ? 0 : shift_of(RUN);
    while (bytes >= 3 * RUN) {
        uint32_t part[AT_ONCE][3];
        const int n = bytes / (3 * RUN) < AT_ONCE ? (int)(bytes / (3 * RUN)) : AT_ONCE;
#pragma omp parallel for schedule(static) if (n > 1)
        for (int i = 0; i < n; i++)
            three_runs(part[i], p + (size_t)i * 3 * RUN);
        for (int i = 0; i < 3 * n; i++)
            crc = multiplied(crc, shift) ^ part[i / 3][i % 3];
        p += (size_t)n * 3 * RUN;
        bytes -= (size_t)n * 3 * RUN;
    }
    return by_tables(crc, p, bytes);
}

uint64_t nb_hash(uint64_t h, const void *data, size_t bytes)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ p[i]) * 0x100000001B3u;
    return h;
}
