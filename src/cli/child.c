/* child.c - running this program again as a child: a process that starts anew has threads and peak memory of its own. */
#include "cli/child.h"
#include "cli/terminal.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

typedef struct {
    char *text;
    size_t bytes, capacity;
} buffer;

void cl_line_add(cl_line *l, const char *first, const char *second)
{
    assert(l->n + 3 <= CL_CHILD_ARGUMENTS);
    l->argument[l->n++] = first;
    if (second)
        l->argument[l->n++] = second;
}

static status append(buffer *b, const char *text, size_t bytes)
{
    if (b->bytes + bytes + 1 > b->capacity) {
        const size_t capacity = 2 * b->capacity + bytes + 1024;
        char *grown = nb_resize(b->text, capacity, 1);
        if (!grown)
            return NB_NOMEM;
        b->text = grown;
        b->capacity = capacity;
    }
    memcpy(b->text + b->bytes, text, bytes);
    b->bytes += bytes;
    b->text[b->bytes] = 0;
    return NB_OK;
}

/* The last line that is whole. */
static void last_line(char *line, size_t bytes, const buffer *b)
{
    size_t end = b->bytes;
    while (end && b->text[end - 1] != '\n')
        end--;
    size_t begin = end ? end - 1 : 0;
    while (begin && b->text[begin - 1] != '\n')
        begin--;
    const size_t n = end ? end - 1 - begin : 0;
    snprintf(line, bytes, "%.*s", (int)(n < bytes ? n : bytes - 1), b->text ? b->text + begin : "");
}

/* Reads what is there; false when the other end is closed. */
static status drain(buffer *b, int fd, bool *open)
{
    char text[4096];
    const ssize_t n = read(fd, text, sizeof text);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return NB_OK;
    *open = n > 0;
    return n > 0 ? append(b, text, (size_t)n) : NB_OK;
}

typedef struct {
    pid_t pid;
    int out, err; /* where it is read */
} process;

/* Ends that a child does not inherit; what it is given is a copy. */
static status make_pipe(int end[2])
{
    if (pipe(end))
        return nb_fail(NB_IO, "no pipe: %s", strerror(errno));
    (void)fcntl(end[0], F_SETFD, FD_CLOEXEC);
    (void)fcntl(end[1], F_SETFD, FD_CLOEXEC);
    return NB_OK;
}

static status start(process *p, const cl_line *line)
{
    char path[4096];
    char *argv[CL_CHILD_ARGUMENTS + 2] = {path};
    int out[2], err[2];
    posix_spawn_file_actions_t actions;
    const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0)
        return nb_fail(NB_IO, "/proc/self/exe: cannot be read: %s", strerror(errno));
    path[n] = 0;
    for (int i = 0; i < line->n; i++) { /* execv takes what it does not change as char * */
        union {
            const char *is;
            char *wanted;
        } a = {line->argument[i]};
        argv[i + 1] = a.wanted;
    }
    TRY(make_pipe(out));
    if (make_pipe(err) != NB_OK) {
        close(out[0]);
        close(out[1]);
        return NB_IO;
    }
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, err[1], STDERR_FILENO);
    const int failed = posix_spawn(&p->pid, path, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(out[1]);
    close(err[1]);
    p->out = out[0];
    p->err = err[0];
    if (!failed)
        return NB_OK;
    close(p->out);
    close(p->err);
    return nb_fail(NB_IO, "%s: cannot be started: %s", path, strerror(failed));
}

static status follow(process *p, buffer *out, buffer *err, const nb_progress *progress, int64_t done, int64_t total)
{
    enum { EVERY_MS = 200 };
    bool open[2] = {true, true}, stopped = false;
    while (open[0] || open[1]) {
        char line[256];
        struct pollfd fd[2] = {{open[0] ? p->out : -1, POLLIN, 0}, {open[1] ? p->err : -1, POLLIN, 0}};
        if (poll(fd, 2, EVERY_MS) > 0) {
            if (fd[0].revents)
                TRY(drain(out, p->out, &open[0]));
            if (fd[1].revents)
                TRY(drain(err, p->err, &open[1]));
        }
        last_line(line, sizeof line, err);
        if (!stopped && !nb_progress_report(progress, done, total, line)) {
            kill(p->pid, SIGINT);
            stopped = true;
        }
    }
    return stopped ? nb_fail(NB_INTERRUPTED, "interrupted") : NB_OK;
}

/* What a child that failed said last, or how it ended. */
static void say_end(cl_child *c, int how, const buffer *err)
{
    static const char name[] = "nibble: ";
    if (WIFSIGNALED(how)) {
        snprintf(c->message, sizeof c->message, "killed by signal %d%s", WTERMSIG(how), WTERMSIG(how) == SIGKILL ? " (out of memory?)" : "");
        return;
    }
    if (WEXITSTATUS(how) == 0)
        return;
    last_line(c->message, sizeof c->message, err);
    const size_t n = strlen(name);
    if (!strncmp(c->message, name, n))
        memmove(c->message, c->message + n, strlen(c->message + n) + 1);
    if (!*c->message)
        snprintf(c->message, sizeof c->message, "exit code %d", WEXITSTATUS(how));
}

status cl_child_run(cl_child *c, const cl_line *line, const nb_progress *progress, int64_t done, int64_t total)
{
    process p;
    buffer out = {0}, err = {0};
    int how = 0;
    const double begin = nb_seconds();
    *c = (cl_child){0};
    TRY(start(&p, line));
    status s = follow(&p, &out, &err, progress, done, total);
    if (s != NB_OK && s != NB_INTERRUPTED)
        kill(p.pid, SIGKILL);
    close(p.out);
    close(p.err);
    while (waitpid(p.pid, &how, 0) < 0 && errno == EINTR)
        continue;
    c->seconds = nb_seconds() - begin;
    if (s == NB_OK && (cl_interrupted() || (WIFEXITED(how) && WEXITSTATUS(how) == 130)))
        s = nb_fail(NB_INTERRUPTED, "interrupted");
    if (s == NB_OK) {
        say_end(c, how, &err);
        c->json = !*c->message && out.bytes ? nb_json_parse(out.text, out.bytes) : NULL;
    }
    free(out.text);
    free(err.text);
    return s;
}

void cl_child_free(cl_child *c)
{
    nb_json_free(c->json);
    *c = (cl_child){0};
}
