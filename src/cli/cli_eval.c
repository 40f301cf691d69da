/* cli_eval.c - nibble eval: mean negative log likelihood and perplexity of a text; with a teacher KL(teacher || model).
 */
#include "cli/cli.h"

typedef struct {
    cl_common common;
    const char *teacher, *part;
    int64_t tokens, windows;
} eval_options;

static status print_json(const kd_eval *e)
{
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_number(&w, "nll", e->nll);
    nb_json_put_number(&w, "ppl", e->ppl);
    nb_json_open(&w, "ppl_ci95", '[');
    nb_json_put_number(&w, NULL, e->ppl_low);
    nb_json_put_number(&w, NULL, e->ppl_high);
    nb_json_close(&w, ']');
    nb_json_put_int(&w, "tokens", e->tokens);
    nb_json_put_int(&w, "windows", e->windows);
    nb_json_put_int(&w, "cut_tokens", e->cut_tokens);
    if (e->has_teacher) {
        nb_json_put_number(&w, "kl", e->kl);
        nb_json_put_number(&w, "kl_median", e->kl_median);
        nb_json_put_number(&w, "kl_p99", e->kl_p99);
        nb_json_put_number(&w, "same_top", e->same_top);
        nb_json_put_number(&w, "teacher_nll", e->teacher_nll);
    }
    nb_json_close(&w, '}');
    return cl_print_json(&w);
}

static status print_table(const kd_eval *e)
{
    cl_table t = {0};
    char tokens[32], windows[32], time[32];
    cl_thousands(tokens, sizeof tokens, e->tokens);
    cl_thousands(windows, sizeof windows, e->windows);
    cl_duration(time, sizeof time, e->seconds);
    cl_row(&t, "tokens scored\t%s\tin %s windows, %s", tokens, windows, time);
    if (e->cut_tokens) {
        cl_thousands(tokens, sizeof tokens, e->cut_tokens);
        cl_row(&t, "tokens cut off\t%s\tbeyond --ctx", tokens);
    }
    cl_row(&t, "nll\t%.5f\tmean -log p, natural", e->nll);
    cl_row(&t, "ppl\t%.4f\t95 %%: %.4f to %.4f", e->ppl, e->ppl_low, e->ppl_high);
    if (e->has_teacher) {
        cl_row(&t, "kl\t%.5f\tKL(teacher || model), mean", e->kl);
        cl_row(&t, "kl median\t%.5f", e->kl_median);
        cl_row(&t, "kl 99 %%\t%.5f", e->kl_p99);
        cl_row(&t, "same top token\t%.4f\tof all positions", e->same_top);
        cl_row(&t, "teacher's nll\t%.5f", e->teacher_nll);
    }
    return cl_table_print(stdout, &t, "lrl");
}

/* Of all that decides what a window scores. */
static uint64_t key_of(const char *model, const eval_options *o, const kd_eval_options *k)
{
    const int64_t n[] = {k->ctx, k->max_tokens, k->windows, k->precision, k->cut, o->common.split, o->teacher != NULL, o->common.which};
    uint64_t h = cl_hash_file(NB_HASH_START, model);
    h = cl_hash_file(h, o->common.data);
    const char *const more[] = {o->teacher, o->common.tokenizer};
    for (int i = 0; i < 2; i++)
        if (more[i])
            h = cl_hash_file(h, more[i]);
    return nb_hash(h, n, sizeof n);
}

static status measure(kd_eval *e, md_model *m, md_model *teacher, fm_tokens *data, const char *model, const eval_options *o)
{
    cl_progress line;
    nb_progress progress = cl_progress_start(&line, "evaluating", "tokens", o->common.quiet);
    kd_eval_options k = {.ctx = o->common.ctx ? o->common.ctx : o->windows && m->config.ctx > 512 ? 512 : 0,
                         .max_tokens = o->tokens,
                         .windows = o->windows,
                         .progress = &progress,
                         .cut = data->from_text && o->common.split != FM_SPLIT_NONE};
    TRY(cl_precision(&k.precision, &o->common, &m->config));
    k.part = o->part;
    k.part_key = key_of(model, o, &k);
    status s = kd_evaluate(e, m, teacher, data, &k);
    cl_progress_end(&line);
    return s;
}

static status evaluate(const char *model, const eval_options *o)
{
    md_model m = {0}, teacher = {0};
    fm_tokens data = {0};
    kd_eval e = {0};
    if (!o->common.data)
        return nb_fail(NB_USAGE, "what should be scored? (--data FILE, a text or a token file)");
    TRY(cl_begin(&o->common));
    status s = cl_open_model(&m, model, &o->common, NULL, false);
    if (s == NB_OK && o->teacher)
        s = cl_open_model(&teacher, o->teacher, &o->common, NULL, false);
    if (s == NB_OK)
        s = cl_open_data(&data, o->common.data, &o->common, &m);
    if (s == NB_OK)
        s = measure(&e, &m, o->teacher ? &teacher : NULL, &data, model, o);
    if (s == NB_OK)
        s = o->common.json ? print_json(&e) : print_table(&e);
    if (s == NB_OK && o->part)
        remove(o->part);
    fm_tokens_close(&data);
    md_free(&teacher);
    md_free(&m);
    return s;
}

int cl_eval(int argc, char **argv)
{
    eval_options o = {0};
    const cl_option option[] = {
        {"--teacher", "MODEL", CL_TEXT, &o.teacher, NULL, "compare with this model: KL and same top token"},
        {"--tokens", "N", CL_COUNT, &o.tokens, "0", "score at most about this many tokens in all (0: all)"},
        {"--windows", "N", CL_COUNT, &o.windows, "0",
         "as llama-perplexity does: the first N full windows of --ctx (512) tokens, their second halves scored (0: not)"},
        {"--resume", "FILE", CL_TEXT, &o.part, NULL,
         "for long texts: what is scored is kept here while it runs; stopped, the same command goes on; removed at the end"},
    };
    const cl_command command = {
        .name = "eval",
        .arguments = "MODEL",
        .summary = "likelihood of a text, and the distance to a teacher",
        .explanation = "MODEL is a model file or a run folder. Reports the mean negative log likelihood of a\n"
                       "token (nll, natural logarithm), the perplexity exp(nll) with its 95 % interval, and with\n"
                       "--teacher the Kullback-Leibler divergence KL(teacher || model). Every token of a window\n"
                       "but its first is scored. Texts split by line or blank lines are cut at --ctx; unsplit\n"
                       "texts and token files go on in further windows. A folded model is computed with its\n"
                       "integers, exactly as `nibble run` does.",
        .examples =
            "  nibble eval stories260K.bin --tokenizer tok512.bin --data stories100.txt --split line --ctx 512\n"
            "  nibble eval student.h5 --teacher stories260K.bin --data heldout.h5 --json",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_DATA | CL_SPLIT | CL_CTX | CL_TOKENIZER | CL_WHICH | CL_PRECISION | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(evaluate(argument[0], &o)) : code;
}
