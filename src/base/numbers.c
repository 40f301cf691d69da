/* numbers.c - numbers in text.
 *   count  = digits [ "." digits ] [ "k" | "M" | "G" | "Ki" | "Mi" | "Gi" ], exact in decimal: 1.5k is 1500
 */
#include "base/base.h"
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *suffix;
    int64_t factor;
} factors[] = {
    {"", 1}, {"k", 1000}, {"M", 1000000}, {"G", 1000000000}, {"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30},
};

/* The digits of text without their point; *places counts those after it. -1: too many. */
static int64_t read_digits(const char **text, int *places)
{
    int64_t n = 0;
    bool point = false;
    const char *p = *text;
    *places = 0;
    for (; isdigit((unsigned char)*p) || (*p == '.' && !point); p++) {
        if (*p == '.') {
            point = true;
            continue;
        }
        if (n > (INT64_MAX - (*p - '0')) / 10)
            return -1;
        n = n * 10 + (*p - '0');
        *places += point;
    }
    *text = p;
    return n;
}

status nb_parse_count(int64_t *n, const char *text)
{
    const char *end = text;
    int places = 0;
    if (!isdigit((unsigned char)*text))
        return nb_fail(NB_USAGE, "'%s' is not a count; wanted something like 256, 400k, 1.5M or 64Ki", text);
    int64_t value = read_digits(&end, &places);
    if (value < 0)
        return nb_fail(NB_USAGE, "'%s' is too large a count", text);
    for (; places > 0 && value % 10 == 0; places--)
        value /= 10;
    for (size_t f = 0; f < sizeof factors / sizeof *factors; f++) {
        if (strcmp(end, factors[f].suffix) != 0)
            continue;
        int64_t factor = factors[f].factor;
        for (; places > 0 && factor % 10 == 0; places--)
            factor /= 10;
        for (; places > 0 && value % 5 == 0 && factor % 2 == 0; places--) { /* 2.5Ki: 10 = 2 x 5 across the two */
            value /= 5;
            factor /= 2;
        }
        if (places > 0)
            return nb_fail(NB_USAGE, "'%s' is not a whole number", text);
        if (value > INT64_MAX / factor)
            return nb_fail(NB_USAGE, "'%s' is too large a count", text);
        *n = value * factor;
        return NB_OK;
    }
    return nb_fail(NB_USAGE, "'%s' is not a count; wanted something like 256, 400k, 1.5M or 64Ki", text);
}

status nb_parse_number(double *x, const char *text)
{
    char *end = NULL;
    double value = isspace((unsigned char)*text) ? NAN : strtod(text, &end);
    if (!end || end == text || *end || !isfinite(value))
        return nb_fail(NB_USAGE, "'%s' is not a number", text);
    *x = value;
    return NB_OK;
}
