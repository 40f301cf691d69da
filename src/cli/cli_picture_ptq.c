/* cli_picture_ptq.c - nibble ptq and nibble compare of networks for pictures. */
#include "cli/cli_picture.h"
#include "ptq/ptq.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CALIBRATION "recipe|minmax|average|percentile|mse|kl|admm|easyquant|entropy"
enum { ENTROPY = 8 /* another word for kl */ };

typedef struct {
    cl_common common;
    const char *recipe, *recipes, *methods, *sheet;
    int64_t samples;
    int calibration; /* the place of the word in CALIBRATION */
    double alpha;
    bool list;
} quantize_options;

static status quantize(md_picture_net *m, const char *path, const char *recipe, const char *methods, const quantize_options *o,
                       const fm_pictures *data)
{
    fq_recipe r = {0};
    md_picture_net from = {0};
    const pt_picture_options p = {.data = data,
                                  .samples = o->samples,
                                  .seed = o->common.seed,
                                  .calibration = o->calibration == ENTROPY ? FQ_KL : o->calibration - 1,
                                  .alpha = o->alpha};
    TRY(fq_recipe_open(&r, recipe));
    status s = cl_picture_open(&from, path, NULL);
    if (s == NB_OK) {
        s = pt_picture_quantize(m, &from, &r, methods, &p);
        if (s != NB_OK)
            nb_fail_in(s, "%s", path);
    }
    md_net_free(&from);
    fq_recipe_free(&r);
    return s;
}

/* ---- ptq ---------------------------------------------------------------------------------- */

status cl_picture_list_methods(bool json)
{
    nb_writer w = {0};
    int64_t n;
    const pt_picture_method *method = pt_picture_methods(&n);
    nb_json_open(&w, NULL, '{');
    for (int64_t i = 0; i < n; i++)
        nb_json_put_string(&w, method[i].name, method[i].explanation);
    nb_json_close(&w, '}');
    if (json)
        return cl_print_json(&w);
    free(nb_json_text(&w));
    for (int64_t i = 0; i < n; i++)
        TRY(cl_print_explained(method[i].name, method[i].explanation));
    return NB_OK;
}

static status report(const char *methods, const md_picture_net *m, const cl_common *c)
{
    if (c->json) {
        nb_writer w = {0};
        nb_json_open(&w, NULL, '{');
        nb_json_put_string(&w, "path", c->output);
        nb_json_put_string(&w, "method", methods);
        nb_json_put_string(&w, "recipe", m->base.recipe.name);
        nb_json_close(&w, '}');
        return cl_print_json(&w);
    }
    if (!c->quiet)
        cl_say("%s: %s by recipe %s\n", c->output, methods, m->base.recipe.name);
    return NB_OK;
}

static status ptq(const char *methods, const char *path, const quantize_options *o)
{
    md_picture_net m = {0};
    fm_pictures data = {0};
    if (o->list)
        return cl_picture_list_methods(o->common.json);
    if (!path)
        return nb_fail(NB_USAGE, "nibble ptq METHOD MODEL -o FILE (`nibble ptq --list` names the methods)");
    if (!o->recipe)
        return nb_fail(NB_USAGE, "by which recipe? (--recipe w8a8, w4a8, w4a4, w2a4 or a file)");
    TRY(cl_check_output(&o->common, false));
    TRY(cl_begin(&o->common));
    if (o->common.data)
        TRY(cl_picture_data(&data, &o->common, true));
    status s = quantize(&m, path, o->recipe, methods, o, o->common.data ? &data : NULL);
    if (s == NB_OK)
        s = md_net_save_folded(&m, o->common.output);
    if (s == NB_OK)
        s = report(methods, &m, &o->common);
    fm_pictures_free(&data);
    md_net_free(&m);
    return s;
}

int cl_picture_ptq(int argc, char **argv)
{
    quantize_options o = {0};
    const cl_option option[] = {
        {"--recipe", "NAME|FILE", CL_TEXT, &o.recipe, NULL, "w8a8, w4a8, w4a4, w2a4, or a file"},
        {"--calib-method", CALIBRATION, CL_CHOICE, &o.calibration, "recipe", "how ranges of results come from the pictures"},
        {"--calib-samples", "N", CL_COUNT, &o.samples, "1000", "pictures that they come from"},
        {"--alpha", "A", CL_NUMBER, &o.alpha, "0", "smoothquant: how much of the difficulty goes into weights, 0 to 1; 0: searched per pair"},
        {"--list", NULL, CL_FLAG, &o.list, NULL, "say what each method does"},
    };
    const cl_command command = {
        .name = "ptq",
        .arguments = "[METHOD] [MODEL]",
        .summary = "quantize a network for pictures without training",
        .explanation = "METHOD: one, or several joined by + in their order, of equalize, smoothquant | rtn, static, mse,\n"
                       "dynamic, easyquant | biascorrect. Batch norms are folded into the convolutions, ranges of results\n"
                       "calibrated on training pictures; the file runs with integers alone (dynamic: in floats).",
        .examples = "  nibble ptq mse f/ --data fashion --recipe w8a8 --calib-method kl -o p.h5\n"
                    "  nibble ptq smoothquant+static f/ --data fashion --recipe w8a8 -o p.h5\n"
                    "  nibble ptq equalize+rtn+biascorrect f/ --data fashion --recipe w4a8 -o p.h5",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_DATA | CL_OUTPUT | CL_FORCE | CL_SEEDED | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(ptq(argument[0], argument[1], &o)) : code;
}

/* ---- compare ------------------------------------------------------------------------------ */

typedef struct {
    cl_table table;
    nb_writer json;
    double accuracy; /* of the float network */
    const quantize_options *o;
    const fm_pictures *test;
} comparison;

static status add_row(comparison *c, const char *method, md_picture_net *m)
{
    kd_picture_eval e;
    md_size size;
    char bytes[32], less[32] = "";
    TRY(kd_picture_evaluate(&e, m, c->test, NULL, NULL));
    md_measure(&size, &m->base);
    cl_size(bytes, sizeof bytes, (double)md_size_bytes(&size));
    if (isnan(c->accuracy))
        c->accuracy = e.accuracy;
    else
        snprintf(less, sizeof less, "%+.2f", 100 * (e.accuracy - c->accuracy));
    const char *recipe = m->base.recipe.n ? m->base.recipe.name : "float";
    cl_row(&c->table, "%s\t%s\t%.2f %%\t%s\t%s\t%.0f\t%s", method, recipe, 100 * e.accuracy, less, bytes, (double)e.n / e.seconds,
           e.integer ? "integers" : "floats");
    nb_json_open(&c->json, NULL, '{');
    nb_json_put_string(&c->json, "method", method);
    nb_json_put_string(&c->json, "recipe", recipe);
    nb_json_put_number(&c->json, "accuracy", e.accuracy);
    nb_json_put_number(&c->json, "nll", e.nll);
    nb_json_put_int(&c->json, "bytes", md_size_bytes(&size));
    nb_json_put_number(&c->json, "pictures_per_second", (double)e.n / e.seconds);
    nb_json_put_bool(&c->json, "integers_alone", e.integer);
    nb_json_close(&c->json, '}');
    return NB_OK;
}

static status add_file(comparison *c, const char *method, const char *path)
{
    md_picture_net m = {0};
    TRY(cl_picture_open(&m, path, NULL));
    const status s = add_row(c, method, &m);
    md_net_free(&m);
    return s;
}

static const char *next_word(char *word, size_t bytes, const char *p)
{
    const size_t n = strcspn(p, ",");
    snprintf(word, bytes, "%.*s", (int)(n < bytes ? n : bytes - 1), p);
    return p + n + (p[n] == ',');
}

static status add_quantized(comparison *c, const char *path, const fm_pictures *train)
{
    char recipe[256], method[64];
    for (const char *p = c->o->recipes; *p;) {
        p = next_word(recipe, sizeof recipe, p);
        for (const char *q = c->o->methods; *q;) {
            md_picture_net m = {0};
            q = next_word(method, sizeof method, q);
            TRY(quantize(&m, path, recipe, method, c->o, train));
            const status s = add_row(c, method, &m);
            md_net_free(&m);
            TRY(s);
        }
    }
    return NB_OK;
}

static status sheet(const char *const *argument, const quantize_options *o, const fm_pictures *train, const fm_pictures *test)
{
    char recipe[256], method[64];
    md_picture_net plain = {0}, coded = {0};
    int last = 0;
    while (last + 1 < CL_MAX_ARGUMENTS && argument[last + 1])
        last++;
    next_word(recipe, sizeof recipe, o->recipes);
    next_word(method, sizeof method, o->methods);
    TRY(cl_picture_open(&plain, argument[0], NULL));
    status s = last ? cl_picture_open(&coded, argument[last], NULL) : quantize(&coded, argument[0], recipe, method, o, train);
    if (s == NB_OK)
        s = cl_picture_sheet(o->sheet, &plain, &coded, test);
    md_net_free(&plain);
    md_net_free(&coded);
    return s;
}

static status compare(const char *const *argument, const quantize_options *o)
{
    fm_pictures train = {0}, test = {0};
    comparison c = {.accuracy = NAN, .o = o, .test = &test};
    TRY(cl_begin(&o->common));
    nb_json_open(&c.json, NULL, '[');
    cl_row(&c.table, "method\trecipe\taccuracy\tpoints\tsize\tpictures/s\tin");
    status s = cl_picture_data(&train, &o->common, true);
    if (s == NB_OK)
        s = cl_picture_data(&test, &o->common, false);
    if (s == NB_OK)
        s = add_file(&c, "float", argument[0]);
    if (s == NB_OK)
        s = add_quantized(&c, argument[0], &train);
    for (int i = 1; i < CL_MAX_ARGUMENTS && argument[i] && s == NB_OK; i++)
        s = add_file(&c, argument[i], argument[i]);
    if (s == NB_OK && o->sheet)
        s = sheet(argument, o, &train, &test);
    nb_json_close(&c.json, ']');
    if (s == NB_OK)
        s = o->common.json ? cl_print_json(&c.json) : cl_table_print(stdout, &c.table, "llrrrrl");
    free(nb_json_text(&c.json));
    cl_table_free(&c.table);
    fm_pictures_free(&train);
    fm_pictures_free(&test);
    return s;
}

int cl_picture_compare(int argc, char **argv)
{
    quantize_options o = {0};
    const cl_option option[] = {
        {"--recipes", "NAME,...", CL_TEXT, &o.recipes, "w8a8,w4a8,w4a4", "recipes, or files"},
        {"--methods", "NAME,...", CL_TEXT, &o.methods, "rtn,mse,easyquant,smoothquant,equalize+mse,mse+biascorrect,dynamic",
         "as `nibble ptq` takes them"},
        {"--calib-method", CALIBRATION, CL_CHOICE, &o.calibration, "recipe", "how ranges of results come from the pictures"},
        {"--calib-samples", "N", CL_COUNT, &o.samples, "1000", "pictures that they come from"},
        {"--sheet", "FILE.svg", CL_TEXT, &o.sheet, NULL, "draw filters, ranges and mistakes of the last FILE (else of the first recipe)"},
    };
    const cl_command command = {
        .name = "compare",
        .arguments = "MODEL [FILE...]",
        .summary = "every way to quantize a network for pictures, in one table",
        .explanation = "MODEL is a float network; every recipe by every method, and the FILEs (folded networks, run folders), are\n"
                       "measured on the test pictures: accuracy, points from the float one, bytes, speed.",
        .examples = "  nibble compare f/ q/ --data fashion --sheet sheet.svg",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_DATA | CL_SEEDED | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(compare(argument, &o)) : code;
}
