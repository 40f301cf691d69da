/* cli_train.h - what qat and train share; private to cli_qat.c and cli_train.c. */
#ifndef NIBBLE_CLI_TRAIN_H
#define NIBBLE_CLI_TRAIN_H
#include "cli/cli.h"

enum { CL_TRAIN_ROWS = 50 };
typedef struct {
    cl_common common;
    bool distill; /* qat */
    const char *recipe, *teacher, *start_from, *text, *heldout, *config;
    int64_t steps; /* 0: not given */
    double epochs;
    int schedule, start, recompute, moments, gradients; /* -1: not given */
    kd_train_options train;
    kd_run_options run;
} cl_train_options;

/* The model of --config with the tokenizer of --tokenizer, at its random start. */
status cl_new_model(md_model *m, const cl_train_options *o);
status cl_train_report(const kd_train_report *r, const cl_train_options *o);

#endif
