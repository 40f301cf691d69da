/* io.h - file formats: named arrays and metadata in and out of safetensors, llama2.c, GGUF and HDF5 files;
 * tokenizers, texts and token files. No models: what the arrays mean is models/'s business.
 *
 * Readers map the file and check every number in it before it is used: a file that lies is refused with
 * NB_FORMAT and a message that names the file and the array, and no allocation is larger than a small multiple of the
 * file. A mapped file must not be cut by another process while it is open. Writers replace their target atomically:
 * whatever fails, the target holds what it held.
 */
#ifndef NIBBLE_IO_H
#define NIBBLE_IO_H
#include "base/base.h"

/* ---- types of elements -------------------------------------------------------------------- */

/* Every type once: id, safetensors name (NULL: none), elements and bytes of a block, ggml's type number (-1: none).
 * The types of safetensors stand in the order in which its writer sorts them (backwards). STRING occurs in metadata
 * only. Sources: safetensors/src/tensor.rs, ggml/include/ggml.h, ggml/src/ggml-common.h. */
#define FM_DTYPE_LIST(X)                    \
    X(BOOL, "BOOL", 1, 1, -1)               \
    X(F4, "F4", 2, 1, -1)                   \
    X(F6_E2M3, "F6_E2M3", 4, 3, -1)         \
    X(F6_E3M2, "F6_E3M2", 4, 3, -1)         \
    X(U8, "U8", 1, 1, -1)                   \
    X(I8, "I8", 1, 1, 24)                   \
    X(F8_E5M2, "F8_E5M2", 1, 1, -1)         \
    X(F8_E4M3, "F8_E4M3", 1, 1, -1)         \
    X(F8_E8M0, "F8_E8M0", 1, 1, -1)         \
    X(F8_E4M3FNUZ, "F8_E4M3FNUZ", 1, 1, -1) \
    X(F8_E5M2FNUZ, "F8_E5M2FNUZ", 1, 1, -1) \
    X(I16, "I16", 1, 2, 25)                 \
    X(U16, "U16", 1, 2, -1)                 \
    X(F16, "F16", 1, 2, 1)                  \
    X(BF16, "BF16", 1, 2, 30)               \
    X(I32, "I32", 1, 4, 26)                 \
    X(U32, "U32", 1, 4, -1)                 \
    X(F32, "F32", 1, 4, 0)                  \
    X(C64, "C64", 1, 8, -1)                 \
    X(F64, "F64", 1, 8, 28)                 \
    X(I64, "I64", 1, 8, 27)                 \
    X(U64, "U64", 1, 8, -1)                 \
    X(STRING, NULL, 1, 0, -1)               \
    X(Q4_0, NULL, 32, 18, 2)                \
    X(Q4_1, NULL, 32, 20, 3)                \
    X(Q5_0, NULL, 32, 22, 6)                \
    X(Q5_1, NULL, 32, 24, 7)                \
    X(Q8_0, NULL, 32, 34, 8)                \
    X(Q2_K, NULL, 256, 84, 10)              \
    X(Q3_K, NULL, 256, 110, 11)             \
    X(Q4_K, NULL, 256, 144, 12)             \
    X(Q5_K, NULL, 256, 176, 13)             \
    X(Q6_K, NULL, 256, 210, 14)             \
    X(IQ4_NL, NULL, 32, 18, 20)             \
    X(TQ1_0, NULL, 256, 54, 34)             \
    X(TQ2_0, NULL, 256, 66, 35)             \
    X(MXFP4, NULL, 32, 17, 39)              \
    X(Q1_0, NULL, 128, 18, 41)              \
    X(Q2_0, NULL, 64, 18, 42)
typedef enum {
#define X(id, name, block, bytes, ggml) FM_##id,
    FM_DTYPE_LIST(X)
#undef X
    FM_DTYPE_COUNT
} fm_dtype;
const char *fm_dtype_name(fm_dtype t);  /* "F32", "Q4_0", ...; never NULL */
int64_t fm_dtype_block(fm_dtype t);     /* elements of a block; 1 for plain numbers */
size_t fm_dtype_bytes(fm_dtype t);      /* bytes of a block */
int fm_dtype_ggml(fm_dtype t);          /* ggml's number, or -1 */
bool fm_dtype_of_ggml(fm_dtype *t, int64_t ggml);
bool fm_dtype_of_name(fm_dtype *t, const char *safetensors_name);

/* ---- arrays ------------------------------------------------------------------------------- */

enum { FM_MAX_DIM = 4 };
typedef struct {
    const char *name;
    fm_dtype dtype;
    int n_dim;               /* 0: a scalar */
    int64_t dim[FM_MAX_DIM]; /* C order, the last one runs fastest (ggml's ne reversed); 0 is legal */
    const void *data;        /* little-endian, often unaligned: memcpy, or fm_to_float. NULL: not in memory */
    size_t bytes;
} fm_array;
int64_t fm_count(const fm_array *a); /* elements: the product of the dimensions */
/* Sets a->bytes from dtype and dimensions; blocks lie along the last dimension. NB_FORMAT where a dimension is
 * negative, the product overflows, or the last dimension is not whole blocks. */
status fm_array_measure(fm_array *a);
/* dst[0..n) <- elements [from, from + n) as floats. F32 F16 BF16 F64, integers (rounded to nearest), BOOL, blocks of
 * ggml's types (from and n whole blocks) to the bits of its dequantize_row_*; others NB_UNSUPPORTED. NB_SHAPE outside the array. */
status fm_to_float(float *dst, const fm_array *a, int64_t from, int64_t n);
/* dst[0..n) <- elements [from, from + n) of an array of integers; NB_FORMAT when one is outside int64 (U64). */
status fm_to_int(int64_t *dst, const fm_array *a, int64_t from, int64_t n);

/* A piece of text that need not end in NUL. */
typedef struct {
    const char *text;
    size_t bytes;
} fm_text;

/* One metadata entry: a number, a text, or an array of one of them. */
typedef struct {
    const char *key;
    fm_dtype dtype; /* numbers up to 8 bytes, BOOL, or STRING */
    bool is_array;
    int64_t n;        /* elements; 1 when not an array */
    const void *data; /* n numbers, maybe unaligned; for STRING n x fm_text, aligned */
} fm_value;
double fm_value_number(const fm_value *v, int64_t i, double otherwise);  /* otherwise: v is NULL, a text, or i outside */
int64_t fm_value_int(const fm_value *v, int64_t i, int64_t otherwise);   /* otherwise also for floats, and U64 >= 2^63 */
fm_text fm_value_text(const fm_value *v, int64_t i);                     /* {NULL, 0} when it is no text */
const char *fm_value_string(const fm_value *v); /* of a single text without NUL inside, NUL-terminated; else NULL */

/* A list of entries in file order. The put functions copy key and data; after out of memory the list stays failed and
 * a writer given it returns NB_NOMEM. A zeroed struct is a valid empty list. */
typedef struct {
    fm_value *value;
    int64_t n, capacity;
    nb_arena arena;
    bool failed;
} fm_meta;
const fm_value *fm_meta_get(const fm_meta *m, const char *key); /* NULL if absent */
void fm_meta_put(fm_meta *m, const char *key, fm_dtype t, const void *number); /* one number */
void fm_meta_put_array(fm_meta *m, const char *key, fm_dtype t, const void *data, int64_t n);
void fm_meta_put_u32(fm_meta *m, const char *key, uint32_t x);
void fm_meta_put_f32(fm_meta *m, const char *key, float x);
void fm_meta_put_bool(fm_meta *m, const char *key, bool x);
void fm_meta_put_string(fm_meta *m, const char *key, const char *text);
void fm_meta_put_strings(fm_meta *m, const char *key, const fm_text *text, int64_t n);
void fm_meta_put_value(fm_meta *m, const fm_value *v); /* an entry of another list */
void fm_meta_free(fm_meta *m);

/* What a reader gives: the arrays of a file (or of the shards in a folder), its metadata, and the mappings they lie in.
 * A zeroed struct is a valid empty one. */
typedef struct {
    fm_array *array; /* in file order */
    int64_t n;
    fm_meta meta;
    char *path;               /* what was opened, for messages */
    const fm_array **by_name; /* private: the same, sorted */
    nb_mapped *file;          /* private */
    int64_t n_files;          /* private */
    size_t meta_bytes;        /* private: of a GGUF file up to the end of its metadata */
    nb_arena names;           /* private */
} fm_arrays;
const fm_array *fm_find(const fm_arrays *a, const char *name); /* NULL if absent */
/* The array `name`, which must have exactly these dimensions; NB_FORMAT (file, name, found, wanted) otherwise. */
status fm_need(const fm_array **found, const fm_arrays *a, const char *name, int n_dim, const int64_t *dim);
void fm_forget(const fm_arrays *a, const fm_array *array); /* its values need not stay in memory: they are read again where they are looked at */
void fm_arrays_free(fm_arrays *a);

/* Where a writer gets an array's bytes from. It is called once per array, in file order, and hands over a->bytes bytes
 * in one or more calls of fm_put; so a large model never lies in memory whole. fn NULL: the bytes lie at a->data. */
typedef struct fm_sink fm_sink;
typedef struct {
    status (*fn)(void *ctx, fm_sink *sink, const fm_array *a);
    void *ctx;
} fm_source;
status fm_put(fm_sink *sink, const void *data, size_t bytes);

/* What kind of file (or folder with safetensors inside) path is, by its first bytes and, for llama2.c's legacy layout,
 * by its exact size. NB_IO when it cannot be read; FM_FILE_UNKNOWN is no error. */
typedef enum { FM_FILE_UNKNOWN, FM_FILE_SAFETENSORS, FM_FILE_LLAMA2C, FM_FILE_GGUF, FM_FILE_HDF5 } fm_file_kind;
status fm_file_kind_of(fm_file_kind *kind, const char *path);

/* ---- safetensors -------------------------------------------------------------------------- */

/* Opens a .safetensors file, or a folder: its model.safetensors, else the shards that model.safetensors.index.json
 * lists. Rules of the format (no holes, no overlap, no duplicate names, exact length) are enforced; a shard's name with
 * a path in it is refused. `meta` gets the texts of "__metadata__". Source: safetensors/README.md, src/tensor.rs. */
status fm_safetensors_open(fm_arrays *a, const char *path);
/* Writes arrays (types with a safetensors name) sorted by element size, then name; `meta` (may be NULL) must hold
 * single texts; "format":"pt" is added if absent. Equal input gives equal bytes. */
status fm_safetensors_write(const char *path, const fm_array *array, int64_t n, const fm_meta *meta, fm_source source);

/* ---- llama2.c ----------------------------------------------------------------------------- */

/* D dim, F hidden_dim, L n_layers, H n_heads, KV n_kv_heads, V vocab_size, S seq_len, hd = D / H. */
typedef struct {
    int32_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len;
    bool shared_classifier; /* no output.weight in the file: the embedding is used */
    int32_t version;        /* 0 legacy f32, 1 f32, 2 int8 */
    int32_t group_size;     /* of version 2, else 0 */
} fm_llama2c;
/* Arrays get the names of llama2.c's model.py: tok_embeddings.weight [V,D], norm.weight [D], output.weight [V,D] (when
 * not shared), layers.N.{attention_norm,ffn_norm}.weight [D], layers.N.attention.{wq [D,D], wk, wv [KV*hd,D], wo [D,D]}
 * .weight, layers.N.feed_forward.{w1 gate [F,D], w2 down [D,F], w3 up [F,D]}.weight. In version 2 a matrix is its I8
 * codes, and NAME.scales F32 [n / group_size] follows: groups run over the flattened matrix and may straddle rows.
 * Rows of wq and wk are in interleaved (Meta's) order. The file must have exactly the length that its header says;
 * version 0 with its two rotation tables (as llama2.c writes it; they are skipped). Source: llama2.c export.py, run.c,
 * runq.c. */
status fm_llama2c_open(fm_arrays *a, fm_llama2c *header, const char *path);
/* Writes version 1 or 2; source.fn is asked for each array above by name, in the file's order. */
status fm_llama2c_write(const char *path, const fm_llama2c *header, fm_source source);

/* ---- GGUF --------------------------------------------------------------------------------- */

/* Reads versions 2 and 3. Texts of metadata that are single are NUL-terminated copies; texts in arrays and all numbers
 * lie in the mapping. Source: ggml/include/gguf.h, ggml/src/gguf.cpp, docs/gguf.md. */
status fm_gguf_open(fm_arrays *a, const char *path);
/* The same of a file in memory, which must outlive a; name is for messages. */
status fm_gguf_parse(fm_arrays *a, const void *data, size_t bytes, const char *name);
/* The metadata of an opened file, byte for byte, as a GGUF file without arrays; the caller frees *data. */
status fm_gguf_metadata(uint8_t **data, size_t *bytes, const fm_arrays *a);
/* Writes version 3: metadata and arrays in the order given; alignment is that of general.alignment in meta, else 32.
 * Names of at most 63 bytes, unique; types with a ggml number. */
status fm_gguf_write(const char *path, const fm_array *array, int64_t n, const fm_meta *meta, fm_source source);

/* Bit layout of ggml's blocks, n_blocks of them. codes [n_blocks * fm_dtype_block(t)]: Q8_0 -128..127; Q4_0, Q4_K -8..7;
 * Q4_1 0..15; Q5_0 -16..15; Q6_K -32..31; TQ2_0 -1..1. scales, mins [n_blocks]: binary16 bits, mins only for Q4_1 (else NULL); parts
 * (Q4_K 8 a block, 0..63; Q6_K 16; else NULL): what d is multiplied with. Values: d*q; Q4_1: d*q + m; Q4_K, Q6_K: d*part*q. Nothing is
 * rounded here. NB_UNSUPPORTED for other types, NB_USAGE for a code outside its range. Source: ggml/src/ggml-common.h, ggml-quants.c. */
status fm_blocks_pack(void *dst, fm_dtype t, const int8_t *codes, const uint16_t *scales, const uint16_t *mins,
                      const int8_t *parts, int64_t n_blocks);

/* ---- bit packing -------------------------------------------------------------------------- */

/* A row of n codes 0..2^bits-1 (bits 1..8) as a little-endian bit stream: code i takes bits [i*bits, (i+1)*bits), bit b
 * is bit b%8 of byte b/8; spare bits of the last byte are 0. Each row starts at a byte: fm_packed_bytes(n, bits) apart.
 * High bits of a code outside the range are dropped. */
size_t fm_packed_bytes(int64_t n, int bits);
void fm_pack_bits(uint8_t *dst, const uint8_t *codes, int64_t n, int bits);
void fm_unpack_bits(uint8_t *codes, const uint8_t *src, int64_t n, int bits);

/* ---- HDF5 --------------------------------------------------------------------------------- */

/* Our HDF5 files begin with a user block of 512 bytes, all little-endian:
 *   0  8 bytes magic "nibble\r\n"    8  u32 layout 1    12  u32 0    16  24 bytes kind, NUL-padded
 *   40 u64 bytes of the rest         48 u32 CRC-32C of the rest      52  u32 CRC-32C of bytes 0..51, then zeros
 * A reader verifies it before HDF5 sees the file. Datasets hold numbers (I8 ... U64, F16, BF16, F32, F64; BOOL is
 * written as U8), contiguous or in chunks; groups come from '/' in names. Links other than hard ones, external storage,
 * virtual datasets, filters, variable-length and compound types are refused. The CRC finds damage, not malice: libhdf5 is not safe on files forged with care.
 * Equal content, written in equal order, gives equal bytes. Not for use by several threads at once. */
enum { FM_H5_MAX_STRING = 60000 }; /* bytes of an attribute; longer texts are datasets of U8 */
typedef struct {
    fm_arrays arrays; /* when reading: all datasets, sorted by name, without a leading '/'; those stored in one piece lie
                         at data, those in chunks have data NULL and are got by fm_h5_read */
    char kind[24];
    int64_t id;       /* private, as all below: HDF5's number of the open file, 0 = none */
    void *medium;     /* what HDF5 reads from or writes to */
    nb_atomic target; /* writing */
    status failed;    /* writing: the first failure, which makes the commit fail */
} fm_h5;

/* Starts a file of a kind (at most 23 bytes: "checkpoint", "folded", "tokens") that takes path's place at commit. */
status fm_h5_create(fm_h5 *f, const char *path, const char *kind);
/* A whole dataset; name may hold '/'. data NULL is legal when it has no elements. */
status fm_h5_write(fm_h5 *f, const char *name, fm_dtype t, int n_dim, const int64_t *dim, const void *data);
/* An empty dataset [0, row_dim...] that grows by fm_h5_append; chunk_rows rows are stored together. */
status fm_h5_stream(fm_h5 *f, const char *name, fm_dtype t, int n_row_dim, const int64_t *row_dim, int64_t chunk_rows);
status fm_h5_append(fm_h5 *f, const char *name, const void *data, int64_t rows);
/* Attributes of an existing dataset or group; object "" is the file itself. */
status fm_h5_put_string(fm_h5 *f, const char *object, const char *key, const char *text);
status fm_h5_put_int(fm_h5 *f, const char *object, const char *key, int64_t x);
status fm_h5_put_number(fm_h5 *f, const char *object, const char *key, double x);
status fm_h5_put_ints(fm_h5 *f, const char *object, const char *key, const int64_t *x, int64_t n);
status fm_h5_put_numbers(fm_h5 *f, const char *object, const char *key, const double *x, int64_t n);
/* Closes, seals the user block, flushes to disk, renames over path. On failure path holds what it held. */
status fm_h5_commit(fm_h5 *f);

/* Opens and verifies; kind NULL takes any. */
status fm_h5_open(fm_h5 *f, const char *path, const char *kind);
const fm_array *fm_h5_find(const fm_h5 *f, const char *name); /* a dataset; NULL if absent */
/* dst <- rows [from, from + rows) of a dataset (all of a scalar: 0, 1), as dtype t: the stored one, or F32 (by
 * fm_to_float), or I64 or I32 from integers (NB_FORMAT when one does not fit). NB_SHAPE outside the dataset. */
status fm_h5_read(fm_h5 *f, const char *name, fm_dtype t, void *dst, int64_t from, int64_t rows);
/* fm_h5_read of a whole dataset that must have these dimensions (NB_FORMAT: found, wanted). */
status fm_h5_read_all(fm_h5 *f, const char *name, fm_dtype t, void *dst, int n_dim, const int64_t *dim);
/* Elements of an attribute (bytes of a text); -1 when there is none. */
int64_t fm_h5_attribute_count(fm_h5 *f, const char *object, const char *key);
status fm_h5_get_string(fm_h5 *f, const char *object, const char *key, const char **text); /* f owns the copy */
status fm_h5_get_int(fm_h5 *f, const char *object, const char *key, int64_t *x);
status fm_h5_get_number(fm_h5 *f, const char *object, const char *key, double *x);
status fm_h5_get_ints(fm_h5 *f, const char *object, const char *key, int64_t *x, int64_t n); /* exactly n */
status fm_h5_get_numbers(fm_h5 *f, const char *object, const char *key, double *x, int64_t n);
/* Closes a file opened; gives up one being created. Accepts a zeroed struct, and any state after a failure. */
void fm_h5_close(fm_h5 *f);

/* ---- tokenizers, texts and token files ---- */

/* A tokenizer turns text into ids and back. Ids mean the same however the tokenizer was stored: the llama2.c form and
 * the SentencePiece form of one vocabulary have the same pieces and the same hash. */
typedef enum {
    FM_TOKENIZER_NONE,
    FM_TOKENIZER_SPM,   /* SentencePiece BPE: scored pieces, byte fallback */
    FM_TOKENIZER_BYTES, /* built in: id = byte, then BOS 256 and EOS 257 */
    FM_TOKENIZER_BPE    /* ranked merges: byte-level (GPT-2, SmolLM, Qwen2, Llama-3), or of characters with byte fallback */
} fm_tokenizer_kind;

typedef enum { /* values of sentencepiece_model.proto and of GGUF's tokenizer.ggml.token_type */
    FM_PIECE_NORMAL = 1,
    FM_PIECE_UNKNOWN,
    FM_PIECE_CONTROL,
    FM_PIECE_USER_DEFINED,
    FM_PIECE_UNUSED,
    FM_PIECE_BYTE
} fm_piece_type;

typedef struct fm_vocab fm_vocab;
typedef struct { /* a zeroed struct is a valid empty tokenizer */
    fm_tokenizer_kind kind;
    int64_t vocab_size;
    int32_t bos, eos, unknown, pad; /* ids; -1: there is none */
    bool add_bos;                   /* texts begin with BOS: what FM_ADD_BOS follows */
    bool add_space_prefix;          /* "Hi" is encoded as " Hi", and decoding drops that space again */
    bool remove_extra_spaces;       /* leading, trailing and repeated spaces are dropped before encoding */
    bool byte_fallback;             /* all 256 bytes have pieces: decode(encode(text)) loses nothing but normalization */
    uint64_t hash;                  /* of pieces, scores, types, merges, special ids: equal hashes, equal meaning of ids */
    fm_vocab *vocab;                /* private */
} fm_tokenizer;

/* Opens a llama2.c tokenizer.bin, a SentencePiece .model (BPE), a GGUF file's tokenizer, a Hugging Face tokenizer.json,
 * GPT-2's vocab.json with the merges.txt beside it (NAMEvocab.json: NAMEmerges.txt), or the serialized form of
 * fm_tokenizer_to_bytes; which one is seen from the contents. A folder means its tokenizer.model, else tokenizer.json,
 * else vocab.json; a tokenizer_config.json there gives special tokens and the chat template. The name "bytes" means
 * the built-in tokenizer. vocab_size: what the model has, 0 if unknown; another size is refused. llama2.c's form does
 * not hold the settings of normalization: run.c's are taken (space prefix, nothing removed).
 * NB_FORMAT: damaged, duplicate or empty pieces, scores that are not finite, neither an unknown piece nor all bytes,
 * merges of what is not in the vocabulary. NB_UNSUPPORTED: UNIGRAM, WORD and CHAR models, WordPiece, normalization
 * other than NFC, pre-tokenizers not known. */
status fm_tokenizer_open(fm_tokenizer *tk, const char *path, int64_t vocab_size);
status fm_tokenizer_byte(fm_tokenizer *tk); /* the built-in one, 258 ids; NB_NOMEM only */
/* The serialized form, self-describing, for files that carry their tokenizer (docs: "tokenizer bytes"). to_bytes: the
 * caller frees *data. */
status fm_tokenizer_to_bytes(const fm_tokenizer *tk, uint8_t **data, size_t *bytes);
status fm_tokenizer_from_bytes(fm_tokenizer *tk, const uint8_t *data, size_t bytes);
void fm_tokenizer_free(fm_tokenizer *tk);
const char *fm_tokenizer_kind_name(const fm_tokenizer *tk); /* "SentencePiece BPE", "byte-level BPE", "bytes", "none" */
/* From the keys tokenizer.* of GGUF metadata, as llama.cpp reads them: model "llama" (SentencePiece) or "gpt2"
 * (byte-level BPE; tokenizer.ggml.pre names the pre-tokenizer). Model "none" or no key gives FM_TOKENIZER_NONE. Like
 * there, nothing is normalized and a byte without a letter is left out; an empty piece N reads [EMPTY_N], and control
 * pieces are those of type control and those with the usual names (<|im_end|>, </s>, ...). */
status fm_tokenizer_from_meta(fm_tokenizer *tk, const fm_meta *meta);
/* Appends these keys, in the types that llama.cpp insists on; ids from tk->vocab_size up to vocab become [PADn].
 * NB_UNSUPPORTED when the pre-tokenizer has no name in GGUF. Source: llama.cpp src/llama-vocab.cpp. */
status fm_tokenizer_put_meta(fm_meta *meta, const fm_tokenizer *tk, int64_t vocab);
/* Writes a Hugging Face folder's files of a tokenizer: tokenizer.model (SentencePiece) or tokenizer.json (BPE; the built-in
 * bytes as BPE without merges), and tokenizer_config.json with special tokens and chat template. fm_tokenizer_open of the
 * folder gives the same ids. NB_UNSUPPORTED for what tokenizer.json cannot say. */
status fm_tokenizer_write_folder(const fm_tokenizer *tk, const char *folder);

/* A piece as its vocabulary spells it: SentencePiece's has U+2581 for a space and <0xHH> for a byte, byte-level BPE
 * GPT-2's letters for bytes (U+0120 for a space). text.text is NULL for an id outside the vocabulary. */
typedef struct {
    fm_text text;
    float score;
    fm_piece_type type;
} fm_piece;
fm_piece fm_tokenizer_piece(const fm_tokenizer *tk, int32_t id);
int32_t fm_tokenizer_find(const fm_tokenizer *tk, const char *text, size_t bytes); /* id of a piece, -1 if none */
/* Whether generation ends with this id: EOS, or a control piece with the name of an end of turn, text or file
 * (<|im_end|>, <|eot_id|>, <|endoftext|>, ...), as in llama.cpp. */
bool fm_tokenizer_ends(const fm_tokenizer *tk, int32_t id);

typedef struct { /* a growing list of ids; zeroed = empty */
    int32_t *id;
    int64_t n, capacity;
} fm_ids;
status fm_ids_reserve(fm_ids *ids, int64_t more); /* room for `more` ids after the n there are */
void fm_ids_free(fm_ids *ids);

/* Appends the ids of text. SentencePiece's BPE: of all adjacent pairs whose concatenation is a piece, the one with the
 * highest score is merged first (leftmost among equals), until none is left; characters without a piece become their
 * bytes, or the unknown id. O(n log n). Bytes that are not UTF-8 are taken one by one. Empty text has no ids.
 * BPE: first the text is cut at added (user-defined) pieces, leftmost, then longest; what lies between is normalized and
 * cut into words; in each word the adjacent pair with the lowest rank is merged, again and again.
 * FM_ADD_BOS: begins with BOS if texts of this tokenizer do (add_bos). FM_ADD_EOS: ends with EOS if there is one.
 * FM_PARSE_SPECIAL: the text is cut at control pieces too ("<|im_start|>"); for prompts, not for text of others. */
enum { FM_ADD_BOS = 1, FM_ADD_EOS = 2, FM_PARSE_SPECIAL = 4 };
status fm_tokenizer_encode(const fm_tokenizer *tk, fm_ids *ids, const char *text, size_t bytes, unsigned flags);

/* The text of one id, valid as long as tk: U+2581 as a space, bytes raw, control pieces empty (fm_tokenizer_piece has
 * their names), the unknown piece as " U+2047 ". Right after BOS, or at the start (previous < 0), the prefixed space is dropped, as llama2.c does. An id
 * outside the vocabulary has 0 bytes. */
fm_text fm_tokenizer_decode(const fm_tokenizer *tk, int32_t previous, int32_t id);

/* Decodes id after id into whole UTF-8 characters: a character whose bytes are spread over ids is held back until it is
 * complete; a byte that cannot be part of one becomes U+FFFD, so the output is valid UTF-8 always. Zeroed = at the
 * start of a text. The text returned is NUL-terminated and valid until the next call. fm_stream_flush ends the text:
 * what was held back becomes U+FFFD; the stream is at the start again. */
enum { FM_PIECE_BYTES = 4096 }; /* a longer piece is refused by every reader */
typedef struct {
    char text[(FM_PIECE_BYTES + 4) * 3 + 1];
    uint8_t held[4];
    int n_held;
    int32_t previous;  /* id + 1; 0: none */
    bool show_control; /* set by the caller: control pieces come out by name ("<|im_end|>") */
} fm_stream;
fm_text fm_stream_put(fm_stream *s, const fm_tokenizer *tk, int32_t id);
fm_text fm_stream_flush(fm_stream *s);

/* A conversation as the text its model was trained on, by the chat template that came with the tokenizer (a Jinja
 * program). Templates are recognized by what stands in them, not run: ChatML (SmolLM2, Qwen2; with its default system
 * message), Llama-2, Llama-3, Zephyr (TinyLlama), Phi-3. *text is NUL-terminated, the caller frees it; it has no BOS in
 * front where FM_ADD_BOS adds one, and is to be encoded with FM_ADD_BOS | FM_PARSE_SPECIAL. add_generation_prompt: ends
 * with what an answer of the assistant begins with. NB_USAGE: other roles than system (first only), user, assistant; no
 * template; NB_UNSUPPORTED: a template that is not recognized. Source: llama.cpp src/llama-chat.cpp; the templates. */
typedef struct {
    const char *role, *content;
} fm_chat_message;
status fm_chat_render(const fm_tokenizer *tk, const fm_chat_message *messages, int64_t n, bool add_generation_prompt,
                      char **text);
const char *fm_chat_template(const fm_tokenizer *tk); /* the program; NULL: none */

/* Where documents end in a text. none: the whole text is one; line: each line that is not blank is one; blank: blank
 * lines separate them. A line is blank if it holds spaces, tabs and carriage returns only. The newline (\n or \r\n)
 * after a line or after the last line of a document is not part of it. A byte order mark at the start is skipped. */
typedef enum { FM_SPLIT_NONE, FM_SPLIT_LINE, FM_SPLIT_BLANK } fm_split;
status fm_split_parse(fm_split *split, const char *name); /* "none", "line", "blank"; NB_USAGE */
const char *fm_split_name(fm_split split);

/* Documents of a text file one after the other. A file is mapped; a .gz (seen from its first bytes) is inflated as it
 * is read, and only the current document is in memory. */
typedef struct fm_documents fm_documents;
status fm_documents_open(fm_documents **d, const char *path, fm_split split);
/* The next document, valid until the next call; document->text is NULL after the last. NB_FORMAT: damaged or cut-off
 * .gz. */
status fm_documents_next(fm_documents *d, fm_text *document);
void fm_documents_close(fm_documents *d); /* NULL is fine */

/* A token file is an HDF5 file of kind "tokens": /ids [n] U16 (U32 where vocab_size > 65536); /documents [n_documents]
 * I64, the offset at which each document begins, ascending from 0; /tokenizer [bytes] U8, absent if there is none;
 * attributes of the file: format_version 1, vocab_size, row_length, seed, settings, tokenizer_hash (16 hex digits). */
typedef struct {
    int64_t vocab_size;
    int64_t row_length;            /* tokens in a row of the generator (ctx); 0: no rows */
    int64_t seed;
    const char *settings;          /* a JSON object: all that decides what the ids are; NULL: {} */
    const fm_tokenizer *tokenizer; /* NULL: none */
} fm_tokens_settings;

/* Ids with document boundaries, from a token file (a slice at a time, never loaded whole) or from a text (tokenized at
 * opening, 2 or 4 bytes a token in memory). A zeroed struct is a valid empty one. */
typedef struct {
    char *path;
    int64_t n, n_documents;
    int64_t vocab_size, row_length, seed;
    const char *settings;   /* "{}" for a text */
    fm_tokenizer tokenizer; /* kind FM_TOKENIZER_NONE if the file has none */
    bool from_text;
    fm_h5 file;             /* private, as all below */
    uint16_t *id16;
    uint32_t *id32;
    int64_t *start;
} fm_tokens;
/* Opens a token file, or tokenizes a text: each document is BOS (if the tokenizer has one) and its ids. tk may be NULL
 * for a token file; otherwise its hash must be that of the file's tokenizer (NB_USAGE). A text needs tk (NB_USAGE);
 * split is for texts only. */
status fm_tokens_open(fm_tokens *t, const char *path, const fm_tokenizer *tk, fm_split split);
/* ids [n] <- tokens from .. from+n-1; NB_SHAPE outside 0..t->n, NB_FORMAT for an id outside the vocabulary. */
status fm_tokens_read(fm_tokens *t, int32_t *ids, int64_t from, int64_t n);
/* start [n] <- where documents from .. from+n-1 begin; document n_documents is the end, t->n. So the tokens of document
 * i are those between two neighbours of fm_tokens_documents(t, start, i, 2). NB_SHAPE outside 0..n_documents. */
status fm_tokens_documents(fm_tokens *t, int64_t *start, int64_t from, int64_t n);
void fm_tokens_close(fm_tokens *t);

/* Writes a token file batch by batch. Until it is finished the batches stand in path + ".part", each with its CRC-32C,
 * so whatever kills the program, at most the batch being written is lost. Its layout is told in tokens_part.h. */
typedef struct fm_part fm_part;
typedef struct { /* a zeroed struct is a valid closed one */
    int64_t n_batches, n_tokens, n_documents; /* that are safe in the file */
    fm_part *part;               /* private */
} fm_tokens_writer;
/* Starts path.part, or goes on with the one that is there, cut back to its last whole batch: n_batches tells where to
 * go on. If it was begun with other settings: NB_USAGE naming the first difference. restart: what is there is discarded.
 * Another process writing it: NB_USAGE. */
status fm_tokens_writer_open(fm_tokens_writer *w, const char *path, const fm_tokens_settings *settings, bool restart);
/* Appends one batch: ids [n], and where documents begin in it, start [n_starts] ascending within 0..n-1. start NULL: at
 * each BOS and at each multiple of row_length. The file's first document begins at 0. NB_USAGE for ids outside the
 * vocabulary; NB_IO (disk full) leaves the batches before. */
status fm_tokens_writer_append(fm_tokens_writer *w, const int32_t *ids, int64_t n, const int64_t *start,
                               int64_t n_starts);
/* Writes the token file from the batches (constant memory), puts it at path and removes the .part. */
status fm_tokens_writer_finish(fm_tokens_writer *w);
void fm_tokens_writer_close(fm_tokens_writer *w); /* leaves the .part for the next time; accepts a zeroed struct */

/* ---- pictures with labels ---- */

typedef struct { /* a zeroed struct is a valid empty one */
    int64_t n, height, width, classes; /* classes: the largest label + 1 */
    uint8_t *pixel, *label;            /* [n, height, width], [n] */
    bool mirrors;                      /* left and right mean nothing: clothes (Fashion-MNIST), not digits */
} fm_pictures;
/* source: "mnist:FOLDER", "fashion:FOLDER", "fashion" (Debian's dataset-fashion-mnist) or a folder, of IDX files, plain or .gz; the 60,000 to train on or
 * the 10,000 to test with. NB_FORMAT: damaged, cut off, or pictures and labels differ in number. */
status fm_pictures_open(fm_pictures *p, const char *source, bool train);
void fm_pictures_free(fm_pictures *p);

/* ---- ONNX, written only ---- */

typedef struct { uint8_t *data; size_t bytes, room; bool failed; } fm_message; /* a protobuf message that grows; failed: out of memory */
typedef enum { FM_ONNX_FLOAT = 1, FM_ONNX_UINT8 = 2, FM_ONNX_INT8 = 3, FM_ONNX_INT32 = 6, FM_ONNX_INT64 = 7, FM_ONNX_UINT4 = 21, FM_ONNX_INT4 = 22 } fm_onnx_type;
typedef struct { const char *name; int n; int64_t value[4]; } fm_onnx_attribute; /* n numbers of a list, 0: one; name NULL ends them */
typedef struct { fm_message nodes, tensors; } fm_onnx; /* zeroed: an empty graph; what fails is told by fm_onnx_write */
/* A constant; data as ONNX's raw_data has it. */
void fm_onnx_tensor(fm_onnx *g, const char *name, fm_onnx_type type, int n_dim, const int64_t *dim, const void *data, size_t bytes);
/* out = op(in...), in the order of computation; a: list of integers, NULL: none. */
void fm_onnx_node(fm_onnx *g, const char *op, const char *const *in, int n_in, const char *out, const fm_onnx_attribute *a);
/* The file, of opset 21, with one float input [batch, in...] and one float output [batch, out...]. */
status fm_onnx_write(fm_onnx *g, const char *path, const char *input, int n_in, const int64_t *in, const char *output, int n_out, const int64_t *out);
void fm_onnx_free(fm_onnx *g);

#endif
