/* clients.h - for tests: where programs of others are, how they are run. A test whose client is absent prints `skipped: ...`.
 *   NIBBLE_PYTHON         a python3 with numpy, gguf, safetensors (and transformers with torch, if that is to be tested)
 *   NIBBLE_LIBLLAMA       the folder of libllama and libggml
 *   NIBBLE_LLAMA_SOURCES  llama.cpp's sources of the same version, for their headers
 */
#ifndef NIBBLE_TESTS_CLIENTS_H
#define NIBBLE_TESTS_CLIENTS_H
#include "base/base.h"
#include "suite.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

/* Where a client is, or NULL and a line that says so. */
static inline const char *client(const char *variable)
{
    const char *path = getenv(variable);
    if (path && *path)
        return path;
    printf("skipped: %s is not set\n", variable);
    return NULL;
}

/* Runs a shell command; its exit status. */
__attribute__((format(printf, 1, 2))) static inline int run(const char *fmt, ...)
{
    char command[16384];
    va_list args;
    va_start(args, fmt);
    const int n = vsnprintf(command, sizeof command, fmt, args);
    va_end(args);
    ck_assert_int_lt(n, (int)sizeof command);
    const int end = system(command);
    return WIFEXITED(end) ? WEXITSTATUS(end) : -1;
}

static inline bool have(const char *path)
{
    if (!nb_path_exists(path))
        printf("skipped: no %s\n", path);
    return nb_path_exists(path);
}

/* A case of its own for each client, so that CK_RUN_CASE can pick one; the caller tags it "client". */
static inline TCase *add_case(Suite *s, const char *name, const TTest *test, int n)
{
    TCase *c = tcase_create(name);
    tcase_set_timeout(c, 900);
    tcase_add_loop_test(c, test, 0, n);
    suite_add_tcase(s, c);
    return c;
}

#endif
