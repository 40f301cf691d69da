/* main.c - the `nibble` program: finds the command, or explains them all. */
#include "cli/cli_picture.h"
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef NIBBLE_VERSION
#define NIBBLE_VERSION "unknown"
#endif

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} commands[] = {
#define X(name, summary) {#name, cl_##name, summary},
    CL_COMMAND_LIST(X)
#undef X
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static int find(const char *name)
{
    for (int i = 0; i < N_COMMANDS; i++)
        if (!strcmp(commands[i].name, name))
            return i;
    return -1;
}

static void print_overview(FILE *f)
{
    fputs("nibble - quantization-aware training for language models\n\n"
          "usage: nibble COMMAND [arguments] [options]\n\ncommands\n",
          f);
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(f, "  %-10s%s\n", commands[i].name, commands[i].summary);
    fputs("  help      this text, or with a command's name all about it\n"
          "  --version versions of the libraries, instruction set, threads\n\n"
          "from a float model to one on integers\n"
          "  nibble data stories260K.bin --tokenizer tok512.bin --tokens 400k -o train.h5\n"
          "  nibble qat  stories260K.bin --data train.h5 --recipe w4a8kv8 --steps 600 -o run/\n"
          "  nibble fold run/ -o student.h5\n"
          "  nibble eval student.h5 --teacher stories260K.bin --data heldout.h5\n"
          "  nibble run  student.h5 -p \"Once upon a time\"\n\n"
          "Results go to stdout, all else to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.\n",
          f);
}

static int print_version(void)
{
    char libraries[256];
    const char *own = getenv(CL_BLAS_CORE), *core = cl_users_blas_core();
    kn_libraries(libraries, sizeof libraries);
    printf("nibble %s\nlibraries: %s\ninstruction set: %s\nbf16 products: %s\nthreads: %d\n", NIBBLE_VERSION, libraries,
           kn_isa_name(), kn_bf16_pays() ? "yes" : kn_has_bf16() ? "slower than fp32" : "no", omp_get_max_threads());
    if (own)
        printf("OpenBLAS was told its core: %s (left alone it takes one below this CPU)\n", own);
    if (core)
        printf("warning: OPENBLAS_CORETYPE=%s is set: float products may run at half their speed (unset it)\n", core);
    return cl_exit(kn_isa_check());
}

static int unknown(const char *name)
{
    const char *names[N_COMMANDS];
    for (int i = 0; i < N_COMMANDS; i++)
        names[i] = commands[i].name;
    const char *near = cl_nearest(name, names, N_COMMANDS);
    cl_say("nibble: there is no command %s%s%s%s\n(nibble help lists them)\n", name, near ? " (did you mean " : "",
           near ? near : "", near ? "?)" : "");
    return 2;
}

/* Threads that wait spin for milliseconds unless OpenMP is told otherwise before the program starts; where other programs
 * want the same cores that makes everything ten times slower. The word for it: sleep, after a fraction of a millisecond (GNU's
 * runtime; most waits are shorter, and waking costs more than they take) or at once (LLVM's). Whoever sets OMP_WAIT_POLICY
 * decides alone. True: the environment changed. */
static bool wait_without_spinning(void)
{
    return !getenv("OMP_WAIT_POLICY") && !setenv("OMP_WAIT_POLICY", "passive", 1) && !setenv("GOMP_SPINCOUNT", "3000", 0);
}

/* OpenBLAS is told its core where it would choose one below the CPU's. Whoever sets OPENBLAS_CORETYPE decides alone; an
 * empty one, which the library takes for any core, counts as not set. True: the environment changed. */
static bool choose_blas_core(void)
{
    const char *set = getenv("OPENBLAS_CORETYPE");
    if (set && *set)
        return false;
    const char *core = kn_blas_core(set);
    if (!core)
        return set && !unsetenv("OPENBLAS_CORETYPE");
    return !setenv("OPENBLAS_CORETYPE", core, 1) && !setenv(CL_BLAS_CORE, core, 1);
}

/* Both libraries read their words when they are loaded: the program starts itself once more with them said. */
static void settle_environment(char **argv)
{
    char path[4096];
    bool waits = wait_without_spinning(), core = choose_blas_core();
    ssize_t n = waits || core ? readlink("/proc/self/exe", path, sizeof path - 1) : 0;
    if (n > 0) {
        path[n] = 0;
        execv(path, argv); /* where this fails, work goes on as it is */
    }
}

int main(int argc, char **argv)
{
    char option[] = "--help", *help[] = {NULL, option, NULL};
    settle_environment(argv);
    cl_catch_interrupts();
    if (argc < 2) {
        print_overview(stderr);
        return 2;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--version") || !strcmp(name, "version"))
        return print_version();
    bool asks = !strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h");
    if (asks && argc < 3) {
        print_overview(stdout);
        return cl_exit(NB_OK);
    }
    int i = find(asks ? argv[2] : name);
    if (i < 0)
        return unknown(asks ? argv[2] : name);
    help[0] = argv[asks ? 2 : 1];
    cl_command_function *pictures = asks ? NULL : cl_picture_command(name, argc - 1, argv + 1);
    if (pictures)
        return pictures(argc - 1, argv + 1);
    return asks ? commands[i].run(2, help) : commands[i].run(argc - 1, argv + 1);
}
