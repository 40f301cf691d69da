/* options.h - one declarative table per command: used to parse the command line and to print --help.
 *
 * Options and arguments may come in any order; "--name value" and "--name=value" are the same; "--" ends the options.
 */
#ifndef NIBBLE_CLI_OPTIONS_H
#define NIBBLE_CLI_OPTIONS_H
#include "base/base.h"

typedef enum {
    CL_FLAG,   /* bool */
    CL_TEXT,   /* const char * */
    CL_COUNT,  /* int64_t >= 0: 256, 400k, 3M */
    CL_SEED,   /* uint64_t */
    CL_NUMBER, /* double, finite */
    CL_CHOICE  /* int: the place of the word in `argument` */
} cl_type;

typedef struct {
    const char *name;     /* "--data", "-o" */
    const char *argument; /* "FILE"; of a choice its words: "auto|on|off"; NULL for a flag */
    cl_type type;
    void *value;          /* where it goes; see cl_type */
    const char *standard; /* taken as if it were given; NULL: the value stays what it is */
    const char *help;
} cl_option;

/* What means the same in every command; a command takes those it names in `common`. */
enum {
    CL_TOKENIZER = 1 << 0,
    CL_OUTPUT = 1 << 1,
    CL_FORCE = 1 << 2,
    CL_DATA = 1 << 3,
    CL_SPLIT = 1 << 4,
    CL_CTX = 1 << 5,
    CL_WHICH = 1 << 6,
    CL_PRECISION = 1 << 7,
    CL_SEEDED = 1 << 8,
    CL_JSON = 1 << 9,
    CL_UNTIE = 1 << 10,
    CL_COMMON_COUNT = 13 /* with --threads, --quiet and --help, which all commands have */
};
typedef struct {
    const char *tokenizer, *output, *data;
    bool force, json, quiet, help, untie;
    int split;     /* an fm_split */
    int which;     /* 0 best, 1 last */
    int precision; /* 0 fp32, 1 bf16, 2 auto */
    int64_t ctx, threads;
    uint64_t seed;
} cl_common;

enum { CL_MAX_ARGUMENTS = 32 };
typedef struct {
    const char *name;        /* "eval" */
    const char *arguments;   /* "MODEL", "[NAME]", "[FILE...]", "" : what may be left out stands in brackets; dots: any number */
    const char *summary;     /* one line */
    const char *explanation; /* paragraphs, wrapped already */
    const char *examples;    /* lines */
    const cl_option *option; /* its own */
    int64_t n;
    unsigned common_mask;
    cl_common *common;
} cl_command;

/* Fills the values that the table points to, and argument[0..CL_MAX_ARGUMENTS) (NULL where absent). Given again it
 * starts from the standard values of the table. True: go on. False: --help was printed, or what is wrong with the
 * line; *code is the exit code. */
bool cl_parse(const cl_command *c, int argc, char **argv, const char *argument[CL_MAX_ARGUMENTS], int *code);
void cl_help(FILE *f, const cl_command *c);

/* The name in `name[0..n)` that is nearest to what was typed, or NULL where none is near. */
const char *cl_nearest(const char *typed, const char *const *name, int64_t n);

#endif
