/* options.c - parsing and explaining command lines from their tables. */
#include "cli/cli.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- the common options ------------------------------------------------------------------- */

static int64_t common_rows(cl_option row[CL_COMMON_COUNT + 1], const cl_command *c)
{
    cl_common *o = c->common;
    const struct {
        unsigned bit; /* 0: every command has it */
        cl_option option;
    } all[] = {
        {CL_DATA, {"--data", "FILE", CL_TEXT, &o->data, NULL, "a text (plain or .gz) or a token file"}},
        {CL_SPLIT,
         {"--split", "none|line|blank", CL_CHOICE, &o->split, "none",
          "where documents end in a text: nowhere, at each line, at blank lines"}},
        {CL_CTX,
         {"--ctx", "N", CL_COUNT, &o->ctx, "0", "length of a sequence in tokens (0: what the file or model has)"}},
        {CL_TOKENIZER,
         {"--tokenizer", "FILE", CL_TEXT, &o->tokenizer, NULL,
          "tokenizer.bin, tokenizer.model, or \"bytes\" for the built-in one; files that carry their own "
          "need none"}},
        {CL_WHICH, {"--which", "best|last", CL_CHOICE, &o->which, "best", "which checkpoint of a run folder"}},
        {CL_UNTIE,
         {"--untie", NULL, CL_FLAG, &o->untie, NULL,
          "give the head its own copy of the embedding that it is tied to; head.weight's rules are then its own"}},
        {CL_OUTPUT, {"-o", "FILE", CL_TEXT, &o->output, NULL, "file to write"}},
        {CL_FORCE, {"--force", NULL, CL_FLAG, &o->force, NULL, "replace the file of -o if it is there"}},
        {CL_SEEDED, {"--seed", "N", CL_SEED, &o->seed, "1", "of the random numbers: the same seed, the same result"}},
        {CL_PRECISION,
         {"--precision", "fp32|bf16|auto", CL_CHOICE, &o->precision, "fp32",
          "of float products; auto: bf16 where this CPU is fast at it"}},
        {CL_JSON, {"--json", NULL, CL_FLAG, &o->json, NULL, "print the result as one JSON object"}},
        {0, {"--threads", "N", CL_COUNT, &o->threads, "0", "threads to compute with (0: all)"}},
        {0, {"--quiet", NULL, CL_FLAG, &o->quiet, NULL, "nothing on stderr but errors"}},
        {0, {"--help", NULL, CL_FLAG, &o->help, NULL, "this text"}},
    };
    int64_t n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!all[i].bit || (c->common_mask & all[i].bit))
            row[n++] = all[i].option;
    return n;
}

/* ---- help --------------------------------------------------------------------------------- */

/* Prints text from column `at` on, further lines indented by `indent`, broken before `width`. */
static void print_wrapped(FILE *f, const char *text, int at, int indent, int width)
{
    while (*text) {
        int word = (int)strcspn(text, " ");
        if (at > indent && at + 1 + word > width) {
            fprintf(f, "\n%*s", indent, "");
            at = indent;
        } else if (at > indent) {
            fputc(' ', f);
            at++;
        }
        fprintf(f, "%.*s", word, text);
        at += word;
        text += word;
        text += strspn(text, " ");
    }
    fputc('\n', f);
}

static void print_option(FILE *f, const cl_option *o)
{
    enum { INDENT = 26, WIDTH = 100 };
    char left[96], right[512];
    snprintf(left, sizeof left, "  %s%s%s", o->name, o->argument ? " " : "", o->argument ? o->argument : "");
    bool shown = o->standard && *o->standard && strcmp(o->standard, "0") != 0;
    snprintf(right, sizeof right, "%s%s%s%s", o->help, shown ? " [" : "", shown ? o->standard : "", shown ? "]" : "");
    int n = (int)strlen(left);
    fputs(left, f);
    if (n > INDENT - 2)
        fprintf(f, "\n%*s", INDENT, "");
    else
        fprintf(f, "%*s", INDENT - n, "");
    print_wrapped(f, right, INDENT, INDENT, WIDTH);
}

void cl_help(FILE *f, const cl_command *c)
{
    cl_option common[CL_COMMON_COUNT + 1];
    int64_t n_common = common_rows(common, c);
    fprintf(f, "nibble %s - %s\n\nusage: nibble %s%s%s [options]\n\n%s\n", c->name, c->summary, c->name,
            *c->arguments ? " " : "", c->arguments, c->explanation);
    if (c->n)
        fputs("\noptions\n", f);
    for (int64_t i = 0; i < c->n; i++)
        print_option(f, &c->option[i]);
    fputs("\noptions that mean the same everywhere\n", f);
    for (int64_t i = 0; i < n_common; i++)
        print_option(f, &common[i]);
    if (c->examples)
        fprintf(f, "\nexamples\n%s\n", c->examples);
}

/* ---- nearest names ------------------------------------------------------------------------ */

static int smaller(int a, int b)
{
    return a < b ? a : b;
}

/* Levenshtein's distance, of the first 31 bytes. */
static int distance(const char *a, const char *b)
{
    enum { MOST = 31 };
    int row[MOST + 1];
    int n = smaller((int)strlen(a), MOST), m = smaller((int)strlen(b), MOST);
    for (int j = 0; j <= m; j++)
        row[j] = j;
    for (int i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int replaced = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = smaller(replaced, 1 + smaller(row[j], row[j - 1]));
        }
    }
    return row[m];
}

const char *cl_nearest(const char *typed, const char *const *name, int64_t n)
{
    const char *best = NULL;
    int least = smaller(3, (int)strlen(typed) / 2) + 1;
    for (int64_t i = 0; i < n; i++) {
        int d = distance(typed, name[i]);
        if (d < least) {
            least = d;
            best = name[i];
        }
    }
    return best;
}

/* ---- parsing ------------------------------------------------------------------------------ */

static bool same(const char *a, const char *b, size_t bytes)
{
    return strlen(a) == bytes && memcmp(a, b, bytes) == 0;
}

static status parse_choice(int *choice, const char *words, const char *text)
{
    int i = 0;
    for (const char *w = words;; i++) {
        size_t n = strcspn(w, "|");
        if (same(text, w, n)) {
            *choice = i;
            return NB_OK;
        }
        if (!w[n])
            return nb_fail(NB_USAGE, "\"%s\" is none of %s", text, words);
        w += n + 1;
    }
}

static status parse_seed(uint64_t *seed, const char *text)
{
    char *end = NULL;
    errno = 0;
    unsigned long long x = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno)
        return nb_fail(NB_USAGE, "\"%s\" is not a whole number from 0 on", text);
    *seed = x;
    return NB_OK;
}

static status assign(const cl_option *o, const char *text)
{
    switch (o->type) {
    case CL_FLAG:
        *(bool *)o->value = true;
        return NB_OK;
    case CL_TEXT:
        *(const char **)o->value = text;
        return NB_OK;
    case CL_COUNT:
        return nb_parse_count(o->value, text);
    case CL_SEED:
        return parse_seed(o->value, text);
    case CL_NUMBER:
        return nb_parse_number(o->value, text);
    case CL_CHOICE:
        return parse_choice(o->value, o->argument, text);
    }
    return NB_OK;
}

static bool wrong(const cl_command *c, int *code, const char *what, const char *why)
{
    cl_say("nibble %s: %s%s%s\n(nibble %s --help explains the options)\n", c->name, what, *why ? ": " : "", why,
           c->name);
    *code = 2;
    return false;
}

typedef struct {
    const cl_option *own;
    const cl_option *common;
    int64_t n_own, n_common;
} rows;

static const cl_option *row(const rows *r, int64_t i)
{
    return i < r->n_own ? &r->own[i] : &r->common[i - r->n_own];
}

static const cl_option *find(const rows *r, const char *name, size_t bytes)
{
    if (same("-h", name, bytes))
        return find(r, "--help", 6);
    for (int64_t i = 0; i < r->n_own + r->n_common; i++)
        if (same(row(r, i)->name, name, bytes))
            return row(r, i);
    return NULL;
}

static bool unknown(const cl_command *c, const rows *r, const char *text, int *code)
{
    enum { MOST = 128 };
    const char *name[MOST];
    int64_t n = 0;
    for (; n < r->n_own + r->n_common && n < MOST; n++)
        name[n] = row(r, n)->name;
    const char *near = cl_nearest(text, name, n);
    char what[160];
    snprintf(what, sizeof what, "there is no option %.60s%s%s%s", text, near ? " (did you mean " : "", near ? near : "",
             near ? "?)" : "");
    return wrong(c, code, what, "");
}

/* One option at argv[*i] and its value; moves *i past what was used. */
static bool parse_option(const cl_command *c, const rows *r, int argc, char **argv, int *i, int *code)
{
    const char *text = argv[*i];
    size_t bytes = strncmp(text, "--", 2) == 0 ? strcspn(text, "=") : strlen(text);
    const cl_option *o = find(r, text, bytes);
    if (!o)
        return unknown(c, r, text, code);
    const char *value = text[bytes] ? text + bytes + 1 : NULL;
    if (o->type == CL_FLAG && value)
        return wrong(c, code, o->name, "takes no value");
    if (o->type != CL_FLAG && !value) {
        if (*i + 1 >= argc)
            return wrong(c, code, o->name, "needs a value");
        value = argv[++*i];
    }
    return assign(o, value) == NB_OK || wrong(c, code, o->name, nb_fail_message());
}

static int count_words(const char *text, bool without_brackets)
{
    int n = 0;
    for (; *text; text += strcspn(text, " "), text += strspn(text, " "))
        n += !(without_brackets && *text == '[');
    return n;
}

bool cl_parse(const cl_command *c, int argc, char **argv, const char *argument[CL_MAX_ARGUMENTS], int *code)
{
    cl_option common[CL_COMMON_COUNT + 1];
    rows r = {c->option, common, c->n, common_rows(common, c)};
    for (int64_t i = 0; i < r.n_own + r.n_common; i++) {
        const cl_option *o = row(&r, i);
        if (o->standard && assign(o, o->standard) != NB_OK)
            return wrong(c, code, o->name, nb_fail_message());
    }
    int n = 0, most = strstr(c->arguments, "...") ? CL_MAX_ARGUMENTS : count_words(c->arguments, false);
    bool ended = false;
    for (int i = 0; i < CL_MAX_ARGUMENTS; i++)
        argument[i] = NULL;
    for (int i = 1; i < argc; i++) {
        if (!ended && strcmp(argv[i], "--") == 0) {
            ended = true;
        } else if (!ended && argv[i][0] == '-' && argv[i][1]) {
            if (!parse_option(c, &r, argc, argv, &i, code))
                return false;
        } else if (n == most) {
            return wrong(c, code, argv[i], "one argument too many");
        } else {
            argument[n++] = argv[i];
        }
    }
    if (c->common->help) {
        cl_help(stdout, c);
        *code = cl_exit(NB_OK);
        return false;
    }
    if (n < count_words(c->arguments, true))
        return wrong(c, code, "an argument is missing", c->arguments);
    return true;
}
