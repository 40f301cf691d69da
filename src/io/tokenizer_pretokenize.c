/* tokenizer_pretokenize.c - what happens to a text before byte-level merging: Unicode's form C, and cutting into words.
 *   A step has a pattern. Its matches and the gaps between them are pieces (invert: the gaps are the matches); matches
 *   are pieces of their own (isolated), dropped (removed), joined with each other (contiguous), or joined with the gap
 *   before or after. Each piece goes to the next step as a text of its own; those of the last step are the words.
 * Patterns run in PCRE2 with Unicode classes; its \s has U+180E too, which is no white space since Unicode 6.3, so it
 * stands as U+200B (format, like it, and of 3 bytes) in what is matched. A pattern that backtracks without end is
 * stopped. Source: Hugging Face tokenizers, pre_tokenizers/split.rs, normalizer.rs (SplitDelimiterBehavior); UAX #15.
 */
#include "io/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { MAX_STEPS = 16, MAX_PATTERN = 16384, MATCH_LIMIT = 2000000, HEAP_LIMIT_KB = 32768, NORMALIZE_BYTES = 65536 };

struct fm_pretokenizer {
    pcre2_code *code;
    char *pattern; /* NUL-terminated */
    fm_cut cut;
    bool invert;
};

/* ---- steps ---- */

/* Oniguruma's set operations mean something else in PCRE2. */
static bool has_set_operation(const char *pattern, size_t bytes)
{
    bool in_class = false;
    for (size_t i = 0; i < bytes; i++) {
        if (pattern[i] == '\\')
            i++;
        else if (pattern[i] == '[')
            in_class = true;
        else if (pattern[i] == ']')
            in_class = false;
        else if (in_class && i + 1 < bytes && pattern[i] == '&' && pattern[i + 1] == '&')
            return true;
    }
    return false;
}

static status compile(pcre2_code **code, const char *pattern, size_t bytes)
{
    int error;
    PCRE2_SIZE at;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context)
        return nb_fail(NB_NOMEM, "no memory for a pattern of %zu bytes", bytes);
    (void)pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    *code = pcre2_compile((PCRE2_SPTR)pattern, bytes, options, &error, &at, context);
    pcre2_compile_context_free(context);
    if (!*code) {
        char text[128] = "";
        (void)pcre2_get_error_message(error, (PCRE2_UCHAR *)text, sizeof text);
        return nb_fail(NB_UNSUPPORTED, "pre-tokenizer pattern '%.200s', at byte %zu: %s", pattern, (size_t)at, text);
    }
    (void)pcre2_jit_compile(*code, PCRE2_JIT_COMPLETE); /* where it is not to be had, the interpreter does it */
    return NB_OK;
}

status fm_pretokenizer_add(fm_vocab *v, const char *pattern, size_t bytes, fm_cut cut, bool invert)
{
    if (v->n_pretokenizers == MAX_STEPS)
        return nb_fail(NB_UNSUPPORTED, "more than %d pre-tokenizers", MAX_STEPS);
    if (bytes > MAX_PATTERN || memchr(pattern, 0, bytes) || has_set_operation(pattern, bytes))
        return nb_fail(NB_UNSUPPORTED, "pre-tokenizer pattern of %zu bytes: too long, or with a NUL or && in it",
                       bytes);
    if (!v->pretokenizer && !(v->pretokenizer = nb_alloc_zeroed(MAX_STEPS, sizeof *v->pretokenizer)))
        return NB_NOMEM;
    fm_pretokenizer *p = &v->pretokenizer[v->n_pretokenizers];
    p->pattern = nb_alloc(bytes + 1, 1);
    if (!p->pattern)
        return NB_NOMEM;
    memcpy(p->pattern, pattern, bytes);
    p->pattern[bytes] = 0;
    p->cut = cut;
    p->invert = invert;
    v->n_pretokenizers++; /* from here on fm_pretokenizers_free has it */
    return compile(&p->code, p->pattern, bytes);
}

const char *fm_pretokenizer_pattern(const fm_vocab *v, int i, fm_cut *cut, bool *invert)
{
    *cut = v->pretokenizer[i].cut;
    *invert = v->pretokenizer[i].invert;
    return v->pretokenizer[i].pattern;
}

void fm_pretokenizers_free(fm_vocab *v)
{
    for (int i = 0; i < v->n_pretokenizers; i++) {
        pcre2_code_free(v->pretokenizer[i].code);
        free(v->pretokenizer[i].pattern);
    }
    free(v->pretokenizer);
}

/* ---- cutting ---- */

typedef struct {
    const fm_vocab *v;
    const char *text, *matched; /* the same but for U+180E */
    fm_words words;
    pcre2_match_data *match;
    pcre2_match_context *limits;
} cutter;

typedef struct {
    size_t from, to;
    bool is_match;
} span;

/* The first match in text[at..to), which is not empty; looking around reaches back to from. {to, to}: there is none. */
static status next_match(const cutter *c, const fm_pretokenizer *p, size_t from, size_t to, size_t at, span *found)
{
    PCRE2_SPTR subject = (PCRE2_SPTR)c->matched + from;
    const uint32_t options = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    *found = (span){to, to, !p->invert};
    int n = pcre2_match(p->code, subject, to - from, at - from, options, c->match, c->limits);
    if (n == PCRE2_ERROR_JIT_STACKLIMIT)
        n = pcre2_match(p->code, subject, to - from, at - from, options | PCRE2_NO_JIT, c->match, c->limits);
    if (n == PCRE2_ERROR_NOMEMORY)
        return nb_fail(NB_NOMEM, "no memory to match '%.200s'", p->pattern);
    if (n < 0 && n != PCRE2_ERROR_NOMATCH)
        return nb_fail(NB_UNSUPPORTED, "pre-tokenizer pattern '%.200s' takes too long", p->pattern);
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(c->match);
    if (n >= 0 && ends[0] >= at - from && ends[0] < ends[1] && ends[1] <= to - from) {
        found->from = from + ends[0];
        found->to = from + ends[1];
    }
    return NB_OK;
}

/* Whether the piece next, which follows held, is joined with it. */
static bool joins(fm_cut cut, span held, span next)
{
    switch (cut) {
    case FM_CUT_CONTIGUOUS:
        return held.is_match == next.is_match;
    case FM_CUT_WITH_PREVIOUS:
        return next.is_match && !held.is_match;
    case FM_CUT_WITH_NEXT:
        return held.is_match && !next.is_match;
    default:
        return false;
    }
}

/* Cuts text[from..to) by step and all after it. */
static status cut_span(cutter *c, int step, size_t from, size_t to)
{
    if (step == c->v->n_pretokenizers)
        return c->words.fn(c->words.ctx, c->text + from, to - from);
    const fm_pretokenizer *p = &c->v->pretokenizer[step];
    span held = {from, from, false}, next[2];
    for (size_t at = from; at < to; at = next[1].to) {
        TRY(next_match(c, p, from, to, at, &next[1]));
        next[0] = (span){at, next[1].from, p->invert};
        for (int i = 0; i < 2; i++) {
            if (next[i].from == next[i].to || (next[i].is_match && p->cut == FM_CUT_REMOVED))
                continue;
            if (held.to > held.from && joins(p->cut, held, next[i])) {
                held.to = next[i].to;
                held.is_match = next[i].is_match;
                continue;
            }
            if (held.to > held.from)
                TRY(cut_span(c, step + 1, held.from, held.to));
            held = next[i];
        }
    }
    return held.to > held.from ? cut_span(c, step + 1, held.from, held.to) : NB_OK;
}

/* The end of the valid UTF-8 that begins at text[at]. */
static size_t valid_end(const char *text, size_t bytes, size_t at)
{
    int length;
    while (at < bytes && (length = fm_utf8_length((const uint8_t *)text + at, bytes - at)) > 0)
        at += (size_t)length;
    return at;
}

static size_t invalid_end(const char *text, size_t bytes, size_t at)
{
    while (at < bytes && fm_utf8_length((const uint8_t *)text + at, bytes - at) <= 0)
        at++;
    return at;
}

/* Cuts the valid runs of c->text. */
static status cut_runs(cutter *c, size_t bytes)
{
    for (size_t at = 0, end; at < bytes; at = end) {
        end = valid_end(c->text, bytes, at);
        if (end > at)
            TRY(cut_span(c, 0, at, end));
        at = end;
        end = invalid_end(c->text, bytes, at);
        if (end > at)
            TRY(c->words.fn(c->words.ctx, c->text + at, end - at));
    }
    return NB_OK;
}

/* *copy <- text with U+200B for U+180E; NULL where there is none. */
static status replace_separator(char **copy, const char *text, size_t bytes)
{
    *copy = NULL;
    for (size_t i = 0; i + 3 <= bytes; i++) {
        const char *found = memchr(text + i, 0xE1, bytes - i - 2);
        if (!found)
            break;
        i = (size_t)(found - text);
        if (memcmp(found, "\xE1\xA0\x8E", 3) != 0)
            continue;
        if (!*copy) {
            *copy = nb_alloc(bytes, 1);
            if (!*copy)
                return NB_NOMEM;
            memcpy(*copy, text, bytes);
        }
        memcpy(*copy + i, "\xE2\x80\x8B", 3);
    }
    return NB_OK;
}

status fm_pretokenize(const fm_vocab *v, const char *text, size_t bytes, fm_words words)
{
    char *copy;
    TRY(replace_separator(&copy, text, bytes));
    cutter c = {.v = v, .text = text, .matched = copy ? copy : text, .words = words};
    c.match = pcre2_match_data_create(1, NULL);
    c.limits = pcre2_match_context_create(NULL);
    status s = c.match && c.limits ? NB_OK : nb_fail(NB_NOMEM, "no memory to match patterns");
    if (s == NB_OK) {
        (void)pcre2_set_match_limit(c.limits, MATCH_LIMIT);
        (void)pcre2_set_heap_limit(c.limits, HEAP_LIMIT_KB);
        s = cut_runs(&c, bytes);
    }
    pcre2_match_data_free(c.match);
    pcre2_match_context_free(c.limits);
    free(copy);
    return s;
}

/* ---- normalization ---- */

typedef struct {
    char *text;
    size_t bytes, capacity;
} buffer;

static status append(buffer *b, const void *text, size_t bytes)
{
    if (bytes > b->capacity - b->bytes) {
        size_t capacity = b->capacity + b->capacity / 2 + bytes + 64;
        char *grown = nb_resize(b->text, capacity, 1);
        if (!grown)
            return NB_NOMEM;
        b->text = grown;
        b->capacity = capacity;
    }
    if (bytes > 0)
        memcpy(b->text + b->bytes, text, bytes);
    b->bytes += bytes;
    return NB_OK;
}

static status append_composed(buffer *b, const char *text, size_t bytes)
{
    utf8proc_uint8_t *composed = NULL;
    utf8proc_ssize_t n = utf8proc_map((const uint8_t *)text, (utf8proc_ssize_t)bytes, &composed,
                                      (utf8proc_option_t)(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    if (n == UTF8PROC_ERROR_NOMEM)
        return nb_fail(NB_NOMEM, "no memory to normalize %zu bytes", bytes);
    status s = n < 0 ? append(b, text, bytes) : append(b, composed, (size_t)n);
    free(composed);
    return s;
}

/* text is valid UTF-8. */
static status compose_run(buffer *b, const char *text, size_t bytes)
{
    for (size_t at = 0, end; at < bytes; at = end) {
        end = bytes - at > NORMALIZE_BYTES ? at + NORMALIZE_BYTES : bytes;
        while (end < bytes && (uint8_t)text[end] >= 0x80) /* nothing composes across the gap before ASCII */
            end++;
        TRY(append_composed(b, text + at, end - at));
    }
    return NB_OK;
}

static status compose_all(buffer *b, const char *text, size_t bytes)
{
    for (size_t at = 0, end; at < bytes; at = end) {
        end = valid_end(text, bytes, at);
        TRY(compose_run(b, text + at, end - at));
        at = end;
        end = invalid_end(text, bytes, at);
        TRY(append(b, text + at, end - at));
    }
    return NB_OK;
}

status fm_normalize(char **out, size_t *out_bytes, const char *text, size_t bytes)
{
    size_t i = 0;
    while (i < bytes && (uint8_t)text[i] < 0xCC) /* below U+0300 all is composed */
        i++;
    *out = NULL;
    *out_bytes = bytes;
    if (i == bytes)
        return NB_OK;
    buffer b = {0};
    status s = compose_all(&b, text, bytes);
    if (s != NB_OK) {
        free(b.text);
        return s;
    }
    *out = b.text;
    *out_bytes = b.bytes;
    return NB_OK;
}
