/* terminal.h - what people see: messages, a progress line, tables. Everything but results goes to stderr.
 *
 * Names out of files reach a terminal only with their control characters replaced by '?'.
 */
#ifndef NIBBLE_CLI_TERMINAL_H
#define NIBBLE_CLI_TERMINAL_H
#include "base/base.h"

void cl_say(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* to stderr, newlines kept */

void cl_duration(char *text, size_t bytes, double seconds); /* "0.4 s", "2 min 35 s", "3 h 12 min" */
void cl_size(char *text, size_t bytes, double n_bytes);     /* "812 B", "1.04 MB": powers of 1000 */
void cl_thousands(char *text, size_t bytes, int64_t n);     /* "260,032" */

/* A progress line: on a terminal one line that is rewritten; elsewhere a line now and then. Time left is told from the
 * rate since the start of this process, once there is one. */
typedef struct {
    const char *what, *unit; /* "generating", "tokens" */
    bool quiet, terminal, shown;
    bool uneven; /* the caller's, after the start: what is counted takes seconds or an hour, a rate and a time left would say nothing */
    double start, printed; /* seconds */
    int64_t first;         /* done before this process began */
} cl_progress;
/* The nb_progress to hand on; it returns false after Ctrl-C. p outlives it. */
nb_progress cl_progress_start(cl_progress *p, const char *what, const char *unit, bool quiet);
void cl_progress_end(cl_progress *p); /* clears the line */

/* Rows of cells; columns are as wide as their widest cell. A zeroed struct is an empty table. */
enum { CL_MAX_COLUMNS = 12 };
typedef struct {
    char **cell; /* [rows][CL_MAX_COLUMNS] */
    int64_t rows, capacity;
    int columns;
    bool failed;
} cl_table;
void cl_row(cl_table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3))); /* cells are separated by tabs */
/* align: a letter per column, 'l' or 'r'; columns beyond are 'l'. Frees the table. NB_NOMEM if a row was lost. */
status cl_table_print(FILE *f, cl_table *t, const char *align);
void cl_table_free(cl_table *t);

/* After Ctrl-C (SIGINT, SIGTERM) work stops at the next safe place; a second one kills. */
void cl_catch_interrupts(void);
bool cl_interrupted(void);

#endif
