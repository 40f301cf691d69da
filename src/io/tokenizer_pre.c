/* tokenizer_pre.c - pre-tokenizers by the names that GGUF has for them (tokenizer.ggml.pre): lists of patterns, applied
 * one after the other. Source: llama.cpp src/llama-vocab.cpp, llm_tokenizer_bpe and llama_vocab::impl::load; spelled as
 * Hugging Face's tokenizer.json does, in the second row of a name.
 */
#include "io/tokenizer.h"

#include <string.h>

#define GPT2  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define DIGIT "\\p{N}"
/* Llama-3 and Qwen2 differ in how many digits stand together. */
#define WORDS(contractions, digits)                                                                                    \
    contractions "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                                                              \
                 "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define ASCII_CASE "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
#define ANY_CASE   "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SYMBOLS    "[\\p{P}$+<=>^~|]+"

const char fm_pre_gpt2[] = GPT2;
const char fm_pre_digit[] = DIGIT;

enum { MOST_STEPS = 4 };
typedef struct {
    const char *name;
    const char *pattern[MOST_STEPS]; /* up to the first NULL */
    bool ignore_merges, add_bos;
} row;

/* Of rows with the same patterns the first gives the name. */
static const row rows[] = {
    {"gpt-2", {GPT2}, false, false},
    {"smollm", {DIGIT, GPT2}, false, false},
    {"llama-bpe", {WORDS(ASCII_CASE, "\\p{N}{1,3}")}, true, true},
    {"llama-bpe", {WORDS(ANY_CASE, "\\p{N}{1,3}")}, true, true},
    {"qwen2", {WORDS(ASCII_CASE, "\\p{N}")}, false, false},
    {"qwen2", {WORDS(ANY_CASE, "\\p{N}")}, false, false},
    {"default", {SYMBOLS, GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}, false, false},
    {"falcon", {"[\\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"}, false, false},
    {"dbrx", {WORDS(ASCII_CASE, "\\p{N}{1,3}")}, false, false},
};

/* Other names of the first rows. */
static const char *const aliases[][2] = {
    {"mpt", "gpt-2"},
    {"olmo", "gpt-2"},
    {"jais", "gpt-2"},
    {"phi-2", "gpt-2"},
    {"gigachat", "gpt-2"},
    {"mellum", "gpt-2"},
    {"modern-bert", "gpt-2"},
    {"a.x-4.0", "gpt-2"},
    {"trillion", "gpt-2"},
    {"granite-docling", "gpt-2"},
    {"starcoder", "smollm"},
    {"refact", "smollm"},
    {"command-r", "smollm"},
    {"codeshell", "smollm"},
    {"exaone", "smollm"},
    {"minerva-7b", "smollm"},
    {"llama3", "llama-bpe"},
    {"llama-v3", "llama-bpe"},
    {"falcon3", "llama-bpe"},
    {"falcon-h1", "llama-bpe"},
    {"pixtral", "llama-bpe"},
    {"midm-2.0", "llama-bpe"},
    {"lfm2", "llama-bpe"},
    {"smaug-bpe", "dbrx"},
    {"stablelm2", "qwen2"},
    {"hunyuan", "qwen2"},
    {"deepseek-r1-qwen", "qwen2"},
    {"megrez", "qwen2"},
};

status fm_pre_add(fm_tokenizer *tk, const char *name)
{
    const char *wanted = name;
    for (size_t i = 0; i < sizeof aliases / sizeof *aliases; i++)
        if (!strcmp(name, aliases[i][0]))
            wanted = aliases[i][1];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const row *r = &rows[i];
        if (strcmp(wanted, r->name) != 0)
            continue;
        for (int k = 0; k < MOST_STEPS && r->pattern[k]; k++)
            TRY(fm_pretokenizer_add(tk->vocab, r->pattern[k], strlen(r->pattern[k]), FM_CUT_ISOLATED, false));
        tk->vocab->ignore_merges = r->ignore_merges;
        tk->add_bos = r->add_bos;
        return NB_OK;
    }
    return nb_fail(NB_UNSUPPORTED,
                   "tokenizer.ggml.pre '%.60s' is not known; gpt-2, smollm, llama-bpe, qwen2, falcon, default and "
                   "names for the same are",
                   name);
}

static bool is_row(const fm_vocab *v, const row *r)
{
    int n = 0;
    while (n < MOST_STEPS && r->pattern[n])
        n++;
    if (n != v->n_pretokenizers || r->ignore_merges != v->ignore_merges)
        return false;
    for (int i = 0; i < n; i++) {
        fm_cut cut;
        bool invert;
        const char *pattern = fm_pretokenizer_pattern(v, i, &cut, &invert);
        if (strcmp(pattern, r->pattern[i]) != 0 || cut != FM_CUT_ISOLATED || invert)
            return false;
    }
    return true;
}

const char *fm_pre_name(const fm_tokenizer *tk)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (is_row(tk->vocab, &rows[i]))
            return rows[i].name;
    return NULL;
}
