/* recipe.c - recipes: ordered rules "pattern  spec", the later one wins. The file form, one rule a line:
 *   # comment
 *   base w4a8kv16
 *   layers.0.*.weight    int8 narrow row f32 learned
 */
#include "fakequant/fakequant.h"
#include "fakequant/recipes.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_RULES = 4096, MAX_BASE_DEPTH = 4 };

/* One element of a pattern at p against c: [abc], [a-z], ? or the character itself. *next: the element after it. */
static bool matches_one(const char *p, char c, const char **next)
{
    const char *end = p[0] == '[' ? strchr(p + 1, ']') : NULL;
    if (!end) {
        *next = p + 1;
        return p[0] == '?' || p[0] == c;
    }
    *next = end + 1;
    for (const char *s = p + 1; s < end; s++) {
        bool range = s + 2 < end && s[1] == '-';
        if (range ? s[0] <= c && c <= s[2] : *s == c)
            return true;
        if (range)
            s += 2;
    }
    return false;
}

static bool matches(const char *p, const char *name)
{
    const char *star = NULL, *again = NULL, *next;
    while (*name) {
        if (*p == '*') {
            star = ++p;
            again = name;
        } else if (*p && matches_one(p, *name, &next)) {
            p = next;
            name++;
        } else if (star) { /* the last star takes one character more */
            p = star;
            name = ++again;
        } else {
            return false;
        }
    }
    return p[strspn(p, "*")] == 0;
}

fq_spec fq_recipe_find(const fq_recipe *r, const char *site, const char *alias)
{
    for (int64_t i = r ? r->n : 0; i-- > 0;)
        if (matches(r->rule[i].pattern, site) || (alias && matches(r->rule[i].pattern, alias)))
            return r->rule[i].spec;
    return (fq_spec){0};
}

static status add(fq_recipe *r, int64_t *capacity, const char *pattern, const char *spec)
{
    fq_rule rule = {0};
    if (strlen(pattern) >= sizeof rule.pattern)
        return nb_fail(NB_USAGE, "the pattern has %zu characters, at most %zu", strlen(pattern),
                       sizeof rule.pattern - 1);
    strcpy(rule.pattern, pattern);
    TRY(fq_spec_parse(&rule.spec, spec));
    if (r->n == MAX_RULES)
        return nb_fail(NB_USAGE, "more than %d rules", MAX_RULES);
    if (r->n == *capacity) {
        int64_t n = *capacity ? 2 * *capacity : 16;
        fq_rule *p = nb_resize(r->rule, (size_t)n, sizeof *p);
        if (!p)
            return NB_NOMEM;
        r->rule = p;
        *capacity = n;
    }
    r->rule[r->n++] = rule;
    return NB_OK;
}

static const fq_named *find_named(const char *name)
{
    int64_t n;
    const fq_named *named = fq_named_recipes(&n);
    for (int64_t i = 0; i < n; i++)
        if (!strcmp(named[i].name, name))
            return &named[i];
    return NULL;
}

/* Adds the rules of a text. A base stands before all rules; a named recipe may have one in turn. */
static status read_text(fq_recipe *r, int64_t *capacity, const char *text, size_t bytes, int depth)
{
    const char *end = text + bytes;
    char line[512];
    for (int number = 1; text < end; number++) {
        const char *stop = memchr(text, '\n', (size_t)(end - text));
        size_t n = (size_t)((stop ? stop : end) - text);
        if (n >= sizeof line || memchr(text, 0, n))
            return nb_fail_in(nb_fail(NB_FORMAT, n >= sizeof line ? "longer than 511 bytes" : "not text"), "line %d",
                              number);
        memcpy(line, text, n);
        line[n] = 0;
        text += n + (stop != NULL);
        line[strcspn(line, "#")] = 0;
        char *pattern = line + strspn(line, " \t\r"), *rest = pattern + strcspn(pattern, " \t\r");
        if (!*pattern)
            continue;
        if (*rest)
            *rest++ = 0;
        status s = NB_OK;
        if (!strcmp(pattern, "base")) {
            rest += strspn(rest, " \t\r");
            rest[strcspn(rest, " \t\r")] = 0;
            const fq_named *base = find_named(rest);
            if (!base || r->n || depth == MAX_BASE_DEPTH)
                s = nb_fail(NB_USAGE, !base ? "no recipe is named '%s'" : "base %s must stand first", rest);
            else
                s = read_text(r, capacity, base->text, strlen(base->text), depth + 1);
        } else {
            s = add(r, capacity, pattern, rest);
        }
        if (s != NB_OK)
            return nb_fail_in(s, "line %d", number);
    }
    return NB_OK;
}

status fq_recipe_parse(fq_recipe *r, const char *name, const char *text, size_t bytes)
{
    int64_t capacity = 0;
    *r = (fq_recipe){0};
    snprintf(r->name, sizeof r->name, "%s", name);
    status s = read_text(r, &capacity, text, bytes, 0);
    if (s != NB_OK) {
        fq_recipe_free(r);
        return nb_fail_in(s, "recipe %s", name);
    }
    return NB_OK;
}

status fq_recipe_open(fq_recipe *r, const char *name_or_path)
{
    *r = (fq_recipe){0};
    const fq_named *named = find_named(name_or_path);
    if (named)
        return fq_recipe_parse(r, named->name, named->text, strlen(named->text));
    if (!nb_path_exists(name_or_path))
        return nb_fail(NB_USAGE, "no recipe is named '%s', and no such file exists (nibble recipes lists the names)",
                       name_or_path);
    nb_mapped m;
    TRY(nb_map(&m, name_or_path));
    status s = fq_recipe_parse(r, nb_path_name(name_or_path), (const char *)m.data, m.bytes);
    nb_unmap(&m);
    return s;
}

char *fq_recipe_text(const fq_recipe *r)
{
    const size_t line = sizeof r->rule->pattern + 256;
    size_t bytes = 1 + (size_t)r->n * line, used = 0;
    char *text = nb_alloc(bytes, 1), spec[192];
    if (!text)
        return NULL;
    text[0] = 0;
    for (int64_t i = 0; i < r->n; i++) {
        fq_spec_print(spec, sizeof spec, &r->rule[i].spec);
        used += (size_t)snprintf(text + used, bytes - used, "%-24s %s\n", r->rule[i].pattern, spec);
    }
    return text;
}

void fq_recipe_free(fq_recipe *r)
{
    free(r->rule);
    *r = (fq_recipe){0};
}
