/* stored_part.h - stored logits while they are made; private to distill. */
#ifndef NIBBLE_DISTILL_STORED_PART_H
#define NIBBLE_DISTILL_STORED_PART_H
#include "base/base.h"

typedef struct {
    int64_t windows, ctx, k, batch; /* set by the caller: all windows, tokens of one, kept tokens, windows of a record */
    int64_t n;                      /* whole records there */
    uint8_t *record;                /* room for one */
    char *path;
    int fd;
    int64_t header;
} kd_part;

/* Opens path.part, or goes on with the one that is there; source: a fingerprint. kd_part_close follows, whatever comes. */
status kd_part_open(kd_part *p, const char *path, const char *source);
void kd_part_close(kd_part *p, bool finished); /* finished: the file goes */
int64_t kd_part_windows(const kd_part *p, int64_t i);
size_t kd_part_bytes(const kd_part *p, int64_t windows); /* of a record, without its CRC */
status kd_part_append(kd_part *p, void *record);         /* p->record */
bool kd_part_read(const kd_part *p, void *record, int64_t i); /* false: damaged */

#endif
