/* random_texts.h - for tests: random UTF-8 texts that trip pre-tokenizers: letters of many scripts, digits,
 * contractions, white space of all kinds, signs, marks, and any code point that Unicode 14 has assigned (as PCRE2 10.42 knows it).
 */
#ifndef NIBBLE_TESTS_RANDOM_TEXTS_H
#define NIBBLE_TESTS_RANDOM_TEXTS_H
#include "base/base.h"
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

enum { RANDOM_TEXT_BYTES = 400, CODE_POINTS = 0x110000 };

static inline size_t put_code(char *p, uint32_t c)
{
    if (c < 0x80)
        return p[0] = (char)c, 1;
    if (c < 0x800)
        return p[0] = (char)(0xC0 | c >> 6), p[1] = (char)(0x80 | (c & 63)), 2;
    if (c < 0x10000)
        return p[0] = (char)(0xE0 | c >> 12), p[1] = (char)(0x80 | (c >> 6 & 63)), p[2] = (char)(0x80 | (c & 63)), 3;
    p[0] = (char)(0xF0 | c >> 18);
    p[1] = (char)(0x80 | (c >> 12 & 63));
    p[2] = (char)(0x80 | (c >> 6 & 63));
    p[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* The assigned code points, ascending; *n of them. */
static inline const uint32_t *assigned_codes(int64_t *n)
{
    static uint32_t *codes;
    static int64_t n_codes;
    if (!codes) {
        int error;
        PCRE2_SIZE at;
        pcre2_code *any =
            pcre2_compile((PCRE2_SPTR) "\\P{Cn}", PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &error, &at, NULL);
        pcre2_match_data *match = pcre2_match_data_create(1, NULL);
        codes = malloc(CODE_POINTS * sizeof *codes);
        if (!any || !match || !codes)
            abort();
        for (uint32_t c = 1; c < CODE_POINTS; c++) {
            char text[4];
            size_t bytes = put_code(text, c);
            if (c < 0xD800 || c > 0xDFFF)
                if (pcre2_match(any, (PCRE2_SPTR)text, bytes, 0, 0, match, NULL) > 0)
                    codes[n_codes++] = c;
        }
        pcre2_match_data_free(match);
        pcre2_code_free(any);
    }
    *n = n_codes;
    return codes;
}

static inline bool is_assigned(const uint32_t *codes, int64_t n, uint32_t c)
{
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (codes[middle] < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && codes[low] == c;
}

typedef struct {
    uint64_t seed, draws;
} dice;

static inline uint64_t draw(dice *d, uint64_t below)
{
    return nb_random(d->seed, 7, d->draws++) % below;
}

/* One piece of text; names (NULL-terminated): of special tokens. */
static inline size_t random_part(char *p, dice *d, const char *const *names)
{
    static const char *const spaces[] = {
        " ",        " ",        "  ",   "    ", "\n",           "\n\n",         "\r\n",         "\t",
        "\xC2\xA0", "\xC2\x85", "\x0B", " \n ", "\xE2\x80\x83", "\xE3\x80\x80", "\xE1\xA0\x8E", "\xE2\x80\x8B"};
    static const char *const contractions[] = {"'s", "'t", "'re", "'ve", "'m",       "'ll",
                                               "'d", "'S", "'LL", "'Re", "'\xC5\xBF"};
    static const uint32_t scripts[][2] = {{0xC0, 0x24F},    {0x370, 0x3FF},   {0x410, 0x44F},   {0x5D0, 0x5EA},
                                          {0x620, 0x64A},   {0x905, 0x94D},   {0xE01, 0xE3A},   {0x10D0, 0x10FA},
                                          {0x3041, 0x30FF}, {0x4E00, 0x9FFF}, {0xAC00, 0xD7A3}, {0x1F300, 0x1F6FF},
                                          {0x300, 0x36F},   {0x660, 0x669},   {0x2150, 0x218B}, {0x1D400, 0x1D7FF}};
    static const char signs[] = ".,;:!?-_/\\()[]{}<>@#$%^&*+=~|\"'`";
    int64_t n_codes;
    const uint32_t *codes = assigned_codes(&n_codes);
    size_t n = 0, length = 1 + draw(d, 5);
    switch (draw(d, names ? 9 : 8)) {
    case 0:
    case 1:
        for (size_t i = 0; i < length; i++)
            p[n++] = (char)((draw(d, 6) ? 'a' : 'A') + (int)draw(d, 26));
        return n;
    case 2:
        for (size_t i = 0; i < length; i++)
            p[n++] = (char)('0' + (int)draw(d, 10));
        return n;
    case 3:
        strcpy(p, spaces[draw(d, sizeof spaces / sizeof *spaces)]);
        return strlen(p);
    case 4:
        strcpy(p, contractions[draw(d, sizeof contractions / sizeof *contractions)]);
        return strlen(p);
    case 5:
        for (size_t i = 0; i < length; i++)
            p[n++] = signs[draw(d, sizeof signs - 1)];
        return n;
    case 6: {
        const uint32_t *range = scripts[draw(d, sizeof scripts / sizeof *scripts)];
        for (size_t i = 0; i < length; i++) {
            uint32_t c = range[0] + (uint32_t)draw(d, range[1] - range[0] + 1);
            if (is_assigned(codes, n_codes, c))
                n += put_code(p + n, c);
        }
        return n;
    }
    case 7:
        return put_code(p, codes[draw(d, (uint64_t)n_codes)]);
    default:
        for (length = 0; names[length];)
            length++;
        strcpy(p, names[draw(d, length)]);
        return strlen(p);
    }
}

/* text [RANDOM_TEXT_BYTES] <- a random text; its length. */
static inline size_t random_utf8(char *text, uint64_t seed, const char *const *names)
{
    dice d = {seed, 0};
    size_t n = 0;
    for (uint64_t parts = draw(&d, 30); parts > 0 && n + 64 < RANDOM_TEXT_BYTES; parts--)
        n += random_part(text + n, &d, names);
    return n;
}

#endif
