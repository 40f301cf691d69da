/* tokenizer.h - inside of a tokenizer, shared by its readers, the encoder and the decoder.
 *
 * A vocabulary is built by fm_vocab_add, piece after piece in id order, then fm_merges_add in rank order and
 * fm_pretokenizer_add in order of use, and sealed once by fm_tokenizer_seal, which checks it and builds the indexes.
 */
#ifndef NIBBLE_IO_TOKENIZER_H
#define NIBBLE_IO_TOKENIZER_H
#include "io/io.h"

/* U+2581, which stands for a space inside SentencePiece's pieces. */
#define FM_SPACE "\xE2\x96\x81"

/* How a piece is found in a text before all else (Hugging Face's added tokens). */
enum {
    FM_ADDED_LSTRIP = 1,     /* takes the white space to its left along */
    FM_ADDED_RSTRIP = 2,     /* and to its right */
    FM_ADDED_WORD = 4,       /* only where no word character stands beside it */
    FM_ADDED_NORMALIZED = 8, /* looked for after normalization */
    FM_ADDED_FLAGS = 15
};

typedef struct {
    size_t text, surface; /* offsets into the pool: as spelled, as decoded */
    uint16_t bytes, surface_bytes;
    uint8_t type;  /* fm_piece_type */
    uint8_t added; /* FM_ADDED_* */
    float score;
} fm_vocab_piece;

typedef struct {
    int32_t left, right, made; /* ids; the rank is the place in the list */
} fm_merge;

typedef struct fm_pretokenizer fm_pretokenizer; /* one step that cuts a text into words */
typedef enum { FM_CUT_ISOLATED, FM_CUT_REMOVED, FM_CUT_CONTIGUOUS, FM_CUT_WITH_PREVIOUS, FM_CUT_WITH_NEXT } fm_cut;

struct fm_vocab {
    fm_vocab_piece *piece; /* [n] */
    int64_t n, capacity;
    char *pool;
    size_t pool_bytes, pool_capacity;
    int32_t *slot;        /* open addressing over the texts: id + 1, 0 empty */
    uint32_t mask;        /* slots - 1 */
    int32_t byte_id[256]; /* of <0xHH>, or of the byte's letter; -1: none */
    int32_t *added;       /* [n_added] ids of what a text is cut at, sorted by text */
    int64_t n_added;
    bool added_first[256]; /* bytes they begin with */
    bool added_user;       /* some of them are user-defined: looked for in every text */
    bool added_late;       /* some of them have FM_ADDED_NORMALIZED */
    char *chat_template;   /* Jinja; NULL: none */

    /* characters into pieces (SPM, and BPE that is not byte-level) */
    int max_bytes;         /* of the longest piece that merging can make */
    bool has_unused;       /* some pieces are merged through but never written (SPM) */
    bool cuts;             /* no such piece has U+2581 after another character: text may be cut before every space */
    bool *user_bytes;      /* [max_bytes + 1]: lengths of user-defined pieces (SPM); NULL if there are none */
    bool prefix_once;      /* the space prefix is for the start of the text, not for what follows an added token */
    bool prefix_if_absent; /* and only where no space is */
    bool split_spaces;     /* a piece never crosses the gap before a space */

    /* BPE: merges in a given order */
    bool by_rank;       /* the kind is BPE */
    bool byte_level;    /* pieces are spelled in GPT-2's alphabet of bytes; otherwise as SentencePiece's */
    bool ignore_merges; /* a word that is a piece is not merged */
    bool nfc;           /* text is normalized to Unicode's form C */
    bool drop_missing;  /* a byte or character without a piece is left out; otherwise it is the unknown id */
    bool fuse_unknown;  /* the unknown id once for a run of them */
    fm_merge *merge;    /* [n_merges] */
    int64_t n_merges, merge_capacity;
    int32_t *merge_slot; /* open addressing over (left, right): rank + 1, 0 empty */
    uint32_t merge_mask;
    fm_pretokenizer *pretokenizer; /* [n_pretokenizers] */
    int n_pretokenizers;
};

/* ---- building ---- */

/* Starts an empty tokenizer of a kind: no special ids. */
status fm_vocab_new(fm_tokenizer *tk, fm_tokenizer_kind kind);
/* Appends a piece; its id is the number of pieces before it. Messages name the id, not the file. */
status fm_vocab_add(fm_tokenizer *tk, const char *text, size_t bytes, float score, fm_piece_type type);
/* Builds the index over the texts, which must be unique; seal does it where it was not needed before. */
status fm_vocab_index(fm_vocab *v);
int32_t fm_vocab_find(const fm_vocab *v, const char *text, size_t bytes); /* any piece; -1 if there is none */
/* Checks the whole (unique texts, byte pieces spelled <0xHH>, special ids in range, something for unknown characters)
 * and fills in indexes, decoded texts, vocab_size, byte_fallback and hash. */
status fm_tokenizer_seal(fm_tokenizer *tk);
/* The id of a piece that merging can make (normal, unused; user-defined ones in SPM), -1 if there is none. */
int32_t fm_vocab_find_merged(const fm_vocab *v, const char *text, size_t bytes);
status fm_vocab_set_template(fm_tokenizer *tk, const char *text, size_t bytes); /* a copy; at most FM_TEMPLATE_BYTES */
enum { FM_TEMPLATE_BYTES = 1 << 20 };

/* ---- merges (tokenizer_merges.c) ---- */

enum { FM_MERGES = 1 << 24 }; /* ranks up to here are exact floats */
/* Appends a merge of two pieces, which with the one they make must be in the indexed vocabulary (NB_FORMAT). */
status fm_merges_add(fm_vocab *v, fm_text left, fm_text right);
status fm_merges_add_ids(fm_vocab *v, int32_t left, int32_t right);
/* The rank of the pair, -1 if it has none. */
int32_t fm_merges_find(const fm_vocab *v, int32_t left, int32_t right);
status fm_merges_index(fm_vocab *v); /* of a pair that stands there twice the first counts */
/* Scores of pieces <- -(rank of the first merge that makes them), for clients that merge by score. */
void fm_merges_score(fm_vocab *v);

/* ---- GPT-2's alphabet of bytes (tokenizer_alphabet.c) ---- */

size_t fm_letter_of_byte(char letter[2], uint8_t byte); /* its UTF-8, 1 or 2 bytes */
/* bytes [letters] <- what a text in the alphabet spells; its length, or -1 if a character is no letter. */
int64_t fm_bytes_of_letters(char *bytes, const char *letters, size_t n);

/* ---- added tokens (tokenizer_added.c) ---- */

status fm_added_index(fm_vocab *v); /* control and unknown pieces; in BPE user-defined ones too */
typedef struct {
    size_t from, to; /* what it takes of the text */
    int32_t id;
} fm_added_match;
/* The first added token in text[from..bytes), the longest of those that begin there. late: those with
 * FM_ADDED_NORMALIZED, otherwise the others. special: control and unknown pieces too. */
bool fm_added_find(fm_added_match *match, const fm_vocab *v, const char *text, size_t bytes, size_t from, bool late,
                   bool special);

/* ---- normalization and pre-tokenizers (tokenizer_pretokenize.c) ---- */

/* Appends a step: text is cut at what the pattern (PCRE2, UTF and UCP) matches. */
status fm_pretokenizer_add(fm_vocab *v, const char *pattern, size_t bytes, fm_cut cut, bool invert);
const char *fm_pretokenizer_pattern(const fm_vocab *v, int i, fm_cut *cut, bool *invert);
void fm_pretokenizers_free(fm_vocab *v);
typedef struct {
    status (*fn)(void *ctx, const char *text, size_t bytes);
    void *ctx;
} fm_words;
/* Hands over the words of text, in order. Bytes that are not UTF-8 are words of their own. */
status fm_pretokenize(const fm_vocab *v, const char *text, size_t bytes, fm_words words);
/* *out <- text in form C, to be freed; NULL where it is that already. Bytes that are not UTF-8 stay. */
status fm_normalize(char **out, size_t *out_bytes, const char *text, size_t bytes);

/* Pre-tokenizers by the name that GGUF has for them (tokenizer_pre.c). NB_UNSUPPORTED for names not known. */
status fm_pre_add(fm_tokenizer *tk, const char *name);
const char *fm_pre_name(const fm_tokenizer *tk); /* NULL: it has none */
extern const char fm_pre_gpt2[], fm_pre_digit[];

/* ---- merging symbols into pieces (tokenizer_symbols.c) ---- */

typedef struct {
    int32_t previous, next; /* neighbours, -1: none */
    int32_t at, bytes;      /* in the segment; bytes 0: merged away */
    int32_t id;             /* of a piece that merging can make, or -1 */
    bool frozen;            /* user-defined: never merged */
} fm_symbol;

typedef struct {
    float score;
    int32_t left, right, bytes, id;
} fm_candidate;

typedef struct {
    const fm_tokenizer *tk;
    fm_ids *ids;
    char *text; /* the segment, normalized */
    size_t bytes, capacity;
    fm_symbol *sym;
    size_t sym_capacity;
    fm_candidate *heap;
    size_t n_heap, heap_capacity;
    int32_t *half;     /* [V]: bytes of the left half of an unused piece, 0: not merged yet; NULL if there are none */
    bool last_unknown; /* the last id written is the unknown one */
    bool special;      /* control pieces are read out of the text */
} fm_encoder;
status fm_encoder_put(fm_encoder *e, int32_t id);
/* The symbols of text, merged, and their ids written. fm_encode_word: bytes as letters (byte-level BPE); ctx is the
 * encoder. fm_encode_characters: characters as pieces. */
status fm_encode_word(void *encoder, const char *text, size_t bytes);
status fm_encode_characters(fm_encoder *e, const char *text, size_t bytes);
void fm_encoder_free(fm_encoder *e);

/* Length 1..4 of the valid UTF-8 character that starts at p; 0 if none does; -1 if the `bytes` there are the start of
 * one that is longer. */
int fm_utf8_length(const uint8_t *p, size_t bytes);

/* The byte that "<0xHH>" spells (upper case), -1 if the text does not. */
int fm_byte_of_piece(const char *text, size_t bytes);
static inline uint32_t fm_get32(const uint8_t *p) /* little-endian */
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* ---- readers ---- */

status fm_tokenizer_read_llama2c(fm_tokenizer *tk, const uint8_t *data, size_t bytes);
status fm_tokenizer_read_sentencepiece(fm_tokenizer *tk, const uint8_t *data, size_t bytes);
status fm_tokenizer_read_gguf(fm_tokenizer *tk, const char *path);
/* A tokenizer.json, or a vocab.json with the merges.txt beside it. path: for what lies beside it (tokenizer_config.json
 * with special tokens and chat template). */
status fm_tokenizer_read_json(fm_tokenizer *tk, const char *text, size_t bytes, const char *path);
/* The chat template in the tokenizer_config.json or chat_template.jinja beside path; nothing if there is none. */
status fm_tokenizer_read_template(fm_tokenizer *tk, const char *path);
/* Special ids, add_bos and the chat template from there, for a vocabulary that is indexed and not yet sealed. */
status fm_tokenizer_read_config(fm_tokenizer *tk, const char *path);
bool fm_tokenizer_is_serialized(const uint8_t *data, size_t bytes);

#endif
