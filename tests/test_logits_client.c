/* test_logits_client.c - libllama and transformers compute our runtime's logits from our exports, and libllama finds our ids of texts.
 */
#include "clients.h"
#include "distill/distill.h"
#include "logits.h"
#include "models_made.h"
#include "scratch.h"
#include <math.h>

#define STORIES "../shared/data/stories260k/"

/* Builds client_llama into the scratch folder. */
static bool build_client(char program[1024])
{
    const char *sources = client("NIBBLE_LLAMA_SOURCES");
    if (!sources)
        return false;
    (void)snprintf(program, 1024, "%s/client_llama", scratch_folder);
    const int failed = run("cc -std=gnu11 -O1 -o '%s' tests/client_llama.c -I'%s/include' -I'%s/ggml/include' -ldl -lm",
                           program, sources, sources);
    ck_assert_msg(!failed, "client_llama does not build with the headers in %s", sources);
    return true;
}

static void run_client(const char *program, const char *mode, const char *in, const char *text, const char *out)
{
    const char *libraries = getenv("NIBBLE_LIBLLAMA");
    const int failed = text ? run("'%s' '%s' %s '%s' '%s' '%s'", program, libraries, mode, in, text, out)
                            : run("'%s' '%s' %s '%s' '%s'", program, libraries, mode, in, out);
    ck_assert_msg(!failed, "client_llama %s %s", mode, in);
}

/* Each line a document, cut at the model's context. */
static void stories(sequences *s, const md_model *m, const char *path, int64_t most)
{
    fm_documents *d;
    fm_text text;
    *s = (sequences){0};
    ck_assert_msg(fm_documents_open(&d, path, FM_SPLIT_LINE) == NB_OK, "%s", nb_fail_message());
    while (s->n_sequences < most && fm_documents_next(d, &text) == NB_OK && text.text) {
        const int64_t first = s->ids.n;
        ck_assert(fm_tokenizer_encode(&m->tokenizer, &s->ids, text.text, text.bytes, FM_ADD_BOS) == NB_OK);
        if (s->ids.n - first > m->config.ctx)
            s->ids.n = first + m->config.ctx;
        s->start[++s->n_sequences] = s->ids.n;
    }
    fm_documents_close(d);
}

static comparison compare_with_libllama(const char *program, const char *gguf, const float *ours, const sequences *s,
                                        int64_t vocab)
{
    run_client(program, "logits", gguf, scratch_path("ids"), scratch_path("logits"));
    float *theirs = load_logits(scratch_path("logits"), s->ids.n * vocab);
    const comparison c = compare_logits(theirs, ours, s, vocab);
    free(theirs);
    return c;
}

/* The model whose weights are m's decoded values, all float. */
static void decoded_model(md_model *f, md_model *m)
{
    ck_assert_msg(md_export(m, "h5", scratch_path("decoded.h5"), NULL, 0) == NB_OK, "%s", nb_fail_message());
    ck_assert_msg(md_open(f, scratch_path("decoded.h5"), NULL) == NB_OK, "%s", nb_fail_message());
}

/* Rounding of inputs turns differences in the order of sums and in the angles of the rotation (ggml multiplies them up in
 * floats) into whole steps: a relative noise of 5e-7 in our own norms moves q8_0 by a KL of 4e-4 and 1.1 % of the tops. */
static const struct {
    const char *recipe;
    double same_top;
    bool trained;
} quantized[] = {{"q4_0", 0.99, true}, {"q8_0", 0.985, false}};

/* A student of what stories260K wrote itself, after a short training: what `nibble data` and `nibble qat` make. */
static void train_student(md_model *m, const md_open_options *o)
{
    const md_open_options plain = {.tokenizer = o->tokenizer};
    const kd_data_options made = {.sampling = {.temperature = 1}, .tokens = 40000, .ctx = 128, .seed = 1};
    const char *data = scratch_path("data.h5");
    md_model teacher;
    fm_tokens tokens;
    kd_train_report r;
    ck_assert_msg(md_open(&teacher, STORIES "stories260K.bin", &plain) == NB_OK, "%s", nb_fail_message());
    ck_assert_msg(md_open(m, STORIES "stories260K.bin", o) == NB_OK, "%s", nb_fail_message());
    ck_assert_msg(kd_generate(&teacher, &made, data, true, NULL, NULL) == NB_OK, "%s", nb_fail_message());
    ck_assert_msg(fm_tokens_open(&tokens, data, &m->tokenizer, FM_SPLIT_NONE) == NB_OK, "%s", nb_fail_message());
    kd_train_options k = kd_train_defaults(true, false, &m->config);
    const kd_run_options run = {0};
    const kd_train_data d = {.data = &tokens};
    k.steps = 30;
    k.batch = 8;
    k.lr = 1e-3;
    ck_assert_msg(kd_train(scratch_path("run"), m, &teacher, &d, &k, &run, &r) == NB_OK, "%s", nb_fail_message());
    printf("%s: held-out KL %.4f after %d steps\n", o->recipe, r.best_kl, (int)r.steps);
    ck_assert(r.best_kl < 0.08); /* 0.10 untrained */
    fm_tokens_close(&tokens);
    md_free(&teacher);
    md_free(m);
    ck_assert_msg(kd_open(m, scratch_path("run"), "best", NULL) == NB_OK, "%s", nb_fail_message());
}

/* The GGUF of a folded model, and the same turned back into floats by libllama, against our own logits on a text. */
static void compare_on_text(md_model *folded, const char *program, const char *text, const char *recipe,
                            double same_top)
{
    const char *gguf = scratch_path("m.gguf");
    sequences s;
    md_model floats;
    stories(&s, folded, text, 100);
    ck_assert_int_eq(s.n_sequences, 100);
    ck_assert_int_eq(s.ids.n - s.n_sequences, 35904); /* the tokens scored in the data's own reference */
    save_ids(&s, scratch_path("ids"));
    ck_assert_msg(md_export(folded, "gguf", gguf, NULL, 0) == NB_OK, "%s", nb_fail_message());
    float *ours = our_logits(folded, &s);
    comparison c = compare_with_libllama(program, gguf, ours, &s, 512);
    print_comparison(recipe, c);
    ck_assert_msg(fabs(c.nll_a - c.nll_b) < 1e-3 && c.kl < 1e-3 && c.same_top >= same_top, "see the line above");
    free(ours);
    run_client(program, "f32", gguf, NULL, scratch_path("f32.gguf"));
    decoded_model(&floats, folded);
    ours = our_logits(&floats, &s);
    c = compare_with_libllama(program, scratch_path("f32.gguf"), ours, &s, 512);
    print_comparison("turned to F32", c);
    ck_assert_msg(c.relative < 1e-5 && c.same_top >= 0.999, "see the line above");
    free(ours);
    fm_ids_free(&s.ids);
    md_free(&floats);
}

START_TEST(libllama_computes_our_logits)
{
    const md_open_options o = {.recipe = quantized[_i].recipe, .tokenizer = STORIES "tok512.bin"};
    const char *text = "../shared/data/reference/stories100.txt";
    char program[1024];
    md_model m, folded;
    if (!client("NIBBLE_LIBLLAMA") || !have(STORIES "stories260K.bin") || !have(text))
        return;
    scratch_begin();
    if (build_client(program)) {
        if (quantized[_i].trained)
            train_student(&m, &o);
        else
            ck_assert_msg(md_open(&m, STORIES "stories260K.bin", &o) == NB_OK, "%s", nb_fail_message());
        ck_assert(md_save_folded(&m, scratch_path("folded.h5"), false) == NB_OK);
        ck_assert(md_open(&folded, scratch_path("folded.h5"), NULL) == NB_OK);
        compare_on_text(&folded, program, text, o.recipe, quantized[_i].same_top);
        md_free(&m);
        md_free(&folded);
    }
    scratch_end();
}
END_TEST

/* Everything a shape can have: pairings, biases, explicit head sizes, llama3's scaling, an untied head, GPT-2; in floats. */
static const md_config float_shapes[] = {
    MADE(24, 52, 2, 3, 1, 8, 37, .tied = true),
    MADE(32, 44, 2, 4, 2, 16, 64, .pairing = KN_ROPE_HALF),
    MADE(64, 96, 1, 2, 1, 16, 33, .pairing = KN_ROPE_HALF, .qkv_bias = true, .rope_theta = 500),
    MADE(64, 96, 2, 4, 2, 16, 33, .tied = true, .pairing = KN_ROPE_HALF, .qkv_bias = true),
    MADE(32, 64, 2, 4, 4, 8, 35, .qkv_bias = true, .out_bias = true, .norm_eps = 1e-3),
    MADE(32, 64, 1, 2, 1, 16, 40, .tied = true, .rope_theta = 500000, .rope_factor = 8, .rope_low = 1, .rope_high = 4,
         .rope_ctx = 64, .pairing = KN_ROPE_HALF),
    MADE_GPT2(64, 96, 2, 4, 35, .tied = true),
    MADE_GPT2(32, 64, 1, 4, 40, .norm_eps = 1e-3),
};

static void float_model(md_model *m, int shape)
{
    made_model(m, &float_shapes[shape], "float", (uint64_t)shape + 40);
    for (int64_t i = 0; i < m->params.n; i++) /* so that no logit is huge */
        for (int64_t k = 0; k < m->params.p[i]->count && m->params.p[i]->group != AG_NORM; k++)
            m->params.p[i]->x[k] *= (real)0.2;
    m->params.version++;
}

START_TEST(libllama_computes_every_shape)
{
    char program[1024];
    md_model m;
    sequences s;
    if (!client("NIBBLE_LIBLLAMA"))
        return;
    scratch_begin();
    if (build_client(program)) {
        float_model(&m, _i);
        random_sequences(&s, &m.config, 20);
        save_ids(&s, scratch_path("ids"));
        ck_assert_msg(md_export(&m, "gguf-f32", scratch_path("m.gguf"), NULL, 0) == NB_OK, "%s", nb_fail_message());
        float *ours = our_logits(&m, &s);
        const comparison c = compare_with_libllama(program, scratch_path("m.gguf"), ours, &s, m.config.vocab);
        print_comparison("libllama", c);
        ck_assert_msg(c.relative < (md_is_gpt2(&m.config) ? 5e-4 : 1e-5), "%g", c.relative); /* ggml's GELU is a table of halves */
        free(ours);
        fm_ids_free(&s.ids);
        md_free(&m);
    }
    scratch_end();
}
END_TEST

/* Blocks of 256, and GPT-2's q, k and v in one array: the same values when libllama decodes them, the same logits but for the order of
 * sums, and its GELU, when it computes with them. */
static const struct {
    const char *recipe, *types;
    md_config shape;
    double decoded, computed; /* relative differences of logits */
} blocks[] = {{"q4_k", "1 Q6_K", MADE(512, 768, 1, 8, 4, 64, 200, .tied = true), 1e-5, 1e-2},
              {"q6_k", "Q6_K", MADE(512, 768, 1, 8, 4, 64, 200, .tied = true), 1e-5, 1e-2},
              {"tq2_0", "TQ2_0", MADE(512, 768, 1, 8, 4, 64, 200, .tied = true), 1e-5, 1e-2},
              {"iq4_nl", "IQ4_NL", MADE(512, 768, 1, 8, 4, 64, 200, .tied = true), 1e-5, 1e-2},
              {"q4_0", "8 Q4_0, 1 Q8_0", MADE_GPT2(128, 512, 2, 4, 200, .tied = true), 5e-4, 1e-2},
              {"q8_0", "9 Q8_0", MADE_GPT2(128, 512, 2, 4, 200, .tied = true), 5e-4, 1e-2},
              {"base q4_0\n*.wv.weight int8 narrow group:32 f16 q8_0 learned\n", "6 Q4_0, 3 Q8_0",
               MADE_GPT2(128, 512, 2, 4, 200, .tied = true), 5e-4, 1e-2}};

START_TEST(libllama_computes_blocks)
{
    char program[1024], report[1024];
    md_model m, floats;
    sequences s;
    if (!client("NIBBLE_LIBLLAMA"))
        return;
    scratch_begin();
    if (build_client(program)) {
        made_model(&m, &blocks[_i].shape, blocks[_i].recipe, 70);
        for (int64_t i = 0; i < m.params.n; i++) /* so that no logit is huge */
            for (int64_t k = 0; k < m.params.p[i]->count && m.params.p[i]->group == AG_WEIGHT; k++)
                m.params.p[i]->x[k] *= (real)0.05;
        m.params.version++;
        ck_assert_msg(fq_start_weights(&m.sites, FQ_START_MSE, NULL, NULL) == NB_OK, "%s", nb_fail_message());
        random_sequences(&s, &m.config, 10);
        save_ids(&s, scratch_path("ids"));
        ck_assert_msg(md_export(&m, "gguf", scratch_path("m.gguf"), report, sizeof report) == NB_OK, "%s", nb_fail_message());
        ck_assert_msg(strstr(report, blocks[_i].types) && !strstr(report, "padded"), "%s", report);
        float *ours = our_logits(&m, &s);
        comparison c = compare_with_libllama(program, scratch_path("m.gguf"), ours, &s, m.config.vocab);
        print_comparison(blocks[_i].recipe, c);
        ck_assert_msg(c.kl < 1e-4 && c.relative < blocks[_i].computed, "see the line above");
        free(ours);
        run_client(program, "f32", scratch_path("m.gguf"), NULL, scratch_path("f32.gguf"));
        decoded_model(&floats, &m);
        ours = our_logits(&floats, &s);
        c = compare_with_libllama(program, scratch_path("f32.gguf"), ours, &s, m.config.vocab);
        print_comparison("turned to F32", c);
        ck_assert_msg(c.relative < blocks[_i].decoded, "see the line above");
        free(ours);
        fm_ids_free(&s.ids);
        md_free(&floats);
        md_free(&m);
    }
    scratch_end();
}
END_TEST

START_TEST(transformers_computes_every_shape)
{
    const char *python = client("NIBBLE_PYTHON");
    md_model m;
    sequences s;
    if (!python)
        return;
    scratch_begin();
    float_model(&m, _i);
    random_sequences(&s, &m.config, 20);
    save_ids(&s, scratch_path("ids"));
    ck_assert_msg(md_export(&m, "safetensors", scratch_path("hf"), NULL, 0) == NB_OK, "%s", nb_fail_message());
    const int end = run("'%s' tests/readers/transformers_logits.py '%s' '%s' '%s' >'%s' 2>&1", python,
                        scratch_path("hf"), scratch_path("ids"), scratch_path("logits"), scratch_path("log"));
    if (end == 77) {
        printf("left out: NIBBLE_PYTHON has no transformers with torch\n");
    } else {
        ck_assert_msg(end == 0, "transformers_logits.py ended with %d", end);
        float *ours = our_logits(&m, &s), *theirs = load_logits(scratch_path("logits"), s.ids.n * m.config.vocab);
        const comparison c = compare_logits(theirs, ours, &s, m.config.vocab);
        print_comparison("transformers", c);
        ck_assert_msg(c.relative < 1e-5, "%g", c.relative);
        free(ours);
        free(theirs);
    }
    fm_ids_free(&s.ids);
    md_free(&m);
    scratch_end();
}
END_TEST

/* ---- tokenizers --------------------------------------------------------------------------- */

/* A model that is no more than its vocabulary. */
static void vocabulary(md_model *m, const char *tokenizer, int64_t vocab)
{
    const md_open_options o = {.tokenizer = tokenizer};
    md_config c = made_shapes[1];
    md_model made;
    c.vocab = vocab;
    made_model(&made, &c, "float", 1);
    ck_assert(md_save_model(&made, scratch_path("v.h5"), FM_F32) == NB_OK);
    md_free(&made);
    ck_assert_msg(md_open(m, scratch_path("v.h5"), &o) == NB_OK, "%s", nb_fail_message());
}

START_TEST(libllama_finds_our_ids)
{
    static const struct {
        const char *tokenizer;
        int64_t vocab;
    } cases[] = {{STORIES "tok512.bin", 512}, {STORIES "tok512.model", 514}, {"bytes", 258}, {"bytes", 261}};
    static const char *const texts[] = {"Once upon a time, there was a boy.",
                                        " two  spaces\n\nand\ttabs ",
                                        "na\xC3\xAFve \xE2\x82\xAC \xF0\x9F\x98\x80!",
                                        "a",
                                        "</s><s>",
                                        "1234 <0x41> 'tis"};
    char program[1024];
    md_model m;
    if (!client("NIBBLE_LIBLLAMA") || (_i < 2 && !have(cases[_i].tokenizer)))
        return;
    scratch_begin();
    if (build_client(program)) {
        vocabulary(&m, cases[_i].tokenizer, cases[_i].vocab);
        ck_assert_msg(md_export(&m, "gguf-f32", scratch_path("v.gguf"), NULL, 0) == NB_OK, "%s", nb_fail_message());
        for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
            if (m.tokenizer.remove_extra_spaces &&
                strstr(texts[i], "  ")) /* llama.cpp leaves them in: the report says so */
                continue;
            fm_ids ids = {0};
            nb_mapped found;
            (void)scratch_write("text", texts[i], strlen(texts[i]));
            ck_assert(fm_tokenizer_encode(&m.tokenizer, &ids, texts[i], strlen(texts[i]), FM_ADD_BOS) == NB_OK);
            run_client(program, "tokenize", scratch_path("v.gguf"), scratch_path("text"), scratch_path("found"));
            ck_assert(nb_map(&found, scratch_path("found")) == NB_OK);
            ck_assert_msg(found.bytes == (size_t)ids.n * sizeof *ids.id && !memcmp(found.data, ids.id, found.bytes),
                          "%s: \"%s\": %zu ids, ours %lld", cases[_i].tokenizer, texts[i], found.bytes / 4,
                          (long long)ids.n);
            nb_unmap(&found);
            fm_ids_free(&ids);
        }
        md_free(&m);
    }
    scratch_end();
}
END_TEST

int main(void)
{
    const int shapes = sizeof float_shapes / sizeof *float_shapes;
    Suite *s = suite_create("logits_client");
    tcase_set_tags(add_case(s, "libllama", libllama_computes_our_logits, sizeof quantized / sizeof *quantized),
                   "client");
    tcase_set_tags(add_case(s, "shapes", libllama_computes_every_shape, shapes), "client");
    tcase_set_tags(add_case(s, "blocks", libllama_computes_blocks, sizeof blocks / sizeof *blocks), "client");
    tcase_set_tags(add_case(s, "transformers", transformers_computes_every_shape, shapes), "client");
    tcase_set_tags(add_case(s, "ids", libllama_finds_our_ids, 4), "client");
    return run_suite(s);
}
