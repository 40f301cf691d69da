/* tokens_part.h - a token file while it grows: NAME.part, a header and then one record for each batch. Little-endian.
 *
 *   header   0  "nbpart\r\n"    8  u32 layout 1    12  u32 bytes of the header
 *            16  i64 vocab_size    24  i64 row_length    32  i64 seed
 *            40  u32 bytes of settings    44  u32 bytes of tokenizer    48  settings, tokenizer, u32 CRC-32C of all
 * before record   0  u32 n    4  u32 n_starts    8  n ids (u16 where vocab_size <= 65536, else u32), n_starts x u32,
 * u32 CRC-32C of all before in the record A record is written by one write; what follows the last whole record is cut
 * off when the file is opened again. The process that writes holds a lock (flock).
 */
#ifndef NIBBLE_IO_TOKENS_PART_H
#define NIBBLE_IO_TOKENS_PART_H
#include "io/io.h"

enum { FM_PART_HEADER_BYTES = 48, FM_PART_RECORD_BYTES = 8 };

struct fm_part {
    char *target, *path; /* NAME, NAME.part */
    int fd;              /* -1: not open */
    int64_t vocab_size, row_length, seed;
    char *settings;
    uint8_t *tokenizer; /* serialized; NULL: none */
    size_t tokenizer_bytes;
    uint64_t tokenizer_hash;
    int32_t bos;
    int64_t header_bytes, bytes; /* of the header; of header and whole records */
    uint8_t *record;             /* the one being read or written */
    size_t capacity;
};

typedef struct {
    int64_t n, n_starts, bytes; /* bytes of the whole record; 0: no whole record here */
    const uint8_t *id, *start;  /* in the part's buffer, maybe unaligned */
} fm_part_record;

static inline size_t fm_part_id_bytes(int64_t vocab_size)
{
    return vocab_size <= 65536 ? 2 : 4;
}

/* Reads the record at offset `at` of a file of file_bytes bytes. */
status fm_part_read(fm_part *p, fm_part_record *r, int64_t at, int64_t file_bytes);
/* Room for a record. */
status fm_part_reserve(fm_part *p, size_t bytes);
/* Opens, locks, compares the header with the settings in p, or writes it; p->bytes = end of the header. */
status fm_part_open(fm_part *p, bool restart);
status fm_part_write(const fm_part *p, const void *data, size_t bytes, int64_t at);
int64_t fm_part_file_bytes(const fm_part *p);

#endif
