/* cli_export.c - nibble export: a model in another program's format, with the codes that training used. */
#include "cli/cli.h"
#include <stdlib.h>

typedef struct {
    cl_common common;
    const char *target;
    bool list;
} export_options;

status cl_list_targets(bool floats, bool json)
{
    cl_table t = {0};
    nb_writer w = {0};
    int64_t n;
    const md_target *target = md_targets(&n);
    nb_json_open(&w, NULL, '{');
    for (int64_t i = 0; i < n; i++) {
        if (floats && target[i].has_codes)
            continue;
        nb_json_put_string(&w, target[i].name, target[i].explanation);
        cl_row(&t, "%s\t%s", target[i].name, target[i].explanation);
    }
    nb_json_close(&w, '}');
    status s = json ? cl_print_json(&w) : cl_table_print(stdout, &t, "ll");
    free(nb_json_text(&w));
    cl_table_free(&t);
    return s;
}

status cl_say_written(const cl_common *c, const char *target, const char *report)
{
    if (!c->json) {
        if (!c->quiet)
            cl_say("%s: written for %s\n%s%s", c->output, target, report, *report ? "\n" : "");
        return NB_OK;
    }
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_string(&w, "target", target);
    nb_json_put_string(&w, "file", c->output);
    nb_json_put_string(&w, "report", report);
    nb_json_close(&w, '}');
    return cl_print_json(&w);
}

static status export_model(const char *path, const export_options *o)
{
    md_model m = {0};
    char report[2048] = "";
    if (o->list)
        return cl_list_targets(false, o->common.json);
    if (!path || !o->target)
        return nb_fail(NB_USAGE, "%s (`nibble export --list` names the targets)",
                       path ? "in which format? --to TARGET" : "which model? nibble export MODEL --to TARGET -o FILE");
    const md_target *target = md_target_find(o->target);
    if (!target)
        return nb_fail_in(NB_USAGE, "--to %s", o->target);
    TRY(cl_check_output(&o->common, target->is_folder));
    TRY(cl_begin(&o->common));
    TRY(cl_open_model(&m, path, &o->common, NULL, false));
    status s = md_export(&m, o->target, o->common.output, report, sizeof report);
    md_free(&m);
    return s == NB_OK ? cl_say_written(&o->common, o->target, report) : s;
}

int cl_export(int argc, char **argv)
{
    export_options o = {0};
    const cl_option option[] = {
        {"--to", "TARGET", CL_TEXT, &o.target, NULL,
         "llama2c, gguf: codes; llama2c-f32, gguf-f32, gguf-f16, gguf-bf16, safetensors, h5, ...: what they decode to"},
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
