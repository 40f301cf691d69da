/* cli_info.h - facts about a file, for a table and for JSON at once; private to `nibble info`. */
#ifndef NIBBLE_CLI_INFO_H
#define NIBBLE_CLI_INFO_H
#include "cli/cli.h"

typedef struct {
    cl_table table;
    nb_writer json; /* an open object */
} cl_facts;
void cl_fact_text(cl_facts *f, const char *key, const char *text);
void cl_fact_int(cl_facts *f, const char *key, int64_t x);
void cl_fact_number(cl_facts *f, const char *key, double x); /* one that is not finite is null in JSON only */
void cl_fact_tokenizer(cl_facts *f, const fm_tokenizer *tk);

status cl_info_model(cl_facts *f, const md_model *m, bool tensors);
/* A run folder: where training stands, then the model of --which. */
status cl_info_run(cl_facts *f, const char *path, const cl_common *c, bool tensors);

#endif
