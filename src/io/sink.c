/* sink.c - a file being written, beside its target until everything is in it. */
#include "io/formats.h"
#include <errno.h>
#include <string.h>

status fm_sink_open(fm_sink *s, const char *path)
{
    *s = (fm_sink){.path = path};
    return nb_atomic_begin(&s->out, path);
}

status fm_sink_raw(fm_sink *s, const void *data, size_t bytes)
{
    if (bytes && fwrite(data, 1, bytes, s->out.file) != bytes)
        return nb_fail(NB_IO, "%s: cannot write: %s", s->path, strerror(errno));
    s->written += bytes;
    return NB_OK;
}

status fm_sink_zeros(fm_sink *s, size_t bytes)
{
    static const uint8_t zeros[4096];
    for (; bytes > sizeof zeros; bytes -= sizeof zeros)
        TRY(fm_sink_raw(s, zeros, sizeof zeros));
    return fm_sink_raw(s, zeros, bytes);
}

status fm_put(fm_sink *s, const void *data, size_t bytes)
{
    if (!s->array || bytes > s->left)
        return nb_fail(NB_USAGE, "%s: %s: %zu bytes are put where %zu are left", s->path,
                       s->array ? s->array : "no array", bytes, s->left);
    s->left -= bytes;
    return fm_sink_raw(s, data, bytes);
}

status fm_sink_array(fm_sink *s, const fm_array *a, fm_source source)
{
    s->array = a->name;
    s->left = a->bytes;
    if (source.fn)
        TRY(source.fn(source.ctx, s, a));
    else if (a->bytes)
        TRY(a->data ? fm_put(s, a->data, a->bytes) : nb_fail(NB_USAGE, "%s: %s: it has no data", s->path, a->name));
    if (s->left)
        return nb_fail(NB_USAGE, "%s: %s: %zu of its %zu bytes were not given", s->path, a->name, s->left, a->bytes);
    s->array = NULL;
    return NB_OK;
}

status fm_sink_close(fm_sink *s, status so_far)
{
    if (so_far == NB_OK)
        return nb_atomic_commit(&s->out);
    nb_atomic_abort(&s->out);
    return so_far;
}
