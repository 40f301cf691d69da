/* cli_bench.h - what the two halves of nibble bench share. */
#ifndef NIBBLE_CLI_BENCH_H
#define NIBBLE_CLI_BENCH_H
#include "cli/cli.h"

typedef struct {
    cl_common common;
    const char *shape, *recipe;
    int64_t batch, steps;
    bool recompute, int8_gradients;
    int64_t prefill, decode; /* of bench run */
} bench_options;

/* A config of the named shape for ctx tokens. */
status bench_shape(md_config *c, const char *name, int64_t ctx);
/* path NULL: random weights of the shape, folded by the recipe. */
status bench_run(const bench_options *o, const char *path);

#endif
