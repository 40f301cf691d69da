/* cli_picture_ptq.c - nibble ptq and nibble compare of networks for pictures. */
#include "cli/cli_picture.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define METHODS     "absmax ranges of weights: rtn; least squared error: mse; before them: equalize (equalize+rtn)"
#define CALIBRATION "recipe|minmax|average|percentile|mse|kl|admm"

typedef struct {
    cl_common common;
    const char *recipe, *recipes, *methods, *sheet;
    int64_t samples;
    int calibration; /* 0: as the recipe says; else 1 + an fq_method */
} quantize_options;

/* The recipe, its ranges of results by another method where one is asked for. */
static status open_recipe(fq_recipe *r, const char *name, int calibration)
{
    TRY(fq_recipe_open(r, name));
    for (int64_t i = 0; i < r->n && calibration; i++) {
        fq_rule *rule = &r->rule[i];
        const size_t n = strlen(rule->pattern);
        const bool is_weight = n >= 6 && !strcmp(rule->pattern + n - 6, "weight");
        if (is_weight || rule->spec.range == FQ_DYNAMIC)
            continue;
        rule->spec.method = (uint8_t)(calibration - 1);
        rule->spec.parameter = 0;
    }
    return NB_OK;
}

/* "equalize+mse": whether to equalize, and where ranges of weights come from. */
static status read_methods(bool *equalize, fq_start *start, const char *text)
{
    const bool first = !strncmp(text, "equalize+", 9);
    const char *last = first ? text + 9 : text;
    *equalize = first;
    *start = strcmp(last, "mse") ? FQ_START_ABSMAX : FQ_START_MSE;
    if (strcmp(last, "mse") != 0 && strcmp(last, "rtn") != 0 && strcmp(last, "static") != 0)
        return nb_fail(NB_USAGE, "%s: of networks for pictures there are " METHODS, text);
    return NB_OK;
}

static status quantize(md_picture_net *m, const char *path, const char *recipe, const char *methods, const quantize_options *o,
                       const fm_pictures *data)
{
    fq_recipe r = {0};
    bool equalize;
    fq_start start;
    TRY(read_methods(&equalize, &start, methods));
    TRY(open_recipe(&r, recipe, o->calibration));
    status s = md_net_open(m, path, &r);
    fq_recipe_free(&r);
    if (s == NB_OK && equalize)
        s = md_net_equalize(m);
    if (s == NB_OK)
        s = kd_picture_calibrate(m, data, start, o->samples, o->common.seed);
    if (s != NB_OK)
        md_net_free(m);
    return s;
}

/* ---- ptq ---------------------------------------------------------------------------------- */

static status ptq(const char *methods, const char *path, const quantize_options *o)
{
    md_picture_net m = {0};
    fm_pictures data = {0};
    if (!o->recipe)
        return nb_fail(NB_USAGE, "by which recipe? (--recipe w8a8, w4a8, w4a4, w2a4 or a file)");
    TRY(cl_check_output(&o->common, false));
    TRY(cl_begin(&o->common));
    TRY(cl_picture_data(&data, &o->common, true));
    status s = quantize(&m, path, o->recipe, methods, o, &data);
    if (s == NB_OK)
        s = md_net_save_folded(&m, o->common.output);
    if (s == NB_OK && !o->common.quiet)
        cl_say("%s: %s by recipe %s\n", o->common.output, methods, m.base.recipe.name);
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
    };
    const cl_command command = {
        .name = "ptq",
        .arguments = "METHOD MODEL",
        .summary = "quantize a network for pictures without training",
        .explanation = "METHOD: rtn (ranges of weights by absmax; static is the same word), mse (by least squared error),\n"
                       "equalize+rtn, equalize+mse (first channels of neighbouring layers get one magnitude, exactly: for\n"
                       "scales per tensor). Batch norms are folded, ranges of results calibrated on training pictures.",
        .examples = "  nibble ptq mse f/ --data fashion --recipe w8a8 --calib-method kl -o p.h5",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_DATA | CL_OUTPUT | CL_FORCE | CL_SEEDED};
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
        {"--methods", "NAME,...", CL_TEXT, &o.methods, "rtn,mse,equalize+mse", METHODS},
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
