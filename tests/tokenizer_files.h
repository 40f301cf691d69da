/* tokenizer_files.h - for tests: opening tokenizers, and building their files byte by byte. */
#ifndef NIBBLE_TESTS_TOKENIZER_FILES_H
#define NIBBLE_TESTS_TOKENIZER_FILES_H
#include "io/io.h"
#include "scratch.h"
#include <check.h>

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
#define DATA     "../shared/data/"
#define TOK512   DATA "stories260k/tok512"
#define LLAMA    DATA "tokenizers/tokenizer"
#define VOCAB    DATA "tokenizers/ggml-vocab-"

static inline bool have(const char *path)
{
    if (nb_path_exists(path))
        return true;
    printf("skipped: no %s\n", path);
    return false;
}

static inline void must(status s)
{
    ck_assert_msg(s == NB_OK, "%s: %s", nb_status_name(s), nb_fail_message());
}

static inline fm_tokenizer opened(const char *path)
{
    fm_tokenizer tk;
    must(fm_tokenizer_open(&tk, path, 0));
    return tk;
}

/* The same tokenizer out of the Hugging Face folder it was written to. */
static inline fm_tokenizer through_folder(const fm_tokenizer *tk)
{
    const char *folder = scratch_path("written");
    scratch_remove(folder);
    must(nb_make_folder(folder));
    must(fm_tokenizer_write_folder(tk, folder));
    return opened(folder);
}

typedef struct {
    uint8_t byte[1 << 16];
    size_t n;
} file;

static inline void put(file *f, const void *data, size_t bytes)
{
    ck_assert_uint_le(bytes, sizeof f->byte - f->n);
    memcpy(f->byte + f->n, data, bytes);
    f->n += bytes;
}

static inline void put_number(file *f, uint64_t x, int bytes)
{
    for (int i = 0; i < bytes; i++, x >>= 8)
        put(f, &(uint8_t){(uint8_t)x}, 1);
}

static inline void put_varint(file *f, uint64_t x)
{
    for (; x > 127; x >>= 7)
        put(f, &(uint8_t){(uint8_t)(x | 128)}, 1);
    put(f, &(uint8_t){(uint8_t)x}, 1);
}

static inline void put_message(file *f, int field, const void *data, size_t bytes)
{
    put_varint(f, (uint64_t)field << 3 | 2);
    put_varint(f, bytes);
    put(f, data, bytes);
}

static inline uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline void put_bin_piece(file *f, const char *text, float score)
{
    put_number(f, float_bits(score), 4);
    put_number(f, strlen(text), 4);
    put(f, text, strlen(text));
}

static inline void put_model_piece(file *f, const char *text, float score, int type)
{
    static file piece;
    piece.n = 0;
    put_message(&piece, 1, text, strlen(text));
    put_varint(&piece, 2 << 3 | 5);
    put_number(&piece, float_bits(score), 4);
    put_varint(&piece, 3 << 3 | 0);
    put_varint(&piece, (uint64_t)type);
    put_message(f, 1, piece.byte, piece.n);
}

/* Pieces every one of our vocabularies begins with: <unk>, BOS, EOS, and the bytes. */
static inline void begin_bin(file *f)
{
    f->n = 0;
    put_number(f, 27, 4);
    put_bin_piece(f, "<unk>", 0);
    put_bin_piece(f, "\n<s>\n", 0);
    put_bin_piece(f, "\n</s>\n", 0);
    for (int i = 0; i < 256; i++) {
        char text[8];
        (void)snprintf(text, sizeof text, "<0x%02X>", (unsigned)i & 255);
        put_bin_piece(f, text, 0);
    }
}

static inline fm_ids encoded(const fm_tokenizer *tk, const char *text, size_t bytes)
{
    fm_ids ids = {0};
    must(fm_tokenizer_encode(tk, &ids, text, bytes, 0));
    return ids;
}

static inline void check_ids(const fm_tokenizer *tk, const char *text, size_t bytes, const char *wanted)
{
    fm_ids ids = encoded(tk, text, bytes);
    char *found = nb_alloc((size_t)ids.n * 12 + 1, 1);
    size_t n = 0;
    found[0] = 0;
    for (int64_t i = 0; i < ids.n; i++)
        n += (size_t)sprintf(found + n, "%s%d", i ? " " : "", (int)ids.id[i]);
    ck_assert_msg(strcmp(found, wanted) == 0, "'%.*s': %s, wanted %s", (int)bytes, text, found, wanted);
    free(found);
    fm_ids_free(&ids);
}

static inline const char *find_text(const char *text, const char *end, const char *wanted)
{
    size_t bytes = strlen(wanted);
    for (; (size_t)(end - text) >= bytes; text++)
        if (memcmp(text, wanted, bytes) == 0)
            return text;
    return NULL;
}

/* The 47 texts of llama.cpp's path.inp have the ids in path.out. */
static inline void check_vectors(const fm_tokenizer *tk, const char *path)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char inp[2048], output[2048];
    (void)snprintf(inp, sizeof inp, "%s.inp", path);
    (void)snprintf(output, sizeof output, "%s.out", path);
    nb_mapped in, out;
    must(nb_map(&in, inp));
    must(nb_map(&out, output));
    const char *text = (const char *)in.data, *line = (const char *)out.data;
    const char *text_end = text + in.bytes, *line_end = line + out.bytes;
    int n = 0;
    for (const char *next = text; next; n++) { /* the 47th text is empty, and its line of ids is missing */
        next = find_text(text, text_end, separator);
        size_t bytes = (size_t)((next ? next : text_end) - text);
        const char *newline = line < line_end ? memchr(line, '\n', (size_t)(line_end - line)) : NULL;
        char wanted[4096];
        int length = (int)((newline ? newline : line_end) - line);
        (void)snprintf(wanted, sizeof wanted, "%.*s", length > 0 ? length - 1 : 0, length > 0 ? line + 1 : "");
        check_ids(tk, text, bytes, wanted);
        text = next ? next + sizeof separator - 1 : text_end;
        line = newline ? newline + 1 : line_end;
    }
    ck_assert_int_eq(n, 47);
    nb_unmap(&in);
    nb_unmap(&out);
}

#endif
