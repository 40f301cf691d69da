/* terminal.c - messages, the progress line, tables, interrupts. */
#include "cli/terminal.h"
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- messages ----------------------------------------------------------------------------- */

static void clean(char *text, bool keep_newlines)
{
    for (char *p = text; *p; p++)
        if (((unsigned char)*p < 0x20 && !(*p == '\n' && keep_newlines) && *p != '\t') || *p == 0x7f)
            *p = '?';
}

void cl_say(const char *fmt, ...)
{
    char text[2048];
    va_list a;
    va_start(a, fmt);
    vsnprintf(text, sizeof text, fmt, a);
    va_end(a);
    clean(text, true);
    fputs(text, stderr);
}

void cl_duration(char *text, size_t bytes, double seconds)
{
    int64_t whole = seconds > 0 && seconds < 1e15 ? (int64_t)llround(seconds) : 0;
    if (seconds < 9.95)
        snprintf(text, bytes, "%.1f s", seconds);
    else if (whole < 60)
        snprintf(text, bytes, "%lld s", (long long)whole);
    else if (whole < 3600)
        snprintf(text, bytes, "%lld min %02lld s", (long long)(whole / 60), (long long)(whole % 60));
    else
        snprintf(text, bytes, "%lld h %02lld min", (long long)(whole / 3600), (long long)(whole / 60 % 60));
}

void cl_size(char *text, size_t bytes, double n_bytes)
{
    static const char *const unit[] = {"B", "kB", "MB", "GB", "TB"};
    int i = 0;
    for (; n_bytes >= 999.5 && i < 4; i++)
        n_bytes /= 1000;
    snprintf(text, bytes, "%.*f %s", i == 0 || n_bytes >= 99.95 ? 0 : n_bytes >= 9.995 ? 1 : 2, n_bytes, unit[i]);
}

void cl_thousands(char *text, size_t bytes, int64_t n)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%lld", (long long)n);
    size_t length = strlen(digits), k = 0;
    for (size_t i = 0; i < length && k + 2 < bytes; i++) {
        text[k++] = digits[i];
        if (digits[i] != '-' && (length - 1 - i) % 3 == 0 && i + 1 < length)
            text[k++] = ',';
    }
    text[k] = 0;
}

/* ---- progress ----------------------------------------------------------------------------- */

static int terminal_width(void)
{
    struct winsize size = {0};
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

static void progress_text(char *text, size_t bytes, const cl_progress *p, double now, int64_t done, int64_t total,
                          const char *figures)
{
    double seconds = now - p->start, rate = seconds > 0 && !p->uneven ? (double)(done - p->first) / seconds : 0;
    char left[32] = "", speed[48] = "";
    if (rate > 0)
        snprintf(speed, sizeof speed, "  %.*f %s/s", rate < 10 ? 2 : 0, rate, p->unit);
    if (rate > 0 && total > done && seconds > 1) {
        char duration[24];
        cl_duration(duration, sizeof duration, (double)(total - done) / rate);
        snprintf(left, sizeof left, "  %s left", duration);
    }
    if (figures && !strcmp(figures, p->what))
        figures = NULL;
    double share = total > 0 ? 100.0 * (double)done / (double)total : 0;
    snprintf(text, bytes, "%s %lld/%lld %s %3.0f %%%s%s%s%s", p->what, (long long)done, (long long)total, p->unit,
             share, figures && *figures ? "  " : "", figures ? figures : "", speed, left);
    clean(text, false);
}

static bool progress(void *ctx, int64_t done, int64_t total, const char *figures)
{
    enum { FIRST_S = 5, EVERY_S = 30 }; /* between lines where there is no terminal */
    cl_progress *p = ctx;
    double now = nb_seconds();
    if (p->first < 0) {
        p->first = done;
        p->start = now;
        p->printed = p->terminal ? 0 : now - EVERY_S + FIRST_S;
    }
    bool due = now - p->printed >= (p->terminal ? 0.1 : EVERY_S) || (p->terminal && done == total);
    if (!p->quiet && due) {
        char text[512];
        progress_text(text, sizeof text, p, now, done, total, figures);
        if (p->terminal)
            fprintf(stderr, "\r%.*s\033[K", terminal_width() - 1, text);
        else
            fprintf(stderr, "%s\n", text);
        p->printed = now;
        p->shown = true;
    }
    return !cl_interrupted();
}

nb_progress cl_progress_start(cl_progress *p, const char *what, const char *unit, bool quiet)
{
    *p = (cl_progress){.what = what, .unit = unit, .quiet = quiet, .terminal = isatty(STDERR_FILENO) == 1, .first = -1};
    return (nb_progress){progress, p};
}

void cl_progress_end(cl_progress *p)
{
    if (p->shown && p->terminal)
        fputs("\r\033[K", stderr);
    p->shown = false;
}

/* ---- tables ------------------------------------------------------------------------------- */

void cl_table_free(cl_table *t)
{
    for (int64_t i = 0; i < t->rows * CL_MAX_COLUMNS; i++)
        free(t->cell[i]);
    free(t->cell);
    *t = (cl_table){0};
}

void cl_row(cl_table *t, const char *fmt, ...)
{
    char text[2048];
    va_list a;
    va_start(a, fmt);
    vsnprintf(text, sizeof text, fmt, a);
    va_end(a);
    if (t->rows == t->capacity) {
        int64_t more = t->capacity ? 2 * t->capacity : 16;
        char **cell = nb_resize(t->cell, (size_t)more * CL_MAX_COLUMNS, sizeof *cell);
        t->failed = t->failed || !cell;
        if (!cell)
            return;
        t->cell = cell;
        t->capacity = more;
    }
    char **row = t->cell + t->rows++ * CL_MAX_COLUMNS;
    memset(row, 0, CL_MAX_COLUMNS * sizeof *row);
    int n = 0;
    for (char *p = text; p && n < CL_MAX_COLUMNS; n++) {
        char *tab = strchr(p, '\t');
        if (tab)
            *tab++ = 0;
        clean(p, false);
        row[n] = nb_string(p);
        t->failed = t->failed || !row[n];
        p = tab;
    }
    t->columns = n > t->columns ? n : t->columns;
}

/* Characters of UTF-8 text. */
static int characters(const char *text)
{
    int n = 0;
    for (; *text; text++)
        n += ((unsigned char)*text & 0xC0) != 0x80;
    return n;
}

status cl_table_print(FILE *f, cl_table *t, const char *align)
{
    int width[CL_MAX_COLUMNS] = {0};
    for (int64_t i = 0; i < t->rows * CL_MAX_COLUMNS; i++) {
        int n = t->cell[i] ? characters(t->cell[i]) : 0;
        width[i % CL_MAX_COLUMNS] = n > width[i % CL_MAX_COLUMNS] ? n : width[i % CL_MAX_COLUMNS];
    }
    for (int64_t i = 0; i < t->rows; i++) {
        char *const *row = t->cell + i * CL_MAX_COLUMNS;
        for (int c = 0; c < t->columns && row[c]; c++) {
            int pad = width[c] - characters(row[c]);
            bool right = c < (int)strlen(align) && align[c] == 'r', last = c + 1 == t->columns || !row[c + 1];
            fprintf(f, "%s%*s%s", c ? "  " : "", right ? pad : 0, "", row[c]);
            if (!right && !last)
                fprintf(f, "%*s", pad, "");
        }
        fputc('\n', f);
    }
    bool failed = t->failed;
    cl_table_free(t);
    return failed ? nb_fail(NB_NOMEM, "out of memory while printing a table") : NB_OK;
}

/* ---- interrupts --------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted; /* a signal handler can reach nothing else */

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

void cl_catch_interrupts(void)
{
    struct sigaction catch = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&catch.sa_mask);
    sigaction(SIGINT, &catch, NULL);
    sigaction(SIGTERM, &catch, NULL);
    signal(SIGPIPE, SIG_DFL); /* a reader that has seen enough ends us quietly */
}

bool cl_interrupted(void)
{
    return interrupted != 0;
}
