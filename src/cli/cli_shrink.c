/* cli_shrink.c - nibble shrink: from a float model to a file of integers in a given time, all steps in one.
 *
 * In a work folder: heldout.h5 (what is measured on), plan.json (how many steps the time allows), data.h5, start.h5 (codes by the method fisher), run/. Said again
 * it goes on with what is there.
 */
#include "cli/shrink.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A row of the table at the end. */
typedef struct {
    const char *name;
    int64_t bytes;
    kd_eval own, text; /* on held-out samples; on --data */
} result;

/* "90s", "20m", "1.5h"; minutes without a unit. */
static status read_time(double *seconds, const char *text)
{
    static const struct {
        char unit;
        double seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}};
    double scale = 60;
    char *number = nb_string(text);
    if (!number)
        return NB_NOMEM;
    const size_t n = strlen(number);
    for (size_t i = 0; i < 3 && n; i++)
        if (number[n - 1] == units[i].unit) {
            scale = units[i].seconds;
            number[n - 1] = 0;
            break;
        }
    status s = nb_parse_number(seconds, number);
    free(number);
    *seconds *= scale;
    if (s != NB_OK || !(*seconds >= 5))
        return nb_fail(NB_USAGE, "--time %s: a time such as 20m, 90s or 1.5h, at least 5 seconds", text);
    return NB_OK;
}

/* What the name of -o asks for. */
static status choose_target(const char **target, const char *path)
{
    static const char *const known[][2] = {{".gguf", "gguf"}, {".bin", "llama2c"}, {".h5", NULL}};
    const char *dot = strrchr(path, '.');
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (dot && !strcmp(dot, known[i][0])) {
            *target = known[i][1];
            return NB_OK;
        }
    return nb_fail(NB_USAGE, "-o %s: the name says the format: .gguf (llama.cpp), .bin (llama2.c) or .h5 (nibble)", path);
}

/* ---- training and the file ---------------------------------------------------------------- */

static status train(shrinker *s)
{
    md_model student = {0};
    cl_progress line;
    kd_train_report r;
    const kd_train_data data = {&s->data, s->o->text ? &s->text : NULL, &s->heldout};
    status st = shrink_open_start(s, &student);
    if (st == NB_OK) {
        const kd_train_options k = shrink_training(s, &student);
        const kd_run_options how = {.progress = cl_progress_start(&line, "training", "steps", s->o->common.quiet)};
        st = kd_train(s->run_path, &student, &s->teacher, &data, &k, &how, &r);
        cl_progress_end(&line);
    }
    md_free(&student);
    return st;
}

static status measure(shrinker *s, result *r, md_model *m)
{
    md_size size;
    cl_progress line;
    const nb_progress progress = cl_progress_start(&line, r->name, "tokens", s->o->common.quiet);
    kd_eval_options k = {.max_tokens = shrink_is_large(s) ? MEASURED_TOKENS : 0, .progress = &progress};
    md_measure(&size, m);
    r->bytes = md_size_bytes(&size);
    status st = kd_evaluate(&r->own, m, &s->teacher, &s->heldout, &k);
    k.ctx = s->ctx;
    k.cut = s->scored.from_text && s->o->common.split != FM_SPLIT_NONE;
    if (st == NB_OK && s->o->common.data)
        st = kd_evaluate(&r->text, m, &s->teacher, &s->scored, &k);
    cl_progress_end(&line);
    return st;
}

static status measure_rounded(shrinker *s, result *r)
{
    md_model m = {0};
    const kd_calibration c = {.samples = HELDOUT_ROWS, .seed = s->o->common.seed, .precision = s->precision};
    status st = shrink_open_student(s, &m);
    if (st == NB_OK)
        st = kd_find_ranges(&m, FQ_START_ABSMAX, &s->data, &c);
    if (st == NB_OK)
        st = measure(s, r, &m);
    md_free(&m);
    return st;
}

static status write_file(shrinker *s, result *r, char *report, size_t bytes)
{
    md_model m = {0};
    const char *path = s->o->common.output;
    const md_open_options how = {.tokenizer = s->o->common.tokenizer, .train = true};
    status st = kd_open(&m, s->run_path, "best", &how);
    if (st == NB_OK)
        st = s->target ? md_export(&m, s->target, path, report, bytes) : md_save_folded(&m, path, false);
    if (st == NB_OK)
        st = measure(s, r, &m);
    md_free(&m);
    return st;
}

/* ---- the table ---------------------------------------------------------------------------- */

static void put_row(nb_writer *w, const result *r, bool has_text)
{
    nb_json_open(w, NULL, '{');
    nb_json_put_string(w, "name", r->name);
    nb_json_put_int(w, "bytes", r->bytes);
    nb_json_put_number(w, "kl", r->own.kl);
    nb_json_put_number(w, "same_top", r->own.same_top);
    nb_json_put_number(w, "ppl", r->own.ppl);
    if (has_text) {
        nb_json_put_number(w, "text_kl", r->text.kl);
        nb_json_put_number(w, "text_ppl", r->text.ppl);
    }
    nb_json_close(w, '}');
}

static status print(const shrinker *s, const result *r, int64_t n, const char *report)
{
    const bool has_text = s->o->common.data != NULL;
    if (s->o->common.json) {
        nb_writer w = {0};
        nb_json_open(&w, NULL, '{');
        nb_json_put_string(&w, "file", s->o->common.output);
        nb_json_put_string(&w, "recipe", s->o->recipe);
        nb_json_put_int(&w, "steps", s->steps);
        nb_json_put_number(&w, "seconds", nb_seconds() - s->begin);
        nb_json_open(&w, "rows", '[');
        for (int64_t i = 0; i < n; i++)
            put_row(&w, &r[i], has_text);
        nb_json_close(&w, ']');
        nb_json_close(&w, '}');
        return cl_print_json(&w);
    }
    cl_table t = {0};
    cl_row(&t, "\tsize\tKL\tsame top\tperplexity%s", has_text ? "\tKL, --data\tperplexity, --data" : "");
    for (int64_t i = 0; i < n; i++) {
        char size[32], text[64] = "";
        cl_size(size, sizeof size, (double)r[i].bytes);
        if (has_text)
            snprintf(text, sizeof text, "\t%.4f\t%.3f", r[i].text.kl, r[i].text.ppl);
        cl_row(&t, "%s\t%s\t%.4f\t%.4f\t%.3f%s", r[i].name, size, r[i].own.kl, r[i].own.same_top, r[i].own.ppl, text);
    }
    TRY(cl_table_print(stdout, &t, "lrrrrrr"));
    if (!s->o->common.quiet)
        cl_say("%s: written%s%s\n%s can be removed now\n", s->o->common.output, *report ? "; " : "", report, s->work);
    return NB_OK;
}

/* The teacher against itself: its own likelihoods, from what was measured beside the student. */
static result float_row(const shrinker *s, const result *other)
{
    md_size size;
    md_measure(&size, &s->teacher);
    result r = {.name = "float", .bytes = md_size_bytes(&size)};
    r.own = (kd_eval){.ppl = exp(other->own.teacher_nll), .same_top = 1};
    r.text = (kd_eval){.ppl = exp(other->text.teacher_nll), .same_top = 1};
    return r;
}

/* ---- all of it ---------------------------------------------------------------------------- */

static status name_files(shrinker *s)
{
    const size_t n = strlen(s->o->common.output) + sizeof ".work";
    s->work = s->o->work ? nb_string(s->o->work) : nb_alloc(n, 1);
    if (!s->work)
        return NB_NOMEM;
    if (!s->o->work)
        snprintf(s->work, n, "%s.work", s->o->common.output);
    s->heldout_path = nb_path_join(s->work, "heldout.h5");
    s->data_path = nb_path_join(s->work, "data.h5");
    s->start_path = nb_path_join(s->work, "start.h5");
    s->run_path = nb_path_join(s->work, "run");
    s->plan_path = nb_path_join(s->work, "plan.json");
    return s->heldout_path && s->data_path && s->start_path && s->run_path && s->plan_path ? NB_OK : NB_NOMEM;
}

/* What can be refused is refused before hours of work. */
static status begin(shrinker *s)
{
    const shrink_options *o = s->o;
    md_model student = {0};
    TRY(cl_check_output(&o->common, false));
    TRY(choose_target(&s->target, o->common.output));
    if (o->mixed && s->target && !strcmp(s->target, "llama2c"))
        return nb_fail(NB_USAGE, "--mixed: llama2.c's format has one width for all weights; -o out.gguf or out.h5");
    TRY(cl_begin(&o->common));
    TRY(name_files(s));
    TRY(cl_open_model(&s->teacher, s->model, &o->common, NULL, false));
    if (s->teacher.recipe.n)
        return nb_fail(NB_USAGE, "%s: is quantized by recipe %s already; the float model is wanted", s->model, s->teacher.recipe.name);
    status st = shrink_open_student(s, &student);
    const md_target *target = st == NB_OK && s->target ? md_target_find(s->target) : NULL;
    char report[1024];
    if (target)
        st = target->check(&student, target, report, sizeof report);
    md_free(&student);
    TRY(st);
    if (o->common.data)
        TRY(cl_open_data(&s->scored, o->common.data, &o->common, &s->teacher));
    const int64_t limit = s->teacher.config.ctx, wanted = o->common.ctx ? o->common.ctx : shrink_is_large(s) ? 512 : 256;
    s->ctx = wanted < limit ? wanted : limit;
    s->batch = shrink_is_large(s) ? (1023 + s->ctx) / s->ctx : 16;
    TRY(cl_precision(&s->precision, &o->common, &s->teacher.config));
    return nb_make_folder(s->work);
}

static status work(shrinker *s)
{
    result r[3] = {{.name = "float"}, {.name = "rounded to nearest"}, {.name = "trained"}};
    char report[2048] = "";
    TRY(begin(s));
    TRY(shrink_prepare(s));
    TRY(train(s));
    TRY(measure_rounded(s, &r[1]));
    TRY(write_file(s, &r[2], report, sizeof report));
    r[0] = float_row(s, &r[2]);
    return print(s, r, 3, report);
}

static status shrink(const char *model, shrink_options *o)
{
    TRY(read_time(&o->seconds, o->time));
    if (!o->common.output)
        return nb_fail(NB_USAGE, "where should it be written? (-o out.gguf)");
    shrinker s = {.o = o, .model = model, .begin = nb_seconds()};
    status st = work(&s);
    fm_tokens *const tokens[] = {&s.heldout, &s.data, &s.text, &s.scored};
    for (int i = 0; i < 4; i++)
        fm_tokens_close(tokens[i]);
    md_free(&s.teacher);
    char *const names[] = {s.work, s.heldout_path, s.data_path, s.start_path, s.run_path, s.plan_path};
    for (int i = 0; i < 6; i++)
        free(names[i]);
    return st;
}

int cl_shrink(int argc, char **argv)
{
    shrink_options o = {.text_share = 0.5};
    const cl_option option[] = {
        {"--recipe", "NAME|FILE", CL_TEXT, &o.recipe, "q4_0", "how the model is quantized (`nibble recipes`)"},
        {"--mixed", NULL, CL_FLAG, &o.mixed, NULL, "bits of its own for every weight at the recipe's size (`nibble ptq mixed`)"},
        {"--time", "TIME", CL_TEXT, &o.time, "60m", "how long it may take in all: 20m, 90s, 1.5h"},
        {"--text", "FILE", CL_TEXT, &o.text, NULL, "real text to train on beside what the model writes itself"},
        {"--text-share", "X", CL_NUMBER, &o.text_share, NULL, "of the rows from --text (0.5)"},
        {"--work", "FOLDER", CL_TEXT, &o.work, NULL, "where data and checkpoints are kept (OUT.work)"},
        {"--precision", "fp32|bf16|auto", CL_CHOICE, &o.common.precision, "auto",
         "of float products; auto: bf16 where this CPU is fast at it and the model large enough"},
    };
    const cl_command command = {
        .name = "shrink",
        .arguments = "MODEL",
        .summary = "a small file of integers from a float model, in the time you have",
        .explanation = "Everything in one: lets the model write its own training data, finds a start (fisher; with\n"
                       "--mixed bits for every weight before it: a nearer file of the same size), trains a\n"
                       "student on the integers it will ship, for as many steps as the time allows (the first ones are timed, the\n"
                       "number is fixed then), and writes the file that the name of -o asks for: .gguf, .bin\n"
                       "(llama2.c) or .h5. Ends with a table: float, rounded to nearest at the same size, trained;\n"
                       "KL to the float model and perplexity on samples that it did not train on, and on --data.\n"
                       "Interrupted, the same command goes on where it stopped.",
        .examples = "  nibble shrink SmolLM2-135M-Instruct.Q4_1.gguf --recipe q4_0 --time 60m -o smollm2.gguf\n"
                    "  nibble shrink SmolLM2-135M-Instruct.Q4_1.gguf --recipe q4_0 --mixed --time 60m -o smollm2.gguf\n"
                    "  nibble shrink SmolLM2-135M-Instruct.Q4_1.gguf --text wiki.txt --data other.txt --time 20m -o smollm2.gguf\n"
                    "  nibble shrink stories260K.bin --tokenizer tok512.bin --recipe w4a8kv8 --time 2m -o stories.bin",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_DATA | CL_SPLIT | CL_CTX | CL_TOKENIZER | CL_UNTIE | CL_OUTPUT | CL_FORCE | CL_SEEDED | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS];
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(shrink(argument[0], &o)) : code;
}
