/* compare.h - what the parts of nibble compare share: rows, how they are made, how they are printed. */
#ifndef NIBBLE_CLI_COMPARE_H
#define NIBBLE_CLI_COMPARE_H
#include "cli/child.h"
#include "cli/cli.h"

/* A row of the table. Numbers that do not exist (seconds of a file that was there already) are NAN, counts -1. */
typedef struct {
    char method[160], recipe[160]; /* method: "float", a name of `nibble ptq`, several joined by +, or the file's own name */
    char how[160];                 /* the recipe to quantize by: NAME or FILE; "": the row is a file */
    const char *path;              /* of the model or the file that the row is */
    char error[512];               /* why there are no figures; "" otherwise */
    bool cached;                   /* read from the work folder */
    bool own_format;               /* the method brings its recipe, whatever --recipe says */
    int64_t bytes, peak_bytes;
    double bpw, ppl, ppl_low, ppl_high, kl, same_top, seconds;
    double prefill, decode, prefill_ratio, decode_ratio; /* tokens/s, and by those of the float row of the same run */
} cl_row_of;

typedef struct {
    cl_common common;
    const char *methods, *recipes, *eval_data, *html, *work;
    int64_t samples, length, eval_tokens, windows;
    bool markdown, csv, keep, restart;
} compare_options;

typedef struct {
    const compare_options *o;
    const char *model;
    char *work, *calibration, *scored; /* folder, what methods look at, what is scored */
    int64_t fp16_bytes;                /* of the float model, were it stored so */
    int64_t prefill, decode;           /* tokens that are timed */
    bool large, has_bos, has_biases;
    uint64_t settings; /* hash of all that decides a row but its method and recipe */
    cl_row_of *row;
    int64_t n, capacity;
    double float_prefill, float_decode; /* of this run */
    nb_progress progress;
} comparison;

/* Adds an empty row. NULL: out of memory. */
cl_row_of *compare_add(comparison *c, const char *method, const char *how, const char *path);
/* Makes calibration and held-out samples in the work folder where no files of the user's take their place. */
status compare_make_data(comparison *c);
/* Row i: from the work folder where it is there, else quantized, scored and timed by children. A method that fails makes a row with
 * an error. NB_INTERRUPTED, or what hinders every row. */
status compare_make_row(comparison *c, int64_t i);
/* A file's content, replaced at once. */
status compare_write(const char *path, const char *text);

status compare_print(const comparison *c);
/* The page, with diagrams; more rows are made for some of them. compare_look: those that look into the model, by a recipe. */
status compare_report(const comparison *c, const char *path);
status compare_look(const comparison *c, FILE *f, const char *recipe);

#endif
