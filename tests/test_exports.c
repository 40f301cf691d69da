/* test_exports.c - fake-quant == folded == exported, bit for bit, over seeds, recipes and odd shapes, read back by our own readers
 * (other programs': test_exports_client.c); what is refused, and why; the table recipe x target.
 */
#include "models_made.h"
#include "scratch.h"
#include "suite.h"

static const char *const targets[MD_TARGETS] = {
    "llama2c",     "llama2c-f32",     "gguf",             "gguf-f32", "gguf-f16", "gguf-bf16",
    "safetensors", "safetensors-f16", "safetensors-bf16", "h5",       "h5-f16",   "h5-bf16"};

static bool rounds(const char *target)
{
    return strstr(target, "f16") != NULL;
}

/* A file of `target` against the model it was made from. What is rounded is compared in test_convert.c. */
static void compare_gguf(const md_model *m, const char *path, const char *what)
{
    const bool is_qwen2 = !md_is_gpt2(&m->config) && m->config.qkv_bias && !m->config.out_bias && m->config.pairing == KN_ROPE_HALF &&
                          m->config.heads * m->config.head_size == m->config.dim;
    fm_arrays a;
    md_tensor *t;
    int64_t n;
    ck_assert_msg(fm_gguf_open(&a, path) == NB_OK, "%s", nb_fail_message());
    ck_assert(md_tensors_new(&t, &n, &m->config) == NB_OK);
    ck_assert_int_eq(a.n, made_arrays(t, n, MD_GGUF));
    ck_assert_str_eq(fm_value_string(fm_meta_get(&a.meta, "general.architecture")),
                     md_is_gpt2(&m->config) ? "gpt2" : is_qwen2 ? "qwen2" : "llama");
    for (int64_t i = 0; i < n; i++) {
        char name[MD_NAME];
        (void)md_tensor_name(name, &t[i], MD_GGUF);
        const fm_array *x = fm_find(&a, name);
        ck_assert_msg(x != NULL, "%s: no %s", what, name);
        const int64_t cols = x->dim[x->n_dim - 1], rows = fm_count(x) / cols;
        real *value = malloc((size_t)fm_count(x) * sizeof *value);
        ck_assert_msg(fm_to_float(value, x, 0, fm_count(x)) == NB_OK, "%s", nb_fail_message());
        made_compare_array(m, &t[i], MD_GGUF, value, rows, cols, is_qwen2 ? KN_ROPE_HALF : KN_ROPE_INTERLEAVED, what);
        free(value);
    }
    free(t);
    fm_arrays_free(&a);
}

static void compare_file(const md_model *m, const char *path, const char *target)
{
    md_model file;
    if (rounds(target))
        return;
    if (!strncmp(target, "gguf", 4))
        compare_gguf(m, path, target);
    ck_assert_msg(md_open(&file, path, NULL) == NB_OK, "%s", nb_fail_message());
    made_compare_models(m, &file, target);
    md_free(&file);
}

static void compare_folded(md_model *m)
{
    const char *path = scratch_path("folded.h5");
    md_model folded;
    md_size size;
    md_tensor *t;
    int64_t n, bytes = 0, params = 0;
    fm_h5 f;
    ck_assert_msg(md_save_folded(m, path, false) == NB_OK, "%s", nb_fail_message());
    ck_assert_msg(md_open(&folded, path, NULL) == NB_OK, "%s", nb_fail_message());
    ck_assert(folded.folded);
    made_compare_models(m, &folded, "folded");
    md_measure(&size, m);
    ck_assert(fm_h5_open(&f, path, "folded") == NB_OK);
    for (int64_t i = 0; i < f.arrays.n; i++) {
        const fm_array *a = &f.arrays.array[i];
        const char *scale = strstr(a->name, ".scale/"),
                   *zero = strstr(a->name, ".zero/"); /* learned ranges of activations */
        bytes += !strncmp(a->name, "tensor/", 7) && !scale && !zero ? (int64_t)a->bytes : 0;
    }
    ck_assert_int_eq(bytes, size.code_bytes + size.scale_bytes + size.zero_bytes + size.float_bytes);
    ck_assert(md_tensors_new(&t, &n, &m->config) == NB_OK);
    for (int64_t i = 0; i < n; i++)
        params += md_tensor_count(&t[i]);
    ck_assert_int_eq(size.params, params);
    free(t);
    fm_h5_close(&f);
    md_free(&folded);
}

/* One model, every target that takes it, from the fake-quant model and from the folded file alike. */
static int check_model(int shape, int recipe, uint64_t seed)
{
    md_model m;
    int written = 0;
    made_model(&m, &made_shapes[shape], made_recipes[recipe], seed);
    compare_folded(&m);
    for (int k = 0; k < MD_TARGETS; k++) {
        const char *path = scratch_path(targets[k]);
        char report[1024] = "";
        status s = md_export(&m, targets[k], path, report, sizeof report);
        ck_assert_msg(s == NB_OK || s == NB_UNSUPPORTED, "%s: %s", targets[k], nb_fail_message());
        if (s != NB_OK)
            continue;
        ck_assert(*report != 0);
        compare_file(&m, path, targets[k]);
        written++;
    }
    md_free(&m);
    return written;
}

START_TEST(folded_and_exported_equal_fake_quant)
{
    scratch_begin();
    for (int recipe = 0; recipe < N_MADE_RECIPES; recipe++)
        check_model(_i % N_MADE_SHAPES, recipe, (uint64_t)(_i * (2 * N_MADE_RECIPES + 1) + recipe));
    scratch_end();
}
END_TEST

START_TEST(every_target_is_written_for_most_shapes)
{
    scratch_begin();
    int q4_0 = 13;
    ck_assert_str_eq(made_recipes[q4_0], "q4_0");
    ck_assert_int_eq(check_model(1, q4_0, 1), MD_TARGETS);
    ck_assert_int_eq(check_model(2, q4_0, 2), MD_TARGETS);
    ck_assert_int_eq(check_model(3, q4_0, 3), MD_TARGETS);
    scratch_end();
}
END_TEST

/* Every tensor in the type that its own spec says, by the rules of a recipe file; later ones win. */
START_TEST(types_are_mixed_in_one_file)
{
    static const char rules[] = "*.weight int4 group:32 f16 learned\n"
                                "*.wk.weight int4 group:64 f16 learned\n"
                                "*.wv.weight int8 narrow group:32 f16 learned\n"
                                "*.wo.weight int4 asym group:32 pow2 learned\n"
                                "*.gate.weight float f16\n"
                                "layers.1.mlp.gate.weight int8 row f16 learned\n"
                                "*.up.weight float bf16\n"
                                "head.weight int8 narrow group:32 f16 learned\n"
                                "embed.weight float f16\n"
                                "layers.0.mlp.down.weight float\n";
    static const struct {
        const char *name;
        fm_dtype type;
    } wanted[] = {{"token_embd.weight", FM_F16},       {"output.weight", FM_Q8_0},        {"blk.0.attn_q.weight", FM_Q4_0},
                  {"blk.0.attn_k.weight", FM_Q4_0},    {"blk.1.attn_v.weight", FM_Q8_0},  {"blk.0.attn_output.weight", FM_Q4_1},
                  {"blk.0.ffn_gate.weight", FM_F16},   {"blk.1.ffn_gate.weight", FM_Q8_0}, {"blk.1.ffn_up.weight", FM_BF16},
                  {"blk.0.ffn_down.weight", FM_F32},   {"blk.1.ffn_down.weight", FM_Q4_0}, {"blk.0.attn_norm.weight", FM_F32},
                  {"output_norm.weight", FM_F32}};
    const md_config c = MADE(64, 100, 2, 4, 2, 16, 40, .tied = false);
    char report[1024];
    md_model m;
    fm_arrays a;
    scratch_begin();
    scratch_write("mixed.txt", rules, sizeof rules - 1);
    made_model(&m, &c, scratch_path("mixed.txt"), 8); /* by its path, as a user gives it */
    compare_folded(&m);
    const char *path = scratch_path("mixed.gguf");
    ck_assert_msg(md_export(&m, "gguf", path, report, sizeof report) == NB_OK, "%s", nb_fail_message());
    ck_assert_msg(strstr(report, "all exact: 2 F16, 2 BF16, 1 F32, 5 Q4_0, 2 Q4_1, 4 Q8_0\n"), "%s", report);
    ck_assert_msg(fm_gguf_open(&a, path) == NB_OK, "%s", nb_fail_message());
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        const fm_array *x = fm_find(&a, wanted[i].name);
        ck_assert_msg(x && x->dtype == wanted[i].type, "%s: %s", wanted[i].name, x ? fm_dtype_name(x->dtype) : "none");
    }
    fm_arrays_free(&a);
    compare_file(&m, path, "gguf");
    md_free(&m);
    scratch_end();
}
END_TEST

/* ---- refusals ----------------------------------------------------------------------------- */

static const struct {
    const char *target, *recipe, *says;
    md_config config;
} refusals[] = {
    {"llama2c", "float", "is float", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true)},
    {"llama2c", "*.weight int4 asym group:32 f16", "zero points", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true)},
    {"llama2c", "*.weight int16 row", "16 bits", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true)},
    {"llama2c", "w8a8kv8", "eps", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true, .norm_eps = 1e-6)},
    {"llama2c", "w8a8kv8", "theta", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true, .rope_theta = 5000)},
    {"llama2c", "w8a8kv8", "biases", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true, .qkv_bias = true)},
    {"llama2c", "w8a8kv8", "heads * head_size", MADE(32, 64, 1, 4, 2, 16, 40, .tied = true)},
    {"llama2c-f32", "float", "biases", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true, .out_bias = true)},
    {"gguf", "w4a8kv8", "not exact in GGUF's fp16; recipes that fit: q4_0", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true)},
    {"gguf", "q4_0", "whole blocks", MADE(24, 64, 1, 3, 1, 8, 40, .tied = true)},
    {"gguf", "*.weight int4 group:16 f16", "groups of 16", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true)},
    {"gguf", "*.weight int8 asym group:32 f16", "reach beyond Q8_0", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true)},
    {"gguf", "*.weight int16 group:32 f16", "16 bits", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true)},
    {"safetensors", "float", "bias after attention", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true, .out_bias = true)},
    {"onnx", "float", "no target", MADE(32, 64, 1, 4, 2, 8, 40, .tied = true)},
};

START_TEST(what_a_target_cannot_hold_is_refused)
{
    md_model m;
    char recipe[128];
    scratch_begin();
    const char *path = scratch_path("out");
    (void)snprintf(recipe, sizeof recipe, "%s%s", refusals[_i].recipe, strchr(refusals[_i].recipe, ' ') ? "\n" : "");
    made_model(&m, &refusals[_i].config, recipe, 4);
    status s = md_export(&m, refusals[_i].target, path, NULL, 0);
    ck_assert_msg(s == (!strcmp(refusals[_i].target, "onnx") ? NB_USAGE : NB_UNSUPPORTED), "%s: status %d",
                  refusals[_i].says, (int)s);
    ck_assert_msg(strstr(nb_fail_message(), refusals[_i].says) != NULL, "%s", nb_fail_message());
    ck_assert(!nb_path_exists(path));
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(table_says_what_the_targets_do)
{
    const char *const *name;
    const int64_t named = fq_recipe_named(&name, NULL);
    int64_t n, n_targets;
    const md_recipe_fit *fit = md_recipe_fits(&n);
    const md_target *target = md_targets(&n_targets);
    ck_assert_int_eq(n_targets, MD_TARGETS);
    ck_assert_int_eq(n, named);
    for (int64_t i = 0; i < n; i++) {
        md_model m;
        bool known = false;
        for (int64_t j = 0; j < named; j++)
            known = known || !strcmp(name[j], fit[i].recipe);
        ck_assert_msg(known, "%s", fit[i].recipe);
        made_model(&m, &made_shapes[2], fit[i].recipe, (uint64_t)i); /* hidden 172 */
        for (int k = 0; k < MD_TARGETS; k++) {
            char report[1024] = "";
            ck_assert_str_eq(target[k].name, targets[k]);
            status s = target[k].check(&m, &target[k], report, sizeof report);
            ck_assert_msg((s == NB_OK) == (fit[i].fit[k] != MD_NO), "%s to %s: %s", fit[i].recipe, targets[k],
                          nb_fail_message());
            if (s == NB_OK)
                ck_assert_msg((strstr(report, "padded") != NULL) == (fit[i].fit[k] == MD_PADDED), "%s to %s: %s",
                              fit[i].recipe, targets[k], report);
        }
        md_free(&m);
    }
}
END_TEST

START_TEST(failed_writing_leaves_what_was_there)
{
    md_model m;
    scratch_begin();
    made_model(&m, &made_shapes[1], "q4_0", 3);
    for (int k = 0; k < MD_TARGETS; k++) {
        const char *path = scratch_write(targets[k], "old", 3);
        for (int64_t left = 0; strncmp(targets[k], "safetensors", 11) != 0; left++) {
            char found[4] = "";
            allocations_left = left;
            status s = md_export(&m, targets[k], path, NULL, 0);
            allocations_left = -1;
            if (s == NB_OK)
                break;
            ck_assert_msg(s == NB_NOMEM, "%s", nb_fail_message());
            FILE *f = fopen(path, "rb");
            ck_assert_msg(f && fread(found, 1, 3, f) == 3 && !strcmp(found, "old"), "%s: allocation %lld", targets[k],
                          (long long)left);
            (void)fclose(f);
        }
    }
    md_free(&m);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("exports");
    TCase *c = tcase_create("exports");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, folded_and_exported_equal_fake_quant, 0, N_MADE_SHAPES);
    tcase_add_test(c, every_target_is_written_for_most_shapes);
    tcase_add_test(c, types_are_mixed_in_one_file);
    tcase_add_loop_test(c, what_a_target_cannot_hold_is_refused, 0, sizeof refusals / sizeof *refusals);
    tcase_add_test(c, table_says_what_the_targets_do);
    tcase_add_test(c, failed_writing_leaves_what_was_there);
    suite_add_tcase(s, c);
    TCase *slow = tcase_create("many seeds");
    tcase_set_timeout(slow, 600);
    tcase_set_tags(slow, "slow");
    tcase_add_loop_test(slow, folded_and_exported_equal_fake_quant, N_MADE_SHAPES, 6 * N_MADE_SHAPES);
    suite_add_tcase(s, slow);
    return run_suite(s);
}
