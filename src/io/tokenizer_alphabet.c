/* tokenizer_alphabet.c - GPT-2's alphabet: 256 printable characters that stand for the 256 bytes, so that pieces are
 * texts. Bytes 33..126, 161..172 and 174..255 stand for themselves (as code points); the other 68, in order, for
 * U+0100 and on: a space is U+0120. Source: openai/gpt-2 src/encoder.py, bytes_to_unicode.
 */
#include "io/tokenizer.h"

enum { FIRST = 0x100, AFTER_SPACE = 33, AFTER_DELETE = 67, SOFT_HYPHEN = 173 };

size_t fm_letter_of_byte(char letter[2], uint8_t byte)
{
    int code = byte <= 32                   ? FIRST + byte
               : byte >= 127 && byte <= 160 ? FIRST + AFTER_SPACE + (byte - 127)
               : byte == SOFT_HYPHEN        ? FIRST + AFTER_DELETE
                                            : byte;
    if (code < 0x80) {
        letter[0] = (char)code;
        return 1;
    }
    letter[0] = (char)(0xC0 | code >> 6);
    letter[1] = (char)(0x80 | (code & 0x3F));
    return 2;
}

static int byte_of_code(int code)
{
    if (code >= FIRST + AFTER_DELETE)
        return code == FIRST + AFTER_DELETE ? SOFT_HYPHEN : -1;
    if (code >= FIRST + AFTER_SPACE)
        return code - FIRST - AFTER_SPACE + 127;
    if (code >= FIRST)
        return code - FIRST;
    bool plain = (code >= 33 && code <= 126) || (code >= 161 && code <= 255 && code != SOFT_HYPHEN);
    return plain ? code : -1;
}

int64_t fm_bytes_of_letters(char *bytes, const char *letters, size_t n)
{
    const uint8_t *p = (const uint8_t *)letters;
    int64_t made = 0;
    for (size_t i = 0; i < n; made++) {
        int code = p[i++];
        if (code >= 0x80) {
            if ((code & 0xE0) != 0xC0 || i == n || (p[i] & 0xC0) != 0x80)
                return -1;
            code = (code & 0x1F) << 6 | (p[i++] & 0x3F);
        }
        int byte = byte_of_code(code);
        if (byte < 0)
            return -1;
        bytes[made] = (char)byte;
    }
    return made;
}
