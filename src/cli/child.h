/* child.h - this program run again as a process of its own: what it prints, how long it took, what it said when it failed. */
#ifndef NIBBLE_CLI_CHILD_H
#define NIBBLE_CLI_CHILD_H
#include "base/base.h"

enum { CL_CHILD_ARGUMENTS = 32 };
typedef struct {
    const char *argument[CL_CHILD_ARGUMENTS]; /* "eval", "model.h5", ...; NULL ends them */
    int n;
} cl_line;
void cl_line_add(cl_line *l, const char *first, const char *second); /* second NULL: only one */

typedef struct {
    nb_json *json;    /* what it printed on stdout, NULL where that is no JSON; cl_child_free */
    char message[512]; /* of a child that failed, without "nibble: "; "" otherwise */
    double seconds;
} cl_child;
/* Runs /proc/self/exe with a line and waits. Told line by line what the child writes to stderr, `progress` is called a few times a second (done and
 * total are passed through); where it returns false the child is interrupted as by Ctrl-C. NB_INTERRUPTED; NB_IO where the child cannot be started;
 * a child that fails is no failure of this function: message says why. */
status cl_child_run(cl_child *c, const cl_line *line, const nb_progress *progress, int64_t done, int64_t total);
void cl_child_free(cl_child *c);

#endif
