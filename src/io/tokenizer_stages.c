/* tokenizer_stages.c - what a tokenizer.json says about the text before and after its model.
 *   normalizer       null | NFC | Prepend U+2581 | Replace " " by U+2581 | Sequence of them
 *   pre_tokenizer    byte-level: ByteLevel | Split | Digits | Sequence of them;  else null | Metaspace
 *   post_processor   TemplateProcessing: a token in front of the text is BOS
 * Others are refused by name. Source: Hugging Face tokenizers, normalizers/, pre_tokenizers/, processors/template.rs.
 */
#include "io/tokenizer_json.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_SEQUENCE = 16 };

static const char *type_of(const nb_json *stage)
{
    const char *type = nb_json_string(nb_json_get(stage, "type"));
    return type ? type : "";
}

static bool is_type(const nb_json *stage, const char *type)
{
    return strcmp(type_of(stage), type) == 0;
}

/* The stages of a Sequence (key: of its list), or the one there is; at most MAX_SEQUENCE. */
static status list_stages(const nb_json *list[MAX_SEQUENCE], int *n, const nb_json *stage, const char *key)
{
    *n = 0;
    if (nb_json_is_null(stage))
        return NB_OK;
    if (!is_type(stage, "Sequence")) {
        list[(*n)++] = stage;
        return NB_OK;
    }
    for (const nb_json *i = nb_json_first(nb_json_get(stage, key)); i; i = nb_json_next(i)) {
        if (*n == MAX_SEQUENCE || is_type(i, "Sequence"))
            return nb_fail(NB_UNSUPPORTED, "%s: more than %d, or a Sequence in a Sequence", key, MAX_SEQUENCE);
        list[(*n)++] = i;
    }
    return NB_OK;
}

/* ---- normalizer ---- */

static status set_normalizer(fm_tokenizer *tk, const nb_json *stage, bool *has_spaces)
{
    const char *prepend = nb_json_string(nb_json_get(stage, "prepend"));
    const char *content = nb_json_string(nb_json_get(stage, "content"));
    const char *replaced = nb_json_string(nb_json_get(nb_json_get(stage, "pattern"), "String"));
    bool spaces = content && replaced && strcmp(content, FM_SPACE) == 0 && strcmp(replaced, " ") == 0;
    if (is_type(stage, "NFC"))
        tk->vocab->nfc = true;
    else if (is_type(stage, "Prepend") && prepend && strcmp(prepend, FM_SPACE) == 0 && !tk->vocab->byte_level)
        tk->add_space_prefix = true;
    else if (is_type(stage, "Replace") && spaces && !tk->vocab->byte_level)
        *has_spaces = true;
    else
        return nb_fail(NB_UNSUPPORTED, "a normalizer %.40s; NFC, and Prepend and Replace of U+2581 are read",
                       type_of(stage));
    return NB_OK;
}

/* ---- pre_tokenizer ---- */

static status cut_of(fm_cut *cut, const char *name)
{
    static const char *const names[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"};
    for (int i = 0; name && i < 5; i++)
        if (!strcmp(name, names[i])) {
            *cut = (fm_cut)i;
            return NB_OK;
        }
    return nb_fail(NB_UNSUPPORTED, "a Split with behavior %.40s", name ? name : "(none)");
}

static status add_split(fm_tokenizer *tk, const nb_json *stage)
{
    const nb_json *pattern = nb_json_get(stage, "pattern");
    const char *regex = nb_json_string(nb_json_get(pattern, "Regex"));
    const char *text = nb_json_string(nb_json_get(pattern, "String"));
    bool invert = nb_json_bool(nb_json_get(stage, "invert"), false);
    fm_cut cut = FM_CUT_ISOLATED;
    TRY(cut_of(&cut, nb_json_string(nb_json_get(stage, "behavior"))));
    if (regex)
        return fm_pretokenizer_add(tk->vocab, regex, strlen(regex), cut, invert);
    if (!text || !*text)
        return nb_fail(NB_FORMAT, "a Split without a pattern");
    size_t bytes = strlen(text), n = 0;
    char *escaped = nb_alloc(bytes, 2);
    if (!escaped)
        return NB_NOMEM;
    for (size_t i = 0; i < bytes; i++) { /* a backslash takes the meaning of every ASCII sign */
        bool plain = (uint8_t)text[i] >= 0x80 || text[i] == '_' || (text[i] >= '0' && text[i] <= '9') ||
                     (text[i] >= 'A' && text[i] <= 'Z') || (text[i] >= 'a' && text[i] <= 'z');
        if (!plain)
            escaped[n++] = '\\';
        escaped[n++] = text[i];
    }
    status s = fm_pretokenizer_add(tk->vocab, escaped, n, cut, invert);
    free(escaped);
    return s;
}

static status add_byte_level(fm_tokenizer *tk, const nb_json *stage)
{
    if (nb_json_bool(nb_json_get(stage, "add_prefix_space"), true)) {
        if (tk->vocab->n_pretokenizers > 0)
            return nb_fail(NB_UNSUPPORTED, "a ByteLevel with add_prefix_space after another pre-tokenizer");
        tk->add_space_prefix = true;
    }
    if (!nb_json_bool(nb_json_get(stage, "use_regex"), true))
        return NB_OK;
    return fm_pretokenizer_add(tk->vocab, fm_pre_gpt2, strlen(fm_pre_gpt2), FM_CUT_ISOLATED, false);
}

static status add_pretokenizer(fm_tokenizer *tk, const nb_json *stage)
{
    if (is_type(stage, "ByteLevel"))
        return add_byte_level(tk, stage);
    if (is_type(stage, "Split"))
        return add_split(tk, stage);
    if (is_type(stage, "Digits")) {
        bool each = nb_json_bool(nb_json_get(stage, "individual_digits"), false);
        return fm_pretokenizer_add(tk->vocab, fm_pre_digit, strlen(fm_pre_digit),
                                   each ? FM_CUT_ISOLATED : FM_CUT_CONTIGUOUS, false);
    }
    return nb_fail(NB_UNSUPPORTED, "a pre-tokenizer %.40s; ByteLevel, Split, Digits and Metaspace are read",
                   type_of(stage));
}

/* Of a model that is not byte-level. */
static status set_spaces(fm_tokenizer *tk, const nb_json *stage, bool *has_spaces)
{
    fm_vocab *v = tk->vocab;
    const char *text = nb_json_string(nb_json_get(nb_json_get(stage, "pattern"), "String"));
    if (is_type(stage, "Split") && text && strcmp(text, " ") == 0 && *has_spaces)
        return NB_OK; /* at spaces, of which none are left */
    const char *space = nb_json_string(nb_json_get(stage, "replacement"));
    if (!is_type(stage, "Metaspace") || !space || strcmp(space, FM_SPACE) != 0)
        return nb_fail(NB_UNSUPPORTED,
                       "a pre-tokenizer %.40s for a model that is not byte-level; Metaspace with "
                       "U+2581 is read",
                       type_of(stage));
    const char *scheme = nb_json_string(nb_json_get(stage, "prepend_scheme"));
    bool older = nb_json_bool(nb_json_get(stage, "add_prefix_space"), true);
    tk->add_space_prefix = scheme ? strcmp(scheme, "never") != 0 : older;
    v->prefix_once = scheme && strcmp(scheme, "first") == 0;
    v->prefix_if_absent = true;
    v->split_spaces = nb_json_bool(nb_json_get(stage, "split"), true);
    *has_spaces = true;
    return NB_OK;
}

status fm_json_stages(fm_tokenizer *tk, const nb_json *root)
{
    const nb_json *stage[MAX_SEQUENCE];
    int n;
    bool has_spaces = false;
    TRY(list_stages(stage, &n, nb_json_get(root, "pre_tokenizer"), "pretokenizers"));
    for (int i = 0; i < n; i++)
        tk->vocab->byte_level |= is_type(stage[i], "ByteLevel");
    TRY(list_stages(stage, &n, nb_json_get(root, "normalizer"), "normalizers"));
    for (int i = 0; i < n; i++)
        TRY(set_normalizer(tk, stage[i], &has_spaces));
    TRY(list_stages(stage, &n, nb_json_get(root, "pre_tokenizer"), "pretokenizers"));
    for (int i = 0; i < n; i++)
        TRY(tk->vocab->byte_level ? add_pretokenizer(tk, stage[i]) : set_spaces(tk, stage[i], &has_spaces));
    if (!tk->vocab->byte_level && !has_spaces)
        return nb_fail(NB_UNSUPPORTED, "a tokenizer that is neither byte-level nor has U+2581 for spaces");
    return NB_OK;
}

/* ---- post_processor ---- */

status fm_json_post(fm_tokenizer *tk, const nb_json *post)
{
    const nb_json *stage[MAX_SEQUENCE];
    int n;
    TRY(list_stages(stage, &n, post, "processors"));
    for (int i = 0; i < n; i++) {
        const nb_json *first = nb_json_first(nb_json_get(stage[i], "single"));
        const char *text = nb_json_string(nb_json_get(nb_json_get(first, "SpecialToken"), "id"));
        int32_t id = text ? fm_tokenizer_find(tk, text, strlen(text)) : -1;
        if (!is_type(stage[i], "TemplateProcessing") || id < 0)
            continue;
        tk->bos = id;
        tk->add_bos = true;
    }
    return NB_OK;
}
