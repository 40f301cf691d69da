/* test_models.c - configs; opening llama2.c files and Hugging Face folders; tokenizers of models; failing allocations.
 */
#include "models_made.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>

#define STORIES "../shared/data/stories260k/"

static bool have(const char *path)
{
    if (!nb_path_exists(path))
        printf("skipped: no %s\n", path);
    return nb_path_exists(path);
}

/* ---- configs ------------------------------------------------------------------------------ */

START_TEST(config_survives_json)
{
    md_config c = made_shapes[_i], back;
    c.norm_eps = 1e-6;
    c.rope_theta = 500000;
    if (_i == 3) {
        c.rope_factor = 8;
        c.rope_low = 1;
        c.rope_high = 4;
        c.rope_ctx = 8192;
    }
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    md_config_to_json(&c, &w);
    nb_json_close(&w, '}');
    char *text = nb_json_text(&w);
    ck_assert(text != NULL);
    ck_assert_msg(md_config_from_text(&back, text, strlen(text), "test") == NB_OK, "%s", nb_fail_message());
    free(text);
    ck_assert_str_eq(back.architecture, c.architecture);
    ck_assert(back.dim == c.dim && back.hidden == c.hidden && back.layers == c.layers && back.heads == c.heads);
    ck_assert(back.kv_heads == c.kv_heads && back.head_size == c.head_size && back.vocab == c.vocab &&
              back.ctx == c.ctx);
    ck_assert(back.norm_eps == c.norm_eps && back.rope_theta == (md_is_gpt2(&c) ? 0 : c.rope_theta) && back.pairing == c.pairing);
    ck_assert(back.tied == c.tied && back.qkv_bias == c.qkv_bias && back.out_bias == c.out_bias);
    ck_assert(back.rope_factor == c.rope_factor && back.rope_low == c.rope_low && back.rope_high == c.rope_high);
    ck_assert(back.rope_ctx == c.rope_ctx && back.bos == c.bos && back.eos == c.eos);
}
END_TEST

START_TEST(short_config_gets_defaults)
{
    static const char text[] = "{\"dim\": 64, \"hidden\": 172, \"layers\": 5, \"heads\": 8, \"vocab\": 512}";
    md_config c;
    ck_assert_msg(md_config_from_text(&c, text, sizeof text - 1, "test") == NB_OK, "%s", nb_fail_message());
    ck_assert(c.kv_heads == 8 && c.head_size == 8 && c.ctx == 256 && c.norm_eps == 1e-5 && c.rope_theta == 10000);
    ck_assert(c.tied && c.pairing == KN_ROPE_INTERLEAVED && c.bos == -1 && c.eos == -1 && c.rope_factor == 0);
    c.kv_heads = 4;
    ck_assert_int_eq(md_config_params(&c), 260032); /* stories260K */
}
END_TEST

static const struct {
    const char *extra, *says;
} bad_configs[] = {
    {"\"heads\": 0", "heads"},
    {"\"kv_heads\": 3", "kv_heads"},
    {"\"head_size\": 7", "head_size"},
    {"\"dim\": 1e9", "dim"},
    {"\"dim\": 64.5", "dim"},
    {"\"dim\": \"64\"", "dim"},
    {"\"layers\": -1", "layers"},
    {"\"layers\": 5000", "layers"},
    {"\"vocab\": 1e300", "vocab"},
    {"\"ctx\": 4194304, \"head_size\": 4096", "ctx"},
    {"\"tied\": 1", "tied"},
    {"\"norm_eps\": -1", "norm_eps"},
    {"\"norm_eps\": null", "norm_eps"},
    {"\"rope_theta\": 0", "rope_theta"},
    {"\"rope_factor\": 8", "rope_low"},
    {"\"pairing\": \"both\"", "pairing"},
    {"\"architecture\": \"mamba\"", "architecture"},
    {"\"architecture\": \"a name that is too long for it\"", "architecture"},
    {"\"bos\": 512", "bos"},
    {"\"hiden\": 3", "unknown field \"hiden\""},
    {"\"x\": [", "JSON"},
};

START_TEST(config_without_sense_is_refused)
{
    char text[512];
    md_config c;
    (void)snprintf(text, sizeof text, "{\"dim\": 64, \"hidden\": 172, \"layers\": 5, \"heads\": 8, \"vocab\": 512, %s}",
                   bad_configs[_i].extra);
    status s = md_config_from_text(&c, text, strlen(text), "my.json");
    ck_assert_msg(s == NB_FORMAT || s == NB_UNSUPPORTED, "%s: status %d", text, (int)s);
    ck_assert_msg(strstr(nb_fail_message(), bad_configs[_i].says) && strstr(nb_fail_message(), "my.json"), "%s",
                  nb_fail_message());
}
END_TEST

START_TEST(config_without_what_is_wanted_is_refused)
{
    static const char *const wanted[] = {"dim", "hidden", "layers", "heads", "vocab"};
    for (int leave = 0; leave < 5; leave++) {
        char text[256] = "{";
        md_config c;
        for (int i = 0; i < 5; i++)
            if (i != leave)
                (void)snprintf(text + strlen(text), sizeof text - strlen(text), "%s\"%s\": 8",
                               strlen(text) > 1 ? ", " : "", wanted[i]);
        strcat(text, "}");
        ck_assert(md_config_from_text(&c, text, strlen(text), "t") == NB_FORMAT);
        ck_assert_msg(strstr(nb_fail_message(), wanted[leave]) != NULL, "%s", nb_fail_message());
    }
    md_config c;
    ck_assert(md_config_from_text(&c, "[1]", 3, "t") == NB_FORMAT);
    ck_assert(md_config_from_text(&c, "{}", 2, "t") == NB_FORMAT);
    ck_assert(md_config_from_text(&c, "7", 1, "t") == NB_FORMAT);
}
END_TEST

START_TEST(pairings_are_inverse_permutations)
{
    static const int64_t half_to_interleaved[] = {0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11};
    for (int64_t r = 0; r < 12; r++) {
        int64_t from = md_paired_row(r, 6, KN_ROPE_INTERLEAVED, KN_ROPE_HALF);
        ck_assert_int_eq(from, half_to_interleaved[r]);
        ck_assert_int_eq(md_paired_row(from, 6, KN_ROPE_HALF, KN_ROPE_INTERLEAVED), r);
        ck_assert_int_eq(md_paired_row(r, 6, KN_ROPE_HALF, KN_ROPE_HALF), r);
    }
}
END_TEST

/* ---- llama2.c ----------------------------------------------------------------------------- */

START_TEST(versions_0_and_1_hold_the_same_model)
{
    md_model a, b;
    const md_open_options o = {.tokenizer = STORIES "tok512.bin"};
    if (!have(STORIES "stories260K.bin") || !have(STORIES "stories260K_v1.bin") || !have(STORIES "tok512.bin"))
        return;
    opened(&a, STORIES "stories260K.bin", &o);
    opened(&b, STORIES "stories260K_v1.bin", NULL);
    ck_assert(a.config.dim == 64 && a.config.hidden == 172 && a.config.layers == 5 && a.config.heads == 8);
    ck_assert(a.config.kv_heads == 4 && a.config.vocab == 512 && a.config.ctx == 512 && a.config.tied);
    ck_assert_int_eq(ag_params_count(&a.params), 260032);
    ck_assert(a.tokenizer.kind == FM_TOKENIZER_SPM && b.tokenizer.kind == FM_TOKENIZER_NONE);
    ck_assert(a.config.bos == 1 && a.config.eos == 2);
    made_compare_models(&a, &b, "v1");
    md_free(&a);
    md_free(&b);
}
END_TEST

START_TEST(int8_files_are_decoded)
{
    md_model a, b;
    md_tensor *t;
    int64_t n;
    double error = 0, power = 0;
    if (!have(STORIES "stories260K.bin") || !have(STORIES "stories260K-q8.bin"))
        return;
    opened(&a, STORIES "stories260K.bin", NULL);
    opened(&b, STORIES "stories260K-q8.bin", NULL);
    ck_assert(md_tensors_new(&t, &n, &a.config) == NB_OK);
    for (int64_t i = 0; i < n; i++) {
        real *x = made_values(&a, &t[i]), *y = made_values(&b, &t[i]);
        for (int64_t k = 0; k < md_tensor_count(&t[i]); k++) {
            error += ((double)x[k] - (double)y[k]) * ((double)x[k] - (double)y[k]);
            power += (double)x[k] * (double)x[k];
        }
        free(x);
        free(y);
    }
    ck_assert_msg(sqrt(error / power) < 0.005, "%g", sqrt(error / power)); /* 8 bits in groups of 8: measured 0.0027 */
    free(t);
    md_free(&a);
    md_free(&b);
}
END_TEST

/* ---- Hugging Face ------------------------------------------------------------------------- */

/* A folder with the weights of a made model and this config.json. */
static const char *hf_folder(const md_config *c, const char *config)
{
    md_model m;
    const char *folder = scratch_path("hf");
    const char *path = scratch_path("hf/config.json");
    made_model(&m, c, "float", 11);
    ck_assert_msg(md_export(&m, "safetensors", folder, NULL, 0) == NB_OK, "%s", nb_fail_message());
    md_free(&m);
    FILE *f = config ? fopen(path, "wb") : NULL;
    if (f) {
        ck_assert(fputs(config, f) >= 0);
        (void)fclose(f);
    }
    return folder;
}

static const struct {
    const char *json, *says; /* says NULL: opened */
} hf_configs[] = {
    {"\"model_type\": \"llama\", \"rms_norm_eps\": 1e-5", NULL},
    {"\"model_type\": \"mistral\", \"sliding_window\": null, \"rope_theta\": 1000000.0", NULL},
    {"\"model_type\": \"mistral\", \"sliding_window\": 64", NULL}, /* wider than the context */
    {"\"model_type\": \"llama\", \"eos_token_id\": [2, 3], \"head_dim\": 32, \"rope_scaling\": null", NULL},
    {"\"model_type\": \"llama\", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500000.0}", NULL},
    {"\"model_type\": \"llama\", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": "
     "1.0, "
     "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}",
     NULL},
    {"\"rms_norm_eps\": 1e-5", "model_type"},
    {"\"model_type\": \"qwen3\"", "qwen3"},
    {"\"model_type\": \"qwen2\"", "q_proj.bias"},
    {"\"model_type\": \"llama\", \"attention_bias\": true", "bias"},
    {"\"model_type\": \"llama\", \"mlp_bias\": true", "mlp_bias"},
    {"\"model_type\": \"llama\", \"hidden_act\": \"gelu\"", "gelu"},
    {"\"model_type\": \"mistral\", \"sliding_window\": 16", "sliding_window"},
    {"\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4.0}", "yarn"},
    {"\"model_type\": \"llama\", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0}", "rope_low"},
    {"\"model_type\": \"llama\", \"partial_rotary_factor\": 0.5", "partial_rotary_factor"},
    {"\"model_type\": \"llama\", \"quantization_config\": {\"quant_method\": \"gptq\"}", "gptq"},
    {"\"model_type\": \"llama\", \"num_hidden_layers\": 2", "layers"},
    {"\"model_type\": \"llama\", \"num_hidden_layers\": 4000000", "layers"},
    {"\"model_type\": \"llama\", \"hidden_size\": 192", "embed_tokens"},
    {"\"model_type\": \"llama\", \"intermediate_size\": 34", "gate_proj"},
    {"\"model_type\": \"llama\", \"max_position_embeddings\": 4000000", "context"},
};

START_TEST(hf_configs_are_read_or_refused)
{
    char json[1024];
    md_model m, original;
    scratch_begin();
    /* later keys of the same name are not seen: cJSON takes the first, so the row comes before the common part */
    (void)snprintf(
        json, sizeof json,
        "{%s, \"hidden_size\": 96, \"intermediate_size\": 33, \"num_hidden_layers\": 1, \"num_attention_heads\": 3, "
        "\"vocab_size\": 41, \"max_position_embeddings\": 32, \"tie_word_embeddings\": false}",
        hf_configs[_i].json);
    const char *folder = hf_folder(&made_shapes[3], json);
    if (hf_configs[_i].says) {
        status s = md_open(&m, folder, NULL);
        ck_assert_msg(s == NB_FORMAT || s == NB_UNSUPPORTED, "%s: status %d", hf_configs[_i].json, (int)s);
        ck_assert_msg(strstr(nb_fail_message(), hf_configs[_i].says) != NULL, "%s", nb_fail_message());
    } else {
        opened(&m, folder, NULL);
        made_model(&original, &made_shapes[3], "float", 11);
        made_compare_models(&original, &m, "hf");
        ck_assert(m.config.pairing == KN_ROPE_HALF && !m.config.tied && m.config.kv_heads == 3 &&
                  m.config.head_size == 32);
        ck_assert(m.config.eos == (strstr(hf_configs[_i].json, "eos") ? 2 : -1));
        ck_assert(m.config.rope_theta == (strstr(hf_configs[_i].json, "1000000.0")  ? 1e6
                                          : strstr(hf_configs[_i].json, "500000.0") ? 5e5
                                                                                    : 1e4));
        ck_assert(m.config.norm_eps == (strstr(hf_configs[_i].json, "1e-5") ? 1e-5 : 1e-6));
        ck_assert((m.config.rope_factor == 8) == (strstr(hf_configs[_i].json, "llama3") != NULL));
        md_free(&original);
        md_free(&m);
    }
    scratch_end();
}
END_TEST

START_TEST(hf_export_reads_back_its_config)
{
    md_config c = made_shapes[_i];
    md_model m;
    scratch_begin();
    c.rope_factor = _i == 3 ? 8 : 0;
    c.rope_low = 1;
    c.rope_high = 4;
    c.rope_ctx = 1024;
    const char *folder = hf_folder(&c, NULL);
    opened(&m, folder, NULL);
    ck_assert(m.config.tied == c.tied && m.config.qkv_bias == c.qkv_bias && m.config.out_bias == c.out_bias);
    ck_assert(m.config.rope_theta == (md_is_gpt2(&c) ? 0 : 10000) && m.config.rope_factor == c.rope_factor && m.config.ctx == c.ctx);
    ck_assert(m.config.head_size == c.head_size && m.config.bos == 1 && m.config.eos == 2);
    md_free(&m);
    const char *file = scratch_path("hf/model.safetensors"); /* config.json beside it */
    opened(&m, file, NULL);
    md_free(&m);
    scratch_end();
}
END_TEST

/* ---- tokenizers, memory ------------------------------------------------------------------- */

START_TEST(tokenizer_of_another_size_is_refused)
{
    md_model m;
    md_config c = made_shapes[0];
    const md_open_options bytes = {.tokenizer = "bytes"};
    scratch_begin();
    c.vocab = 260; /* padded by 2 */
    made_model(&m, &c, "float", 12);
    ck_assert(md_save_model(&m, scratch_path("padded.h5"), FM_F32) == NB_OK);
    md_free(&m);
    c.vocab = 257;
    made_model(&m, &c, "float", 12);
    ck_assert(md_save_model(&m, scratch_path("small.h5"), FM_F32) == NB_OK);
    md_free(&m);
    opened(&m, scratch_path("padded.h5"), &bytes);
    ck_assert(m.tokenizer.kind == FM_TOKENIZER_BYTES && m.config.bos == 256 && m.config.eos == 257);
    ck_assert(md_save_folded(&m, scratch_path("with.h5"), false) == NB_OK);
    md_free(&m);
    opened(&m, scratch_path("with.h5"), NULL);
    ck_assert(m.tokenizer.kind == FM_TOKENIZER_BYTES && m.config.bos == 256);
    md_free(&m);
    refused(scratch_path("small.h5"), &bytes, NB_USAGE, "258 pieces");
    scratch_end();
}
END_TEST

START_TEST(a_folder_gives_its_tokenizer_to_the_model)
{
    static const char before[] = "{\"model\": {\"type\": \"BPE\", \"vocab\": {",
                      after[] = "}, \"merges\": []}, "
                                "\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false}, "
                                "\"decoder\": {\"type\": \"ByteLevel\"}}";
    md_model m;
    fm_ids ids = {0};
    char text[1024];
    scratch_begin();
    made_model(&m, &made_shapes[0], "float", 14);
    ck_assert(md_export(&m, "safetensors", scratch_path("hf"), NULL, 0) == NB_OK);
    md_free(&m);
    opened(&m, scratch_path("hf"), NULL);
    ck_assert_int_eq(m.tokenizer.kind, FM_TOKENIZER_NONE);
    md_free(&m);
    size_t n = (size_t)snprintf(text, sizeof text, "%s", before);
    for (int i = 0; i < 37; i++)
        n += (size_t)snprintf(text + n, sizeof text - n, "%s\"%c\": %d", i ? ", " : "",
                              'A' + i + (i >= 'Z' - 'A' ? 6 : 0), i);
    n += (size_t)snprintf(text + n, sizeof text - n, "%s", after);
    (void)scratch_write("hf/tokenizer.json", text, n);
    opened(&m, scratch_path("hf"), NULL);
    ck_assert_int_eq(m.tokenizer.kind, FM_TOKENIZER_BPE);
    ck_assert(fm_tokenizer_encode(&m.tokenizer, &ids, "CAB", 3, 0) == NB_OK && ids.n == 3 && ids.id[0] == 2);
    fm_ids_free(&ids);
    md_free(&m);
    scratch_end();
}
END_TEST

START_TEST(every_failing_allocation_is_survived)
{
    md_model m;
    const char *paths[4];
    scratch_begin();
    made_model(&m, &made_shapes[1], "w4a8kv8", 13);
    ck_assert(md_save_folded(&m, paths[0] = scratch_path("folded.h5"), false) == NB_OK);
    paths[1] = made_checkpoint(scratch_path("checkpoint.h5"), &m, FM_F32);
    ck_assert(md_export(&m, "llama2c", paths[2] = scratch_path("v2.bin"), NULL, 0) == NB_OK);
    ck_assert(md_export(&m, "safetensors", paths[3] = scratch_path("hf"), NULL, 0) == NB_OK);
    md_free(&m);
    for (int64_t left = 0;; left++) {
        allocations_left = left;
        status s = md_open(&m, paths[_i], NULL);
        allocations_left = -1;
        if (s == NB_OK)
            break;
        ck_assert(m.block == NULL && m.params.n == 0 && m.sites.n == 0 && m.tokenizer.vocab == NULL);
    }
    md_free(&m);
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("models");
    TCase *c = tcase_create("models");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, config_survives_json, 0, N_MADE_SHAPES);
    tcase_add_test(c, short_config_gets_defaults);
    tcase_add_loop_test(c, config_without_sense_is_refused, 0, sizeof bad_configs / sizeof *bad_configs);
    tcase_add_test(c, config_without_what_is_wanted_is_refused);
    tcase_add_test(c, pairings_are_inverse_permutations);
    tcase_add_test(c, versions_0_and_1_hold_the_same_model);
    tcase_add_test(c, int8_files_are_decoded);
    tcase_add_loop_test(c, hf_configs_are_read_or_refused, 0, sizeof hf_configs / sizeof *hf_configs);
    tcase_add_loop_test(c, hf_export_reads_back_its_config, 0, N_MADE_SHAPES);
    tcase_add_test(c, tokenizer_of_another_size_is_refused);
    tcase_add_test(c, a_folder_gives_its_tokenizer_to_the_model);
    tcase_add_loop_test(c, every_failing_allocation_is_survived, 0, 4);
    suite_add_tcase(s, c);
    return run_suite(s);
}
