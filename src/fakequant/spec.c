/* spec.c - the text form of a spec: words in any order, one of each kind.
 *   levels   float [f16 | bf16: a weight as stored] | int2 .. int8, int16 | seq2 .. seq7 | ternary | sign | nf4 | fp4 | iq4_nl |
 *            levels:HEX, 16 levels of a table as binary16, four digits each, ascending
 *   codes    narrow | asym | codes:LO..HI
 *   grain    tensor | row (token) | head | group:N | block:N               default row
 *   scale    f32 | f16 | bf16 | pow2 | super6 | super8 | dynamic8          default f32
 *   rule     q8_0 | q4_0 | llama2c                                         default nibble's own
 *   range    dynamic | static[:METHOD] | learned[:log|lsq|pact]            default dynamic
 *   start    from:METHOD of a learned range; METHOD: minmax | average[:RATE] | percentile[:P] | mse | kl (entropy) | admm
 *   gradient identity | clipped | llmqat                  default identity where dynamic, else clipped
 *   outliers outliers:X: entries of at least X stay floats of 16 bits (inputs per token)
 *   place    before-rotation (K); offset (K: less its mean)
 */
#include "fakequant/fakequant.h"
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const char *const grain_word[] = {
    [KN_TENSOR] = "tensor", [KN_ROW] = "row", [KN_HEAD] = "head", [KN_GROUP] = "group", [KN_BLOCK] = "block"};
static const char *const scale_word[] = {
    [KN_SCALE_F32] = "f32", [KN_SCALE_F16] = "f16", [KN_SCALE_BF16] = "bf16", [KN_SCALE_POW2] = "pow2",
    [KN_SCALE_SUPER6] = "super6", [KN_SCALE_SUPER8] = "super8", [KN_SCALE_DYNAMIC8] = "dynamic8"};
static const char *const rule_word[] = {[KN_RULE_NIBBLE] = "nibble",
                                        [KN_RULE_GGML_Q8_0] = "q8_0",
                                        [KN_RULE_GGML_Q4_0] = "q4_0",
                                        [KN_RULE_LLAMA2C] = "llama2c"};
static const char *const range_word[] = {[FQ_DYNAMIC] = "dynamic", [FQ_STATIC] = "static", [FQ_LEARNED] = "learned"};
static const char *const method_word[] = {[FQ_MINMAX] = "minmax",
                                          [FQ_MOVING_AVERAGE] = "average",
                                          [FQ_PERCENTILE] = "percentile",
                                          [FQ_MSE] = "mse",
                                          [FQ_KL] = "kl",
                                          [FQ_ADMM] = "admm"};
static const char *const ste_word[] = {
    [FQ_STE_IDENTITY] = "identity", [FQ_STE_CLIPPED] = "clipped", [FQ_STE_LLMQAT] = "llmqat"};
static const char *const learning_word[] = {[FQ_LOG] = "log", [FQ_LSQ] = "lsq", [FQ_PACT] = "pact"};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

/* What the words said so far; a kind may be said once. */
enum {
    LEVELS = 1,
    ZERO = 2,
    NARROW = 4,
    CODES = 8,
    GRAIN = 16,
    SCALE = 32,
    RULE = 64,
    RANGE = 128,
    START = 256,
    STE = 512,
    PLACE = 1024,
    OFFSET = 2048,
    OUTLIERS = 4096
};
typedef struct {
    int said, bits, ste, table; /* table: -1 for none */
    bool ternary, half_step;
    int32_t lo, hi;
    fq_spec s;
} reading;

static int find(const char *const *words, int n, const char *word, size_t length)
{
    for (int i = 0; i < n; i++)
        if (strlen(words[i]) == length && !memcmp(words[i], word, length))
            return i;
    return -1;
}

static status once(reading *r, int kind, const char *word)
{
    if (r->said & kind)
        return nb_fail(NB_USAGE, "'%s': this was said before", word);
    r->said |= kind;
    return NB_OK;
}

/* A decimal integer that fills text. */
static status integer(int32_t *n, const char *text, const char *word)
{
    char *end;
    long v = strtol(text, &end, 10);
    if (end == text || *end || v < -32768 || v > (1 << 24))
        return nb_fail(NB_USAGE, "'%s': wanted an integer after the colon", word);
    *n = (int32_t)v;
    return NB_OK;
}

/* METHOD[:PARAMETER] */
static status read_method(reading *r, const char *text, const char *word)
{
    const char *colon = strchr(text, ':');
    int m = find(method_word, COUNT(method_word), text, colon ? (size_t)(colon - text) : strlen(text));
    m = strcmp(text, "entropy") ? m : FQ_KL;
    if (m < 0)
        return nb_fail(NB_USAGE, "'%s': wanted minmax, average, percentile, mse, kl (entropy) or admm", word);
    r->s.method = (uint8_t)m;
    if (!colon)
        return NB_OK;
    double p;
    if (nb_parse_number(&p, colon + 1) != NB_OK ||
        !((m == FQ_MOVING_AVERAGE && p > 0 && p <= 1) || (m == FQ_PERCENTILE && p > 50 && p <= 100)))
        return nb_fail(NB_USAGE, "'%s': average takes a rate in (0, 1], percentile a share in (50, 100]", word);
    r->s.parameter = (float)p;
    return NB_OK;
}

static int table_named(const char *word)
{
    for (int i = 0; i < KN_TABLE_OWN; i++)
        if (!strcmp(word, kn_table_text((kn_table_name)i)))
            return i;
    return -1;
}

/* 64 digits, lower case. */
static status read_own_levels(reading *r, const char *word, const char *digits)
{
    if (strlen(digits) != 4 * KN_OWN_LEVELS || strspn(digits, "0123456789abcdef") != 4 * KN_OWN_LEVELS)
        return nb_fail(NB_USAGE, "'%s': wanted levels: and %d digits, four for each level", word, 4 * KN_OWN_LEVELS);
    for (int i = 0; i < KN_OWN_LEVELS; i++) {
        char four[5] = {0};
        memcpy(four, digits + 4 * i, 4);
        r->s.grid.level[i] = (real)nb_half_to((uint16_t)strtoul(four, NULL, 16));
    }
    r->table = KN_TABLE_OWN;
    r->bits = 4;
    return NB_OK;
}

static status read_levels(reading *r, const char *word)
{
    TRY(once(r, LEVELS, word));
    if (!strncmp(word, "levels:", 7))
        return read_own_levels(r, word, word + 7);
    if (!strcmp(word, "float"))
        return NB_OK;
    r->table = table_named(word);
    if (r->table >= 0) {
        r->bits = 4;
        return NB_OK;
    }
    if (!strcmp(word, "sign"))
        r->bits = 1;
    else if (!strcmp(word, "ternary"))
        r->bits = 2, r->ternary = true;
    else {
        r->half_step = word[0] == 's';
        if (word[3] >= '2' && word[3] <= (r->half_step ? '7' : '8') && !word[4])
            r->bits = word[3] - '0';
        else if (!strcmp(word, "int16"))
            r->bits = 16;
        else
            return nb_fail(NB_USAGE, "'%s': int has 2 to 8 or 16 bits, seq 2 to 7", word);
    }
    return NB_OK;
}

static status read_codes(reading *r, const char *word)
{
    char *end;
    TRY(once(r, CODES, word));
    long lo = strtol(word + 6, &end, 10), hi = 0;
    bool good = end != word + 6 && end[0] == '.' && end[1] == '.';
    if (good) {
        const char *from = end + 2;
        hi = strtol(from, &end, 10);
        good = end != from && !*end && lo >= -32768 && hi <= 32767 && lo < hi;
    }
    if (!good)
        return nb_fail(NB_USAGE, "'%s': wanted codes:LO..HI with LO < HI", word);
    r->lo = (int32_t)lo;
    r->hi = (int32_t)hi;
    return NB_OK;
}

static status read_grain(reading *r, const char *word, int grain, const char *group)
{
    TRY(once(r, GRAIN, word));
    r->s.grid.grain = (uint8_t)grain;
    bool wanted = grain == KN_GROUP || grain == KN_BLOCK;
    if (wanted != (group != NULL))
        return nb_fail(NB_USAGE, "'%s': %s", word, wanted ? "wanted group:N or block:N" : "takes no size");
    if (group)
        TRY(integer(&r->s.grid.group, group, word));
    if (group && r->s.grid.group < 1)
        return nb_fail(NB_USAGE, "'%s': a group has at least 1 element", word);
    return NB_OK;
}

static status read_range(reading *r, const char *word, int range, const char *detail)
{
    TRY(once(r, RANGE, word));
    r->s.range = (uint8_t)range;
    if (!detail)
        return NB_OK;
    if (range == FQ_STATIC) {
        TRY(once(r, START, word));
        return read_method(r, detail, word);
    }
    int l = range == FQ_LEARNED ? find(learning_word, COUNT(learning_word), detail, strlen(detail)) : -1;
    if (l < 0)
        return nb_fail(NB_USAGE, "'%s': %s", word,
                       range == FQ_LEARNED ? "wanted log, lsq or pact" : "takes nothing more");
    r->s.learning = (uint8_t)l;
    return NB_OK;
}

static status read_word(reading *r, const char *word)
{
    const char *colon = strchr(word, ':'), *detail = colon ? colon + 1 : NULL;
    size_t n = colon ? (size_t)(colon - word) : strlen(word);
    int i;
    if (!strncmp(word, "int", 3) || !strncmp(word, "seq", 3) || !strcmp(word, "float") || !strcmp(word, "ternary") ||
        !strcmp(word, "sign") || !strncmp(word, "levels:", 7) || table_named(word) >= 0)
        return read_levels(r, word);
    if (!strncmp(word, "codes:", 6))
        return read_codes(r, word);
    if (!strncmp(word, "outliers:", 9)) {
        double least;
        TRY(once(r, OUTLIERS, word));
        if (nb_parse_number(&least, word + 9) != NB_OK || !(least > 0 && least <= 65504))
            return nb_fail(NB_USAGE, "'%s': wanted outliers:X with 0 < X <= 65504", word);
        r->s.grid.outlier = (float)least;
        return NB_OK;
    }
    if (!strncmp(word, "from:", 5)) {
        TRY(once(r, START, word));
        return read_method(r, detail, word);
    }
    if ((i = find(grain_word, COUNT(grain_word), word, n)) >= 0)
        return read_grain(r, word, i, detail);
    if (!strcmp(word, "token"))
        return read_grain(r, word, KN_ROW, NULL);
    if ((i = find(range_word, COUNT(range_word), word, n)) >= 0)
        return read_range(r, word, i, detail);
    if (!strcmp(word, "narrow"))
        return once(r, NARROW, word);
    if (!strcmp(word, "asym"))
        return once(r, ZERO, word);
    if (!strcmp(word, "before-rotation")) {
        r->s.before_rotation = true;
        return once(r, PLACE, word);
    }
    if (!strcmp(word, "offset")) {
        r->s.offset = true;
        return once(r, OFFSET, word);
    }
    if ((i = find(scale_word, COUNT(scale_word), word, strlen(word))) >= 0) {
        r->s.grid.scale = (uint8_t)i;
        return once(r, SCALE, word);
    }
    if ((i = find(rule_word, COUNT(rule_word), word, strlen(word))) >= 0) {
        r->s.grid.rule = (uint8_t)i;
        return once(r, RULE, word);
    }
    if ((i = find(ste_word, COUNT(ste_word), word, strlen(word))) >= 0) {
        r->s.ste = (uint8_t)i;
        return once(r, STE, word);
    }
    return nb_fail(NB_USAGE, "'%s' is not a word of a spec (docs/recipes.md lists them)", word);
}

static fq_ste default_ste(int range)
{
    return range == FQ_DYNAMIC ? FQ_STE_IDENTITY : FQ_STE_CLIPPED;
}

/* The grid of what was said. */
static kn_grid grid_of(const reading *r)
{
    const kn_grid *said = &r->s.grid;
    if (r->table >= 0) {
        kn_grid t = kn_grid_table((kn_table_name)r->table, said->grain, said->group, said->scale);
        memcpy(t.level, said->level, sizeof t.level);
        return t;
    }
    kn_grid g =
        kn_grid_int(r->bits, (r->said & NARROW) != 0, (r->said & ZERO) != 0, said->grain, said->group, said->scale);
    if (r->half_step) {
        g.levels = KN_LEVELS_HALF_STEP;
        g.lo = -(1 << (r->bits - 1));
        g.hi = (1 << (r->bits - 1)) - 1;
    }
    if (r->ternary) {
        g.lo = -1;
        g.hi = 1;
    }
    if (r->said & CODES) {
        g.lo = r->lo;
        g.hi = r->hi;
    }
    g.rule = said->rule;
    g.outlier = said->outlier;
    return g;
}

/* Words that contradict each other. */
static status check(const reading *r)
{
    const fq_spec *s = &r->s;
    if (!(r->said & LEVELS))
        return nb_fail(NB_USAGE, "wanted float, intN, seqN, ternary or sign");
    if (!r->bits)
        return (r->said & ~SCALE) == LEVELS && s->grid.scale <= KN_SCALE_BF16
                   ? NB_OK
                   : nb_fail(NB_USAGE, "float takes f16 or bf16 and no further words");
    bool levels_only = r->half_step || r->ternary || r->bits == 1 || r->table >= 0;
    if (levels_only && r->said & (NARROW | ZERO | CODES | (r->table >= 0 ? RULE | OUTLIERS : 0)))
        return nb_fail(NB_USAGE, "%s: narrow, asym, codes and rules belong to int",
                       r->table >= 0  ? kn_table_text((kn_table_name)r->table)
                       : r->half_step ? "seq"
                       : r->ternary ? "ternary"
                                    : "sign");
    if (r->said & START && s->range == FQ_DYNAMIC)
        return nb_fail(NB_USAGE, "a dynamic range takes no method");
    if (r->said & CODES && (r->lo < -(1 << (r->bits - 1)) || r->hi >= 1 << (r->bits - 1)))
        return nb_fail(NB_USAGE, "codes %d..%d do not fit %d bits", r->lo, r->hi, r->bits);
    if (s->grid.scale == KN_SCALE_DYNAMIC8 && s->range != FQ_DYNAMIC)
        return nb_fail(NB_USAGE, "dynamic8 scales are those of the tensor as it is: they need a dynamic range");
    kn_grid g = s->grid;
    if (g.grain == KN_HEAD)
        g.group = 1; /* the model knows its head size */
    return kn_grid_check(&g);
}

status fq_spec_parse(fq_spec *s, const char *text)
{
    reading r = {.s.grid.grain = KN_ROW, .table = -1};
    char word[96];
    *s = (fq_spec){0};
    for (const char *p = text;;) {
        p += strspn(p, " \t\r\n,");
        size_t n = strcspn(p, " \t\r\n,");
        if (!n)
            break;
        if (n >= sizeof word)
            return nb_fail(NB_USAGE, "'%.60s...' is not a word of a spec", p);
        memcpy(word, p, n);
        word[n] = 0;
        TRY(read_word(&r, word));
        p += n;
    }
    if (!(r.said & STE))
        r.s.ste = default_ste(r.s.range);
    if (r.bits)
        r.s.grid = grid_of(&r);
    TRY(check(&r));
    if (r.bits)
        *s = r.s;
    else
        s->grid.scale = r.s.grid.scale;
    return NB_OK;
}

typedef struct {
    char *text;
    size_t bytes, used;
} output;

__attribute__((format(printf, 2, 3))) static void put(output *o, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(o->text + o->used, o->bytes - o->used, fmt, ap);
    va_end(ap);
    size_t left = o->bytes - o->used - 1;
    o->used += n < 0 ? 0 : (size_t)n < left ? (size_t)n : left;
}

static void put_levels(output *o, const kn_grid *g)
{
    if (g->levels == KN_LEVELS_SIGN) {
        put(o, "sign");
        return;
    }
    if (g->levels == KN_LEVELS_HALF_STEP) {
        put(o, "seq%d", g->bits);
        return;
    }
    if (kn_has_table(g)) {
        put(o, "%s", kn_table_text((kn_table_name)g->table));
        for (int i = 0; g->table == KN_TABLE_OWN && i < KN_OWN_LEVELS; i++)
            put(o, "%s%04x", i ? "" : ":", (unsigned)nb_half_from((float)g->level[i]));
        return;
    }
    if (g->bits == 2 && g->lo == -1 && g->hi == 1 && !g->has_zero) {
        put(o, "ternary");
        return;
    }
    put(o, "int%d%s", g->bits, g->has_zero ? " asym" : "");
    for (int narrow = 0; narrow < 2; narrow++) {
        kn_grid h = kn_grid_int(g->bits, narrow, g->has_zero, g->grain, g->group, g->scale);
        if (h.lo == g->lo && h.hi == g->hi) {
            put(o, "%s", narrow ? " narrow" : "");
            return;
        }
    }
    put(o, " codes:%d..%d", g->lo, g->hi);
}

static void put_method(output *o, const char *before, const fq_spec *s)
{
    put(o, "%s%s", before, method_word[s->method]);
    if (s->parameter != 0)
        put(o, ":%.9g", (double)s->parameter);
}

void fq_spec_print(char *text, size_t bytes, const fq_spec *s)
{
    const kn_grid *g = &s->grid;
    output o = {text, bytes, 0};
    if (!bytes)
        return;
    text[0] = 0;
    if (!g->bits) {
        put(&o, "float");
        if (fq_is_stored_float(s))
            put(&o, " %s", scale_word[g->scale]);
        return;
    }
    put_levels(&o, g);
    put(&o, " %s", grain_word[g->grain]);
    if (g->grain == KN_GROUP || g->grain == KN_BLOCK)
        put(&o, ":%d", g->group);
    put(&o, " %s", scale_word[g->scale]);
    if (g->rule != KN_RULE_NIBBLE)
        put(&o, " %s", rule_word[g->rule]);
    if (g->outlier > 0)
        put(&o, " outliers:%.9g", (double)g->outlier);
    put(&o, " %s", range_word[s->range]);
    bool named = s->method != FQ_MINMAX || s->parameter != 0;
    if (s->range == FQ_STATIC && named)
        put_method(&o, ":", s);
    if (s->range == FQ_LEARNED && s->learning != FQ_LOG)
        put(&o, ":%s", learning_word[s->learning]);
    if (s->range == FQ_LEARNED && named)
        put_method(&o, " from:", s);
    if (s->ste != default_ste(s->range))
        put(&o, " %s", ste_word[s->ste]);
    if (s->before_rotation)
        put(&o, " before-rotation");
    if (s->offset)
        put(&o, " offset");
}

bool fq_spec_equal(const fq_spec *a, const fq_spec *b)
{
    if (!a->grid.bits || !b->grid.bits)
        return a->grid.bits == b->grid.bits && a->grid.scale == b->grid.scale;
    return kn_grid_equal(&a->grid, &b->grid) && a->range == b->range && a->method == b->method && a->ste == b->ste &&
           a->learning == b->learning && a->before_rotation == b->before_rotation && a->offset == b->offset &&
           a->parameter == b->parameter;
}
