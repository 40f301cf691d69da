/* tokenizer.h - inside of a tokenizer, shared by its readers, the encoder and the decoder.
 *
 * A vocabulary is built by fm_vocab_add, piece after piece in id order, and sealed once by fm_tokenizer_seal, which
 * checks it and builds the index.
 */
#ifndef NIBBLE_IO_TOKENIZER_H
#define NIBBLE_IO_TOKENIZER_H
#include "io/io.h"

/* U+2581, which stands for a space inside pieces. */
#define FM_SPACE "\xE2\x96\x81"

typedef struct {
    size_t text, surface; /* offsets into the pool: as spelled, as decoded */
    uint16_t bytes, surface_bytes;
    uint8_t type; /* fm_piece_type */
    float score;
} fm_vocab_piece;

struct fm_vocab {
    fm_vocab_piece *piece; /* [n] */
    int64_t n, capacity;
    char *pool;
    size_t pool_bytes, pool_capacity;
    int32_t *slot; /* open addressing over the texts: id + 1, 0 empty */
    uint32_t mask; /* slots - 1 */
    int32_t byte_id[256];
    int max_bytes;    /* of the longest piece that merging can make */
    bool has_unused;  /* some pieces are merged through but never written */
    bool cuts;        /* no such piece has U+2581 after another character: text may be cut before every space */
    bool *user_bytes; /* [max_bytes + 1]: lengths of user-defined pieces; NULL if there are none */
};

/* Starts an empty tokenizer of a kind: no special ids. */
status fm_vocab_new(fm_tokenizer *tk, fm_tokenizer_kind kind);
/* Appends a piece; its id is the number of pieces before it. Messages name the id, not the file. */
status fm_vocab_add(fm_tokenizer *tk, const char *text, size_t bytes, float score, fm_piece_type type);
/* Builds the index over the texts, which must be unique; seal does it where it was not needed before. */
status fm_vocab_index(fm_vocab *v);
/* Checks the whole (unique texts, byte pieces spelled <0xHH>, special ids in range, something for unknown characters)
 * and fills in index, decoded texts, vocab_size, byte_fallback and hash. */
status fm_tokenizer_seal(fm_tokenizer *tk);
/* The id of a piece that merging can make (normal, user-defined, unused), -1 if there is none. */
int32_t fm_vocab_find_merged(const fm_vocab *v, const char *text, size_t bytes);

/* Length 1..4 of the valid UTF-8 character that starts at p; 0 if none does; -1 if the `bytes` there are the start of
 * one that is longer. */
int fm_utf8_length(const uint8_t *p, size_t bytes);

/* The byte that "<0xHH>" spells (upper case), -1 if the text does not. */
int fm_byte_of_piece(const char *text, size_t bytes);
static inline uint32_t fm_get32(const uint8_t *p) /* little-endian */
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

status fm_tokenizer_read_llama2c(fm_tokenizer *tk, const uint8_t *data, size_t bytes);
status fm_tokenizer_read_sentencepiece(fm_tokenizer *tk, const uint8_t *data, size_t bytes);
bool fm_tokenizer_is_serialized(const uint8_t *data, size_t bytes);

#endif
