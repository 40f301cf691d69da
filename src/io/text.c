/* text.c - documents of a text file, one after the other.
 *   A window onto the text: all of a mapped file, or what is inflated so far of a .gz. It begins with the current
 * document; when a line does not end inside it, what precedes the document is dropped and more is inflated behind it.
 */
#include "io/io.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { INFLATE_BYTES = 1 << 16 };

struct fm_documents {
    char *path;
    fm_split split;
    nb_mapped map;
    gzFile gz;
    const char *data; /* window: data[at .. bytes) is not handed out yet */
    size_t at, bytes;
    char *buffer; /* what data points to for a .gz */
    size_t capacity;
    bool ended; /* nothing comes after the window */
};

static const char *const split_names[] = {
    [FM_SPLIT_NONE] = "none", [FM_SPLIT_LINE] = "line", [FM_SPLIT_BLANK] = "blank"};

const char *fm_split_name(fm_split split)
{
    return (unsigned)split <= FM_SPLIT_BLANK ? split_names[split] : "unknown";
}

status fm_split_parse(fm_split *split, const char *name)
{
    for (int i = FM_SPLIT_NONE; i <= FM_SPLIT_BLANK; i++) {
        if (strcmp(name, split_names[i]) == 0) {
            *split = (fm_split)i;
            return NB_OK;
        }
    }
    return nb_fail(NB_USAGE, "split '%s' is not known; none, line or blank is wanted", name);
}

/* Inflates more text behind the window. */
static status refill(fm_documents *d)
{
    if (d->at > 0) {
        memmove(d->buffer, d->buffer + d->at, d->bytes - d->at);
        d->bytes -= d->at;
        d->at = 0;
    }
    if (d->capacity - d->bytes < INFLATE_BYTES) {
        size_t capacity = d->capacity * 2 + INFLATE_BYTES;
        char *buffer = nb_resize(d->buffer, capacity, 1);
        if (!buffer)
            return nb_fail_in(NB_NOMEM, "%s: a document of over %zu bytes", d->path, d->bytes);
        d->buffer = buffer;
        d->capacity = capacity;
    }
    d->data = d->buffer;
    int n = gzread(d->gz, d->buffer + d->bytes, INFLATE_BYTES);
    d->bytes += n > 0 ? (size_t)n : 0;
    d->ended = n < INFLATE_BYTES;
    int error = Z_OK;
    const char *text = gzerror(d->gz, &error);
    if (n < 0 || (d->ended && error != Z_OK && error != Z_STREAM_END))
        return nb_fail(error == Z_ERRNO ? NB_IO : NB_FORMAT, "%s: damaged or cut-off .gz: %s", d->path, text);
    return NB_OK;
}

static status open_source(fm_documents *d)
{
    TRY(nb_map(&d->map, d->path));
    if (d->map.bytes < 2 || d->map.data[0] != 0x1F || d->map.data[1] != 0x8B) {
        d->data = (const char *)d->map.data;
        d->bytes = d->map.bytes;
        d->ended = true;
    } else {
        nb_unmap(&d->map);
        d->gz = gzopen(d->path, "rb");
        if (!d->gz)
            return nb_fail(NB_IO, "%s: cannot open", d->path);
        TRY(refill(d));
    }
    if (d->bytes >= 3 && memcmp(d->data, "\xEF\xBB\xBF", 3) == 0)
        d->at = 3;
    return NB_OK;
}

status fm_documents_open(fm_documents **documents, const char *path, fm_split split)
{
    *documents = NULL;
    fm_documents *d = nb_alloc_zeroed(1, sizeof *d);
    if (!d)
        return NB_NOMEM;
    d->split = split;
    d->path = nb_string(path);
    status s = d->path ? open_source(d) : NB_NOMEM;
    if (s != NB_OK) {
        fm_documents_close(d);
        return s;
    }
    *documents = d;
    return NB_OK;
}

void fm_documents_close(fm_documents *d)
{
    if (!d)
        return;
    nb_unmap(&d->map);
    if (d->gz)
        (void)gzclose(d->gz);
    free(d->buffer);
    free(d->path);
    free(d);
}

/* The line at offset from behind d->at ends before *end; the next one starts at *next. At the end of the text
 * *next == from. */
static status find_line(fm_documents *d, size_t from, size_t *end, size_t *next)
{
    for (size_t searched = from;;) {
        const char *start = d->data + d->at;
        size_t n = d->bytes - d->at;
        const char *newline = searched < n ? memchr(start + searched, '\n', n - searched) : NULL;
        if (newline || d->ended) {
            *end = newline ? (size_t)(newline - start) : n;
            *next = newline ? *end + 1 : n;
            return NB_OK;
        }
        searched = n;
        TRY(refill(d));
    }
}

static bool is_blank(const char *line, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')
            return false;
    return true;
}

static void hand_out(fm_documents *d, fm_text *document, size_t bytes, size_t next)
{
    const char *text = d->data + d->at;
    if (d->split != FM_SPLIT_NONE && bytes > 0 && text[bytes - 1] == '\r')
        bytes--;
    *document = (fm_text){text, bytes};
    d->at += next;
}

status fm_documents_next(fm_documents *d, fm_text *document)
{
    *document = (fm_text){0};
    if (d->split == FM_SPLIT_NONE) {
        while (!d->ended)
            TRY(refill(d));
        if (d->bytes > d->at)
            hand_out(d, document, d->bytes - d->at, d->bytes - d->at);
        return NB_OK;
    }
    size_t end, next;
    for (;; d->at += next) { /* up to the first line that is not blank */
        TRY(find_line(d, 0, &end, &next));
        if (next == 0)
            return NB_OK;
        if (!is_blank(d->data + d->at, end))
            break;
    }
    for (size_t line_end = end, line = next; d->split == FM_SPLIT_BLANK; line = next) {
        TRY(find_line(d, line, &line_end, &next));
        if (next == line || is_blank(d->data + d->at + line, line_end - line))
            break;
        end = line_end;
    }
    hand_out(d, document, end, next);
    return NB_OK;
}
