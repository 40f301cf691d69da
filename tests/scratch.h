/* scratch.h - for tests: a folder that goes away, and allocations that fail on demand.
 * Failing needs the link options -Wl,--wrap=nb_alloc and so on for nb_alloc, nb_alloc_zeroed, nb_resize, nb_string.
 */
#ifndef NIBBLE_TESTS_SCRATCH_H
#define NIBBLE_TESTS_SCRATCH_H
#include "base/base.h"
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

static char scratch_folder[512];

/* Where there is no TMPDIR: in memory, if a GB is free there, since what writes files waits for the disk at each. */
static inline const char *scratch_base(void)
{
    const char *base = getenv("TMPDIR");
    struct statvfs v;
    if (base && *base)
        return base;
    return statvfs("/dev/shm", &v) == 0 && access("/dev/shm", W_OK) == 0 && (double)v.f_bavail * (double)v.f_frsize > 1e9 ? "/dev/shm" : "/tmp";
}

static inline void scratch_begin(void)
{
    (void)snprintf(scratch_folder, sizeof scratch_folder, "%s/nibble-test-XXXXXX", scratch_base());
    if (!mkdtemp(scratch_folder))
        abort();
}

/* Removes a file, or a folder with all in it. Links are removed, not followed. */
static inline void scratch_remove(const char *path)
{
    DIR *d = unlink(path) == 0 ? NULL : opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        char inside[1024];
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        if (snprintf(inside, sizeof inside, "%s/%s", path, e->d_name) < (int)sizeof inside)
            scratch_remove(inside);
    }
    if (d)
        (void)closedir(d);
    (void)rmdir(path);
}

static inline void scratch_end(void)
{
    scratch_remove(scratch_folder);
}

/* The path of a name in the folder; it stays valid. At most 16 names in a test. */
static inline const char *scratch_path(const char *name)
{
    static char known[16][1024];
    char path[1024];
    (void)snprintf(path, sizeof path, "%s/%s", scratch_folder, name);
    for (int i = 0; i < 16; i++) {
        if (!known[i][0])
            memcpy(known[i], path, sizeof path);
        if (strcmp(known[i], path) == 0)
            return known[i];
    }
    abort();
}

static inline const char *scratch_write(const char *name, const void *data, size_t bytes)
{
    const char *path = scratch_path(name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f) != 0)
        abort();
    return path;
}

/* Counts down at each allocation; the one that reaches 0 fails, and all after it. Below 0: none does. */
static int64_t allocations_left = -1;

static inline bool allocation_fails(void)
{
    if (allocations_left > 0)
        allocations_left--;
    if (allocations_left != 0)
        return false;
    (void)nb_fail(NB_NOMEM, "out of memory (by the test)");
    return true;
}

void *__real_nb_alloc(size_t count, size_t size);
void *__real_nb_alloc_zeroed(size_t count, size_t size);
void *__real_nb_resize(void *p, size_t count, size_t size);
char *__real_nb_string(const char *s);
void *__wrap_nb_alloc(size_t count, size_t size);
void *__wrap_nb_alloc_zeroed(size_t count, size_t size);
void *__wrap_nb_resize(void *p, size_t count, size_t size);
char *__wrap_nb_string(const char *s);

void *__wrap_nb_alloc(size_t count, size_t size)
{
    return allocation_fails() ? NULL : __real_nb_alloc(count, size);
}

void *__wrap_nb_alloc_zeroed(size_t count, size_t size)
{
    return allocation_fails() ? NULL : __real_nb_alloc_zeroed(count, size);
}

void *__wrap_nb_resize(void *p, size_t count, size_t size)
{
    return allocation_fails() ? NULL : __real_nb_resize(p, count, size);
}

char *__wrap_nb_string(const char *s)
{
    return allocation_fails() ? NULL : __real_nb_string(s);
}

#endif
