/* test_gpt2.c - GPT-2: logits that transformers computes, folders with and without its head, what is refused and why; one array of q,
 * k and v under several rules; a folder that transformers wrote (client).
 */
#include "clients.h"
#include "logits.h"
#include "models_made.h"
#include "scratch.h"
#include "suite.h"

/* ---- a folder by formula ------------------------------------------------------------------ */

enum { C = 16, F = 40, L = 2, H = 2, T = 12, V = 23, ARRAYS = 4 + 12 * L, MASKS = 1 };

/* The arrays of readers/gpt2_reference.py in its order: that decides their values. */
static const struct {
    const char *name;
    int64_t dim[2];
    bool in_layer;
} list[] = {{"wte.weight", {V, C}, false},         {"wpe.weight", {T, C}, false},          {"ln_1.weight", {C}, true},
            {"ln_1.bias", {C}, true},              {"attn.c_attn.weight", {C, 3 * C}, true}, {"attn.c_attn.bias", {3 * C}, true},
            {"attn.c_proj.weight", {C, C}, true},  {"attn.c_proj.bias", {C}, true},        {"ln_2.weight", {C}, true},
            {"ln_2.bias", {C}, true},              {"mlp.c_fc.weight", {C, F}, true},      {"mlp.c_fc.bias", {F}, true},
            {"mlp.c_proj.weight", {F, C}, true},   {"mlp.c_proj.bias", {C}, true},         {"ln_f.weight", {C}, false},
            {"ln_f.bias", {C}, false}};
static const int64_t mask_dim[] = {1, 1, T, T};

typedef struct {
    fm_array array[ARRAYS + MASKS];
    char name[ARRAYS + MASKS][64];
    int64_t n;
} folder_arrays;

static void add(folder_arrays *a, const char *prefix, int64_t layer, int row)
{
    char full[64];
    fm_array *x = &a->array[a->n];
    if (list[row].in_layer)
        (void)snprintf(full, sizeof full, "h.%lld.%s", (long long)layer, list[row].name);
    else
        (void)snprintf(full, sizeof full, "%s", list[row].name);
    (void)snprintf(a->name[a->n], sizeof a->name[0], "%s%s", prefix, full);
    *x = (fm_array){.name = a->name[a->n], .dtype = FM_F32, .n_dim = list[row].dim[1] ? 2 : 1};
    memcpy(x->dim, list[row].dim, sizeof list[row].dim);
    a->n++;
}

static status put_formula(void *ctx, fm_sink *sink, const fm_array *a)
{
    const folder_arrays *all = ctx;
    const uint32_t k = (uint32_t)(a->name == all->name[ARRAYS] ? ARRAYS : (a->name - all->name[0]) / (int64_t)sizeof all->name[0]);
    for (int64_t i = 0; i < fm_count(a); i++) {
        uint32_t u = (uint32_t)i * 2654435761U + 40503U * k;
        u ^= u >> 15;
        u *= 2246822519U;
        u ^= u >> 13;
        const float x = (float)((double)u / 4294967296.0 - 0.5);
        TRY(fm_put(sink, &x, sizeof x));
    }
    return NB_OK;
}

/* prefix "": as a model without its head is saved, with the buffer of its mask. */
static const char *formula_folder(const char *prefix, const char *config)
{
    static folder_arrays a;
    const char *folder = scratch_path("hf");
    a.n = 0;
    for (int row = 0; !list[row].in_layer; row++)
        add(&a, prefix, -1, row);
    for (int64_t layer = 0; layer < L; layer++)
        for (int row = 2; row < 14; row++)
            add(&a, prefix, layer, row);
    add(&a, prefix, -1, 14);
    add(&a, prefix, -1, 15);
    ck_assert_int_eq(a.n, ARRAYS);
    if (!*prefix) {
        (void)snprintf(a.name[a.n], sizeof a.name[0], "h.0.attn.bias");
        a.array[a.n] = (fm_array){.name = a.name[a.n], .dtype = FM_F32, .n_dim = 4};
        memcpy(a.array[a.n++].dim, mask_dim, sizeof mask_dim);
    }
    for (int64_t i = 0; i < a.n; i++)
        ck_assert(fm_array_measure(&a.array[i]) == NB_OK);
    ck_assert(nb_make_folder(folder) == NB_OK);
    ck_assert_msg(fm_safetensors_write(scratch_path("hf/model.safetensors"), a.array, a.n, NULL, (fm_source){put_formula, &a}) == NB_OK,
                  "%s", nb_fail_message());
    (void)scratch_write("hf/config.json", config, strlen(config));
    return folder;
}

#define CONFIG                                                                                                         \
    "\"vocab_size\": 23, \"n_positions\": 12, \"n_embd\": 16, \"n_layer\": 2, \"n_head\": 2, \"n_inner\": 40}"

/* transformers 5.24.0 with torch 2.15.0: readers/gpt2_reference.py */
static const float last_logits[V] = {
    0.3986838f,  -0.8543797f, 0.2456841f, -0.1509855f, 1.1696469f, -0.5003818f, -0.1158163f, -0.2120104f,
    -0.5761670f, -0.6530914f, -0.4908714f, 0.4047802f, 0.5563387f, 0.6333459f,  0.3688669f,  0.5773011f,
    0.4671645f,  0.0865115f,  -0.3400518f, -0.2001117f, 0.5596745f, -0.7047937f, 0.0535052f};
static const double sum_of_squares = 61.136153;

START_TEST(logits_are_those_of_transformers)
{
    md_model m;
    sequences s = {.n_sequences = 1, .start = {0, T}};
    double squares = 0;
    scratch_begin();
    opened(&m, formula_folder(_i ? "" : "transformer.", "{\"model_type\": \"gpt2\", " CONFIG), NULL);
    ck_assert(md_is_gpt2(&m.config) && m.config.tied && m.config.ctx == T && m.config.hidden == F);
    ck_assert(fm_ids_reserve(&s.ids, T) == NB_OK);
    for (int32_t i = 0; i < T; i++)
        s.ids.id[s.ids.n++] = i * i % V;
    float *z = our_logits(&m, &s);
    for (int64_t i = 0; i < V; i++)
        ck_assert_msg(fabsf(z[(T - 1) * V + i] - last_logits[i]) < 5e-6F, "logit %lld is %.7f", (long long)i, (double)z[(T - 1) * V + i]);
    for (int64_t i = 0; i < T * V; i++)
        squares += (double)z[i] * (double)z[i];
    ck_assert_double_eq_tol(squares, sum_of_squares, 1e-5 * sum_of_squares);
    free(z);
    fm_ids_free(&s.ids);
    md_free(&m);
    scratch_end();
}
END_TEST

static const struct {
    const char *json, *says; /* says NULL: opened */
} configs[] = {
    {"\"activation_function\": \"gelu_pytorch_tanh\", ", NULL},
    {"\"layer_norm_epsilon\": 1e-3, \"bos_token_id\": 5, \"eos_token_id\": 5, ", NULL},
    {"\"reorder_and_upcast_attn\": true, \"tie_word_embeddings\": true, ", NULL},
    {"\"n_inner\": null, ", "mlp.c_fc.weight"},
    {"\"activation_function\": \"gelu\", ", "activation_function"},
    {"\"scale_attn_weights\": false, ", "scale_attn_weights"},
    {"\"scale_attn_by_inverse_layer_idx\": true, ", "scale_attn_by_inverse_layer_idx"},
    {"\"add_cross_attention\": true, ", "add_cross_attention"},
    {"\"quantization_config\": {\"quant_method\": \"gptq\"}, ", "quantized already (gptq)"},
    {"\"n_head\": 3, ", "heads * head_size = dim"},
    {"\"n_positions\": 13, ", "wpe.weight"},
    {"\"n_positions\": 4000000, ", "wpe.weight"},
    {"\"n_layer\": 3, ", "h.2.ln_1.weight"},
    {"\"n_embd\": 32, ", "wte.weight"},
};

START_TEST(configs_are_read_or_refused)
{
    char json[512];
    md_model m;
    scratch_begin();
    (void)snprintf(json, sizeof json, "{\"model_type\": \"gpt2\", %s" CONFIG, configs[_i].json);
    const char *folder = formula_folder("transformer.", json);
    if (configs[_i].says) {
        const status s = md_open(&m, folder, NULL);
        ck_assert_msg(s == NB_FORMAT || s == NB_UNSUPPORTED, "%s: status %d", configs[_i].json, (int)s);
        ck_assert_msg(strstr(nb_fail_message(), configs[_i].says) != NULL, "%s: %s", configs[_i].json, nb_fail_message());
    } else {
        opened(&m, folder, NULL);
        ck_assert(m.config.norm_eps == (strstr(json, "1e-3") ? 1e-3 : 1e-5) && m.config.eos == (strstr(json, "eos") ? 5 : -1));
        md_free(&m);
    }
    scratch_end();
}
END_TEST

START_TEST(own_configs_are_read_or_refused)
{
    static const struct {
        const char *json, *says;
    } own[] = {{"\"ctx\": 64", NULL},
               {"\"qkv_bias\": true, \"out_bias\": true, \"kv_heads\": 4, \"head_size\": 8", NULL},
               {"\"rope_theta\": 10000", "rope_theta"},
               {"\"pairing\": \"half\"", "pairing"},
               {"\"kv_heads\": 2", "kv_heads = heads"},
               {"\"head_size\": 16", "heads * head_size = dim"},
               {"\"out_bias\": false", "qkv_bias and out_bias"}};
    char json[512];
    md_config c;
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
        const int n = snprintf(json, sizeof json, "{\"dim\": 32, \"hidden\": 128, \"layers\": 1, \"heads\": 4, \"vocab\": 9, "
                               "%s, \"architecture\": \"gpt2\"}", own[i].json);
        const status s = md_config_from_text(&c, json, (size_t)n, "c.json");
        ck_assert_msg((s == NB_OK) == !own[i].says, "%s: %s", json, s == NB_OK ? "read" : nb_fail_message());
        ck_assert_msg(!own[i].says || strstr(nb_fail_message(), own[i].says), "%s", nb_fail_message());
        ck_assert(own[i].says || (c.kv_heads == 4 && c.head_size == 8 && c.qkv_bias && c.out_bias));
    }
}
END_TEST

/* ---- what GELU makes ---------------------------------------------------------------------- */

/* Rules for *.gelu are rules for down's input, of GPT-2 alone; a later one for *.input wins as ever. */
START_TEST(rules_reach_what_gelu_makes)
{
    static const struct {
        const char *recipe;
        bool has_zero, llamas;
    } rules[] = {{"w8a8kv8", true, false},
                 {"w4a8kv4", true, false},
                 {"q8_0", false, false},
                 {"base w8a8kv8\n*.down.input int8 narrow token f32\n", false, false},
                 {"base q8_0\n*.gelu int8 asym tensor static\n", true, false},
                 {"*.input int8 asym token f32\n", true, true}};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        md_model gpt2, llama;
        made_model(&gpt2, &made_shapes[N_MADE_LLAMAS], rules[i].recipe, 1);
        made_model(&llama, &made_shapes[0], rules[i].recipe, 1);
        const kn_grid *own = &gpt2.block[1].mlp.down_input->spec.grid, *other = &llama.block[1].mlp.down_input->spec.grid;
        ck_assert_msg(own->bits == 8 && own->has_zero == rules[i].has_zero, "%s", rules[i].recipe);
        ck_assert_msg(other->bits == 8 && other->has_zero == rules[i].llamas, "%s", rules[i].recipe);
        md_free(&gpt2);
        md_free(&llama);
    }
}
END_TEST

/* ---- one array of q, k and v -------------------------------------------------------------- */

START_TEST(one_array_of_several_rules)
{
    static const struct {
        const char *recipe, *says;
        fm_dtype type;
        int shape;
    } rules[] = {{"base q4_0\n*.wv.weight int8 narrow group:32 f16 q8_0 learned\n", NULL, FM_Q8_0, 0},
                 {"q4_0", NULL, FM_Q4_0, 0},
                 {"q4_k", NULL, FM_Q4_K, 1},
                 {"base q4_0\n*.wk.weight int5 group:32 f16 learned\n", NULL, FM_Q5_0, 0},
                 {"base q4_0\n*.wk.weight float f16\n", "blk.0.attn_qkv.weight: is one array in GGUF, of one type", FM_F32, 0}};
    const md_config shapes[] = {MADE_GPT2(32, 64, 2, 4, 38, .tied = true), MADE_GPT2(256, 512, 2, 4, 38, .tied = true)};
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        md_model m, back;
        fm_arrays a;
        scratch_begin();
        made_model(&m, &shapes[rules[i].shape], rules[i].recipe, 3);
        const char *path = scratch_path("m.gguf");
        const status s = md_export(&m, "gguf", path, NULL, 0);
        ck_assert_msg(s == (rules[i].says ? NB_UNSUPPORTED : NB_OK), "%s: %s", rules[i].recipe, s ? nb_fail_message() : "written");
        if (rules[i].says) {
            ck_assert_msg(strstr(nb_fail_message(), rules[i].says) != NULL, "%s", nb_fail_message());
        } else {
            ck_assert(fm_gguf_open(&a, path) == NB_OK && fm_find(&a, "blk.1.attn_qkv.weight")->dtype == rules[i].type);
            fm_arrays_free(&a);
            opened(&back, path, NULL);
            made_compare_models(&m, &back, rules[i].recipe);
            md_free(&back);
        }
        md_free(&m);
        scratch_end();
    }
}
END_TEST

/* ---- a folder that transformers wrote ----------------------------------------------------- */

/* A text a line. */
static const char gpt2_texts[] = "Once upon a time there was a boy, and it's 12 o'clock.\n"
                                 "na\xC3\xAFve caf\xC3\xA9, 12 \xE2\x82\xAC: stra\xC3\x9F" "e\n"
                                 "\xD0\x9F\xD1\x80\xD0\xB8\xD0\xB2\xD0\xB5\xD1\x82, \xD0\xBC\xD0\xB8\xD1\x80!\n"
                                 "\xE6\x97\xA5\xE6\x9C\xAC\xE8\xAA\x9E\xE3\x81\xAE\xE6\x96\x87\xE7\xAB\xA0\n"
                                 "\xF0\x9F\x98\x80 two  spaces\tand tabs";

static void load_ids(sequences *s, const char *path)
{
    nb_mapped f;
    ck_assert_msg(nb_map(&f, path) == NB_OK, "%s", nb_fail_message());
    *s = (sequences){0};
    ck_assert(fm_ids_reserve(&s->ids, (int64_t)(f.bytes / sizeof(int32_t))) == NB_OK);
    for (size_t at = 0; at < f.bytes;) {
        int32_t n;
        memcpy(&n, (const char *)f.data + at, sizeof n);
        memcpy(s->ids.id + s->ids.n, (const char *)f.data + at + sizeof n, (size_t)n * sizeof n);
        at += (size_t)(n + 1) * sizeof n;
        s->ids.n += n;
        s->start[++s->n_sequences] = s->ids.n;
    }
    nb_unmap(&f);
}

static void same_ids(const sequences *s, const fm_tokenizer *tk)
{
    const char *text = gpt2_texts;
    for (int64_t i = 0; i < s->n_sequences; i++, text += strcspn(text, "\n") + 1) {
        fm_ids ids = {0};
        ck_assert(fm_tokenizer_encode(tk, &ids, text, strcspn(text, "\n"), 0) == NB_OK);
        ck_assert_int_eq(ids.n, s->start[i + 1] - s->start[i]);
        ck_assert(!memcmp(ids.id, s->ids.id + s->start[i], (size_t)ids.n * sizeof *ids.id));
        fm_ids_free(&ids);
    }
}

/* A folder that transformers wrote, its Conv1D and all: ids of texts, and logits of these. */
START_TEST(gpt2_of_transformers_is_read)
{
    const char *python = client("NIBBLE_PYTHON");
    md_model m;
    sequences s;
    if (!python)
        return;
    scratch_begin();
    const char *folder = scratch_path("gpt2"), *ids = scratch_path("ids"), *log = scratch_path("log");
    int end = run("'%s' tests/readers/transformers_gpt2.py '%s' '%s' '%s' >'%s' 2>&1", python, folder,
                  scratch_write("texts", gpt2_texts, sizeof gpt2_texts - 1), ids, log);
    if (end == 77) {
        printf("left out: NIBBLE_PYTHON has no transformers with torch\n");
    } else {
        ck_assert_msg(end == 0, "transformers_gpt2.py ended with %d", end);
        ck_assert_msg(md_open(&m, folder, NULL) == NB_OK, "%s", nb_fail_message());
        load_ids(&s, ids);
        ck_assert_int_eq(s.n_sequences, 5);
        same_ids(&s, &m.tokenizer);
        end = run("'%s' tests/readers/transformers_logits.py '%s' '%s' '%s' >'%s' 2>&1", python, folder, ids,
                  scratch_path("logits"), log);
        ck_assert_msg(end == 0, "transformers_logits.py ended with %d", end);
        float *ours = our_logits(&m, &s), *theirs = load_logits(scratch_path("logits"), s.ids.n * m.config.vocab);
        const comparison c = compare_logits(theirs, ours, &s, m.config.vocab);
        print_comparison("transformers' GPT-2", c);
        ck_assert_msg(c.worst < 1e-5, "%g", c.worst);
        free(ours);
        free(theirs);
        fm_ids_free(&s.ids);
        md_free(&m);
    }
    scratch_end();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("gpt2");
    TCase *c = tcase_create("gpt2");
    tcase_set_timeout(c, 60);
    tcase_add_loop_test(c, logits_are_those_of_transformers, 0, 2);
    tcase_add_loop_test(c, configs_are_read_or_refused, 0, sizeof configs / sizeof *configs);
    tcase_add_test(c, own_configs_are_read_or_refused);
    tcase_add_test(c, rules_reach_what_gelu_makes);
    tcase_add_test(c, one_array_of_several_rules);
    suite_add_tcase(s, c);
    tcase_set_tags(add_case(s, "transformers", gpt2_of_transformers_is_read, 1), "client");
    return run_suite(s);
}
