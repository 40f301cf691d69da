/* cli_fold.c - nibble fold: integer codes and scales from a trained model, or from a float one by plain rounding. */
#include "cli/cli.h"
#include <stdlib.h>

typedef struct {
    cl_common common;
    const char *recipe;
    int range;
    int64_t batches;
    bool latent;
} fold_options;

/* Float forwards over the first rows of the data, watched by the sites whose ranges come from data. */
static status watch(md_model *m, fm_tokens *data, int64_t T, int64_t batches)
{
    enum { ROWS = 16 };
    ag_tape tape = {.no_grad = true, .quantize_off = true, .tap = {fq_observe, &m->sites}};
    int32_t *ids = nb_alloc((size_t)(ROWS * T), sizeof *ids);
    status s = ids ? NB_OK : NB_NOMEM;
    for (int64_t i = 0, from = 0; i < batches && s == NB_OK && from + T <= data->n; i++) {
        int64_t rows = (data->n - from) / T < ROWS ? (data->n - from) / T : ROWS;
        md_input in = {.B = rows, .T = T, .ids = ids};
        s = fm_tokens_read(data, ids, from, rows * T);
        if (s != NB_OK)
            break;
        ag_reset(&tape);
        md_forward(&tape, m, &in);
        s = ag_status(&tape);
        from += rows * T;
        if (s == NB_OK && cl_interrupted())
            s = nb_fail(NB_INTERRUPTED, "interrupted");
    }
    ag_tape_free(&tape);
    free(ids);
    return s == NB_OK ? fq_observe_end(&m->sites) : s;
}

static status calibrate(md_model *m, const fold_options *o)
{
    char names[256];
    fm_tokens data = {0};
    int64_t T = o->common.ctx ? o->common.ctx : 256;
    if (!fq_sites_need_calibration(&m->sites, names, sizeof names))
        return NB_OK;
    if (!o->common.data)
        return nb_fail(NB_UNSUPPORTED, "the ranges of %s come from data (--data FILE, a text or a token file)", names);
    TRY(cl_open_data(&data, o->common.data, &o->common, m));
    T = T > m->config.ctx ? m->config.ctx : T;
    T = T > data.n ? data.n : T;
    status s = T > 0 ? watch(m, &data, T, o->batches) : nb_fail(NB_USAGE, "%s: holds no tokens", o->common.data);
    fm_tokens_close(&data);
    if (s == NB_OK && fq_sites_need_calibration(&m->sites, names, sizeof names))
        s = nb_fail(NB_UNSUPPORTED, "%s: %s saw no data", o->common.data, names);
    return s;
}

static status report(const md_model *m, const fold_options *o)
{
    md_size size;
    md_measure(&size, m);
    const int64_t bytes = size.code_bytes + size.scale_bytes + size.zero_bytes + size.float_bytes;
    const double bits = 8.0 * (double)bytes / (double)size.params;
    if (o->common.json) {
        nb_writer w = {0};
        nb_json_open(&w, NULL, '{');
        nb_json_put_string(&w, "recipe", m->recipe.name);
        nb_json_put_int(&w, "params", size.params);
        nb_json_put_int(&w, "bytes", bytes);
        nb_json_put_number(&w, "bits_per_param", bits);
        nb_json_close(&w, '}');
        return cl_print_json(&w);
    }
    if (o->common.quiet)
        return NB_OK;
    char text[32];
    cl_size(text, sizeof text, (double)bytes);
    cl_say("%s: %s of codes, scales and float tensors, %.2f bits per parameter, recipe %s\n", o->common.output, text,
           bits, m->recipe.name);
    return NB_OK;
}

static status fold_model(md_model *m, const char *path, const fold_options *o)
{
    if (m->folded)
        return nb_fail(NB_USAGE, "%s: is folded already, by recipe %s", path, m->recipe.name);
    if (m->recipe.n == 0)
        return nb_fail(NB_USAGE,
                       "%s: is a float model: by which recipe? (--recipe w4a8kv8; `nibble recipes` lists them)", path);
    if (o->recipe) {
        TRY(fq_start_weights(&m->sites, o->range == 0 ? FQ_START_ABSMAX : FQ_START_MSE, NULL, NULL));
        m->params.version++;
    }
    TRY(calibrate(m, o));
    TRY(md_save_folded(m, o->common.output, o->latent));
    return report(m, o);
}

static status fold(const char *path, const fold_options *o)
{
    md_model m = {0};
    if (o->common.untie && !o->recipe)
        return nb_fail(NB_USAGE, "--untie goes with --recipe: a trained model is folded as it was trained (qat --untie)");
    TRY(cl_check_output(&o->common, false));
    TRY(cl_begin(&o->common));
    TRY(cl_open_model(&m, path, &o->common, o->recipe, false));
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
        {"--range", "absmax|mse", CL_CHOICE, &o.range, "absmax",
         "scales of a float model's weights: largest magnitude / largest code (ggml recipes: ggml's rule), or least "
         "squared error"},
        {"--batches", "N", CL_COUNT, &o.batches, "8", "batches of 16 rows of --data that static ranges are taken from"},
        {"--latent", NULL, CL_FLAG, &o.latent, NULL, "keep the floats too, so that training can start from the file"},
    };
    const cl_command command = {
        .name = "fold",
        .arguments = "MODEL",
        .summary = "make a file of integers from a trained or a float model",
        .explanation = "MODEL is a run folder of `nibble qat`, or a float model with --recipe: plain rounding to\n"
                       "nearest, the baseline. The file holds integer codes, scales and zero points, config,\n"
                       "recipe and tokenizer; what it decodes to are bit for bit the weights that training saw.\n"
                       "`nibble eval` and `run` compute with its integers.",
        .examples = "  nibble fold run/ -o student.h5\n"
                    "  nibble fold stories260K.bin --tokenizer tok512.bin --recipe w4a8kv8 -o rtn.h5\n"
                    "  nibble fold stories260K.bin --tokenizer tok512.bin --recipe w4a16g32 --range mse -o mse.h5",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_DATA | CL_SPLIT | CL_CTX | CL_TOKENIZER | CL_WHICH | CL_UNTIE | CL_OUTPUT | CL_FORCE | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(fold(argument[0], &o)) : code;
}
