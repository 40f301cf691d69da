/* cli_ptq.c - nibble ptq: quantization without training, one method or several in order. */
#include "cli/cli_picture.h"
#include "ptq/ptq.h"
#include <stdlib.h>
#include <string.h>

enum { MOST = 8, MOST_OPTIONS = 64 };
typedef struct {
    cl_common common;
    pt_options p; /* settings of methods go in here */
    const char *recipe;
    bool list, codes_only;
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
        char text[1024];
        int bytes = 0;
        TRY(cl_print_explained(method[i].name, method[i].explanation));
        for (const pt_setting *s = method[i].settings; s && s->name; s++)
            bytes += snprintf(text + bytes, sizeof text - (size_t)bytes, "%*s%s%s", s == method[i].settings ? 12 : 0, "",
                              s->name, s[1].name ? " " : "\n");
        TRY(cl_print(text, (size_t)bytes));
    }
    static const char pictures[] = "\nnetworks for pictures:\n";
    TRY(cl_print(pictures, sizeof pictures - 1));
    return cl_picture_list_methods(false);
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

/* A method that brings a format of its own decides the recipe. */
static status own_recipe(ptq_options *o)
{
    const pt_method *own = NULL;
    for (int i = 0; i < o->n; i++) {
        const pt_method *m = o->method[i];
        if (own && m->recipe)
            return nb_fail(NB_USAGE, "%s and %s are two formats, a model has one", own->name, m->name);
        own = m->recipe ? m : own;
    }
    if (own && o->recipe && strcmp(o->recipe, own->recipe) != 0 && !o->common.quiet)
        cl_say("%s has a format of its own: by recipe %s, not %s\n", own->name, own->recipe, o->recipe);
    o->recipe = own ? own->recipe : o->recipe;
    return NB_OK;
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
    return o->p.write_imatrix && !o->recipe && !o->common.output;
}

static status check_imatrix(const ptq_options *o)
{
    bool turned = false, used = false;
    for (int i = 0; i < o->n; i++) {
        used = used || o->method[i]->needs_data;
        turned = turned || (!used && strcmp(o->method[i]->name, "rotate") == 0);
    }
    if ((o->p.read_imatrix || o->p.write_imatrix) && !used)
        return nb_fail(NB_USAGE, "--imatrix, --write-imatrix: %s looks at no importance", o->method[o->n - 1]->name);
    if (o->p.read_imatrix && turned)
        return nb_fail(NB_USAGE, "--imatrix: is of the weights as they were, rotate changes what goes into them (--data)");
    if (o->p.read_imatrix && o->p.write_imatrix)
        return nb_fail(NB_USAGE, "--write-imatrix: writes what --data shows, --imatrix takes its place");
    if (o->p.write_imatrix && nb_path_exists(o->p.write_imatrix) && !o->common.force)
        return nb_fail(NB_IO, "%s: is there already (--force replaces it)", o->p.write_imatrix);
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
    if (any_needs(o, true) && !o->common.data && !o->p.read_imatrix)
        return nb_fail(NB_USAGE, "calibrated on what? (--data FILE, a text or what `nibble data` wrote)");
    return NB_OK;
}

/* The same file once more in floats, where a method learns from them: a method before it may have changed m's. */
static status open_teacher(md_model *teacher, const ptq_options *o, const char *path)
{
    for (int i = 0; i < o->n; i++)
        if (o->method[i]->needs_teacher)
            return cl_open_model(teacher, path, &o->common, "float", false);
    return NB_OK;
}

/* Method i leaves floats that a later one wants as they were. */
static bool spends_wanted(const ptq_options *o, int i)
{
    bool wanted = false;
    for (int k = i + 1; k < o->n; k++)
        wanted = wanted || o->method[k]->wants_floats;
    return wanted && o->method[i]->spends_floats;
}

/* One method that looks at one weight at a time, and no floats are kept. */
static bool goes_by_weight(const ptq_options *o)
{
    return o->n == 1 && o->method[0]->by_weight && o->codes_only && !o->common.data && !o->common.untie;
}

static status run_methods(md_model *m, md_model *teacher, pt_floats *floats, const ptq_options *o, fm_tokens *data)
{
    pt_options p = o->p;
    p.teacher = teacher->params.n ? teacher : NULL;
    char part[4096];
    if (o->common.output && snprintf(part, sizeof part, "%s.part", o->common.output) < (int)sizeof part)
        p.part = part;
    if (o->common.force && p.part)
        pt_part_discard(p.part, m);
    p.data = data;
    p.seed = p.calibration.seed = o->common.seed;
    TRY(cl_precision(&p.calibration.precision, &o->common, &m->config));
    for (int i = 0; i < o->n; i++) {
        cl_progress line;
        const char *unit = o->method[i]->unit ? o->method[i]->unit : "samples";
        const nb_progress progress = cl_progress_start(&line, o->method[i]->name, unit, o->common.quiet);
        p.calibration.progress = &progress;
        status s = !p.floats && spends_wanted(o, i) ? pt_floats_copy(floats, m) : NB_OK;
        p.floats = floats->n ? floats : NULL;
        if (s == NB_OK)
            s = o->method[i]->run(m, &p);
        cl_progress_end(&line);
        TRY(s);
    }
    if (only_writes_imatrix(o))
        return NB_OK;
    TRY(m->recipe.n ? md_save_folded(m, o->common.output, !o->codes_only) : md_save_model(m, o->common.output, FM_F32));
    if (p.part)
        pt_part_discard(p.part, m);
    return NB_OK;
}

static status say_matrix(const ptq_options *o, const char *methods)
{
    if (!o->common.quiet)
        cl_say("%s: E[x^2] of what goes into the weights, %s\n", o->p.write_imatrix, methods);
    return NB_OK;
}

static status run(const char *methods, const char *path, ptq_options *o)
{
    md_model m = {0}, teacher = {0};
    pt_floats floats = {0};
    fm_tokens data = {0};
    if (o->list)
        return list_methods(o->common.json);
    if (!methods || !path)
        return nb_fail(NB_USAGE, "nibble ptq METHOD MODEL -o FILE (`nibble ptq --list` names the methods)");
    TRY(read_methods(o, methods));
    TRY(own_recipe(o));
    TRY(check(o));
    if (!only_writes_imatrix(o))
        TRY(cl_check_output(&o->common, false));
    TRY(cl_begin(&o->common));
    TRY(goes_by_weight(o) ? cl_open_codes(&m, path, &o->common, o->recipe, o->method[0]->start)
                          : cl_open_model(&m, path, &o->common, o->recipe, false));
    status s =
        m.folded && !goes_by_weight(o) ? nb_fail(NB_USAGE, "%s: is folded already, by recipe %s", path, m.recipe.name)
        : m.recipe.n && !o->recipe
            ? nb_fail(NB_USAGE, "%s: is a run of recipe %s; `nibble fold` makes integers of it", path, m.recipe.name)
            : NB_OK;
    if (s == NB_OK && o->common.data)
        s = cl_open_data(&data, o->common.data, &o->common, &m);
    if (s == NB_OK)
        s = open_teacher(&teacher, o, path);
    if (s == NB_OK)
        s = run_methods(&m, &teacher, &floats, o, o->common.data ? &data : NULL);
    if (s == NB_OK)
        s = o->common.output || o->common.json ? cl_report_folded(&m, methods, &o->common) : say_matrix(o, methods);
    fm_tokens_close(&data);
    pt_floats_free(&floats);
    md_free(&teacher);
    md_free(&m);
    return s;
}

/* The settings of all methods behind the n options that are there, each once. */
static int64_t add_settings(cl_option *option, int64_t n, pt_options *p)
{
    static const cl_type type[] = {
        [PT_FLAG] = CL_FLAG, [PT_NUMBER] = CL_NUMBER, [PT_COUNT] = CL_COUNT, [PT_TEXT] = CL_TEXT, [PT_CHOICE] = CL_CHOICE};
    int64_t methods;
    const pt_method *method = pt_methods(&methods);
    for (int64_t i = 0; i < methods; i++)
        for (const pt_setting *s = method[i].settings; s && s->name; s++) {
            bool is_there = false;
            for (int64_t k = 0; k < n; k++)
                is_there = is_there || !strcmp(option[k].name, s->name);
            if (!is_there && n < MOST_OPTIONS)
                option[n++] = (cl_option){s->name, s->argument, type[s->type], (char *)p + s->field, s->standard, s->help};
        }
    return n;
}

int cl_ptq(int argc, char **argv)
{
    ptq_options o = {0};
    cl_option option[MOST_OPTIONS] = {
        {"--recipe", "NAME|FILE", CL_TEXT, &o.recipe, NULL, "how the model is quantized (`nibble recipes`)"},
        {"--codes-only", NULL, CL_FLAG, &o.codes_only, NULL,
         "keep no floats for training in the file; rtn, mse, int8, nf4 and fp4 then quantize while they read, one weight in floats at a time"},
        {"--calib-samples", "N", CL_COUNT, &o.p.calibration.samples, NULL,
         "windows of --data that are looked at, in an order by --seed (128; what trains blocks 256)"},
        {"--calib-length", "N", CL_COUNT, &o.p.calibration.length, NULL, "tokens of one (256, what trains blocks 512; or the model's context)"},
        {"--imatrix", "FILE", CL_TEXT, &o.p.read_imatrix, NULL,
         "importance out of llama.cpp's file (llama-imatrix, GGUF) in place of --data"},
        {"--write-imatrix", "FILE", CL_TEXT, &o.p.write_imatrix, NULL,
         "keep importance in a file that llama-quantize --imatrix reads; alone, without --recipe and -o, nothing else is made"},
        {"--precision", "fp32|bf16|auto", CL_CHOICE, &o.common.precision, "auto",
         "of float products; auto: bf16 where this CPU is fast at it"},
        {"--list", NULL, CL_FLAG, &o.list, NULL, "say what each method does"},
    };
    int64_t n = 0;
    while (option[n].name)
        n++;
    n = add_settings(option, n, &o.p);
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
                    "  nibble ptq gptq+e2eqp stories260K.bin --data train.h5 --recipe q4_0 -o q4.h5\n"
                    "  nibble ptq rotate+importance stories260K.bin --data train.h5 --recipe w4a8kv16 -o w4.h5",
        .option = option,
        .n = n,
        .common = &o.common,
        .common_mask = CL_DATA | CL_SPLIT | CL_TOKENIZER | CL_WHICH | CL_OUTPUT | CL_FORCE | CL_SEEDED | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(run(argument[0], argument[1], &o)) : code;
}
