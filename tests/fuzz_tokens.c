/* fuzz_tokens.c - mutated tokenizers, texts, token files and growing token files against their readers; usage in
 * fuzz.h. "tokens_growing" repairs the checksums of header and batches; "tokens_forged" mutates what the HDF5 file of a
 * token file holds before it is written, so that HDF5 itself is sound.
 */
#include "fuzz.h"
#include "io/io.h"
#include <zlib.h>

#define DATA "../shared/data/"

static uint64_t sink; /* keeps the reads alive */

static void touch(const void *data, size_t bytes)
{
    sink = nb_hash(sink, data, bytes);
}

static bool store(const char *path, const void *data, size_t bytes)
{
    FILE *f = fopen(path, "wb");
    bool done = f && fwrite(data, 1, bytes, f) == bytes;
    return f && fclose(f) == 0 && done;
}

static bool copy_file(const char *path, const char *from)
{
    nb_mapped m;
    if (!nb_path_exists(from) || nb_map(&m, from) != NB_OK)
        return false;
    bool done = store(path, m.data, m.bytes);
    nb_unmap(&m);
    return done;
}

/* ---- tokenizers ---- */

static void touch_chat_and_metadata(const fm_tokenizer *tk)
{
    static const fm_chat_message hello = {"user", "hello"};
    fm_meta meta = {0};
    char *text;
    if (fm_chat_render(tk, &hello, 1, true, &text) == NB_OK)
        touch(text, strlen(text));
    free(text);
    (void)fm_tokenizer_put_meta(&meta, tk, tk->vocab_size + 3);
    fm_meta_free(&meta);
}

/* Every piece, a text there and back, all through a stream. */
static status read_tokenizer(const char *path)
{
    static const char text[] = "Once upon a  time\n\xE6\x97\xA5\xF0\x9F\x99\x82\xFF <s> \xE2\x96\x81 1234";
    static fm_stream stream;
    fm_tokenizer tk;
    TRY(fm_tokenizer_open(&tk, path, 0));
    for (int32_t i = -1; i <= tk.vocab_size; i++) {
        fm_piece p = fm_tokenizer_piece(&tk, i);
        touch(p.text.text, p.text.bytes);
        if (p.text.text && fm_tokenizer_find(&tk, p.text.text, p.text.bytes) != i)
            abort();
        fm_text t = fm_stream_put(&stream, &tk, i);
        touch(t.text, t.bytes);
    }
    (void)fm_stream_flush(&stream);
    fm_ids ids = {0};
    const unsigned flags = FM_ADD_BOS | FM_ADD_EOS;
    status s = fm_tokenizer_encode(&tk, &ids, text, sizeof text - 1, flags);
    if (s == NB_OK)
        s = fm_tokenizer_encode(&tk, &ids, text, sizeof text - 1, flags | FM_PARSE_SPECIAL);
    for (int64_t i = 0; i < ids.n; i++)
        if (ids.id[i] < 0 || ids.id[i] >= tk.vocab_size)
            abort();
    fm_ids_free(&ids);
    uint8_t *data;
    size_t bytes;
    if (s == NB_OK && (s = fm_tokenizer_to_bytes(&tk, &data, &bytes)) == NB_OK) {
        fm_tokenizer again;
        if (fm_tokenizer_from_bytes(&again, data, bytes) != NB_OK || again.hash != tk.hash)
            abort();
        fm_tokenizer_free(&again);
        free(data);
        touch_chat_and_metadata(&tk);
    }
    fm_tokenizer_free(&tk);
    return s;
}

/* A small .bin: 3 special pieces and 40 letters. */
static bool seed_bin(int k, const char *path)
{
    if (k > 0)
        return k == 1 && copy_file(path, DATA "stories260k/tok512.bin");
    uint8_t out[1024] = {7};
    size_t n = 4;
    for (int i = 0; i < 43; i++) {
        static const char *const special[] = {"<unk>", "\n<s>\n", "\n</s>\n"};
        char text[8] = {' ', (char)('A' + i), 0};
        const char *p = i < 3 ? special[i] : i % 2 ? text : text + 1;
        const float score = -(float)i;
        memcpy(out + n, &score, 4);
        out[n + 4] = (uint8_t)strlen(p);
        memcpy(out + n + 8, p, strlen(p));
        n += 8 + strlen(p);
    }
    return store(path, out, n);
}

static bool seed_model(int k, const char *path)
{
    static const char small[] = "\x0A\x0E\x0A\x05<unk>\x15\0\0\0\0\x18\x02\x0A\x0C\x0A\x03<s>\x15\0\0\0\0\x18\x03"
                                "\x0A\x08\x0A\x01"
                                "a\x15\0\0\x80\xBF\x0A\x0A\x0A\x03\xE2\x96\x81\x15\0\0\0\xC0\x12\x02\x18\x02";
    if (k == 0)
        return store(path, small, sizeof small - 1);
    return k == 1 && copy_file(path, DATA "stories260k/tok512.model");
}

static bool seed_serialized(int k, const char *path)
{
    fm_tokenizer tk;
    const char *const from[] = {"bytes", DATA "stories260k/tok512.bin"};
    if (k > 1 || (k == 1 && !nb_path_exists(from[k])) || fm_tokenizer_open(&tk, from[k], 0) != NB_OK)
        return false;
    uint8_t *data;
    size_t bytes;
    bool done = fm_tokenizer_to_bytes(&tk, &data, &bytes) == NB_OK && store(path, data, bytes);
    free(data);
    fm_tokenizer_free(&tk);
    return done;
}

/* Byte-level, and not; with every stage that there is. */
static bool seed_json(int k, const char *path)
{
    static const char *const texts[] = {
        "{\"added_tokens\":[{\"id\":6,\"content\":\"<s>\",\"special\":true,\"rstrip\":true},{\"id\":9,\"content\":"
        "\"1\","
        "\"normalized\":true,\"single_word\":true,\"lstrip\":true}],\"normalizer\":{\"type\":\"NFC\"},\"pre_"
        "tokenizer\":{"
        "\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_digits\":true},{\"type\":\"Split\","
        "\"pattern\":{\"Regex\":\" "
        "?\\\\p{L}+|\\\\s+(?!\\\\S)\"},\"behavior\":\"MergedWithNext\",\"invert\":true},{\"type\":"
        "\"ByteLevel\",\"add_prefix_space\":false}]},\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
        "\"SpecialToken\":{\"id\":\"<s>\"}}]},\"model\":{\"type\":\"BPE\",\"unk_token\":\"n\",\"ignore_merges\":true,"
        "\"vocab\":{"
        "\"n\":0,\"c\":1,\"e\":2,\"ce\":3,\"O\":4,\"nce\":5},\"merges\":[\"c e\",[\"n\",\"ce\"]]}}",
        "{\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\xE2\x96\x81\"},{"
        "\"type\":"
        "\"Replace\",\"pattern\":{\"String\":\" "
        "\"},\"content\":\"\xE2\x96\x81\"}]},\"pre_tokenizer\":{\"type\":\"Metaspace\","
        "\"replacement\":\"\xE2\x96\x81\",\"prepend_scheme\":\"first\",\"split\":false},\"model\":{\"byte_fallback\":"
        "true,"
        "\"unk_token\":\"u\",\"vocab\":{\"u\":0,\"\xE2\x96\x81\":1,\"a\":2,\"\xE2\x96\x81"
        "a\":3,\"<0x41>\":4},\"merges\":[\"\xE2\x96\x81 a\"]}}"};
    return k < 2 && store(path, texts[k], strlen(texts[k]));
}

/* The built-in tokenizer, which in GGUF is a byte-level BPE. */
static bool seed_bytes_gguf(const char *path)
{
    fm_tokenizer tk;
    fm_meta meta = {0};
    if (fm_tokenizer_byte(&tk) != NB_OK)
        return false;
    bool done = fm_tokenizer_put_meta(&meta, &tk, tk.vocab_size) == NB_OK &&
                fm_gguf_write(path, NULL, 0, &meta, (fm_source){0}) == NB_OK;
    fm_meta_free(&meta);
    fm_tokenizer_free(&tk);
    return done;
}

/* The seeds of JSON as GGUF metadata (byte-level), and as our own form. */
static bool seed_converted(int k, const char *path, bool as_gguf)
{
    fm_tokenizer tk;
    fm_meta meta = {0};
    uint8_t *data = NULL;
    size_t bytes = 0;
    if (!seed_json(k, path) || fm_tokenizer_open(&tk, path, 0) != NB_OK)
        return false;
    bool done;
    if (as_gguf) {
        fm_meta_put_string(&meta, "tokenizer.chat_template", "<|im_start|>system\nx<|im_end|>");
        done = fm_tokenizer_put_meta(&meta, &tk, tk.vocab_size) == NB_OK &&
               fm_gguf_write(path, NULL, 0, &meta, (fm_source){0}) == NB_OK;
    } else {
        done = fm_tokenizer_to_bytes(&tk, &data, &bytes) == NB_OK && store(path, data, bytes);
    }
    free(data);
    fm_meta_free(&meta);
    fm_tokenizer_free(&tk);
    return done;
}

static bool seed_bpe(int k, const char *path)
{
    return seed_converted(k, path, false);
}

static bool seed_gguf(int k, const char *path)
{
    return k == 0 ? seed_converted(1, path, true) : k == 1 && seed_bytes_gguf(path);
}

/* ---- texts ---- */

static status read_text(const char *path)
{
    for (int split = FM_SPLIT_NONE; split <= FM_SPLIT_BLANK; split++) {
        fm_documents *d;
        TRY(fm_documents_open(&d, path, (fm_split)split));
        fm_text t = {"", 0};
        status s = NB_OK;
        while (s == NB_OK && t.text) {
            s = fm_documents_next(d, &t);
            touch(t.text, t.bytes);
        }
        fm_documents_close(d);
        TRY(s);
    }
    return NB_OK;
}

static bool seed_gz(int k, const char *path)
{
    gzFile f = k == 0 ? gzopen(path, "wb") : NULL;
    for (int i = 0; f && i < 3000; i++)
        (void)gzprintf(f, "line %d of a text\n%s", i * i, i % 5 ? "" : "\n");
    return f && gzclose(f) == Z_OK;
}

/* ---- token files ---- */

static status read_tokens(const char *path)
{
    fm_tokens t;
    int32_t ids[100];
    int64_t start[100];
    TRY(fm_tokens_open(&t, path, NULL, FM_SPLIT_NONE));
    status s = NB_OK;
    for (int64_t at = 0, n; at < t.n && s == NB_OK; at += n) {
        n = t.n - at < 100 ? t.n - at : 100;
        s = fm_tokens_read(&t, ids, at, n);
        for (int64_t i = 0; s == NB_OK && i < n; i++)
            if (ids[i] < 0 || ids[i] >= t.vocab_size)
                abort();
    }
    for (int64_t at = 0, n; at <= t.n_documents && s == NB_OK; at += n) {
        n = t.n_documents + 1 - at < 100 ? t.n_documents + 1 - at : 100;
        s = fm_tokens_documents(&t, start, at, n);
        for (int64_t i = 0; s == NB_OK && i < n; i++)
            if (start[i] < 0 || start[i] > t.n)
                abort();
    }
    fm_tokens_close(&t);
    return s;
}

static fm_tokens_settings settings(const fm_tokenizer *tk)
{
    return (fm_tokens_settings){258, 16, 1, "{\"temperature\":1,\"start\":[\"bos\"]}", tk};
}

static status write_batches(fm_tokens_writer *w, const char *path, int64_t n)
{
    fm_tokenizer tk;
    TRY(fm_tokenizer_byte(&tk));
    fm_tokens_settings s = settings(&tk);
    status done = fm_tokens_writer_open(w, path, &s, false);
    while (done == NB_OK && w->n_batches < n) {
        int32_t ids[64];
        for (int i = 0; i < 64; i++)
            ids[i] = i % 16 ? (int32_t)nb_random(1, (uint64_t)w->n_batches, (uint64_t)i) & 255 : 256;
        done = fm_tokens_writer_append(w, ids, 64, NULL, 0);
    }
    fm_tokenizer_free(&tk);
    return done;
}

static bool seed_tokens(int k, const char *path)
{
    fm_tokens_writer w = {0};
    bool done = k == 0 && write_batches(&w, path, 5) == NB_OK && fm_tokens_writer_finish(&w) == NB_OK;
    fm_tokens_writer_close(&w);
    return done;
}

/* ---- growing token files ---- */

static bool seed_growing(int k, const char *path)
{
    char name[600], part[610];
    (void)snprintf(name, sizeof name, "%s.name", path);
    (void)snprintf(part, sizeof part, "%s.part", name);
    fm_tokens_writer w = {0};
    bool done = k == 0 && write_batches(&w, name, 5) == NB_OK;
    fm_tokens_writer_close(&w);
    return done && rename(part, path) == 0;
}

/* Goes on with the file, finishes it and reads the result. */
static status read_growing(const char *path)
{
    char name[600], part[610];
    (void)snprintf(name, sizeof name, "%s.name", path);
    (void)snprintf(part, sizeof part, "%s.part", name);
    if (!copy_file(part, path))
        return NB_IO;
    fm_tokens_writer w = {0};
    status s = write_batches(&w, name, 6);
    if (s == NB_OK)
        s = fm_tokens_writer_finish(&w);
    fm_tokens_writer_close(&w);
    if (s == NB_OK)
        s = read_tokens(name);
    (void)unlink(part);
    (void)unlink(name);
    return s;
}

static uint32_t get32(const uint8_t *p)
{
    uint32_t x;
    memcpy(&x, p, 4);
    return x;
}

static void fix_growing(uint8_t *data, size_t bytes)
{
    for (size_t at = 0, n; bytes - at >= 16; at += n) {
        n = at == 0 ? get32(data + 12) : 8 + (size_t)get32(data + at) * 2 + (size_t)get32(data + at + 4) * 4 + 4;
        if (n < 12 || n > bytes - at)
            return;
        uint32_t crc = nb_crc32c(0, data + at, n - 4);
        memcpy(data + at + n - 4, &crc, 4);
    }
}

/* ---- forged token files ---- */

/* What such a file holds: six numbers, then ids, documents and tokenizer as they come. */
enum { N_IDS, N_DOCUMENTS, N_TOKENIZER, VOCAB_SIZE, ROW_LENGTH, VERSION, N_NUMBERS };

static bool seed_forged(int k, const char *path)
{
    fm_tokenizer tk;
    uint8_t *data, out[8192];
    size_t bytes;
    if (k > 0 || fm_tokenizer_byte(&tk) != NB_OK || fm_tokenizer_to_bytes(&tk, &data, &bytes) != NB_OK)
        return false;
    const int64_t number[N_NUMBERS] = {64, 4, (int64_t)bytes, 258, 16, 1}, start[4] = {0, 16, 20, 63};
    memcpy(out, number, sizeof number);
    uint8_t *ids = out + sizeof number;
    for (int i = 0; i < 64; i++)
        ids[2 * i] = ids[2 * i + 1] = i % 2;
    memcpy(ids + 128, start, sizeof start);
    memcpy(ids + 128 + sizeof start, data, bytes);
    fm_tokenizer_free(&tk);
    free(data);
    return store(path, out, sizeof number + 128 + sizeof start + bytes);
}

/* A list that begins at *from, cut where the file ends. */
static status write_list(fm_h5 *f, const char *name, fm_dtype t, int64_t n, const nb_mapped *m, size_t *from)
{
    int64_t left = (int64_t)((m->bytes - *from) / fm_dtype_bytes(t));
    n = n < 0 ? 0 : n < left ? n : left;
    TRY(fm_h5_write(f, name, t, 1, &n, m->data + *from));
    *from += (size_t)n * fm_dtype_bytes(t);
    return NB_OK;
}

static status write_forged(const char *path, const nb_mapped *m)
{
    int64_t number[N_NUMBERS] = {0};
    memcpy(number, m->data, m->bytes < sizeof number ? m->bytes : sizeof number);
    size_t at = m->bytes < sizeof number ? m->bytes : sizeof number;
    fm_h5 f;
    TRY(fm_h5_create(&f, path, "tokens"));
    (void)fm_h5_put_int(&f, "", "format_version", number[VERSION]);
    (void)fm_h5_put_int(&f, "", "vocab_size", number[VOCAB_SIZE]);
    (void)fm_h5_put_int(&f, "", "row_length", number[ROW_LENGTH]);
    (void)fm_h5_put_int(&f, "", "seed", 1);
    (void)fm_h5_put_string(&f, "", "settings", "{}");
    (void)fm_h5_put_string(&f, "", "tokenizer_hash", "e0a4fa9ec4f1f0b5");
    (void)write_list(&f, "ids", FM_U16, number[N_IDS], m, &at);
    (void)write_list(&f, "documents", FM_I64, number[N_DOCUMENTS], m, &at);
    (void)write_list(&f, "tokenizer", FM_U8, number[N_TOKENIZER], m, &at);
    status s = fm_h5_commit(&f);
    fm_h5_close(&f);
    return s;
}

static status read_forged(const char *path)
{
    char name[600];
    (void)snprintf(name, sizeof name, "%s.h5", path);
    nb_mapped m;
    TRY(nb_map(&m, path));
    status s = write_forged(name, &m);
    nb_unmap(&m);
    if (s == NB_OK)
        s = read_tokens(name);
    (void)unlink(name);
    return s;
}

int main(int argc, char **argv)
{
    static const fuzz_target targets[] = {
        {.name = "tokenizer_bin", .seed = seed_bin, .read = read_tokenizer},
        {.name = "tokenizer_model", .seed = seed_model, .read = read_tokenizer},
        {.name = "tokenizer_serialized", .seed = seed_serialized, .read = read_tokenizer},
        {.name = "tokenizer_json", .seed = seed_json, .read = read_tokenizer},
        {.name = "tokenizer_bpe", .seed = seed_bpe, .read = read_tokenizer},
        {.name = "tokenizer_gguf", .seed = seed_gguf, .read = read_tokenizer},
        {.name = "text_gz", .seed = seed_gz, .read = read_text},
        {.name = "tokens", .seed = seed_tokens, .read = read_tokens},
        {.name = "tokens_growing", .seed = seed_growing, .fix = fix_growing, .read = read_growing},
        {.name = "tokens_forged", .seed = seed_forged, .read = read_forged},
    };
    return fuzz_main(argc, argv, targets, sizeof targets / sizeof *targets);
}
