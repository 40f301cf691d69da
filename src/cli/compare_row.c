/* compare_row.c - one row of the comparison: ptq, eval and bench of this program, each in a process of its own, so that time and peak
 * memory are the method's alone and a method that dies leaves a row behind. A finished row is kept in the work folder as JSON.
 */
#include "cli/compare.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

cl_row_of *compare_add(comparison *c, const char *method, const char *how, const char *path)
{
    if (c->n == c->capacity) {
        const int64_t capacity = c->capacity ? 2 * c->capacity : 32;
        cl_row_of *p = nb_resize(c->row, (size_t)capacity, sizeof *p);
        if (!p)
            return NULL;
        c->row = p;
        c->capacity = capacity;
    }
    cl_row_of *r = &c->row[c->n++];
    *r = (cl_row_of){.path = path, .bytes = -1, .peak_bytes = -1};
    r->bpw = r->ppl = r->ppl_low = r->ppl_high = r->kl = r->same_top = r->seconds = NAN;
    r->prefill = r->decode = r->prefill_ratio = r->decode_ratio = NAN;
    snprintf(r->method, sizeof r->method, "%s", method);
    snprintf(r->how, sizeof r->how, "%s", how);
    snprintf(r->recipe, sizeof r->recipe, "%s", nb_path_name(how));
    return r;
}

status compare_write(const char *path, const char *text)
{
    nb_atomic file = {0};
    status s = nb_atomic_begin(&file, path);
    if (s == NB_OK && fputs(text, file.file) < 0)
        s = nb_fail(NB_IO, "%s: cannot be written", path);
    if (s == NB_OK)
        s = nb_atomic_commit(&file);
    nb_atomic_abort(&file);
    return s;
}

/* ---- what a row is kept under --------------------------------------------------------------- */

/* FOLDER/METHOD-RECIPE-HASH.TAIL, of characters that are harmless in names of files; the caller frees it. */
static char *file_of(const comparison *c, const cl_row_of *r, const char *tail)
{
    char name[400];
    uint64_t h = nb_hash(c->settings, r->method, strlen(r->method));
    h = nb_hash(h, r->how, strlen(r->how));
    h = cl_hash_file(h, *r->how ? r->how : r->path); /* a recipe's file or the row's own: another content is another row */
    snprintf(name, sizeof name, "%.120s%s%.120s-%08x%s", r->method, *r->recipe ? "-" : "", r->recipe, (unsigned)(h >> 32), tail);
    for (char *p = name; *p; p++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.+", *p))
            *p = '_';
    return nb_path_join(c->work, name);
}

static void put(nb_writer *w, const cl_row_of *r)
{
    nb_json_put_string(w, "recipe", r->recipe);
    nb_json_put_int(w, "bytes", r->bytes);
    nb_json_put_int(w, "peak_bytes", r->peak_bytes);
    nb_json_put_number(w, "bpw", r->bpw);
    nb_json_put_number(w, "ppl", r->ppl);
    nb_json_put_number(w, "ppl_low", r->ppl_low);
    nb_json_put_number(w, "ppl_high", r->ppl_high);
    nb_json_put_number(w, "kl", r->kl);
    nb_json_put_number(w, "same_top", r->same_top);
    nb_json_put_number(w, "seconds", r->seconds);
    nb_json_put_number(w, "prefill", r->prefill);
    nb_json_put_number(w, "decode", r->decode);
    nb_json_put_number(w, "prefill_ratio", r->prefill_ratio);
    nb_json_put_number(w, "decode_ratio", r->decode_ratio);
}

static status keep(const comparison *c, const cl_row_of *r)
{
    nb_writer w = {0};
    char *path = file_of(c, r, ".json");
    nb_json_open(&w, NULL, '{');
    put(&w, r);
    nb_json_close(&w, '}');
    char *text = nb_json_text(&w);
    status s = path && text ? compare_write(path, text) : NB_NOMEM;
    free(path);
    free(text);
    return s;
}

static double number(const nb_json *j, const char *key)
{
    return nb_json_number(nb_json_get(j, key), NAN);
}

/* True: the row was made by an earlier run. */
static bool read_kept(const comparison *c, cl_row_of *r)
{
    nb_mapped file = {0};
    char *path = file_of(c, r, ".json");
    nb_json *j = NULL;
    if (path && !c->o->restart && nb_path_exists(path) && nb_map(&file, path) == NB_OK)
        j = nb_json_parse((const char *)file.data, file.bytes);
    free(path);
    nb_unmap(&file);
    const char *recipe = nb_json_string(nb_json_get(j, "recipe"));
    const bool found = recipe != NULL;
    if (found) {
        snprintf(r->recipe, sizeof r->recipe, "%s", recipe);
        r->bytes = nb_json_int(nb_json_get(j, "bytes"), -1);
        r->peak_bytes = nb_json_int(nb_json_get(j, "peak_bytes"), -1);
        r->bpw = number(j, "bpw");
        r->ppl = number(j, "ppl");
        r->ppl_low = number(j, "ppl_low");
        r->ppl_high = number(j, "ppl_high");
        r->kl = number(j, "kl");
        r->same_top = number(j, "same_top");
        r->seconds = number(j, "seconds");
        r->prefill = number(j, "prefill");
        r->decode = number(j, "decode");
        r->prefill_ratio = number(j, "prefill_ratio");
        r->decode_ratio = number(j, "decode_ratio");
        r->cached = true;
    }
    nb_json_free(j);
    return found;
}

/* ---- children ------------------------------------------------------------------------------- */

typedef struct {
    const comparison *c;
    const cl_row_of *row;
    const char *what;
} told;

static bool tell(void *ctx, int64_t done, int64_t total, const char *text)
{
    const told *t = ctx;
    char line[600];
    snprintf(line, sizeof line, "%s%s%s: %s%s%s", t->row ? t->row->method : "", t->row && *t->row->recipe ? " " : "",
             t->row ? t->row->recipe : "data", t->what, text && *text ? ", " : "", text ? text : "");
    return nb_progress_report(&t->c->progress, done, total, line);
}

/* What every child is told: threads and the tokenizer of a model that carries none. */
static void add_common(cl_line *l, const comparison *c, char threads[24])
{
    if (c->o->common.tokenizer)
        cl_line_add(l, "--tokenizer", c->o->common.tokenizer);
    if (c->o->common.threads > 0) {
        snprintf(threads, 24, "%lld", (long long)c->o->common.threads);
        cl_line_add(l, "--threads", threads);
    }
    cl_line_add(l, "--json", NULL);
}

static void add_count(cl_line *l, const char *name, char text[24], int64_t n)
{
    snprintf(text, 24, "%lld", (long long)n);
    cl_line_add(l, name, text);
}

/* A failure of the child is the row's error; true where it printed an object. */
static status run(const comparison *c, cl_row_of *r, cl_child *child, const cl_line *line, const char *what)
{
    told t = {c, r, what};
    const nb_progress progress = {tell, &t};
    int64_t done = 0;
    for (int64_t i = 0; i < c->n; i++)
        done += &c->row[i] < r;
    TRY(cl_child_run(child, line, &progress, done, c->n));
    if (*child->message)
        snprintf(r->error, sizeof r->error, "%s", child->message);
    else if (!child->json)
        snprintf(r->error, sizeof r->error, "%s printed no object", what);
    return NB_OK;
}

static const char *split_word(const comparison *c)
{
    static const char *const word[] = {"none", "line", "blank"};
    return word[c->o->common.split];
}

static status quantize(const comparison *c, cl_row_of *r, const char *out)
{
    char samples[24], length[24], seed[32], threads[24], part[4096];
    cl_line l = {0};
    cl_child child;
    snprintf(part, sizeof part, "%s.part", out);
    const bool goes_on = nb_path_is_folder(part); /* then its time is not the method's */
    cl_line_add(&l, "ptq", strcmp(r->method, "float") ? r->method : "rtn"); /* floats of 16 bits are rounded to nearest */
    cl_line_add(&l, c->model, NULL);
    if (*r->how)
        cl_line_add(&l, "--recipe", r->how);
    cl_line_add(&l, "--data", c->calibration);
    cl_line_add(&l, "--split", split_word(c));
    cl_line_add(&l, "-o", out);
    add_count(&l, "--calib-samples", samples, c->o->samples);
    add_count(&l, "--calib-length", length, c->o->length);
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)c->o->common.seed);
    cl_line_add(&l, "--seed", seed);
    add_common(&l, c, threads);
    (void)remove(out); /* its name says what it is; without --force a method that was stopped goes on behind what OUT.part keeps */
    TRY(run(c, r, &child, &l, "quantizing"));
    const char *recipe = nb_json_string(nb_json_get(child.json, "recipe"));
    if (recipe)
        snprintf(r->recipe, sizeof r->recipe, "%s", recipe);
    r->bytes = nb_json_int(nb_json_get(child.json, "bytes"), -1);
    r->bpw = number(child.json, "bits_per_param");
    r->peak_bytes = nb_json_int(nb_json_get(child.json, "peak_bytes"), -1);
    r->seconds = goes_on ? NAN : child.seconds;
    cl_child_free(&child);
    return NB_OK;
}

static status score(const comparison *c, cl_row_of *r, const char *path)
{
    char tokens[24], windows[24], threads[24];
    cl_line l = {0};
    cl_child child;
    cl_line_add(&l, "eval", path);
    cl_line_add(&l, "--teacher", c->model);
    cl_line_add(&l, "--data", c->scored);
    cl_line_add(&l, "--split", split_word(c));
    if (c->o->eval_tokens > 0)
        add_count(&l, "--tokens", tokens, c->o->eval_tokens);
    if (c->o->windows > 0)
        add_count(&l, "--windows", windows, c->o->windows);
    add_common(&l, c, threads);
    TRY(run(c, r, &child, &l, "scoring"));
    const nb_json *interval = nb_json_get(child.json, "ppl_ci95");
    r->ppl = number(child.json, "ppl");
    r->ppl_low = nb_json_number(nb_json_at(interval, 0), NAN);
    r->ppl_high = nb_json_number(nb_json_at(interval, 1), NAN);
    r->kl = number(child.json, "kl");
    r->same_top = number(child.json, "same_top");
    cl_child_free(&child);
    return NB_OK;
}

static status measure_speed(const comparison *c, cl_row_of *r, const char *path)
{
    char prefill[24], decode[24], threads[24];
    cl_line l = {0};
    cl_child child;
    cl_line_add(&l, "bench", "run");
    cl_line_add(&l, path, NULL);
    add_count(&l, "--prefill", prefill, c->prefill);
    add_count(&l, "--decode", decode, c->decode);
    add_common(&l, c, threads);
    TRY(run(c, r, &child, &l, "timing"));
    r->prefill = number(child.json, "prefill_tok_s");
    r->decode = number(child.json, "decode_tok_s");
    r->prefill_ratio = r->prefill / c->float_prefill;
    r->decode_ratio = r->decode / c->float_decode;
    cl_child_free(&child);
    return NB_OK;
}

/* ---- rows ----------------------------------------------------------------------------------- */

static status make(comparison *c, cl_row_of *r, const char *path)
{
    if (*r->how)
        TRY(quantize(c, r, path));
    if (!*r->error)
        TRY(score(c, r, path));
    if (!*r->error)
        TRY(measure_speed(c, r, path));
    return NB_OK;
}

status compare_make_row(comparison *c, int64_t i)
{
    cl_row_of *r = &c->row[i];
    if (i > 0 && read_kept(c, r))
        return NB_OK;
    char *out = *r->how ? file_of(c, r, ".h5") : NULL;
    if (*r->how && !out)
        return NB_NOMEM;
    status s = make(c, r, out ? out : r->path);
    if (i == 0) { /* the float row is made in every run: the others' speeds are told by it */
        c->float_prefill = r->prefill;
        c->float_decode = r->decode;
        r->prefill_ratio = r->decode_ratio = 1;
    }
    if (s == NB_OK && !*r->error)
        s = keep(c, r);
    if (out && (!c->o->keep || s != NB_OK || *r->error))
        remove(out);
    free(out);
    return s;
}

static status generate(const comparison *c, const char *path, int64_t tokens, int64_t length, uint64_t seed, const char *what)
{
    char count[24], ctx[24], text[32], threads[24];
    cl_line l = {0};
    cl_child child;
    told t = {c, NULL, what};
    const nb_progress progress = {tell, &t};
    cl_line_add(&l, "data", c->model);
    add_count(&l, "--tokens", count, tokens);
    add_count(&l, "--ctx", ctx, length);
    snprintf(text, sizeof text, "%llu", (unsigned long long)seed);
    cl_line_add(&l, "--seed", text);
    cl_line_add(&l, "--start", c->has_bos ? "mixed" : "hybrid");
    cl_line_add(&l, "--precision", "auto");
    cl_line_add(&l, "-o", path);
    add_common(&l, c, threads);
    TRY(cl_child_run(&child, &l, &progress, 0, c->n));
    const status s = *child.message ? nb_fail(NB_IO, "%s", child.message) : NB_OK;
    cl_child_free(&child);
    return s;
}

/* A file of samples is named after what decides its content. */
static status samples(const comparison *c, char **path, const char *kind, int64_t tokens, int64_t length, uint64_t seed, const char *what)
{
    char name[128];
    const uint64_t h = cl_hash_file(NB_HASH_START, c->model);
    snprintf(name, sizeof name, "%s-%lldx%lld-seed%llu-%08x.h5", kind, (long long)(tokens / length), (long long)length,
             (unsigned long long)seed, (unsigned)(h >> 32));
    *path = nb_path_join(c->work, name);
    if (!*path)
        return NB_NOMEM;
    return nb_path_exists(*path) ? NB_OK : generate(c, *path, tokens, length, seed, what);
}

status compare_make_data(comparison *c)
{
    enum { HELD_OUT = 25000, LARGE_ROWS = 32, LARGE_LENGTH = 512 };
    const compare_options *o = c->o;
    const int64_t length = o->length, seed = (int64_t)o->common.seed;
    if (o->common.data)
        c->calibration = nb_string(o->common.data);
    else
        TRY(samples(c, &c->calibration, "calibration", o->samples * length, length, (uint64_t)seed, "writing what methods look at"));
    if (o->eval_data)
        c->scored = nb_string(o->eval_data);
    else if (c->large)
        TRY(samples(c, &c->scored, "heldout", LARGE_ROWS * LARGE_LENGTH, LARGE_LENGTH, (uint64_t)seed + 1, "writing what is scored"));
    else
        TRY(samples(c, &c->scored, "heldout", HELD_OUT, length, (uint64_t)seed + 1, "writing what is scored"));
    return c->calibration && c->scored ? NB_OK : NB_NOMEM;
}
