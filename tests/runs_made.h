/* runs_made.h - for tests: a tiny model with weights worth imitating, token files that it wrote, short runs in scratch folders. */
#ifndef NIBBLE_TESTS_RUNS_MADE_H
#define NIBBLE_TESTS_RUNS_MADE_H
#include "distill/distill.h"
#include "scratch.h"
#include "suite.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const md_config tiny = {.architecture = "llama",
                               .dim = 24,
                               .hidden = 52,
                               .layers = 2,
                               .heads = 3,
                               .kv_heads = 1,
                               .head_size = 8,
                               .vocab = 41,
                               .ctx = 48,
                               .norm_eps = 1e-5,
                               .rope_theta = 10000,
                               .tied = true,
                               .bos = 1,
                               .eos = 2};

#define OK(e) ck_assert_msg((e) == NB_OK, "%s: %s", #e, nb_fail_message())

static inline void open_model(md_model *m, const char *recipe)
{
    fq_recipe r;
    OK(fq_recipe_open(&r, recipe));
    OK(md_build(m, &tiny, &r, 7, false));
    fq_recipe_free(&r);
    for (int64_t i = 0; i < m->params.n; i++) /* sharp enough to be worth imitating */
        for (int64_t j = 0; j < m->params.p[i]->count && m->params.p[i]->group == AG_WEIGHT; j++)
            m->params.p[i]->x[j] *= 10;
    m->params.version++;
}

static inline char *path_of(const char *folder, const char *name)
{
    char *p = nb_path_join(folder, name);
    ck_assert_ptr_nonnull(p);
    return p;
}

/* Stops the work after `left` reports. */
static inline bool countdown(void *ctx, int64_t done, int64_t total, const char *text)
{
    int *left = ctx;
    (void)done;
    (void)total;
    (void)text;
    return (*left)-- > 0;
}

static inline void generate(md_model *m, const char *path, int64_t tokens, uint64_t seed, kd_start start)
{
    kd_data_options o = {
        .start = start, .sampling = {.temperature = 1}, .tokens = tokens, .ctx = 32, .slots = 4, .seed = seed};
    kd_data_report r;
    OK(kd_generate(m, &o, path, true, NULL, &r));
    ck_assert_int_ge(r.tokens, tokens);
}

typedef struct {
    const char *recipe;
    double average;
    int64_t accumulate, quant_after, freeze_after;
    kd_recompute recompute;
    bool sgd, int8_gradients;
    double hidden;
    int64_t top_k;
    double pin, text_share;
    double ce; /* in place of KL, where it is not 0 */
} training;
static const training trainings[] = {
    {"w4a8kv4", .accumulate = 1, .recompute = KD_RECOMPUTE_OFF, .pin = 0.001},
    {"w4a8kv16", .accumulate = 2, .recompute = KD_RECOMPUTE_ON, .average = 0.9, .int8_gradients = true},
    {"q4_0", .accumulate = 1, .recompute = KD_RECOMPUTE_OFF, .quant_after = 3, .pin = 0.02, .text_share = 0.4},
    {"w2a16", .accumulate = 1, .recompute = KD_RECOMPUTE_OFF, .freeze_after = 6, .sgd = true, .hidden = 0.1,
     .pin = 0.001},
    {"llmqat-4-8-4", .accumulate = 1, .recompute = KD_RECOMPUTE_OFF},
    {"w4a16g32", .accumulate = 1, .recompute = KD_RECOMPUTE_OFF, .top_k = 8, .text_share = 0.7}};
enum { N_TRAININGS = sizeof trainings / sizeof *trainings };

/* `data` and, where the training mixes, `data`.text beside it. */
static inline status train(const char *folder, const char *data, const training *how, int *left, int64_t steps,
                           kd_train_report *report)
{
    md_model teacher, student;
    fm_tokens tokens, text = {0};
    open_model(&teacher, "float");
    open_model(&student, how->recipe);
    OK(fm_tokens_open(&tokens, data, NULL, FM_SPLIT_NONE));
    if (how->text_share > 0) {
        char path[1024];
        (void)snprintf(path, sizeof path, "%s.text", data);
        OK(fm_tokens_open(&text, path, NULL, FM_SPLIT_NONE));
    }
    kd_train_options o = kd_train_defaults(true, false, &student.config);
    o.steps = steps;
    o.batch = 4;
    o.accumulate = how->accumulate;
    o.average = how->average;
    o.quant_after = how->quant_after;
    o.freeze_after = how->freeze_after;
    o.recompute = how->recompute;
    o.sgd = how->sgd;
    o.int8_gradients = how->int8_gradients;
    o.hidden = how->hidden;
    o.top_k = how->top_k;
    o.pin = how->pin;
    o.text_share = how->text_share;
    o.ce = how->ce;
    o.kl = how->ce == 0;
    o.eval_every = 4;
    kd_run_options run = {.save_every = 3, .keep = 3, .progress = {left ? countdown : NULL, left}};
    const kd_train_data d = {&tokens, how->text_share > 0 ? &text : NULL, NULL};
    status s = kd_train(folder, &student, &teacher, &d, &o, &run, report);
    fm_tokens_close(&text);
    fm_tokens_close(&tokens);
    md_free(&teacher);
    md_free(&student);
    return s;
}

#endif
