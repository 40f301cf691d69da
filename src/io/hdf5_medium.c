/* hdf5_medium.c - where HDF5's bytes are: a mapped file that is read, or a descriptor that is written and read back
 * (hdf5_door.h). The driver in hdf5.c hands every access on to here.
 */
#include "io/hdf5_door.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

/* What was never written, or failed to be, reads as zeros. */
static void read_back(const fm_medium *m, uint8_t *dst, uint64_t at, size_t bytes)
{
    while (bytes) {
        ssize_t n = pread(m->fd, dst, bytes, (off_t)at);
        if (n <= 0)
            break;
        dst += n;
        at += (uint64_t)n;
        bytes -= (size_t)n;
    }
    memset(dst, 0, bytes);
}

bool fm_medium_read(const fm_medium *m, void *dst, uint64_t at, size_t bytes, bool writing)
{
    if (writing) {
        read_back(m, dst, at, bytes);
        return true;
    }
    if (at > m->file.bytes || bytes > m->file.bytes - at)
        return false;
    memcpy(dst, m->file.data + at, bytes);
    return true;
}

void fm_medium_write(fm_medium *m, const void *src, uint64_t at, size_t bytes)
{
    const uint8_t *p = src;
    while (bytes && !m->error) {
        ssize_t n = pwrite(m->fd, p, bytes, (off_t)at);
        if (n <= 0) {
            m->error = n < 0 ? errno : ENOSPC;
            break;
        }
        p += n;
        at += (uint64_t)n;
        bytes -= (size_t)n;
    }
    if ((int64_t)(at + bytes) > m->end)
        m->end = (int64_t)(at + bytes);
}

void fm_medium_cut(fm_medium *m, uint64_t end)
{
    if ((uint64_t)m->end == end)
        return;
    if (!m->error && ftruncate(m->fd, (off_t)end) != 0)
        m->error = errno;
    m->end = (int64_t)end;
}
