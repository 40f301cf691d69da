/* test_gguf_source.c - what a GGUF file says beside its tensors comes back: every key and value of a model's source, through folding,
 * checkpoints and untying, in order and byte for byte, but for what the export itself changed; hostile metadata in HDF5 is refused.
 */
#include "gguf_source.h"
#include "scratch.h"
#include "suite.h"

static bool same_value(const fm_value *a, const fm_value *b)
{
    bool same = a->dtype == b->dtype && a->is_array == b->is_array && a->n == b->n;
    for (int64_t i = 0; same && a->dtype == FM_STRING && i < a->n; i++) {
        fm_text x = fm_value_text(a, i), y = fm_value_text(b, i);
        same = x.bytes == y.bytes && (x.bytes == 0 || !memcmp(x.text, y.text, x.bytes));
    }
    return same && (a->dtype == FM_STRING || a->n == 0 || !memcmp(a->data, b->data, (size_t)a->n * fm_dtype_bytes(a->dtype)));
}

static bool among(const char *key, const char *const *list)
{
    for (; *list; list++)
        if (!strcmp(key, *list))
            return true;
    return false;
}

/* Every key of the source in its order, but those `changed` with another value; then those added. */
static void compare_keys(const char *source, const char *exported, const char *const *changed, const char *const *added)
{
    fm_arrays a, b;
    int64_t n_added = 0;
    ck_assert_msg(fm_gguf_open(&a, source) == NB_OK && fm_gguf_open(&b, exported) == NB_OK, "%s", nb_fail_message());
    while (added[n_added])
        n_added++;
    ck_assert_int_eq(b.meta.n, a.meta.n + n_added);
    for (int64_t i = 0; i < a.meta.n; i++) {
        const fm_value *was = &a.meta.value[i], *is = &b.meta.value[i];
        ck_assert_str_eq(was->key, is->key);
        ck_assert_msg(same_value(was, is) != among(was->key, changed), "%s", was->key);
    }
    for (int64_t i = a.meta.n; i < b.meta.n; i++)
        ck_assert_msg(among(b.meta.value[i].key, added), "%s is new", b.meta.value[i].key);
    fm_arrays_free(&a);
    fm_arrays_free(&b);
}

static void reopen(md_model *m, status saved, const char *path, const md_open_options *o)
{
    ck_assert_msg(saved == NB_OK, "%s", nb_fail_message());
    md_free(m);
    opened(m, path, o);
}

enum { DIRECT, FOLDED, FOLDED_TWICE, CHECKPOINT, FLOATS, UNTIED, N_ROUTES };

static void travel(md_model *m, const char *source, int route)
{
    const char *path = scratch_path("on.h5");
    const md_open_options q4_0 = {.recipe = "q4_0"}, untied = {.recipe = "q4_0", .untie = true}, train = {.train = true};
    opened(m, source, route == UNTIED ? &untied : route == FLOATS ? NULL : &q4_0);
    if (route == FOLDED || route == UNTIED)
        reopen(m, md_save_folded(m, path, false), path, NULL);
    if (route == FOLDED_TWICE) {
        reopen(m, md_save_folded(m, path, true), path, &train);
        reopen(m, md_save_folded(m, path, false), path, NULL);
    }
    if (route == CHECKPOINT) {
        made_checkpoint(path, m, FM_F32);
        reopen(m, NB_OK, path, NULL);
    }
    if (route == FLOATS)
        reopen(m, md_save_model(m, path, FM_F32), path, &q4_0);
}

START_TEST(keys_come_back_as_they_were)
{
    static const char *const padded[] = {"general.file_type", "llama.feed_forward_length", NULL}, *const added[] = {"nibble.recipe", NULL};
    for (size_t k = 0; k < sizeof source_shapes / sizeof *source_shapes; k++) {
        md_model m;
        scratch_begin();
        const char *source = source_file("source.gguf", &source_shapes[k], NULL), *path = scratch_path("out.gguf");
        travel(&m, source, _i);
        ck_assert_msg(md_export(&m, "gguf", path, NULL, 0) == NB_OK, "%s", nb_fail_message());
        compare_keys(source, path, k == 0 ? padded : (const char *const[]){"general.file_type", NULL}, added);
        md_model again;
        opened(&again, path, NULL);
        ck_assert_int_eq(again.tokenizer.hash, m.tokenizer.hash);
        if (k == 1)
            made_compare_models(&m, &again, "exported");
        md_free(&again);
        md_free(&m);
        scratch_end();
    }
}
END_TEST

START_TEST(floats_change_nothing_but_their_type)
{
    static const char *const none[] = {NULL}, *const type[] = {"general.file_type", NULL};
    static const char *const targets[] = {"gguf", "gguf-f32", "gguf-f16"};
    md_model m;
    scratch_begin();
    const char *source = source_file("source.gguf", &source_shapes[0], NULL), *path = scratch_path("out.gguf");
    opened(&m, source, NULL);
    for (int i = 0; i < 3; i++) {
        ck_assert_msg(md_export(&m, targets[i], path, NULL, 0) == NB_OK, "%s", nb_fail_message());
        compare_keys(source, path, i == 2 ? type : none, none);
    }
    m.config.rope_theta = 5000; /* as if trained on: now the reader must be told */
    ck_assert(md_export(&m, "gguf", path, NULL, 0) == NB_OK);
    compare_keys(source, path, none, (const char *const[]){"llama.rope.freq_base", NULL});
    md_free(&m);
    scratch_end();
}
END_TEST

/* Whether the tokenizer's keys are another's, and nothing else changed. */
START_TEST(another_tokenizer_brings_its_own_keys)
{
    const md_open_options o = {.tokenizer = "bytes"}; /* the same ids, but no template */
    md_model m;
    fm_arrays a, b;
    scratch_begin();
    const char *source = source_file("source.gguf", &source_shapes[0], NULL), *path = scratch_path("out.gguf");
    opened(&m, source, &o);
    ck_assert_msg(md_export(&m, "gguf", path, NULL, 0) == NB_OK, "%s", nb_fail_message());
    ck_assert(fm_gguf_open(&a, source) == NB_OK && fm_gguf_open(&b, path) == NB_OK);
    for (int64_t i = 0; i < a.meta.n; i++) {
        const fm_value *v = &a.meta.value[i], *is = fm_meta_get(&b.meta, v->key);
        const bool tokenizer = !strncmp(v->key, "tokenizer.", 10);
        ck_assert_msg(tokenizer || (is && same_value(v, is)), "%s", v->key);
    }
    ck_assert(!fm_meta_get(&b.meta, "tokenizer.chat_template") && !fm_meta_get(&b.meta, "tokenizer.ggml.odd"));
    ck_assert_str_eq(fm_value_string(fm_meta_get(&b.meta, "tokenizer.ggml.model")), "gpt2");
    fm_arrays_free(&a);
    fm_arrays_free(&b);
    md_free(&m);
    scratch_end();
}
END_TEST

/* A qwen2 file without biases is a llama file in another pairing. */
START_TEST(keys_of_another_architecture_are_written_anew)
{
    md_model m, again;
    fm_arrays b;
    scratch_begin();
    const char *source = source_file("source.gguf", &source_shapes[0], "qwen2"), *path = scratch_path("out.gguf");
    opened(&m, source, NULL);
    ck_assert(m.config.pairing == KN_ROPE_HALF);
    ck_assert_msg(md_export(&m, "gguf", path, NULL, 0) == NB_OK, "%s", nb_fail_message());
    ck_assert(fm_gguf_open(&b, path) == NB_OK);
    for (int64_t i = 0; i < b.meta.n; i++)
        ck_assert_msg(strncmp(b.meta.value[i].key, "qwen2.", 6) != 0, "%s", b.meta.value[i].key);
    ck_assert_str_eq(fm_value_string(fm_meta_get(&b.meta, "general.architecture")), "llama");
    ck_assert_str_eq(fm_value_string(fm_meta_get(&b.meta, "general.name")), "made for a test");
    opened(&again, path, NULL);
    made_compare_models(&m, &again, "exported");
    fm_arrays_free(&b);
    md_free(&again);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(hostile_metadata_in_hdf5_is_refused)
{
    md_model m;
    scratch_begin();
    opened(&m, source_file("source.gguf", &source_shapes[0], NULL), NULL);
    uint8_t *good = m.gguf;
    const size_t bytes = m.gguf_bytes;
    const char *path = scratch_path("h.h5");
    for (size_t cut = 0; cut < bytes; cut = cut < 300 ? cut + 7 : cut + 997) {
        m.gguf_bytes = cut;
        ck_assert(md_save_model(&m, path, FM_F32) == NB_OK);
        refused(path, NULL, cut >= 4 && cut < 8 ? NB_UNSUPPORTED : NB_FORMAT, "/gguf");
    }
    m.gguf = malloc(bytes);
    m.gguf_bytes = bytes;
    for (int k = 0; k < 3; k++) {
        static const struct {
            size_t at;
            uint8_t byte;
            const char *says;
        } wrong[] = {{4, 9, "version"}, {8, 1, "/gguf"}, {23, 0x7F, "keys do not fit"}};
        memcpy(m.gguf, good, bytes);
        m.gguf[wrong[k].at] = wrong[k].byte;
        ck_assert(md_save_model(&m, path, FM_F32) == NB_OK);
        refused(path, NULL, k == 0 ? NB_UNSUPPORTED : NB_FORMAT, wrong[k].says);
    }
    free(good);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(missing_memory_is_survived)
{
    md_model m;
    scratch_begin();
    const char *source = source_file("source.gguf", &source_shapes[0], NULL);
    for (int64_t left = 0;; left += left < 200 ? 1 : 37) {
        allocations_left = left;
        status s = md_open(&m, source, NULL);
        if (s == NB_OK) {
            s = md_export(&m, "gguf", scratch_path("out.gguf"), NULL, 0);
            md_free(&m);
        }
        allocations_left = -1;
        if (s == NB_OK)
            break;
        ck_assert_msg(s == NB_NOMEM || strstr(nb_fail_message(), "by the test"), "allocation %lld: %s", (long long)left, nb_fail_message());
    }
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gguf_source");
    TCase *c = tcase_create("gguf_source");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, keys_come_back_as_they_were, 0, N_ROUTES);
    tcase_add_test(c, floats_change_nothing_but_their_type);
    tcase_add_test(c, another_tokenizer_brings_its_own_keys);
    tcase_add_test(c, keys_of_another_architecture_are_written_anew);
    tcase_add_test(c, hostile_metadata_in_hdf5_is_refused);
    tcase_add_test(c, missing_memory_is_survived);
    suite_add_tcase(s, c);
    return run_suite(s);
}
