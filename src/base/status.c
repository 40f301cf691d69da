/* status.c - status names and the one message kept per thread.
 * A message is at most 1023 bytes; nb_fail_in puts its context in front and cuts the end where both do not fit.
 */
#include "base/base.h"
#include <stdarg.h>
#include <string.h>

enum { MESSAGE_BYTES = 1024 };

static _Thread_local char message[MESSAGE_BYTES];

static const char *const names[NB_STATUS_COUNT] = {
#define X(id, text) [NB_##id] = text,
    NB_STATUS_LIST(X)
#undef X
};

const char *nb_status_name(status s)
{
    return (unsigned)s < NB_STATUS_COUNT ? names[s] : "unknown status";
}

status nb_fail(status s, const char *fmt, ...)
{
    char text[MESSAGE_BYTES]; /* an argument may be the current message itself */
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    memcpy(message, n < 0 ? "" : text, n < 0 ? 1 : strlen(text) + 1);
    return s;
}

/* Adds what fits. */
static void append(char *text, const char *more)
{
    size_t used = strlen(text), room = MESSAGE_BYTES - 1 - used, bytes = strlen(more);
    bytes = bytes < room ? bytes : room;
    memcpy(text + used, more, bytes);
    text[used + bytes] = 0;
}

status nb_fail_in(status s, const char *fmt, ...)
{
    char text[MESSAGE_BYTES];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n < 0)
        return s;
    append(text, ": ");
    append(text, message);
    memcpy(message, text, strlen(text) + 1);
    return s;
}

const char *nb_fail_message(void)
{
    return message;
}
