/* shrink.h - what the parts of nibble shrink share: the run, its plan and its data. */
#ifndef NIBBLE_CLI_SHRINK_H
#define NIBBLE_CLI_SHRINK_H
#include "cli/cli.h"
#include "ptq/ptq.h"

typedef struct {
    cl_common common;
    const char *recipe, *time, *text, *work;
    double text_share, seconds;
    bool mixed;
} shrink_options;

typedef struct {
    const shrink_options *o;
    const char *model;
    double begin;
    char *work, *heldout_path, *data_path, *start_path, *run_path, *plan_path;
    const char *target; /* of md_export; NULL: a folded file */
    md_model teacher;
    fm_tokens heldout, data, text, scored;
    int64_t ctx, batch, steps, tokens; /* tokens: to generate */
    double trained;                    /* tokens/s, measured */
    kn_precision precision;
} shrinker;

enum {
    HELDOUT_ROWS = 32,       /* of large models; small ones get HELDOUT_TOKENS */
    HELDOUT_TOKENS = 25000,
    EVALUATIONS = 4,         /* while training */
    EVAL_TOKENS = 4096,      /* of one, of a large model */
    MEASURED_TOKENS = 8192,  /* of a large model, at the end, of each text */
    PROMPT = 32,             /* tokens of --text that a row begins with: of a row of 64 or more */
    CALIBRATED = 128,        /* rows that the start's search looks at, */
    CALIBRATED_COST = 300,   /* which takes as long as training on that many (measured at SmolLM2's shape), */
    MIXED_COST = 130,        /* and with --mixed on so many more */
    LARGE = 256              /* channels from which a model is large */
};

static inline bool shrink_is_large(const shrinker *s)
{
    return s->teacher.config.dim >= LARGE;
}

/* The float model with fake-quant of the recipe, and the student as training begins: what the method fisher, or mixed+fisher, makes of it, by --text or else by
 * its own samples. */
status shrink_open_student(const shrinker *s, md_model *student);
status shrink_open_start(const shrinker *s, md_model *student);
kd_train_options shrink_training(const shrinker *s, const md_model *student);
/* Held-out samples, plan, training data and start: what is there already is taken as it is. Both rates are measured once. */
status shrink_prepare(shrinker *s);

#endif
