/* tokens_part.c - the file behind a growing token file: opening with its lock, the header, reading records.
 *   The header is the settings, byte for byte: the same settings give the same bytes, and other bytes are taken apart
 * only to say what differs. Layout: tokens_part.h.
 */
#include "io/tokens_part.h"

#include "io/tokenizer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static const char magic[8] = {'n', 'b', 'p', 'a', 'r', 't', '\r', '\n'};
enum { LAYOUT = 1 };

static int64_t get64(const uint8_t *p)
{
    return (int64_t)((uint64_t)fm_get32(p) | (uint64_t)fm_get32(p + 4) << 32);
}

static uint8_t *put(uint8_t *p, uint64_t x, int bytes)
{
    for (int i = 0; i < bytes; i++)
        p[i] = (uint8_t)(x >> 8 * i);
    return p + bytes;
}

status fm_part_write(const fm_part *p, const void *data, size_t bytes, int64_t at)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pwrite(p->fd, (const char *)data + done, bytes - done, (off_t)at + (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return nb_fail(NB_IO, "%s: cannot write: %s", p->path, n < 0 ? strerror(errno) : "no room");
        done += (size_t)n;
    }
    return NB_OK;
}

static status read_at(const fm_part *p, void *data, size_t bytes, int64_t at)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(p->fd, (char *)data + done, bytes - done, (off_t)at + (off_t)done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return nb_fail(NB_IO, "%s: cannot read: %s", p->path, n < 0 ? strerror(errno) : "it became shorter");
        done += (size_t)n;
    }
    return NB_OK;
}

int64_t fm_part_file_bytes(const fm_part *p)
{
    struct stat st;
    return fstat(p->fd, &st) == 0 ? (int64_t)st.st_size : 0;
}

status fm_part_reserve(fm_part *p, size_t bytes)
{
    if (bytes <= p->capacity)
        return NB_OK;
    uint8_t *record = nb_resize(p->record, bytes, 1);
    if (!record)
        return NB_NOMEM;
    p->record = record;
    p->capacity = bytes;
    return NB_OK;
}

status fm_part_read(fm_part *p, fm_part_record *r, int64_t at, int64_t file_bytes)
{
    *r = (fm_part_record){0};
    uint64_t left = (uint64_t)(file_bytes - at);
    if (left < FM_PART_RECORD_BYTES)
        return NB_OK;
    uint8_t head[FM_PART_RECORD_BYTES];
    TRY(read_at(p, head, sizeof head, at));
    uint64_t n = fm_get32(head), n_starts = fm_get32(head + 4), id_bytes = n * fm_part_id_bytes(p->vocab_size);
    uint64_t bytes = FM_PART_RECORD_BYTES + id_bytes + n_starts * 4 + 4; /* below 2^36: no overflow */
    if (bytes > left)
        return NB_OK;
    TRY(fm_part_reserve(p, (size_t)bytes));
    TRY(read_at(p, p->record, (size_t)bytes, at));
    if (nb_crc32c(0, p->record, (size_t)bytes - 4) != fm_get32(p->record + bytes - 4))
        return NB_OK;
    *r = (fm_part_record){(int64_t)n, (int64_t)n_starts, (int64_t)bytes, p->record + FM_PART_RECORD_BYTES,
                          p->record + FM_PART_RECORD_BYTES + id_bytes};
    return NB_OK;
}

/* ---- header ---- */

static status header_new(const fm_part *p, uint8_t **header)
{
    size_t bytes = (size_t)p->header_bytes, settings_bytes = strlen(p->settings);
    uint8_t *h = nb_alloc(bytes, 1);
    if (!h)
        return NB_NOMEM;
    memcpy(h, magic, sizeof magic);
    uint8_t *at = put(h + sizeof magic, LAYOUT, 4);
    at = put(at, bytes, 4);
    at = put(at, (uint64_t)p->vocab_size, 8);
    at = put(at, (uint64_t)p->row_length, 8);
    at = put(at, (uint64_t)p->seed, 8);
    at = put(at, settings_bytes, 4);
    at = put(at, p->tokenizer_bytes, 4);
    memcpy(at, p->settings, settings_bytes);
    if (p->tokenizer_bytes > 0)
        memcpy(at + settings_bytes, p->tokenizer, p->tokenizer_bytes);
    (void)put(h + bytes - 4, nb_crc32c(0, h, bytes - 4), 4);
    *header = h;
    return NB_OK;
}

/* A value for a message: its text, "none", or "..." for what has parts. */
static const char *show(char *text, size_t capacity, const nb_json *j)
{
    if (nb_json_is_null(j))
        (void)snprintf(text, capacity, "none");
    else if (nb_json_is_number(j))
        (void)snprintf(text, capacity, "%.15g", nb_json_number(j, 0));
    else if (nb_json_string(j))
        (void)snprintf(text, capacity, "'%s'", nb_json_string(j));
    else
        (void)snprintf(text, capacity, "%s", nb_json_first(j) ? "..." : nb_json_bool(j, false) ? "true" : "false");
    return text;
}

/* Records the first entry of a (or, if it has none such, of b) that differs; NB_OK if no plain one does. */
static status settings_difference(const fm_part *p, const nb_json *old, const nb_json *now)
{
    char was[200], is[200];
    for (int side = 0; side < 2; side++) {
        for (const nb_json *i = nb_json_first(side == 0 ? now : old); i; i = nb_json_next(i)) {
            const char *key = nb_json_key(i);
            if (!key)
                continue;
            show(was, sizeof was, nb_json_get(old, key));
            show(is, sizeof is, nb_json_get(now, key));
            if (strcmp(was, is) != 0)
                return nb_fail(NB_USAGE, "%s: was begun with %s %s, now it is %s; restart discards it", p->path, key,
                               was, is);
        }
    }
    return NB_OK;
}

static status number_difference(const fm_part *p, const char *name, int64_t was, int64_t is)
{
    if (was == is)
        return NB_OK;
    return nb_fail(NB_USAGE, "%s: was begun with %s %lld, now it is %lld; restart discards it", p->path, name,
                   (long long)was, (long long)is);
}

/* Says in what the header found (h, bytes of the file from its start) differs from the settings in p. Never NB_OK. */
static status explain(const fm_part *p, const uint8_t *h, size_t bytes)
{
    size_t header_bytes = bytes >= FM_PART_HEADER_BYTES ? fm_get32(h + 12) : 0;
    if (bytes < FM_PART_HEADER_BYTES || memcmp(h, magic, sizeof magic) != 0 || header_bytes > bytes ||
        header_bytes < FM_PART_HEADER_BYTES + 4)
        return nb_fail(NB_FORMAT, "%s: not the beginning of a token file; restart discards it", p->path);
    size_t settings_bytes = fm_get32(h + 40), tokenizer_bytes = fm_get32(h + 44);
    if (fm_get32(h + 8) != LAYOUT || header_bytes != FM_PART_HEADER_BYTES + settings_bytes + tokenizer_bytes + 4 ||
        nb_crc32c(0, h, header_bytes - 4) != fm_get32(h + header_bytes - 4))
        return nb_fail(NB_FORMAT, "%s: its header is damaged; restart discards it", p->path);
    TRY(number_difference(p, "vocab_size", get64(h + 16), p->vocab_size));
    TRY(number_difference(p, "row_length", get64(h + 24), p->row_length));
    TRY(number_difference(p, "seed", get64(h + 32), p->seed));
    nb_json *old = nb_json_parse((const char *)h + FM_PART_HEADER_BYTES, settings_bytes);
    nb_json *now = nb_json_parse(p->settings, strlen(p->settings));
    status s = settings_difference(p, old, now);
    nb_json_free(old);
    nb_json_free(now);
    if (s != NB_OK)
        return s;
    bool same =
        tokenizer_bytes == p->tokenizer_bytes &&
        (tokenizer_bytes == 0 || memcmp(h + FM_PART_HEADER_BYTES + settings_bytes, p->tokenizer, tokenizer_bytes) == 0);
    return nb_fail(NB_USAGE, "%s: was begun with %s; restart discards it", p->path,
                   same ? "other settings" : "another tokenizer");
}

/* Compares the file's start with the header wanted; writes it where the file holds no more than its beginning. */
static status settle_header(const fm_part *p, const uint8_t *header)
{
    size_t wanted = (size_t)p->header_bytes;
    nb_mapped m;
    TRY(nb_map(&m, p->path));
    bool same = m.bytes >= wanted && memcmp(m.data, header, wanted) == 0;
    bool begun = m.bytes < wanted && memcmp(m.data, header, m.bytes) == 0;
    status s = same || begun ? NB_OK : explain(p, m.data, m.bytes);
    nb_unmap(&m);
    return begun ? fm_part_write(p, header, wanted, 0) : s;
}

/* ---- opening ---- */

/* Opens and locks the file under this name: one that a finishing writer has just removed is not it. */
static status open_locked(fm_part *p)
{
    for (int attempt = 0; attempt < 10; attempt++) {
        p->fd = open(p->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (p->fd < 0)
            return nb_fail(NB_IO, "%s: cannot open: %s", p->path, strerror(errno));
        if (flock(p->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
            return nb_fail(NB_USAGE, "%s: another process is writing it", p->path);
        struct stat st;
        if (fstat(p->fd, &st) == 0 && st.st_nlink > 0)
            return NB_OK;
        (void)close(p->fd);
        p->fd = -1;
    }
    return nb_fail(NB_IO, "%s: is removed again and again", p->path);
}

status fm_part_open(fm_part *p, bool restart)
{
    TRY(open_locked(p));
    if (restart && ftruncate(p->fd, 0) != 0)
        return nb_fail(NB_IO, "%s: cannot cut: %s", p->path, strerror(errno));
    uint8_t *header;
    TRY(header_new(p, &header));
    status s = settle_header(p, header);
    free(header);
    p->bytes = p->header_bytes;
    return s;
}
