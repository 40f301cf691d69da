/* gguf_source.h - for tests: GGUF files as they come from the field, with keys of every type that nobody here reads. */
#ifndef NIBBLE_TESTS_GGUF_SOURCE_H
#define NIBBLE_TESTS_GGUF_SOURCE_H
#include "models_made.h"
#include "scratch.h"

static const md_config source_shapes[] = {MADE(32, 44, 1, 4, 2, 8, 260, .tied = true), MADE(64, 96, 2, 4, 4, 16, 300, .tied = false)};

/* A file of a float model with the built-in tokenizer and keys of every type that nobody here reads. rename: its architecture as it should
 * be called, NULL: llama. */
static inline const char *source_file(const char *name, const md_config *c, const char *rename)
{
    static const fm_text words[] = {{"one", 3}, {"", 0}, {"a\0b", 3}};
    static const uint8_t numbers[64] = {1, 2, 3, 4, 5, 6, 7, 8, 0xF0, 0x7F};
    static const fm_dtype types[] = {FM_U8, FM_I8, FM_U16, FM_I16, FM_U32, FM_I32, FM_F32, FM_BOOL, FM_U64, FM_I64, FM_F64};
    md_model m;
    fm_arrays a;
    fm_meta meta = {0};
    made_model(&m, c, "float", 3);
    ck_assert(fm_tokenizer_byte(&m.tokenizer) == NB_OK);
    ck_assert_msg(md_export(&m, "gguf", scratch_path("plain.gguf"), NULL, 0) == NB_OK, "%s", nb_fail_message());
    ck_assert(fm_gguf_open(&a, scratch_path("plain.gguf")) == NB_OK);
    fm_meta_put_string(&meta, "general.name", "made for a test");
    fm_meta_put_strings(&meta, "general.languages", words, 3);
    for (int64_t i = 0; i < a.meta.n; i++) {
        fm_value v = a.meta.value[i];
        char key[96];
        if (strstr(v.key, ".rope.") || strstr(v.key, "vocab_size") || !strcmp(v.key, "nibble.recipe")) /* a reader does without */
            continue;
        if (rename && !strncmp(v.key, "llama.", 6)) {
            (void)snprintf(key, sizeof key, "%s.%s", rename, v.key + 6);
            v.key = key;
        }
        if (rename && !strcmp(v.key, "general.architecture"))
            fm_meta_put_string(&meta, v.key, rename);
        else
            fm_meta_put_value(&meta, &v);
    }
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char key[32];
        (void)snprintf(key, sizeof key, "odd.one.%s", fm_dtype_name(types[i]));
        fm_meta_put(&meta, key, types[i], numbers + i);
        (void)snprintf(key, sizeof key, "odd.list.%s", fm_dtype_name(types[i]));
        fm_meta_put_array(&meta, key, types[i], numbers + i, types[i] == FM_I8 ? 0 : 5);
    }
    fm_meta_put_u32(&meta, "general.alignment", 64);
    fm_meta_put_string(&meta, "tokenizer.chat_template", "{{ <|im_start|> }}");
    fm_meta_put_bool(&meta, "tokenizer.ggml.odd", true);
    const char *path = scratch_path(name);
    ck_assert_msg(fm_gguf_write(path, a.array, a.n, &meta, (fm_source){0}) == NB_OK, "%s", nb_fail_message());
    fm_meta_free(&meta);
    fm_arrays_free(&a);
    md_free(&m);
    return path;
}

#endif
