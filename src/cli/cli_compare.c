/* cli_compare.c - nibble compare: every method of quantization without training on one model, in one table. What is here plans the rows;
 * compare_row.c makes one, compare_print.c prints them.
 */
#include "cli/compare.h"
#include "ptq/ptq.h"
#include <stdlib.h>
#include <string.h>

enum { LARGE = 256 /* channels from which a model is large */, LENGTH = 256, LINE = 160 };

/* ---- which rows ----------------------------------------------------------------------------- */

/* One of a list "a,b,c": NULL at its end. */
static const char *next_word(char word[LINE], const char *list)
{
    const size_t n = list ? strcspn(list, ",") : 0;
    if (!list || (!*list && n == 0))
        return NULL;
    snprintf(word, LINE, "%.*s", (int)(n < LINE ? n : LINE - 1), list);
    return list[n] ? list + n + 1 : list + n;
}

/* Whether a composition ends in codes by a recipe, and the one that it brings itself, or NULL; NB_USAGE where a part of it is no method. */
static status read_composition(bool *by_recipe, const char **own, const char *text)
{
    *by_recipe = false;
    *own = NULL;
    for (const char *p = text; *p;) {
        char name[LINE];
        const size_t n = strcspn(p, "+");
        snprintf(name, sizeof name, "%.*s", (int)n, p);
        const pt_method *m = pt_method_find(name);
        if (!m)
            return nb_fail(NB_USAGE, "--methods: there is no method \"%s\" (`nibble ptq --list` names them)", name);
        *by_recipe = *by_recipe || m->needs_recipe;
        *own = m->recipe ? m->recipe : *own;
        p += n + (p[n] == '+');
    }
    return NB_OK;
}

/* "gptq@q4_0" -> "gptq" and "q4_0"; NULL where no recipe is named. */
static const char *split_recipe(char method[LINE], const char *word)
{
    const size_t n = strcspn(word, "@");
    snprintf(method, LINE, "%.*s", (int)n, word);
    return word[n] ? word + n + 1 : NULL;
}

/* A row of a method by each recipe, or by the one it is named with; one that takes none, or brings its own, has one row. */
static status add_method(comparison *c, const char *word)
{
    char how[LINE], method[LINE];
    const char *own, *recipes = split_recipe(method, word);
    bool by_recipe;
    TRY(read_composition(&by_recipe, &own, method));
    if (own) {
        cl_row_of *r = compare_add(c, method, own, c->model); /* the recipe is named by the file that it makes */
        if (r)
            r->own_format = true;
        return r ? NB_OK : NB_NOMEM;
    }
    if (!by_recipe)
        return compare_add(c, method, "", c->model) ? NB_OK : NB_NOMEM;
    for (const char *p = recipes ? recipes : c->o->recipes; (p = next_word(how, p));)
        if (!compare_add(c, method, how, c->model))
            return NB_NOMEM;
    return NB_OK;
}

/* Every method of the table that fits the model. One that leaves the model in floats goes before the table's first, the plain rounding. */
static status add_all(comparison *c)
{
    int64_t n;
    const pt_method *m = pt_methods(&n);
    for (int64_t i = 0; i < n; i++) {
        char name[LINE];
        if (m[i].needs_biases && !c->has_biases)
            continue;
        snprintf(name, sizeof name, "%s%s%s", m[i].name, m[i].needs_recipe ? "" : "+", m[i].needs_recipe ? "" : m[0].name);
        TRY(add_method(c, name));
    }
    return NB_OK;
}

/* Bytes and bits per weight of a file: of a GGUF file what its tensors take, since it is opened as the floats they decode to. */
static status measure_file(cl_row_of *r, const comparison *c)
{
    md_model m = {0};
    md_size size;
    fm_file_kind kind = FM_FILE_UNKNOWN;
    TRY(cl_open_model(&m, r->path, &c->o->common, NULL, false));
    md_measure(&size, &m);
    r->bytes = md_size_bytes(&size);
    snprintf(r->recipe, sizeof r->recipe, "%s", m.recipe.n ? m.recipe.name : "float");
    md_free(&m);
    if (!nb_path_is_folder(r->path) && fm_file_kind_of(&kind, r->path) == NB_OK && kind == FM_FILE_GGUF) {
        fm_arrays a = {0};
        TRY(fm_gguf_open(&a, r->path));
        r->bytes = 0;
        for (int64_t i = 0; i < a.n; i++)
            r->bytes += (int64_t)a.array[i].bytes;
        fm_arrays_free(&a);
        snprintf(r->recipe, sizeof r->recipe, r->bytes < 4 * size.params ? "its own" : "float");
    }
    r->bpw = 8 * (double)r->bytes / (double)size.params;
    return NB_OK;
}

static status plan(comparison *c, const char *const *file)
{
    char word[LINE];
    cl_row_of *r = compare_add(c, "float", "", c->model);
    if (!r)
        return NB_NOMEM;
    TRY(measure_file(r, c));
    if (!compare_add(c, "float", "f16", c->model))
        return NB_NOMEM;
    for (const char *p = c->o->methods; (p = next_word(word, p));)
        TRY(strcmp(word, "all") ? add_method(c, word) : add_all(c));
    for (; *file; file++) {
        r = compare_add(c, nb_path_name(*file), "", *file);
        if (!r)
            return NB_NOMEM;
        if (measure_file(r, c) != NB_OK)
            snprintf(r->error, sizeof r->error, "%s", nb_fail_message());
    }
    return NB_OK;
}

/* ---- what decides a row --------------------------------------------------------------------- */

static void hash_settings(comparison *c)
{
    const compare_options *o = c->o;
    const int64_t n[] = {o->samples, o->length, (int64_t)o->common.seed, o->eval_tokens, o->windows, o->common.split, o->common.threads};
    uint64_t h = cl_hash_file(NB_HASH_START, "/proc/self/exe"); /* another program, other rows */
    h = cl_hash_file(h, c->model);
    h = cl_hash_file(h, c->calibration);
    h = cl_hash_file(h, c->scored);
    c->settings = nb_hash(h, n, sizeof n);
}

/* Whether some linear of a block has one. */
static bool has_biases(const md_model *m)
{
    for (int64_t l = 0; l < m->config.layers; l++) {
        const md_block *b = &m->block[l];
        const ly_linear *const linear[] = {&b->attn.wq, &b->attn.wk, &b->attn.wv, &b->attn.wo, &b->mlp.gate, &b->mlp.up, &b->mlp.down};
        for (size_t i = 0; i < sizeof linear / sizeof *linear; i++)
            if (linear[i]->b)
                return true;
    }
    return false;
}

static status look_at_model(comparison *c, compare_options *o)
{
    md_model m = {0};
    md_size size;
    TRY(cl_open_model(&m, c->model, &o->common, NULL, false));
    const status s = m.recipe.n ? nb_fail(NB_USAGE, "%s: is quantized by recipe %s already; the float model is wanted", c->model, m.recipe.name) : NB_OK;
    const int64_t ctx = m.config.ctx, most = o->samples > 0 ? o->samples : 1;
    md_measure(&size, &m);
    c->fp16_bytes = 2 * size.params;
    c->large = m.config.dim >= LARGE;
    c->has_bos = m.config.bos >= 0;
    c->has_biases = has_biases(&m);
    c->prefill = ctx / 2 < 256 ? (ctx + 1) / 2 : 256;
    c->decode = ctx / 4 < 64 ? ctx / 4 + 1 : 64;
    o->length = o->length > 0 ? o->length : LENGTH < ctx ? LENGTH : ctx;
    o->samples = most;
    md_free(&m);
    if (s == NB_OK && o->length > ctx)
        return nb_fail(NB_USAGE, "--calib-length %lld: the model's context is %lld", (long long)o->length, (long long)ctx);
    return s;
}

static status name_folder(comparison *c)
{
    static const char tail[] = ".compare";
    const char *name = nb_path_name(c->model);
    const size_t n = strlen(name) + sizeof tail;
    c->work = c->o->work ? nb_string(c->o->work) : nb_alloc(n, 1);
    if (!c->work)
        return NB_NOMEM;
    if (!c->o->work)
        snprintf(c->work, n, "%s%s", *name ? name : "model", tail);
    return nb_make_folder(c->work);
}

/* ---- all of it ------------------------------------------------------------------------------ */

static status check_recipe(const char *name)
{
    fq_recipe r;
    TRY(fq_recipe_open(&r, name));
    fq_recipe_free(&r);
    return NB_OK;
}

static status check_method(const char *word)
{
    char method[LINE];
    const char *own, *recipe = split_recipe(method, word);
    bool by_recipe;
    TRY(read_composition(&by_recipe, &own, method));
    if (recipe && (own || !by_recipe))
        return nb_fail(NB_USAGE, "--methods %s: %s takes no recipe", word, method);
    return recipe ? check_recipe(recipe) : NB_OK;
}

static status check(const compare_options *o)
{
    char word[LINE];
    if (o->common.json + o->markdown + o->csv > 1)
        return nb_fail(NB_USAGE, "--json, --markdown, --csv: one of them");
    if (o->html) {
        const cl_common page = {.output = o->html, .force = true};
        TRY(cl_check_output(&page, false));
    }
    for (const char *p = o->methods; (p = next_word(word, p));)
        if (strcmp(word, "all") != 0)
            TRY(check_method(word));
    for (const char *p = o->recipes; (p = next_word(word, p));)
        TRY(check_recipe(word));
    return NB_OK;
}

static status make_rows(comparison *c)
{
    cl_progress line;
    c->progress = cl_progress_start(&line, "comparing", "rows", c->o->common.quiet);
    line.uneven = true; /* the row's own progress tells its time */
    status s = compare_make_data(c);
    if (s == NB_OK)
        hash_settings(c);
    for (int64_t i = 0; i < c->n && s == NB_OK; i++)
        if (!*c->row[i].error)
            s = compare_make_row(c, i);
    if (s == NB_OK && c->o->html)
        s = compare_report(c, c->o->html);
    cl_progress_end(&line);
    if (s == NB_INTERRUPTED)
        return nb_fail(s, "interrupted; what is finished is kept in %s, the same command goes on", c->work);
    return s;
}

static status compare(const char *const *argument, compare_options *o)
{
    comparison c = {.o = o, .model = argument[0]};
    TRY(check(o));
    TRY(cl_begin(&o->common));
    status s = look_at_model(&c, o);
    if (s == NB_OK)
        s = name_folder(&c);
    if (s == NB_OK)
        s = plan(&c, argument + 1);
    if (s == NB_OK)
        s = make_rows(&c);
    if (s == NB_OK)
        s = compare_print(&c);
    free(c.row);
    free(c.work);
    free(c.calibration);
    free(c.scored);
    return s;
}

int cl_compare(int argc, char **argv)
{
    compare_options o = {0};
    const cl_option option[] = {
        {"--methods", "LIST", CL_TEXT, &o.methods, "all",
         "all, or methods of `nibble ptq` joined by commas, several in order joined by +, one recipe behind @: rtn,gptq,awq+gptq,dynamic@w8a8kv16"},
        {"--recipe", "LIST", CL_TEXT, &o.recipes, "q4_0", "recipes, names or files, joined by commas; each method that names none by each of them"},
        {"--eval-data", "FILE", CL_TEXT, &o.eval_data, NULL,
         "what is scored, a text or a token file (samples of the model's own, not those of --data)"},
        {"--eval-tokens", "N", CL_COUNT, &o.eval_tokens, "0", "score at most about so many tokens (0: all)"},
        {"--windows", "N", CL_COUNT, &o.windows, "0", "score as llama-perplexity does: N windows of 512, their second halves"},
        {"--calib-samples", "N", CL_COUNT, &o.samples, "128", "windows of --data that methods look at, in an order by --seed"},
        {"--calib-length", "N", CL_COUNT, &o.length, NULL, "tokens of one (256, or the model's context)"},
        {"--markdown", NULL, CL_FLAG, &o.markdown, NULL, "print the table in Markdown"},
        {"--csv", NULL, CL_FLAG, &o.csv, NULL, "print the table as CSV, ratios in columns of their own"},
        {"--html", "FILE", CL_TEXT, &o.html, NULL,
         "write a page too: the table, and diagrams of bits, layers, weights, activations, group sizes, training of run folders"},
        {"--work", "FOLDER", CL_TEXT, &o.work, NULL, "where samples and finished rows are kept (MODEL.compare, here)"},
        {"--keep", NULL, CL_FLAG, &o.keep, NULL, "keep the quantized files too, in that folder"},
        {"--restart", NULL, CL_FLAG, &o.restart, NULL, "make rows anew that an earlier run finished"},
    };
    const cl_command command = {
        .name = "compare",
        .arguments = "MODEL [FILE...]",
        .summary = "every way to quantize a model, in one table",
        .explanation =
            "Rows for the float model, in 32 and in 16 bits, one for each method by each recipe, and one for\n"
            "each FILE (folded models, run folders, other models of the same vocabulary). Every row is `nibble ptq`, `nibble\n"
            "eval --teacher MODEL` and `nibble bench run` in processes of their own: time and peak memory are\n"
            "the method's, speeds and their ratio to the float model's are of one run. A method that cannot\n"
            "take the model makes a row with the reason. Methods look at --data, and figures are of\n"
            "--eval-data; both are samples of the model's own where nothing is named. Interrupted, the same\n"
            "command goes on with the rows that are missing. --json prints one array of objects.",
        .examples = "  nibble compare stories260K.bin --tokenizer tok512.bin --methods all --recipe q4_0,w4a8kv8\n"
                    "  nibble compare smollm2.gguf qat.h5 --methods rtn,importance --data calib.txt --eval-data test.txt --windows 60",
        .option = option,
        .n = sizeof option / sizeof *option,
        .common = &o.common,
        .common_mask = CL_DATA | CL_SPLIT | CL_TOKENIZER | CL_SEEDED | CL_JSON};
    const char *argument[CL_MAX_ARGUMENTS + 1] = {0};
    int code;
    return cl_parse(&command, argc, argv, argument, &code) ? cl_exit(compare(argument, &o)) : code;
}
