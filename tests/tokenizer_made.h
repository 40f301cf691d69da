/* tokenizer_made.h - for tests: small tokenizer.json files, built stage by stage. In JSON texts here ` stands for ".
 */
#ifndef NIBBLE_TESTS_TOKENIZER_MADE_H
#define NIBBLE_TESTS_TOKENIZER_MADE_H
#include "random_texts.h"
#include "tokenizer_files.h"

#define BYTE_LEVEL(prefix, regex)                                                                                      \
    "{`type`:`ByteLevel`,`add_prefix_space`:" #prefix ",`trim_offsets`:true,`use_regex`:" #regex "}"
#define SEQUENCE(a, b) "{`type`:`Sequence`,`pretokenizers`:[" a "," b "]}"
#define SPLIT(kind, pattern, how, invert)                                                                              \
    "{`type`:`Split`,`pattern`:{`" kind "`:`" pattern "`},`behavior`:`" how "`,`invert`:" #invert "}"
#define CUT(pattern, how) SEQUENCE(SPLIT("Regex", pattern, how, false), BYTE_LEVEL(false, false))
#define DIGITS(each)      "{`type`:`Digits`,`individual_digits`:" #each "}"
#define QWEN2                                                                                                          \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+"        \
    "[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define PREPEND "{`type`:`Prepend`,`prepend`:`\xE2\x96\x81`}"
#define REPLACE "{`type`:`Replace`,`pattern`:{`String`:` `},`content`:`\xE2\x96\x81`}"
#define LLAMA2  "{`type`:`Sequence`,`normalizers`:[" PREPEND "," REPLACE "]}"
#define METASPACE(scheme, split)                                                                                       \
    "{`type`:`Metaspace`,`replacement`:`\xE2\x96\x81`,`prepend_scheme`:`" scheme "`,`split`:" #split "}"
#define STRIPS                                                                                                         \
    "{`id`:276,`content`:`<l>`,`lstrip`:true},{`id`:277,`content`:`<r>`,`rstrip`:true},"                               \
    "{`id`:278,`content`:`then`,`single_word`:true},{`id`:279,`content`:`n\303\251`,`normalized`:true}"
#define BOS "{`id`:1,`content`:`<s>`,`special`:true}"

typedef struct {
    const char *normalizer, *pre_tokenizer, *added, *model; /* model: more members */
    const char *text, *ids;
} row;

static inline void put_json(file *f, const char *text)
{
    for (; *text; text++)
        put(f, *text == '`' ? "\"" : text, 1);
}

static inline void put_entry(file *f, const char *text, size_t bytes, int *id)
{
    char number[32];
    put_json(f, *id ? ",`" : "`");
    if (bytes == 1 && (*text == '"' || *text == '\\'))
        put(f, "\\", 1);
    if (bytes == 1 && *text == '`')
        put_json(f, "\\u0060");
    else
        put(f, text, bytes);
    (void)snprintf(number, sizeof number, "`:%d", (*id)++);
    put_json(f, number);
}

/* GPT-2's letter for a byte, by its definition: bytes that are no letter take U+0100 and on. */
static inline size_t letter(char *text, int byte)
{
    uint32_t code = 256;
    for (int b = 0; b <= byte; b++) {
        bool printable = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        if (b == byte && printable)
            return put_code(text, (uint32_t)byte);
        code += !printable;
    }
    return put_code(text, code - 1);
}

/* "a b" or ["a","b"], joined by commas; and what they make as entries. */
static inline void put_merges(file *merges, file *f, const char *const *merge, int n, bool pairs, int *id)
{
    for (int i = 0; i < n; i++) {
        const char *space = strchr(merge[i], ' ');
        char made[64], text[96];
        int left = (int)(space - merge[i]);
        (void)snprintf(made, sizeof made, "%.*s%s", left, merge[i], space + 1);
        put_entry(f, made, strlen(made), id);
        (void)snprintf(text, sizeof text, pairs ? "%s[`%.*s`,`%s`]" : "%s`%.*s %s`", i ? "," : "", left, merge[i],
                       space + 1);
        put_json(merges, text);
    }
}

static inline void put_tail(file *f, const file *merges, const row *r)
{
    put_json(f, "},`merges`:[");
    put(f, merges->byte, merges->n);
    put_json(f, "]");
    put_json(f, *r->model ? "," : "");
    put_json(f, r->model);
    put_json(f, "},`added_tokens`:[");
    put_json(f, r->added);
    put_json(f, "],`normalizer`:");
    put_json(f, r->normalizer);
    put_json(f, ",`pre_tokenizer`:");
    put_json(f, r->pre_tokenizer);
    put_json(f, "}");
}

static const char *const merges_of_bytes[] = {"t h",
                                              "th e",
                                              "\304\240 the",
                                              "\304\240 t",
                                              "i n",
                                              "e r",
                                              "1 2",
                                              "12 3",
                                              "\304\212 \304\212",
                                              "\304\240 \304\240",
                                              "\304\240\304\240 \304\240\304\240",
                                              "' s",
                                              "' S",
                                              "a b",
                                              "ab c",
                                              "\303\203 \302\251",
                                              "e \303\214",
                                              "e\303\214 \304\243",
                                              "c \304\240",
                                              ". ."};

/* Ids 0..255 are the bytes. */
static inline void make_byte_level(file *f, const row *r, bool pairs)
{
    static file merges;
    int id = 0;
    f->n = merges.n = 0;
    put_json(f, "{`model`:{`type`:`BPE`,`vocab`:{");
    for (int i = 0; i < 256; i++) {
        char text[4];
        put_entry(f, text, letter(text, i), &id);
    }
    put_merges(&merges, f, merges_of_bytes, COUNT(merges_of_bytes), pairs, &id);
    put_tail(f, &merges, r);
}

static const char *const merges_of_characters[] = {"t h",
                                                   "th e",
                                                   "\342\226\201 the",
                                                   "\342\226\201 \342\226\201",
                                                   "\342\226\201\342\226\201 \342\226\201\342\226\201",
                                                   "\342\226\201 a",
                                                   "a b"};

static inline void make_characters(file *f, const row *r)
{
    static file merges;
    static const char *const characters[] = {"<unk>", "<s>", "</s>", "\xE2\x96\x81", "a", "b", "t", "h", "e", "x"};
    int id = 0;
    f->n = merges.n = 0;
    put_json(f, "{`model`:{");
    put_json(f, strstr(r->model, "byte_fallback") ? "" : "`byte_fallback`:true,");
    put_json(f, strstr(r->model, "fuse_unk") ? "" : "`fuse_unk`:true,");
    put_json(f, "`unk_token`:`<unk>`,`vocab`:{");
    for (int i = 0; i < COUNT(characters); i++) {
        for (unsigned k = 0; i == 3 && k < 256; k++) {
            char text[8];
            (void)snprintf(text, sizeof text, "<0x%02X>", k & 255);
            put_entry(f, text, 6, &id);
        }
        put_entry(f, characters[i], strlen(characters[i]), &id);
    }
    put_merges(&merges, f, merges_of_characters, COUNT(merges_of_characters), false, &id);
    put_tail(f, &merges, r);
}

#endif
