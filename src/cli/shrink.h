/* shrink.h - what the parts of nibble shrink share: the run, its plan and its data. */
#ifndef NIBBLE_CLI_SHRINK_H
#define NIBBLE_CLI_SHRINK_H
#include "cli/cli.h"

typedef struct {
    cl_common common;
    const char *recipe, *time, *text, *work;
    double text_share, seconds;
} shrink_options;

typedef struct {
    const shrink_options *o;
    const char *model;
    double begin;
    char *work, *heldout_path, *data_path, *run_path, *plan_path;
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
    CALIBRATED = 16,         /* rows that find the start */
    LARGE = 256              /* channels from which a model is large */
};

static inline bool shrink_is_large(const shrinker *s)
{
    return s->teacher.config.dim >= LARGE;
}

/* The float model with fake-quant of the recipe. */
status shrink_open_student(const shrinker *s, md_model *student, const char *recipe);
kd_train_options shrink_training(const shrinker *s, const md_model *student);
/* Held-out samples, plan and training data: what is there already is taken as it is. Both rates are measured once. */
status shrink_prepare(shrinker *s);

#endif
