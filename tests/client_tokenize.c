/* client_tokenize.c - llama.cpp's tokenizer on a GGUF file; built by test_tokenizer_llama.c against the headers of the
 * same version. Numbers are int32.
 *   client_tokenize LIBRARIES MODEL TEXTS OUT
 * LIBRARIES is the folder of libllama and libggml; TEXTS: for each text parse_special, n and n bytes; OUT: for each
 * text n and n ids, then for each id of the vocabulary is_eog, n and n bytes, its piece without specials.
 */
#include <llama.h>

#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what, const char *name)
{
    (void)fprintf(stderr, "client_tokenize: %s %s\n", what, name);
    exit(1);
}

/* Loads the library in folder whose name begins so. */
static void load(const char *folder, const char *prefix)
{
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[4096];
        (void)snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (strncmp(e->d_name, prefix, strlen(prefix)) != 0)
            continue;
        if (!dlopen(path, RTLD_NOW | RTLD_GLOBAL))
            fail("cannot load", dlerror());
        (void)closedir(d);
        return;
    }
    fail("no library", prefix);
}

static void *symbol(const char *name)
{
    void *p = dlsym(RTLD_DEFAULT, name);
    if (!p)
        fail("no function", name);
    return p;
}

/* A function of the library under its own type. */
#define CALL(name) ((__typeof__(&name))symbol(#name))

static void quiet(enum ggml_log_level level, const char *text, void *ctx)
{
    (void)level;
    (void)text;
    (void)ctx;
}

static void put(FILE *out, const void *data, size_t size, int32_t n)
{
    if (fwrite(&n, sizeof n, 1, out) != 1 || fwrite(data, size, (size_t)n, out) != (size_t)n)
        fail("cannot write", "");
}

int main(int argc, char **argv)
{
    enum { MOST = 1 << 20 };
    if (argc != 5)
        fail("usage:", "LIBRARIES MODEL TEXTS OUT");
    load(argv[1], "libggml-base");
    load(argv[1], "libggml.");
    load(argv[1], "libllama.");
    CALL(llama_log_set)(quiet, NULL);
    struct llama_model_params p = CALL(llama_model_default_params)();
    p.vocab_only = true;
    struct llama_model *m = CALL(llama_model_load_from_file)(argv[2], p);
    FILE *in = fopen(argv[3], "rb"), *out = fopen(argv[4], "wb");
    char *text = malloc(MOST);
    int32_t *ids = malloc(MOST * sizeof *ids), head[2];
    if (!m || !in || !out || !text || !ids)
        fail("cannot open", argv[2]);
    const struct llama_vocab *v = CALL(llama_model_get_vocab)(m);
    while (fread(head, sizeof head, 1, in) == 1) {
        if (head[1] < 0 || head[1] > MOST || fread(text, 1, (size_t)head[1], in) != (size_t)head[1])
            fail("cannot read", argv[3]);
        int32_t n = CALL(llama_tokenize)(v, text, head[1], ids, MOST, true, head[0] != 0);
        if (n < 0)
            fail("cannot tokenize", argv[3]);
        put(out, ids, sizeof *ids, n);
    }
    for (int32_t id = 0; id < CALL(llama_vocab_n_tokens)(v); id++) {
        int32_t ends = CALL(llama_vocab_is_eog)(v, id), n = CALL(llama_token_to_piece)(v, id, text, MOST, 0, false);
        if (n < 0 || fwrite(&ends, sizeof ends, 1, out) != 1)
            fail("cannot write", argv[4]);
        put(out, text, 1, n);
    }
    (void)fclose(in);
    if (fclose(out) != 0)
        fail("cannot write", argv[4]);
    free(text);
    free(ids);
    CALL(llama_model_free)(m);
    return 0;
}
