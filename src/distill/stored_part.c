/* stored_part.c - stored logits while they are made: NAME.part, a line that says of what, then one record a batch of windows:
 *   top_id int32 [rows, k], top_log fp16 [rows, k], rest fp16 [rows], CRC-32C of these; in this machine's byte order.
 * A record is written by one write; opened again the file is cut back to its last whole record. Another line, or none:
 * it begins again. The process that writes holds a lock.
 */
#include "distill/stored_part.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CRC_BYTES = 4 };

static bool whole(int fd, void *data, size_t bytes, int64_t at)
{
    size_t done = 0;
    for (ssize_t n = 1; done < bytes && n > 0; done += n > 0 ? (size_t)n : 0)
        n = pread(fd, (char *)data + done, bytes - done, (off_t)at + (off_t)done);
    return done == bytes;
}

static status put(const kd_part *p, const void *data, size_t bytes, int64_t at)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pwrite(p->fd, (const char *)data + done, bytes - done, (off_t)at + (off_t)done);
        if (n <= 0 && errno != EINTR)
            return nb_fail(NB_IO, "%s: cannot write: %s", p->path, n < 0 ? strerror(errno) : "no room");
        done += n > 0 ? (size_t)n : 0;
    }
    return NB_OK;
}

/* Where record i begins: all but the last are of p->batch windows. */
static int64_t offset_of(const kd_part *p, int64_t i)
{
    return p->header + i * (int64_t)(kd_part_bytes(p, p->batch) + CRC_BYTES);
}

size_t kd_part_bytes(const kd_part *p, int64_t windows)
{
    return (size_t)(windows * p->ctx) * ((size_t)p->k * (sizeof(int32_t) + sizeof(uint16_t)) + sizeof(uint16_t));
}

int64_t kd_part_windows(const kd_part *p, int64_t i)
{
    int64_t left = p->windows - i * p->batch;
    return left < p->batch ? left : p->batch;
}

bool kd_part_read(const kd_part *p, void *record, int64_t i)
{
    const size_t bytes = kd_part_bytes(p, kd_part_windows(p, i));
    uint32_t crc;
    return whole(p->fd, record, bytes, offset_of(p, i)) &&
           whole(p->fd, &crc, sizeof crc, offset_of(p, i) + (int64_t)bytes) && crc == nb_crc32c(0, record, bytes);
}

status kd_part_append(kd_part *p, void *record)
{
    const size_t bytes = kd_part_bytes(p, kd_part_windows(p, p->n));
    uint32_t crc = nb_crc32c(0, record, bytes);
    memcpy((char *)record + bytes, &crc, sizeof crc); /* its buffer has room for it */
    TRY(put(p, record, bytes + CRC_BYTES, offset_of(p, p->n)));
    p->n++;
    return NB_OK;
}

static status lock(kd_part *p)
{
    p->fd = open(p->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (p->fd < 0)
        return nb_fail(NB_IO, "%s: cannot open: %s", p->path, strerror(errno));
    if (flock(p->fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        return nb_fail(NB_USAGE, "%s: another process is writing it", p->path);
    return NB_OK;
}

status kd_part_open(kd_part *p, const char *path, const char *source)
{
    char line[256], found[256];
    const size_t bytes = strlen(path) + sizeof ".part";
    p->fd = -1;
    p->path = nb_alloc(bytes, 1);
    p->record = nb_alloc(kd_part_bytes(p, p->batch) + CRC_BYTES, 1);
    if (!p->path || !p->record)
        return NB_NOMEM;
    snprintf(p->path, bytes, "%s.part", path);
    p->header = snprintf(line, sizeof line, "nibble logits of %.64s, %lld windows of %lld, top %lld, batch %lld\n", source,
                         (long long)p->windows, (long long)p->ctx, (long long)p->k, (long long)p->batch);
    TRY(lock(p));
    if (!whole(p->fd, found, (size_t)p->header, 0) || memcmp(found, line, (size_t)p->header) != 0) {
        if (ftruncate(p->fd, 0))
            return nb_fail(NB_IO, "%s: cannot cut: %s", p->path, strerror(errno));
        TRY(put(p, line, (size_t)p->header, 0));
    }
    while (p->n * p->batch < p->windows && kd_part_read(p, p->record, p->n))
        p->n++;
    if (ftruncate(p->fd, (off_t)offset_of(p, p->n)) && p->n * p->batch < p->windows)
        return nb_fail(NB_IO, "%s: cannot cut: %s", p->path, strerror(errno));
    return NB_OK;
}

void kd_part_close(kd_part *p, bool finished)
{
    if (finished)
        unlink(p->path);
    if (p->fd >= 0)
        close(p->fd);
    free(p->path);
    free(p->record);
    *p = (kd_part){.fd = -1};
}
