/* cli_export.c - nibble export: a model in another program's format, with the codes that training used. */
#include "cli/cli.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
    cl_common common;
    const char *target;
    bool list;
} export_options;

/* nibble's own float files beside the foreign formats of md_targets. */
static const struct {
    const char *name, *explanation;
    fm_dtype dtype;
} own_targets[] = {
    {"h5", "nibble's own file, fp32 floats", FM_F32},
    {"h5-bf16", "nibble's own file, floats rounded to bf16", FM_BF16},
    {"h5-f16", "nibble's own file, floats rounded to fp16", FM_F16},
};
enum { N_OWN = sizeof own_targets / sizeof *own_targets };

static status list_targets(bool json)
{
    cl_table t = {0};
    nb_writer w = {0};
    int64_t n;
    const md_target *target = md_targets(&n);
    nb_json_open(&w, NULL, '{');
    for (int64_t i = 0; i < n + N_OWN; i++) {
        const char *name = i < n ? target[i].name : own_targets[i - n].name;
        const char *explanation = i < n ? target[i].explanation : own_targets[i - n].explanation;
        nb_json_put_string(&w, name, explanation);
        cl_row(&t, "%s\t%s", name, explanation);
    }
    nb_json_close(&w, '}');
    status s = json ? cl_print_json(&w) : cl_table_print(stdout, &t, "ll");
    free(nb_json_text(&w));
    cl_table_free(&t);
    return s;
}

static bool is_target(const char *name)
{
    int64_t n;
    const md_target *target = md_targets(&n);
    for (int64_t i = 0; i < n; i++)
        if (!strcmp(target[i].name, name))
            return true;
    for (int i = 0; i < N_OWN; i++)
        if (!strcmp(own_targets[i].name, name))
            return true;
    return false;
}

static status write_target(md_model *m, const export_options *o, char *report, size_t bytes)
{
    for (int i = 0; i < N_OWN; i++)
        if (!strcmp(own_targets[i].name, o->target))
            return md_save_model(m, o->common.output, own_targets[i].dtype);
    return md_export(m, o->target, o->common.output, report, bytes);
}

static status print_report(const char *report, const export_options *o)
{
    if (!o->common.json) {
        if (!o->common.quiet)
            cl_say("%s: written for %s\n%s%s", o->common.output, o->target, report, *report ? "\n" : "");
        return NB_OK;
    }
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_string(&w, "target", o->target);
    nb_json_put_string(&w, "file", o->common.output);
    nb_json_put_string(&w, "report", report);
    nb_json_close(&w, '}');
    return cl_print_json(&w);
}

static status export_model(const char *path, const export_options *o)
{
    md_model m = {0};
    char report[2048] = "";
    if (o->list)
        return list_targets(o->common.json);
    if (!path || !o->target)
        return nb_fail(NB_USAGE, "%s (`nibble export --list` names the targets)",
                       path ? "in which format? --to TARGET" : "which model? nibble export MODEL --to TARGET -o FILE");
    if (!is_target(o->target))
        return nb_fail(NB_USAGE, "--to %s: there is no such target (`nibble export --list` names them)", o->target);
    TRY(cl_check_output(&o->common, !strcmp(o->target, "safetensors")));
    TRY(cl_begin(&o->common));
    TRY(cl_open_model(&m, path, &o->common, NULL, false));
    status s = write_target(&m, o, report, sizeof report);
    md_free(&m);
    return s == NB_OK ? print_report(report, o) : s;
}

int cl_export(int argc, char **argv)
{
    export_options o = {0};
    const cl_option option[] = {
        {"--to", "TARGET", CL_TEXT, &o.target, NULL,
         "llama2c, llama2c-f32, gguf, gguf-f32, gguf-f16, safetensors, h5, ..."},
        {"--list", NULL, CL_FLAG, &o.list, NULL, "say what each target holds, and when it is exact"},
    };
    const cl_command command = {
        .name = "export",
        .arguments = "[MODEL]",
        .summary = "write a model in another program's format",
        .explanation = "MODEL is a folded file, a run folder or a float model. What is written are the codes and\n"
                       "scales that training used; nothing is quantized a second time. Where a format cannot\n"
                       "hold them the command refuses, says why, and names a recipe that fits. It tells where\n"
                       "the other program's arithmetic differs from the trained one.",
        .examples = "  nibble export student.h5 --to llama2c -o student.bin\n"
                    "  nibble export q4_0_student.h5 --to gguf -o student.gguf\n"
                    "  nibble export --list",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_TOKENIZER | CL_WHICH | CL_OUTPUT | CL_FORCE | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(export_model(argument[0], &o)) : code;
}
