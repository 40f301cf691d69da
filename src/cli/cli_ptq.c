/* cli_ptq.c - nibble ptq: quantization without training, one method or several in order. */
#include "cli/cli.h"
#include "ptq/ptq.h"
#include <stdlib.h>
#include <string.h>

enum { MOST = 8 };
typedef struct {
    cl_common common;
    const char *recipe, *read_imatrix, *write_imatrix;
    int64_t samples, length;
    bool list;
    const pt_method *method[MOST];
    int n;
} ptq_options;

static status list_methods(bool json)
{
    nb_writer w = {0};
    int64_t n;
    const pt_method *method = pt_methods(&n);
    nb_json_open(&w, NULL, '{');
    for (int64_t i = 0; i < n; i++)
        nb_json_put_string(&w, method[i].name, method[i].explanation);
    nb_json_close(&w, '}');
    if (json)
        return cl_print_json(&w);
    free(nb_json_text(&w));
    for (int64_t i = 0; i < n; i++) {
        const char *line = method[i].explanation, *second = strchr(line, '\n');
        char text[512];
        const int bytes = snprintf(text, sizeof text, "%-12s%.*s\n%-12s%s\n", method[i].name, (int)(second - line),
                                   line, "", second + 1);
        TRY(cl_print(text, (size_t)bytes));
    }
    return NB_OK;
}

/* "rotate+importance" */
static status read_methods(ptq_options *o, const char *text)
{
    for (const char *p = text; *p;) {
        char name[32];
        const size_t n = strcspn(p, "+");
        if (n == 0 || n >= sizeof name || o->n == MOST)
            return nb_fail(NB_USAGE, "%s: wanted at most %d methods, joined by +", text, MOST);
        memcpy(name, p, n);
        name[n] = 0;
        o->method[o->n] = pt_method_find(name);
        if (!o->method[o->n++])
            return nb_fail(NB_USAGE, "%s: there is no such method (`nibble ptq --list` names them)", name);
        p += n + (p[n] == '+');
    }
    return o->n ? NB_OK : nb_fail(NB_USAGE, "which method? (`nibble ptq --list` names them)");
}

static bool any_needs(const ptq_options *o, bool data)
{
    for (int i = 0; i < o->n; i++)
        if (data ? o->method[i]->needs_data : o->method[i]->needs_recipe)
            return true;
    return false;
}

/* A matrix of importance is all that is asked for: no codes, no -o. */
static bool only_writes_imatrix(const ptq_options *o)
{
    return o->write_imatrix && !o->recipe && !o->common.output;
}

static status check_imatrix(const ptq_options *o)
{
    bool turned = false, used = false;
    for (int i = 0; i < o->n; i++) {
        used = used || o->method[i]->needs_data;
        turned = turned || (!used && strcmp(o->method[i]->name, "rotate") == 0);
    }
    if ((o->read_imatrix || o->write_imatrix) && !used)
        return nb_fail(NB_USAGE, "--imatrix, --write-imatrix: %s looks at no importance", o->method[o->n - 1]->name);
    if (o->read_imatrix && turned)
        return nb_fail(NB_USAGE, "--imatrix: is of the weights as they were, rotate changes what goes into them (--data)");
    if (o->read_imatrix && o->write_imatrix)
        return nb_fail(NB_USAGE, "--write-imatrix: writes what --data shows, --imatrix takes its place");
    if (o->write_imatrix && nb_path_exists(o->write_imatrix) && !o->common.force)
        return nb_fail(NB_IO, "%s: is there already (--force replaces it)", o->write_imatrix);
    return NB_OK;
}

static status check(const ptq_options *o)
{
    TRY(check_imatrix(o));
    if (any_needs(o, false) && !o->recipe && !only_writes_imatrix(o))
        return nb_fail(NB_USAGE, "by which recipe? (--recipe q4_0; `nibble recipes` lists them)");
    if (o->recipe && !any_needs(o, false))
        return nb_fail(NB_USAGE, "--recipe: %s leaves the model in floats; with codes: %s+rtn, %s+importance, ...",
                       o->method[o->n - 1]->name, o->method[o->n - 1]->name, o->method[o->n - 1]->name);
    if (any_needs(o, true) && !o->common.data && !o->read_imatrix)
        return nb_fail(NB_USAGE, "calibrated on what? (--data FILE, a text or what `nibble data` wrote)");
    return NB_OK;
}

static status run_methods(md_model *m, const ptq_options *o, fm_tokens *data)
{
    for (int i = 0; i < o->n; i++) {
        cl_progress line;
        const nb_progress progress = cl_progress_start(&line, o->method[i]->name, "samples", o->common.quiet);
        const pt_options p = {
            .data = data,
            .calibration = {.samples = o->samples, .length = o->length, .seed = o->common.seed, .progress = &progress},
            .seed = o->common.seed,
            .read_imatrix = o->read_imatrix,
            .write_imatrix = o->write_imatrix};
        status s = o->method[i]->run(m, &p);
        cl_progress_end(&line);
        TRY(s);
    }
    if (only_writes_imatrix(o))
        return NB_OK;
    return m->recipe.n ? md_save_folded(m, o->common.output, true) : md_save_model(m, o->common.output, FM_F32);
}

static status say_matrix(const ptq_options *o, const char *methods)
{
    if (!o->common.quiet)
        cl_say("%s: E[x^2] of what goes into the weights, %s\n", o->write_imatrix, methods);
    return NB_OK;
}

static status run(const char *methods, const char *path, ptq_options *o)
{
    md_model m = {0};
    fm_tokens data = {0};
    if (o->list)
        return list_methods(o->common.json);
    if (!methods || !path)
        return nb_fail(NB_USAGE, "nibble ptq METHOD MODEL -o FILE (`nibble ptq --list` names the methods)");
    TRY(read_methods(o, methods));
    TRY(check(o));
    if (!only_writes_imatrix(o))
        TRY(cl_check_output(&o->common, false));
    TRY(cl_begin(&o->common));
    TRY(cl_open_model(&m, path, &o->common, o->recipe, false));
    status s =
        m.folded ? nb_fail(NB_USAGE, "%s: is folded already, by recipe %s", path, m.recipe.name)
        : m.recipe.n && !o->recipe
            ? nb_fail(NB_USAGE, "%s: is a run of recipe %s; `nibble fold` makes integers of it", path, m.recipe.name)
            : NB_OK;
    if (s == NB_OK && o->common.data)
        s = cl_open_data(&data, o->common.data, &o->common, &m);
    if (s == NB_OK)
        s = run_methods(&m, o, o->common.data ? &data : NULL);
    if (s == NB_OK)
        s = o->common.output || o->common.json ? cl_report_folded(&m, methods, &o->common) : say_matrix(o, methods);
    fm_tokens_close(&data);
    md_free(&m);
    return s;
}

int cl_ptq(int argc, char **argv)
{
    ptq_options o = {0};
    const cl_option option[] = {
        {"--recipe", "NAME|FILE", CL_TEXT, &o.recipe, NULL, "how the model is quantized (`nibble recipes`)"},
        {"--calib-samples", "N", CL_COUNT, &o.samples, "128",
         "windows of --data that are looked at, in an order by --seed"},
        {"--calib-length", "N", CL_COUNT, &o.length, NULL, "tokens of one (256, or the model's context)"},
        {"--imatrix", "FILE", CL_TEXT, &o.read_imatrix, NULL,
         "importance out of llama.cpp's file (llama-imatrix, GGUF) in place of --data"},
        {"--write-imatrix", "FILE", CL_TEXT, &o.write_imatrix, NULL,
         "keep importance in a file that llama-quantize --imatrix reads; alone, without --recipe and -o, nothing else is made"},
        {"--list", NULL, CL_FLAG, &o.list, NULL, "say what each method does"},
    };
    const cl_command command = {
        .name = "ptq",
        .arguments = "[METHOD] [MODEL]",
        .summary = "quantize a model without training",
        .explanation =
            "Runs a method, or several joined by + in their order, on a float model. With a recipe the file\n"
            "holds codes and the floats they came from: a folded model that runs, and a start for\n"
            "training; without one (rotate) it is a float model. `nibble ptq --list` explains the methods.",
        .examples = "  nibble ptq importance stories260K.bin --data train.h5 --recipe q4_0 -o q4.h5\n"
                    "  nibble ptq importance smollm2.gguf --imatrix imatrix.gguf --recipe q4_0 -o q4.h5\n"
                    "  nibble ptq importance smollm2.gguf --data text.txt --write-imatrix imatrix.gguf\n"
                    "  nibble ptq rotate stories260K.bin --tokenizer tok512.bin --seed 1 -o rotated.h5\n"
                    "  nibble ptq rotate+importance stories260K.bin --data train.h5 --recipe w4a8kv16 -o w4.h5",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_DATA | CL_SPLIT | CL_TOKENIZER | CL_WHICH | CL_OUTPUT | CL_FORCE | CL_SEEDED | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(run(argument[0], argument[1], &o)) : code;
}
