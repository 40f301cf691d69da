/* json_writer.c - writing JSON (RFC 8259) into a growing buffer.
 * Strings are UTF-8; bytes that are not (half a character, an overlong form) become U+FFFD, so that what is written
 * can always be read. Numbers take the fewest digits that read back the same.
 */
#include "base/base.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void append(nb_writer *w, const char *text, size_t bytes)
{
    if (w->failed)
        return;
    if (bytes >= w->capacity - w->bytes) { /* one byte stays for the NUL */
        size_t capacity = 2 * w->capacity + bytes + 256;
        char *grown = nb_resize(w->text, capacity, 1);
        if (!grown) {
            w->failed = true;
            return;
        }
        w->text = grown;
        w->capacity = capacity;
    }
    memcpy(w->text + w->bytes, text, bytes);
    w->bytes += bytes;
    w->text[w->bytes] = 0;
}

/* Bytes of the UTF-8 character at s, which ends in NUL (RFC 3629); 0 if there is none. */
static size_t character(const unsigned char *s)
{
    static const struct {
        unsigned char lo, hi, second_lo, second_hi;
        size_t bytes;
    } forms[] = {{0x01, 0x7F, 0x00, 0xFF, 1}, {0xC2, 0xDF, 0x80, 0xBF, 2}, {0xE0, 0xE0, 0xA0, 0xBF, 3},
                 {0xE1, 0xEC, 0x80, 0xBF, 3}, {0xED, 0xED, 0x80, 0x9F, 3}, {0xEE, 0xEF, 0x80, 0xBF, 3},
                 {0xF0, 0xF0, 0x90, 0xBF, 4}, {0xF1, 0xF3, 0x80, 0xBF, 4}, {0xF4, 0xF4, 0x80, 0x8F, 4}};
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        if (s[0] < forms[f].lo || s[0] > forms[f].hi)
            continue;
        if (forms[f].bytes > 1 && (s[1] < forms[f].second_lo || s[1] > forms[f].second_hi))
            return 0;
        for (size_t i = 2; i < forms[f].bytes; i++)
            if (s[i] < 0x80 || s[i] > 0xBF)
                return 0;
        return forms[f].bytes;
    }
    return 0;
}

static void append_escaped(nb_writer *w, unsigned char c)
{
    static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
    const char *found = memchr(plain, c, sizeof plain - 1);
    char text[8];
    if (found)
        (void)snprintf(text, sizeof text, "\\%c", letter[found - plain]);
    else
        (void)snprintf(text, sizeof text, "\\u%04x", c);
    append(w, text, strlen(text));
}

static void append_string(nb_writer *w, const char *value)
{
    append(w, "\"", 1);
    const unsigned char *s = (const unsigned char *)value;
    while (*s) {
        size_t n = character(s);
        if (n == 0)
            append(w, "\xEF\xBF\xBD", 3);
        else if (*s < 0x20 || *s == '"' || *s == '\\' || *s == 0x7F)
            append_escaped(w, *s);
        else
            append(w, (const char *)s, n);
        s += n ? n : 1;
    }
    append(w, "\"", 1);
}

/* What stands before every value: a comma after another one, and the key. */
static void begin_value(nb_writer *w, const char *key)
{
    if (w->comma)
        append(w, ",", 1);
    if (key) {
        append_string(w, key);
        append(w, ":", 1);
    }
    w->comma = true;
}

void nb_json_open(nb_writer *w, const char *key, char bracket)
{
    begin_value(w, key);
    append(w, &bracket, 1);
    w->comma = false;
}

void nb_json_close(nb_writer *w, char bracket)
{
    append(w, &bracket, 1);
    w->comma = true;
}

void nb_json_put_string(nb_writer *w, const char *key, const char *value)
{
    begin_value(w, key);
    append_string(w, value);
}

void nb_json_put_int(nb_writer *w, const char *key, int64_t value)
{
    char text[32];
    (void)snprintf(text, sizeof text, "%" PRId64, value);
    nb_json_put_raw(w, key, text);
}

void nb_json_put_number(nb_writer *w, const char *key, double value)
{
    char text[40] = "null";
    if (isfinite(value))
        for (int digits = 1; digits <= 17; digits++) {
            (void)snprintf(text, sizeof text, "%.*g", digits, value);
            if (strtod(text, NULL) == value)
                break;
        }
    char *comma = strchr(text, ','); /* some locales' decimal point */
    if (comma)
        *comma = '.';
    nb_json_put_raw(w, key, text);
}

void nb_json_put_bool(nb_writer *w, const char *key, bool value)
{
    nb_json_put_raw(w, key, value ? "true" : "false");
}

void nb_json_put_hash(nb_writer *w, const char *key, uint64_t h)
{
    char text[17];
    (void)snprintf(text, sizeof text, "%016llx", (unsigned long long)h);
    nb_json_put_string(w, key, text);
}

void nb_json_put_raw(nb_writer *w, const char *key, const char *json)
{
    begin_value(w, key);
    append(w, json, strlen(json));
}

char *nb_json_text(nb_writer *w)
{
    append(w, "", 0);
    char *text = w->text;
    if (w->failed) {
        free(text);
        text = NULL;
    }
    *w = (nb_writer){0};
    return text;
}
