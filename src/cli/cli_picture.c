/* cli_picture.c - which lines are about pictures; nibble fold, eval and info of such networks. */
#include "cli/cli_picture.h"
#include <stdlib.h>
#include <string.h>

static bool says_model(const char *a)
{
    return !strcmp(a, "--model") || !strncmp(a, "--model=", 8);
}

cl_command_function *cl_picture_command(const char *name, int argc, char **argv)
{
    static const struct {
        const char *name;
        cl_command_function *run;
    } of_files[] = {{"qat", cl_picture_qat}, {"fold", cl_picture_fold}, {"eval", cl_picture_eval}, {"info", cl_picture_info}, {"export", cl_picture_export},
                  {"ptq", cl_picture_ptq},   {"compare", cl_picture_compare}};
    for (int i = 1; i < argc; i++)
        if (!strcmp(name, "train") && says_model(argv[i]))
            return cl_picture_train;
    for (size_t k = 0; k < sizeof of_files / sizeof *of_files; k++)
        for (int i = 1; i < argc && !strcmp(name, of_files[k].name); i++)
            if (argv[i][0] != '-' && strcmp(argv[i - 1], "-o") != 0 && md_is_net(argv[i]))
                return of_files[k].run;
    return NULL;
}

status cl_picture_data(fm_pictures *p, const cl_common *c, bool train)
{
    if (!c->data)
        return nb_fail(NB_USAGE, "which pictures? (--data mnist:FOLDER, fashion:FOLDER or fashion)");
    return fm_pictures_open(p, c->data, train);
}

status cl_picture_open(md_picture_net *m, const char *path, const char *recipe)
{
    fq_recipe r = {0};
    if (!recipe)
        return md_net_open(m, path, NULL);
    TRY(fq_recipe_open(&r, recipe));
    const status s = md_net_open(m, path, &r);
    fq_recipe_free(&r);
    return s;
}

/* ---- fold --------------------------------------------------------------------------------- */

typedef struct {
    cl_common common;
    const char *recipe;
    int64_t samples;
    int range;
} fold_options;

static status fold(const char *path, const fold_options *o)
{
    md_picture_net m = {0};
    fm_pictures data = {0};
    TRY(cl_check_output(&o->common, false));
    TRY(cl_begin(&o->common));
    status s = cl_picture_open(&m, path, o->recipe);
    if (s == NB_OK && o->recipe)
        s = cl_picture_data(&data, &o->common, true);
    if (s == NB_OK && o->recipe)
        s = kd_picture_calibrate(&m, &data, (fq_start)o->range, o->samples, o->common.seed);
    if (s == NB_OK)
        s = md_net_save_folded(&m, o->common.output);
    if (s == NB_OK && !o->common.quiet)
        cl_say("%s: folded by recipe %s\n", o->common.output, m.base.recipe.name);
    fm_pictures_free(&data);
    md_net_free(&m);
    return s;
}

int cl_picture_fold(int argc, char **argv)
{
    fold_options o = {0};
    const cl_option option[] = {
        {"--recipe", "NAME|FILE", CL_TEXT, &o.recipe, NULL, "of a float network, whose ranges --data calibrates: w8a8, w4a8, w4a4, w2a4"},
        {"--range", "absmax|mse", CL_CHOICE, &o.range, "absmax", "where ranges of weights start"},
        {"--calib-samples", "N", CL_COUNT, &o.samples, "1000", "pictures that ranges of results come from"},
    };
    const cl_command command = {
        .name = "fold",
        .arguments = "MODEL",
        .summary = "make a file of integers from a trained or a float network for pictures",
        .explanation = "MODEL is a run folder or a file of a network for pictures. What was trained under a recipe\n"
                       "is folded as it is; a float network gets one here, its batch norms folded into the\n"
                       "convolutions. The file runs with integers alone.",
        .examples = "  nibble fold q/ -o q.h5\n  nibble fold f/ --recipe w8a8 --data mnist:DIR -o ptq.h5",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_DATA | CL_OUTPUT | CL_FORCE | CL_SEEDED};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(fold(argument[0], &o)) : code;
}

/* ---- eval --------------------------------------------------------------------------------- */

static status print_eval(const kd_picture_eval *e, bool json)
{
    if (json) {
        nb_writer w = {0};
        nb_json_open(&w, NULL, '{');
        nb_json_put_number(&w, "accuracy", e->accuracy);
        nb_json_put_number(&w, "nll", e->nll);
        nb_json_put_int(&w, "pictures", e->n);
        nb_json_put_bool(&w, "integers_alone", e->integer);
        nb_json_put_number(&w, "pictures_per_second", e->seconds > 0 ? (double)e->n / e->seconds : 0);
        nb_json_close(&w, '}');
        return cl_print_json(&w);
    }
    cl_table t = {0};
    char n[32];
    cl_thousands(n, sizeof n, e->n);
    cl_row(&t, "pictures\t%s\t%s, %.0f a second", n, e->integer ? "in integers alone" : "in floats", (double)e->n / e->seconds);
    cl_row(&t, "accuracy\t%.4f\tshare of the right class", e->accuracy);
    cl_row(&t, "nll\t%.5f\tmean -log p, natural", e->nll);
    return cl_table_print(stdout, &t, "lrl");
}

static status eval(const char *path, const cl_common *c)
{
    md_picture_net m = {0};
    fm_pictures data = {0};
    kd_picture_eval e;
    cl_progress line;
    TRY(cl_begin(c));
    status s = cl_picture_open(&m, path, NULL);
    if (s == NB_OK)
        s = cl_picture_data(&data, c, false);
    if (s == NB_OK) {
        const nb_progress progress = cl_progress_start(&line, "evaluating", "pictures", c->quiet);
        s = kd_picture_evaluate(&e, &m, &data, NULL, &progress);
        cl_progress_end(&line);
    }
    if (s == NB_OK)
        s = print_eval(&e, c->json);
    fm_pictures_free(&data);
    md_net_free(&m);
    return s;
}

int cl_picture_eval(int argc, char **argv)
{
    cl_common common = {0};
    const cl_command command = {
        .name = "eval",
        .arguments = "MODEL",
        .summary = "accuracy of a network for pictures on the test pictures",
        .explanation = "MODEL is a file or a run folder. A network of integers is computed with integers alone.",
        .examples = "  nibble eval q.h5 --data mnist:DIR --json",
        .common = &common,
        .common_mask = CL_DATA | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(eval(argument[0], &common)) : code;
}

/* ---- export ------------------------------------------------------------------------------- */

typedef struct {
    cl_common common;
    int target;
} export_options;

static status write_c(md_picture_net *m, const char *path, int64_t *bytes)
{
    rt_net r;
    TRY(rt_net_new(&r, m));
    const status s = rt_net_write_c(&r, path, bytes);
    rt_net_free(&r);
    return s;
}

static status export_net(const char *path, const export_options *o)
{
    md_picture_net m = {0};
    char report[128] = "differs by halves, which ONNX rounds to even; nothing else";
    int64_t bytes = 0;
    TRY(cl_check_output(&o->common, false));
    TRY(cl_begin(&o->common));
    TRY(cl_picture_open(&m, path, NULL));
    const status s = o->target ? md_net_write_onnx(&m, o->common.output) : write_c(&m, o->common.output, &bytes);
    if (!o->target)
        snprintf(report, sizeof report, "%lld bytes of constants, the runtime's codes exactly", (long long)bytes);
    md_net_free(&m);
    return s == NB_OK ? cl_say_written(&o->common, o->target ? "onnx" : "c", report) : s;
}

int cl_picture_export(int argc, char **argv)
{
    export_options o = {0};
    const cl_option option[] = {
        {"--to", "c|onnx", CL_CHOICE, &o.target, "c", "one file of freestanding C, or ONNX with QuantizeLinear and DequantizeLinear (opset 21)"},
    };
    const cl_command command = {
        .name = "export",
        .arguments = "MODEL",
        .summary = "write a network of integers for another program",
        .explanation = "MODEL is a folded network for pictures, or a run folder. The codes are those of training. C: integers\n"
                       "alone, no allocation, no dependency; its results are the runtime's, code for code.",
        .examples = "  nibble export q.h5 --to c -o net.c\n  nibble export q.h5 --to onnx -o net.onnx",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_OUTPUT | CL_FORCE | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(export_net(argument[0], &o)) : code;
}

/* ---- info --------------------------------------------------------------------------------- */

static status print_info(md_picture_net *m, bool json)
{
    md_size size;
    md_measure(&size, &m->base);
    char *stages = md_stages_text(&m->stages);
    int64_t params = 0;
    for (int64_t i = 0; i < m->layers; i++)
        params += m->layer[i].c.N * (kn_conv_depth(&m->layer[i].c) + 1);
    status s = stages ? NB_OK : NB_NOMEM;
    if (s == NB_OK && json) {
        nb_writer w = {0};
        nb_json_open(&w, NULL, '{');
        nb_json_put_string(&w, "stages", stages);
        nb_json_put_string(&w, "recipe", m->base.recipe.name);
        nb_json_put_bool(&w, "folded", m->base.folded);
        nb_json_put_int(&w, "parameters", params);
        nb_json_put_int(&w, "bytes", md_size_bytes(&size));
        nb_json_close(&w, '}');
        s = cl_print_json(&w);
    } else if (s == NB_OK) {
        cl_table t = {0};
        char n[32], bytes[32];
        cl_thousands(n, sizeof n, params);
        cl_size(bytes, sizeof bytes, (double)md_size_bytes(&size));
        s = cl_print(stages, strlen(stages));
        cl_row(&t, "recipe\t%s\t%s", m->base.recipe.n ? m->base.recipe.name : "none (floats)", m->base.folded ? "folded" : "");
        cl_row(&t, "parameters\t%s\t%s", n, bytes);
        for (int64_t i = 0; i < m->base.sites.n; i++) {
            const fq_site *site = m->base.sites.s[i];
            char spec[160];
            fq_spec_print(spec, sizeof spec, &site->spec);
            if (site->spec.grid.bits && !site->is_weight && site->started) {
                real scale;
                int32_t zero = 0;
                fq_site_ranges(site, &scale, site->spec.grid.has_zero ? &zero : NULL);
                cl_row(&t, "%s\t%s\t%.4g .. %.4g", site->name, spec, (double)((real)(site->spec.grid.lo - zero) * scale),
                       (double)((real)(site->spec.grid.hi - zero) * scale));
            } else if (site->spec.grid.bits) {
                cl_row(&t, "%s\t%s", site->name, spec);
            }
        }
        s = s == NB_OK ? cl_table_print(stdout, &t, "lll") : s;
    }
    free(stages);
    return s;
}

int cl_picture_info(int argc, char **argv)
{
    cl_common common = {0};
    const cl_command command = {.name = "info",
                                .arguments = "MODEL",
                                .summary = "what a network for pictures is made of, and its ranges",
                                .explanation = "Prints the stages as a file for --model, the recipe, and the range of every site.",
                                .examples = "  nibble info q.h5",
                                .common = &common,
                                .common_mask = CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    md_picture_net m = {0};
    int code;
    if (!cl_parse(&command, argc, argv, argument, &code))
        return code;
    status s = cl_picture_open(&m, argument[0], NULL);
    if (s == NB_OK)
        s = print_info(&m, common.json);
    md_net_free(&m);
    return cl_exit(s);
}
