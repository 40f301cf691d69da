/* progress.c - time, memory, and reports from long work to whoever started it. */
#include "base/base.h"
#include <sys/resource.h>
#include <time.h>

double nb_seconds(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Linux's ru_maxrss goes on from the process that started this one, the mark in /proc/self/status begins with the program. */
static size_t high_water_mark(void)
{
    FILE *f = fopen("/proc/self/status", "re");
    char line[256];
    unsigned long long kibibytes = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %llu", &kibibytes) == 1)
            break;
    if (f)
        (void)fclose(f);
    return (size_t)kibibytes * 1024;
}

size_t nb_peak_memory(void)
{
    struct rusage usage = {0};
    const size_t mark = high_water_mark();
    if (mark)
        return mark;
    (void)getrusage(RUSAGE_SELF, &usage);
    return (size_t)usage.ru_maxrss * 1024; /* Linux counts in KiB */
}

bool nb_progress_report(const nb_progress *p, int64_t done, int64_t total, const char *text)
{
    return !p || !p->fn || p->fn(p->ctx, done, total, text);
}
