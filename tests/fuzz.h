/* fuzz.h - mutated files against readers: what the fuzz_*.c programs share.
 *   fuzz_NAME [mutations of each target, default 500] [first mutation, default 0] [target, default all]
 * Mutation i of a target is a function of (target, i) alone, so a report can be repeated. A reader must come back with
 * a status; it must not crash, hang for 20 s, or ask for more than FUZZ_LIMIT_MB beyond what the program holds at the
 * start: NB_NOMEM counts as a failure. The seeds are below 2 MB.
 */
#ifndef NIBBLE_TESTS_FUZZ_H
#define NIBBLE_TESTS_FUZZ_H
#include "base/base.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
/* Large blocks go back to the system at once, so that a fragmented heap does not count as greed. */
static void fuzz_tame_malloc(void)
{
    (void)mallopt(M_MMAP_THRESHOLD, 128 << 10);
}
#else
static void fuzz_tame_malloc(void) {}
#endif

enum { FUZZ_LIMIT_MB = 64, FUZZ_MAX_SEEDS = 8, FUZZ_SECONDS = 20, FUZZ_CHILD = 1000 };

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FUZZ_ADDRESS_SANITIZER
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define FUZZ_ADDRESS_SANITIZER
#endif

#ifdef FUZZ_ADDRESS_SANITIZER
const char *__asan_default_options(void);
const char *__asan_default_options(void) /* RLIMIT_AS does not go with the sanitizer's shadow */
{
    return "max_allocation_size_mb=64:allocator_may_return_null=1";
}
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) /* libhdf5 1.10 forgets blocks of files that it gives up on */
{
    return "leak:libhdf5";
}
static const bool fuzz_sanitized = true;
#else
static const bool fuzz_sanitized = false;
#endif

/* A target: a reader and what it is fed. seed(k) writes seed number k to path, false when there is none such;
 * fix (may be NULL) repairs checksums after a mutation; read reads all there is in the file. in_library: past the
 * checksum a library reads that is known to die of forged files; its deaths are counted, not failed. */
typedef struct {
    const char *name;
    bool (*seed)(int k, const char *path);
    void (*fix)(uint8_t *data, size_t bytes);
    status (*read)(const char *path);
    bool in_library;
} fuzz_target;

typedef struct {
    uint8_t *data;
    size_t bytes, capacity;
    uint64_t seed, draws;
} fuzz_case;

static char fuzz_where[256]; /* what runs now, for the handler of signals */

static void fuzz_died(int signal_number)
{
    (void)!write(STDERR_FILENO, fuzz_where, strlen(fuzz_where));
    (void)signal(signal_number, SIG_DFL);
    (void)raise(signal_number);
}

static uint64_t fuzz_draw(fuzz_case *c, uint64_t below)
{
    return below ? nb_random(c->seed, 0, c->draws++) % below : 0;
}

/* A place in the file: half of all lie in its first 512 bytes, where headers are. */
static size_t fuzz_place(fuzz_case *c)
{
    uint64_t all = c->bytes;
    return (size_t)fuzz_draw(c, fuzz_draw(c, 2) && all > 512 ? 512 : all);
}

/* Overwrites 1, 2, 4 or 8 bytes with a number that trips arithmetic. */
static void fuzz_put_number(fuzz_case *c)
{
    const uint64_t hostile[] = {0,          1,           0xFF,       0x7F,       0x80,      0xFFFF,           0x7FFF,
                                0x7FFFFFFF, 0x80000000,  0xFFFFFFFF, UINT64_MAX, INT64_MAX, UINT64_MAX << 63, 1u << 20,
                                c->bytes,   c->bytes + 1};
    uint64_t x = hostile[fuzz_draw(c, sizeof hostile / sizeof *hostile)];
    size_t size = (size_t)1 << fuzz_draw(c, 4), at = fuzz_place(c);
    if (c->bytes >= size)
        memcpy(c->data + (at <= c->bytes - size ? at : c->bytes - size), &x, size);
}

/* Copies a run of bytes elsewhere, cuts one out, or doubles it. */
static void fuzz_move(fuzz_case *c)
{
    size_t from = fuzz_place(c), to = fuzz_place(c), n = (size_t)fuzz_draw(c, 64) + 1;
    size_t last = from > to ? from : to;
    if (c->bytes == 0 || n > c->bytes - last)
        return;
    switch (fuzz_draw(c, 3)) {
    case 0:
        memmove(c->data + to, c->data + from, n);
        break;
    case 1:
        memmove(c->data + from, c->data + from + n, c->bytes - from - n);
        c->bytes -= n;
        break;
    default:
        if (c->bytes + n > c->capacity)
            return;
        memmove(c->data + from + n, c->data + from, c->bytes - from);
        c->bytes += n;
    }
}

static void fuzz_mutate(fuzz_case *c)
{
    uint64_t steps = 1 + fuzz_draw(c, 4);
    for (uint64_t i = 0; i < steps && c->bytes; i++)
        switch (fuzz_draw(c, 8)) {
        case 0:
        case 1:
            c->data[fuzz_place(c)] ^= (uint8_t)(1u << fuzz_draw(c, 8));
            break;
        case 2:
            c->data[fuzz_place(c)] = (uint8_t)fuzz_draw(c, 256);
            break;
        case 3:
        case 4:
        case 5:
            fuzz_put_number(c);
            break;
        case 6:
            fuzz_move(c);
            break;
        default:
            c->bytes = fuzz_draw(c, 4) ? c->bytes : fuzz_place(c);
        }
}

static bool fuzz_load(fuzz_case *c, const char *path)
{
    nb_mapped m;
    if (nb_map(&m, path) != NB_OK)
        return false;
    c->bytes = m.bytes;
    c->capacity = m.bytes + 4096;
    c->data = malloc(c->capacity);
    if (c->data)
        memcpy(c->data, m.data, m.bytes);
    nb_unmap(&m);
    return c->data != NULL;
}

static bool fuzz_store(const fuzz_case *c, const char *path)
{
    FILE *f = fopen(path, "wb");
    if (!f)
        return false;
    bool done = fwrite(c->data, 1, c->bytes, f) == c->bytes;
    return fclose(f) == 0 && done;
}

/* Runs mutation i: 'a' accepted, 'r' refused, 'f' failed (with a message). */
static char fuzz_step(const fuzz_target *t, int64_t i, int n_seeds, const char *folder)
{
    char seed[512], path[512];
    fuzz_case c = {.seed = nb_hash(NB_HASH_START, t->name, strlen(t->name)) + (uint64_t)i};
    (void)snprintf(path, sizeof path, "%s/%s", folder, t->name);
    (void)snprintf(seed, sizeof seed, "%s/%s.%d", folder, t->name, (int)(i % n_seeds));
    (void)snprintf(fuzz_where, sizeof fuzz_where, "fuzz: %s: died in mutation %lld\n", t->name, (long long)i);
    if (!fuzz_load(&c, seed))
        return 'f';
    fuzz_mutate(&c);
    if (t->fix)
        t->fix(c.data, c.bytes);
    bool stored = fuzz_store(&c, path);
    free(c.data);
    (void)alarm(FUZZ_SECONDS);
    status s = stored ? t->read(path) : NB_IO;
    (void)alarm(0);
    if (stored && s != NB_NOMEM)
        return s == NB_OK ? 'a' : 'r';
    (void)fprintf(stderr, "fuzz: %s: mutation %lld: %s: %s\n", t->name, (long long)i, nb_status_name(s),
                  nb_fail_message());
    return 'f';
}

/* Runs mutations [first, end) and writes a letter for each. */
static void fuzz_child(const fuzz_target *t, int64_t first, int64_t end, int n_seeds, const char *folder, int out)
{
    for (int64_t i = first; i < end; i++) {
        char result = fuzz_step(t, i, n_seeds, folder);
        if (write(out, &result, 1) != 1 || result == 'f')
            break;
    }
    _exit(0);
}

/* The same in a child (FUZZ_CHILD at a time, for what a library forgets to free), until it ends or dies: counts[letter]++, 'd' for the mutation it died in. The next mutation. */
static int64_t fuzz_in_child(const fuzz_target *t, int64_t first, int64_t end, int n_seeds, const char *folder,
                             int64_t counts[256])
{
    int ends[2], how = 0;
    unsigned char result;
    if (pipe(ends) != 0)
        return end;
    pid_t child = fork();
    if (child == 0) {
        fuzz_where[0] = 0;
        fuzz_child(t, first, end, n_seeds, folder, ends[1]);
    }
    (void)close(ends[1]);
    for (; child > 0 && read(ends[0], &result, 1) == 1; first++)
        counts[result]++;
    (void)close(ends[0]);
    if (child < 0 || waitpid(child, &how, 0) != child)
        counts['f']++;
    if (WIFSIGNALED(how) || (WIFEXITED(how) && WEXITSTATUS(how) != 0)) {
        counts['d']++;
        first++;
    }
    return first;
}

/* One target's mutations [first, first + n); false when one failed. */
static bool fuzz_one(const fuzz_target *t, int64_t first, int64_t n, const char *folder)
{
    char seed[512];
    int n_seeds = 0;
    int64_t counts[256] = {0};
    for (; n_seeds < FUZZ_MAX_SEEDS; n_seeds++) {
        (void)snprintf(seed, sizeof seed, "%s/%s.%d", folder, t->name, n_seeds);
        if (!t->seed(n_seeds, seed))
            break;
        if (t->read(seed) != NB_OK) {
            (void)fprintf(stderr, "fuzz: %s: seed %d is not accepted: %s\n", t->name, n_seeds, nb_fail_message());
            return false;
        }
    }
    if (n_seeds == 0)
        n = 0;
    for (int64_t i = first; i < first + n && !counts['f'];)
        if (t->in_library)
            i = fuzz_in_child(t, i, first + n - i > FUZZ_CHILD ? i + FUZZ_CHILD : first + n, n_seeds, folder, counts);
        else
            counts[(unsigned char)fuzz_step(t, i++, n_seeds, folder)]++;
    (void)printf("fuzz: %s: %lld mutations, %lld accepted\n", t->name, (long long)n, (long long)counts['a']);
    if (counts['d'])
        (void)printf("fuzz: %s: %lld ended inside a library that does not check\n", t->name, (long long)counts['d']);
    (void)fflush(stdout);
    return counts['f'] == 0;
}

/* Bounds what may be allocated from here on. */
static void fuzz_bound_memory(void)
{
    unsigned long pages = 0;
    FILE *f = fuzz_sanitized ? NULL : fopen("/proc/self/statm", "r");
    if (!f)
        return;
    if (fscanf(f, "%lu", &pages) == 1) {
        rlim_t most = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + ((rlim_t)FUZZ_LIMIT_MB << 20);
        (void)setrlimit(RLIMIT_AS, &(struct rlimit){most, most});
    }
    (void)fclose(f);
}

static void fuzz_remove_files(const fuzz_target *t, const char *folder)
{
    char path[512];
    (void)snprintf(path, sizeof path, "%s/%s", folder, t->name);
    (void)unlink(path);
    for (int k = 0; k < FUZZ_MAX_SEEDS; k++) {
        (void)snprintf(path, sizeof path, "%s/%s.%d", folder, t->name, k);
        (void)unlink(path);
    }
}

/* A forked child has none of the threads that its parent's OpenMP counts on, and would wait for them for ever. Not in every program here. */
extern void omp_set_num_threads(int) __attribute__((weak));

/* main's body: 0 when every target stood. Files of a failure stay in the folder that is printed. */
static int fuzz_main(int argc, char **argv, const fuzz_target *targets, int n_targets)
{
    static const int deadly[] = {SIGSEGV, SIGBUS, SIGFPE, SIGABRT, SIGILL};
    long long n = argc > 1 ? strtoll(argv[1], NULL, 10) : 500, first = argc > 2 ? strtoll(argv[2], NULL, 10) : 0;
    const char *temporary = getenv("TMPDIR");
    char folder[256];
    bool stood = true;
    if (omp_set_num_threads)
        omp_set_num_threads(1);
    (void)snprintf(folder, sizeof folder, "%s/nibble-fuzz-XXXXXX", temporary ? temporary : "/tmp");
    if (!mkdtemp(folder)) {
        perror(folder);
        return 1;
    }
    for (size_t i = 0; i < sizeof deadly / sizeof *deadly && !fuzz_sanitized; i++)
        (void)signal(deadly[i], fuzz_died);
    (void)signal(SIGALRM, fuzz_died);
    fuzz_tame_malloc();
    fuzz_bound_memory();
    for (int i = 0; i < n_targets && stood; i++)
        if (argc < 4 || !strcmp(argv[3], targets[i].name)) {
            stood = fuzz_one(&targets[i], first, n, folder);
            if (stood)
                fuzz_remove_files(&targets[i], folder);
        }
    if (stood)
        (void)rmdir(folder);
    else
        (void)fprintf(stderr, "fuzz: the files are in %s\n", folder);
    return stood ? 0 : 1;
}

#endif
