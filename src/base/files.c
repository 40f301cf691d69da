/* files.c - mapping, atomic replacement, paths.
 * Replacement: write to "target.tmp-XXXXXX" beside the target, flush it, rename it over the target, flush the folder
 * (Pillai et al. 2014). Whatever happens before the rename leaves the target as it was.
 */
#include "base/base.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- mapping ---- */

static status map_opened(nb_mapped *m, const char *path, int fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return nb_fail(NB_IO, "%s: cannot look at it: %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode))
        return nb_fail(NB_IO, "%s: is a folder, wanted a file", path);
    if (!S_ISREG(st.st_mode))
        return nb_fail(NB_IO, "%s: not a regular file", path);
    if (st.st_size == 0) {
        *m = (nb_mapped){.data = (const uint8_t *)""};
        return NB_OK;
    }
    if ((uint64_t)st.st_size > PTRDIFF_MAX)
        return nb_fail(NB_NOMEM, "%s: %lld bytes do not fit into memory", path, (long long)st.st_size);
    size_t bytes = (size_t)st.st_size;
    void *map = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return nb_fail(errno == ENOMEM ? NB_NOMEM : NB_IO, "%s: cannot map %zu bytes: %s", path, bytes,
                       strerror(errno));
    *m = (nb_mapped){.data = map, .bytes = bytes, .map = map};
    return NB_OK;
}

status nb_map(nb_mapped *m, const char *path)
{
    *m = (nb_mapped){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
    if (fd < 0)
        return nb_fail(NB_IO, "%s: cannot open: %s", path, strerror(errno));
    status s = map_opened(m, path, fd);
    (void)close(fd);
    return s;
}

void nb_map_forget(const nb_mapped *m, const void *p, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = ((uintptr_t)p + page - 1) / page * page, end = ((uintptr_t)p + bytes) / page * page;
    if (m->map && end > begin)
        (void)madvise((uint8_t *)m->map + (begin - (uintptr_t)m->map), end - begin, MADV_DONTNEED);
}

void nb_unmap(nb_mapped *m)
{
    if (m->map)
        (void)munmap(m->map, m->bytes);
    *m = (nb_mapped){0};
}

/* ---- atomic replacement ---- */

/* The file that a link leads to, so that a link stays one; else a copy of path. */
static char *resolved(const char *path)
{
    char *real = realpath(path, NULL);
    return real ? real : nb_string(path);
}

/* Creates "target.tmp-XXXXXX", a name nobody has, with the mode that open gives (mkstemp's is private). */
static int create_beside(char *path, size_t capacity, const char *target)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec, stream = (uint64_t)getpid();
    for (uint64_t attempt = 0; attempt < 100; attempt++) {
        char suffix[7] = {0};
        for (uint64_t i = 0; i < 6; i++)
            suffix[i] = letters[nb_random(seed, stream, attempt * 6 + i) % (sizeof letters - 1)];
        (void)snprintf(path, capacity, "%s.tmp-%s", target, suffix);
        int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST)
            return fd;
    }
    return -1;
}

status nb_atomic_begin(nb_atomic *a, const char *target)
{
    *a = (nb_atomic){0};
    struct stat st;
    bool exists = stat(target, &st) == 0;
    if (exists && !S_ISREG(st.st_mode))
        return nb_fail(NB_IO, "%s: is %s, wanted a file", target, S_ISDIR(st.st_mode) ? "a folder" : "a device");
    a->target = resolved(target);
    if (!a->target)
        return NB_NOMEM;
    size_t capacity = strlen(a->target) + sizeof ".tmp-XXXXXX";
    a->path = nb_alloc(capacity, 1);
    if (!a->path) {
        nb_atomic_abort(a);
        return NB_NOMEM;
    }
    int fd = create_beside(a->path, capacity, a->target);
    if (fd < 0) {
        int why = errno;
        free(a->path); /* nothing was made, so nothing may be removed */
        a->path = NULL;
        nb_atomic_abort(a);
        return nb_fail(NB_IO, "%s: cannot write beside it: %s", target, strerror(why));
    }
    if (exists)
        (void)fchmod(fd, st.st_mode & 0777);
    a->file = fdopen(fd, "w+b");
    if (!a->file) {
        (void)close(fd);
        nb_atomic_abort(a);
        return nb_fail(NB_NOMEM, "%s: out of memory", target);
    }
    return NB_OK;
}

/* Flushes what a path holds, whoever wrote it. */
static status flush_path(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0)
        return nb_fail(NB_IO, "%s: cannot open to flush: %s", path, strerror(errno));
    int failed =
        fsync(fd) != 0 && errno != EINVAL && errno != ENOTSUP ? errno : 0; /* some file systems have no fsync */
    if (close(fd) != 0 && !failed)
        failed = errno;
    return failed ? nb_fail(NB_IO, "%s: cannot flush: %s", path, strerror(failed)) : NB_OK;
}

/* The folder that holds path; the caller frees it. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = nb_string(slash ? path : ".");
    if (folder && slash)
        folder[slash == path ? 1 : slash - path] = 0;
    return folder;
}

static status write_out(nb_atomic *a)
{
    if (a->file) {
        int failed = ferror(a->file) ? EIO : 0;
        if (fflush(a->file) != 0)
            failed = errno;
        if (fclose(a->file) != 0 && !failed)
            failed = errno;
        a->file = NULL;
        if (failed)
            return nb_fail(NB_IO, "%s: cannot write: %s", a->target, strerror(failed));
    }
    TRY(flush_path(a->path, O_RDWR));
    char *folder = folder_of(a->target); /* after the rename nothing but the disk may fail */
    if (!folder)
        return NB_NOMEM;
    if (rename(a->path, a->target) != 0) {
        free(folder);
        return nb_fail(NB_IO, "%s: cannot rename to %s: %s", a->path, a->target, strerror(errno));
    }
    free(a->path); /* it is the target now */
    a->path = NULL;
    status s = flush_path(folder, O_RDONLY | O_DIRECTORY);
    free(folder);
    return s;
}

status nb_atomic_commit(nb_atomic *a)
{
    if (!a->path)
        return nb_fail(NB_USAGE, "nothing was begun that could be committed");
    status s = write_out(a);
    nb_atomic_abort(a);
    return s;
}

void nb_atomic_abort(nb_atomic *a)
{
    if (a->file)
        (void)fclose(a->file);
    if (a->path)
        (void)unlink(a->path);
    free(a->path);
    free(a->target);
    *a = (nb_atomic){0};
}

/* ---- paths ---- */

bool nb_path_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

bool nb_path_is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static status make_one(const char *path)
{
    if (mkdir(path, 0777) == 0)
        return NB_OK;
    int why = errno;
    if (nb_path_is_folder(path))
        return NB_OK;
    if (why == EEXIST)
        return nb_fail(NB_IO, "%s: is a file, wanted a folder", path);
    return nb_fail(NB_IO, "%s: cannot make the folder: %s", path, strerror(why));
}

status nb_make_folder(const char *path)
{
    char *part = nb_string(path);
    if (!part)
        return NB_NOMEM;
    status s = NB_OK;
    for (char *p = part + (*part == '/'); *p && s == NB_OK; p++)
        if (*p == '/') {
            *p = 0;
            s = make_one(part);
            *p = '/';
        }
    if (s == NB_OK)
        s = make_one(part);
    free(part);
    return s;
}

char *nb_path_join(const char *folder, const char *name)
{
    size_t n = strlen(folder), bytes = n + strlen(name) + 2;
    char *path = nb_alloc(bytes, 1);
    if (path)
        (void)snprintf(path, bytes, "%s%s%s", folder, n && folder[n - 1] != '/' ? "/" : "", name);
    return path;
}

const char *nb_path_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}
