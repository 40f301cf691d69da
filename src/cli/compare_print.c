/* compare_print.c - the comparison as a table for terminals, Markdown, CSV (RFC 4180) and JSON. One list of columns serves the first three. */
#include "cli/compare.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static status print_json(const comparison *c)
{
    nb_writer w = {0};
    nb_json_open(&w, NULL, '[');
    for (int64_t i = 0; i < c->n; i++) {
        const cl_row_of *r = &c->row[i];
        nb_json_open(&w, NULL, '{');
        nb_json_put_string(&w, "method", r->method);
        nb_json_put_string(&w, "recipe", r->recipe);
        nb_json_put_number(&w, "bpw", r->bpw);
        nb_json_put_number(&w, "bytes", r->bytes >= 0 ? (double)r->bytes : NAN);
        nb_json_put_number(&w, "ppl", r->ppl);
        nb_json_open(&w, "ppl_ci95", '[');
        nb_json_put_number(&w, NULL, r->ppl_low);
        nb_json_put_number(&w, NULL, r->ppl_high);
        nb_json_close(&w, ']');
        nb_json_put_number(&w, "kl", r->kl);
        nb_json_put_number(&w, "same_top", r->same_top);
        nb_json_put_number(&w, "prefill_tok_s", r->prefill);
        nb_json_put_number(&w, "decode_tok_s", r->decode);
        nb_json_put_number(&w, "seconds", r->seconds);
        nb_json_put_number(&w, "peak_bytes", r->peak_bytes >= 0 ? (double)r->peak_bytes : NAN);
        if (*r->error)
            nb_json_put_string(&w, "error", r->error);
        nb_json_close(&w, '}');
    }
    nb_json_close(&w, ']');
    return cl_print_json(&w);
}

/* ---- cells ---------------------------------------------------------------------------------- */

enum { CELL = 200 };
typedef void (*cell)(char text[CELL], const comparison *c, const cl_row_of *r);

static void method(char text[CELL], const comparison *c, const cl_row_of *r)
{
    (void)c;
    snprintf(text, CELL, "%s", r->method);
}

static void recipe(char text[CELL], const comparison *c, const cl_row_of *r)
{
    (void)c;
    snprintf(text, CELL, "%s%s", r->recipe, r->own_format ? " (its own)" : "");
}

static void bits(char text[CELL], const comparison *c, const cl_row_of *r)
{
    (void)c;
    if (isfinite(r->bpw))
        snprintf(text, CELL, "%.2f", r->bpw);
}

static void size(char text[CELL], const comparison *c, const cl_row_of *r)
{
    char bytes[32];
    if (r->bytes < 0)
        return;
    cl_size(bytes, sizeof bytes, (double)r->bytes);
    snprintf(text, CELL, "%s (%.2fx)", bytes, (double)r->bytes / (double)c->fp16_bytes);
}

static void perplexity(char text[CELL], const comparison *c, const cl_row_of *r)
{
    (void)c;
    if (isfinite(r->ppl))
        snprintf(text, CELL, "%.*f (%.*f-%.*f)", r->ppl < 100 ? 3 : 0, r->ppl, r->ppl < 100 ? 2 : 0, r->ppl_low, r->ppl < 100 ? 2 : 0,
                 r->ppl_high);
}

static void divergence(char text[CELL], const comparison *c, const cl_row_of *r)
{
    (void)c;
    if (isfinite(r->kl))
        snprintf(text, CELL, "%.4f", r->kl);
}

static void same_top(char text[CELL], const comparison *c, const cl_row_of *r)
{
    (void)c;
    if (isfinite(r->same_top))
        snprintf(text, CELL, "%.3f", r->same_top);
}

static void speed(char text[CELL], double rate, double ratio)
{
    char n[32];
    if (!isfinite(rate))
        return;
    cl_thousands(n, sizeof n, llround(rate));
    snprintf(text, CELL, "%s (%.2fx)", n, ratio);
}

static void prefill(char text[CELL], const comparison *c, const cl_row_of *r)
{
    (void)c;
    speed(text, r->prefill, r->prefill_ratio);
}

static void decode(char text[CELL], const comparison *c, const cl_row_of *r)
{
    (void)c;
    speed(text, r->decode, r->decode_ratio);
}

static void seconds(char text[CELL], const comparison *c, const cl_row_of *r)
{
    (void)c;
    if (isfinite(r->seconds))
        cl_duration(text, CELL, r->seconds);
}

static void memory(char text[CELL], const comparison *c, const cl_row_of *r)
{
    (void)c;
    if (r->peak_bytes >= 0)
        cl_size(text, CELL, (double)r->peak_bytes);
}

static const struct {
    const char *name;
    cell write;
} column[] = {{"method", method},          {"recipe", recipe},         {"bits/weight", bits},
              {"size (of FP16)", size},    {"perplexity (95 %)", perplexity}, {"KL", divergence},
              {"same top", same_top},      {"prefill tokens/s", prefill}, {"decode tokens/s", decode},
              {"time", seconds},           {"peak memory", memory}};
enum { COLUMNS = sizeof column / sizeof *column };

/* ---- the table ------------------------------------------------------------------------------ */

static status print_table(const comparison *c)
{
    cl_table t = {0};
    char line[COLUMNS * CELL];
    for (int64_t i = -1; i < c->n; i++) {
        size_t n = 0;
        for (int k = 0; k < COLUMNS; k++) {
            char text[CELL] = "";
            if (i < 0)
                snprintf(text, CELL, "%s", column[k].name);
            else
                column[k].write(text, c, &c->row[i]);
            n += (size_t)snprintf(line + n, sizeof line - n, "%s%s", k ? "\t" : "", text);
        }
        cl_row(&t, "%s", line);
    }
    TRY(cl_table_print(stdout, &t, "llrrrrrrrrr"));
    for (int64_t i = 0; i < c->n; i++)
        if (*c->row[i].error)
            printf("%s %s: %s\n", c->row[i].method, c->row[i].recipe, c->row[i].error);
    return NB_OK;
}

static status print_markdown(const comparison *c)
{
    for (int64_t i = -2; i < c->n; i++) {
        for (int k = 0; k < COLUMNS; k++) {
            char text[CELL] = "";
            if (i == -2)
                snprintf(text, CELL, "%s", column[k].name);
            else if (i == -1)
                snprintf(text, CELL, "%s", k < 2 ? "---" : "---:");
            else
                column[k].write(text, c, &c->row[i]);
            for (char *p = text; *p; p++)
                *p = *p == '|' ? '/' : *p;
            printf("| %s ", text);
        }
        printf("|\n");
    }
    for (int64_t i = 0; i < c->n; i++)
        if (*c->row[i].error)
            printf("\n`%s` by `%s`: %s\n", c->row[i].method, c->row[i].recipe, c->row[i].error);
    return NB_OK;
}

/* A field of CSV: in quotes, quotes doubled. */
static void print_quoted(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        if (*text == '"')
            putchar('"');
        putchar(*text);
    }
    putchar('"');
}

static void print_number(double x)
{
    if (isfinite(x))
        printf(",%.12g", x);
    else
        printf(",");
}

static status print_csv(const comparison *c)
{
    printf("method,recipe,bpw,bytes,bytes_of_fp16,ppl,ppl_low,ppl_high,kl,same_top,prefill_tok_s,prefill_of_float,decode_tok_s,"
           "decode_of_float,seconds,peak_bytes,error\r\n");
    for (int64_t i = 0; i < c->n; i++) {
        const cl_row_of *r = &c->row[i];
        const double bytes = r->bytes >= 0 ? (double)r->bytes : NAN;
        const double x[] = {r->bpw, bytes, bytes / (double)c->fp16_bytes, r->ppl, r->ppl_low, r->ppl_high, r->kl, r->same_top, r->prefill,
                            r->prefill_ratio, r->decode, r->decode_ratio, r->seconds, r->peak_bytes >= 0 ? (double)r->peak_bytes : NAN};
        print_quoted(r->method);
        putchar(',');
        print_quoted(r->recipe);
        for (size_t k = 0; k < sizeof x / sizeof *x; k++)
            print_number(x[k]);
        putchar(',');
        print_quoted(r->error);
        printf("\r\n");
    }
    return NB_OK;
}

status compare_print(const comparison *c)
{
    return c->o->common.json ? print_json(c) : c->o->markdown ? print_markdown(c) : c->o->csv ? print_csv(c) : print_table(c);
}
