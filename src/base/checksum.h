/* checksum.h - CRC-32C by the processor's own instruction, where it has one. Private to base/. */
#ifndef NIBBLE_BASE_CHECKSUM_H
#define NIBBLE_BASE_CHECKSUM_H
#include "base/base.h"

bool nb_has_crc32c(void);
/* crc [3] <- the checksums, each from 0, of three runs of `bytes` bytes behind each other; bytes is a multiple of 8. */
void nb_crc32c_three(uint32_t crc[3], const uint8_t *p, size_t bytes);

#endif
