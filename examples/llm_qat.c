/* llm_qat.c - LLM-QAT from beginning to end: a language model writes its own training data, and its copy on 4-bit weights, 8-bit inputs and a 4-bit
 * cache learns from the model's own logits (Liu et al. 2023).
 *
 * Usage: llm_qat [MODEL [TOKENIZER]]     a llama2.c, safetensors or nibble file; without one a small model is made here: an untrained one, whose
 * sharpened random weights give it something to imitate.
 *
 * What to see: teacher and student are built from the same config, the student with a recipe; kd_generate, kd_train, kd_evaluate are the whole
 * path; the student's distance to its teacher is set beside that of plain rounding on the same grid.
 */
#include <math.h>
#include <nibble/distill.h>
#include <stdio.h>

static const md_config small = {.architecture = "llama",
                                .dim = 32,
                                .hidden = 88,
                                .layers = 2,
                                .heads = 4,
                                .kv_heads = 2,
                                .head_size = 8,
                                .vocab = 96,
                                .ctx = 64,
                                .norm_eps = 1e-5,
                                .rope_theta = 10000,
                                .tied = true,
                                .bos = 1,
                                .eos = 2};

/* The model of a file with a recipe (NULL: floats), or the small one. */
static status open_model(md_model *m, int argc, char **argv, const char *recipe)
{
    fq_recipe r = {0};
    if (argc > 1)
        return md_open(m, argv[1], &(md_open_options){.recipe = recipe, .tokenizer = argc > 2 ? argv[2] : NULL});
    if (recipe)
        TRY(fq_recipe_open(&r, recipe));
    status s = md_build(m, &small, recipe ? &r : NULL, 7, false);
    fq_recipe_free(&r);
    for (int64_t i = 0; s == NB_OK && i < m->params.n; i++)
        for (int64_t j = 0; m->params.p[i]->group == AG_WEIGHT && j < m->params.p[i]->count; j++)
            m->params.p[i]->x[j] *= 12;
    return s;
}

static status evaluate(const char *name, md_model *m, md_model *teacher, fm_tokens *data, double *kl)
{
    kd_eval e;
    TRY(kd_evaluate(&e, m, teacher, data, &(kd_eval_options){0}));
    printf("%-22s KL to the teacher %.4f, same first choice %.1f %%, perplexity %.3f (teacher's own %.3f)\n", name,
           e.kl, 100 * e.same_top, e.ppl, exp(e.teacher_nll));
    *kl = e.kl;
    return NB_OK;
}

static status distil(int argc, char **argv, md_model *teacher, md_model *rounded, md_model *student)
{
    const char *recipe = "w4a8kv4";
    fm_tokens train = {0}, heldout = {0};
    kd_data_options data = {.sampling = {.temperature = 1}, .tokens = 40000, .ctx = 64, .seed = 1};
    kd_data_options other = {.sampling = {.temperature = 1}, .tokens = 4000, .ctx = 64, .seed = 2};
    double before, after;
    TRY(open_model(teacher, argc, argv, NULL));
    TRY(kd_generate(teacher, &data, "train.h5", true, NULL, NULL));
    TRY(kd_generate(teacher, &other, "heldout.h5", true, NULL, NULL));
    TRY(fm_tokens_open(&train, "train.h5", NULL, FM_SPLIT_NONE));
    TRY(fm_tokens_open(&heldout, "heldout.h5", NULL, FM_SPLIT_NONE));

    TRY(open_model(rounded, argc, argv, recipe));
    TRY(fq_start_weights(&rounded->sites, FQ_START_ABSMAX, NULL, NULL));
    TRY(evaluate("rounded to nearest", rounded, teacher, &heldout, &before));

    TRY(open_model(student, argc, argv, recipe));
    kd_train_options o = kd_train_defaults(true, false, &student->config);
    kd_train_report report;
    o.steps = 300;
    o.batch = 8;
    TRY(kd_train("run", student, teacher, &(kd_train_data){.data = &train, .heldout = &heldout}, &o, &(kd_run_options){.restart = true}, &report));
    printf("%lld steps of %lld tokens, %.0f tokens/s\n", (long long)report.steps, (long long)(o.batch * 64),
           report.tokens_per_second);
    TRY(evaluate("trained on the grid", student, teacher, &heldout, &after));
    fm_tokens_close(&train);
    fm_tokens_close(&heldout);
    return after < 0.6 * before ? NB_OK
                                : nb_fail(NB_USAGE, "training gained too little: %.4f after %.4f", after, before);
}

int main(int argc, char **argv)
{
    md_model teacher = {0}, rounded = {0}, student = {0};
    status s = distil(argc, argv, &teacher, &rounded, &student);
    if (s != NB_OK)
        fprintf(stderr, "llm_qat: %s\n", nb_fail_message());
    md_free(&teacher);
    md_free(&rounded);
    md_free(&student);
    return s != NB_OK;
}
