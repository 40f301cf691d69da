/* cli_fold.c - nibble fold: integer codes and scales from a trained model, or from a float one by plain rounding. */
#include "cli/cli.h"
#include <stdlib.h>

typedef struct {
    cl_common common;
    const char *recipe;
    int range;
    int64_t samples;
    bool latent;
} fold_options;

static const fq_start start[] = {FQ_START_ABSMAX, FQ_START_MSE, FQ_START_IMPORTANCE};

/* Nothing looks at more than one weight, and no floats are kept. */
static bool goes_by_tensor(const fold_options *o)
{
    return o->recipe && !o->common.data && !o->latent && !o->common.untie && start[o->range] != FQ_START_IMPORTANCE;
}

/* Ranges of a float model, from the data where that is given. */
static status find_ranges(md_model *m, const fold_options *o)
{
    fm_tokens data = {0};
    cl_progress line;
    kn_precision precision;
    TRY(cl_precision(&precision, &o->common, &m->config));
    if (o->common.data)
        TRY(cl_open_data(&data, o->common.data, &o->common, m));
    const nb_progress progress = cl_progress_start(&line, "fold", "samples", o->common.quiet);
    const kd_calibration c = {.samples = o->samples,
                              .length = o->common.ctx,
                              .seed = o->common.seed,
                              .precision = precision,
                              .progress = &progress};
    status s = kd_find_ranges(m, start[o->range], o->common.data ? &data : NULL, &c);
    cl_progress_end(&line);
    fm_tokens_close(&data);
    return s;
}

static status fold_model(md_model *m, const char *path, const fold_options *o)
{
    if (m->folded && !goes_by_tensor(o))
        return nb_fail(NB_USAGE, "%s: is folded already, by recipe %s", path, m->recipe.name);
    if (m->recipe.n == 0)
        return nb_fail(NB_USAGE,
                       "%s: is a float model: by which recipe? (--recipe w4a8kv8; `nibble recipes` lists them)", path);
    if (o->recipe)
        TRY(find_ranges(m, o));
    TRY(md_save_folded(m, o->common.output, o->latent));
    return cl_report_folded(m, NULL, &o->common);
}

static status fold(const char *path, const fold_options *o)
{
    md_model m = {0};
    if (o->common.untie && !o->recipe)
        return nb_fail(NB_USAGE,
                       "--untie goes with --recipe: a trained model is folded as it was trained (qat --untie)");
    TRY(cl_check_output(&o->common, false));
    TRY(cl_begin(&o->common));
    TRY(goes_by_tensor(o) ? cl_open_codes(&m, path, &o->common, o->recipe, start[o->range])
                          : cl_open_model(&m, path, &o->common, o->recipe, false));
    status s = fold_model(&m, path, o);
    md_free(&m);
    return s;
}

int cl_fold(int argc, char **argv)
{
    fold_options o = {0};
    const cl_option option[] = {
        {"--recipe", "NAME|FILE", CL_TEXT, &o.recipe, NULL,
         "how a float model is quantized; a trained one has its own, and given another starts again from its floats"},
        {"--range", "absmax|mse|importance", CL_CHOICE, &o.range, "absmax",
         "scales of a float model's weights: largest magnitude / largest code (ggml recipes: ggml's rule), least "
         "squared error, or that weighted by what --data multiplies the weights with"},
        {"--calib-samples", "N", CL_COUNT, &o.samples, "128",
         "windows of --data (of --ctx tokens, 256) that importance and static ranges are taken from"},
        {"--latent", NULL, CL_FLAG, &o.latent, NULL, "keep the floats too, so that training can start from the file"},
    };
    const cl_command command = {
        .name = "fold",
        .arguments = "MODEL",
        .summary = "make a file of integers from a trained or a float model",
        .explanation = "MODEL is a run folder of `nibble qat`, or a float model with --recipe: plain rounding to\n"
                       "nearest, the baseline (`nibble ptq` has better ones). The file holds integer codes, scales and "
                       "zero points, config,\n"
                       "recipe and tokenizer; what it decodes to are bit for bit the weights that training saw.\n"
                       "Without --data and --latent a float model is folded while it is read, one weight in floats at a time.\n"
                       "`nibble eval` and `run` compute with its integers.",
        .examples = "  nibble fold run/ -o student.h5\n"
                    "  nibble fold stories260K.bin --tokenizer tok512.bin --recipe w4a8kv8 -o rtn.h5\n"
                    "  nibble fold stories260K.bin --tokenizer tok512.bin --recipe w4a16g32 --range mse -o mse.h5\n"
                    "  nibble fold stories260K.bin --data train.h5 --recipe q4_0 --range importance -o q4.h5",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_DATA | CL_SPLIT | CL_CTX | CL_TOKENIZER | CL_WHICH | CL_UNTIE | CL_OUTPUT | CL_FORCE |
                       CL_SEEDED | CL_PRECISION | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(fold(argument[0], &o)) : code;
}
