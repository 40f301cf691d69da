/* json.c - reading JSON (RFC 8259) through cJSON, with limits, and writing it.
 * cJSON's parser recurses, 1000 deep by default; the text is scanned first and refused beyond 64 levels. It also cuts
 * strings at a NUL byte, so raw NULs are refused.
 */
#include "base/base.h"
#include <cjson/cJSON.h>
#include <math.h>
#include <string.h>

enum { MAX_DEPTH = 64 };

/* ---- reading ---- */

static status check_text(const char *text, size_t bytes)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (c == 0)
            return nb_fail(NB_FORMAT, "JSON: a NUL at byte %zu", i);
        if (in_string && c == '\\')
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (!in_string && (c == '{' || c == '[') && ++depth > MAX_DEPTH)
            return nb_fail(NB_FORMAT, "JSON: more than %d levels at byte %zu", MAX_DEPTH, i);
        else if (!in_string && (c == '}' || c == ']'))
            depth--;
    }
    return NB_OK;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

nb_json *nb_json_parse(const char *text, size_t bytes)
{
    if (check_text(text, bytes) != NB_OK)
        return NULL;
    const char *end = text;
    nb_json *j = cJSON_ParseWithLengthOpts(text, bytes, &end, false);
    if (!j) {
        (void)nb_fail(NB_FORMAT, "JSON: not understood at byte %td of %zu", end - text, bytes);
        return NULL;
    }
    while (end < text + bytes && is_space(*end))
        end++;
    if (end != text + bytes) {
        cJSON_Delete(j);
        (void)nb_fail(NB_FORMAT, "JSON: more text after the end, at byte %td of %zu", end - text, bytes);
        return NULL;
    }
    return j;
}

void nb_json_free(nb_json *j)
{
    cJSON_Delete(j);
}

const nb_json *nb_json_get(const nb_json *object, const char *key)
{
    return cJSON_IsObject(object) ? cJSON_GetObjectItemCaseSensitive(object, key) : NULL;
}

int64_t nb_json_count(const nb_json *array_or_object)
{
    int64_t n = 0;
    for (const nb_json *i = nb_json_first(array_or_object); i; i = i->next)
        n++;
    return n;
}

const nb_json *nb_json_at(const nb_json *array_or_object, int64_t i)
{
    const nb_json *item = i < 0 ? NULL : nb_json_first(array_or_object);
    for (; item && i > 0; i--)
        item = item->next;
    return item;
}

const nb_json *nb_json_first(const nb_json *array_or_object)
{
    return array_or_object ? array_or_object->child : NULL;
}

const nb_json *nb_json_next(const nb_json *item)
{
    return item ? item->next : NULL;
}

const char *nb_json_key(const nb_json *item)
{
    return item ? item->string : NULL;
}

const char *nb_json_string(const nb_json *j)
{
    return cJSON_IsString(j) ? j->valuestring : NULL;
}

bool nb_json_is_number(const nb_json *j)
{
    return cJSON_IsNumber(j) && isfinite(j->valuedouble);
}

bool nb_json_is_null(const nb_json *j)
{
    return !j || cJSON_IsNull(j);
}

double nb_json_number(const nb_json *j, double otherwise)
{
    return nb_json_is_number(j) ? j->valuedouble : otherwise;
}

int64_t nb_json_int(const nb_json *j, int64_t otherwise)
{
    const double exact = 0x1p53; /* cJSON holds doubles: integers are exact up to here */
    if (!nb_json_is_number(j) || fabs(j->valuedouble) > exact || floor(j->valuedouble) != j->valuedouble)
        return otherwise;
    return (int64_t)j->valuedouble;
}

bool nb_json_bool(const nb_json *j, bool otherwise)
{
    return cJSON_IsBool(j) ? cJSON_IsTrue(j) : otherwise;
}
